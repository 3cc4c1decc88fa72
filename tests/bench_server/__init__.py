"""Figures of the server: `make bench-server`."""
