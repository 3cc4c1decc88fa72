"""Bytes: every offset, the only ordered stores, kernel locks, the mapping, and what a pool file says of itself."""
