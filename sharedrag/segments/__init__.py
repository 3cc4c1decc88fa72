"""Rows: segments and their columns, how batches become rows, the lane that appends them, and which of them are live."""
