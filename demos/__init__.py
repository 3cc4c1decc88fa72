"""Demonstrations on real data: `python -m demos.hawaii`."""
