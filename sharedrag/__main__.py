"""`python -m sharedrag` is the `sharedrag` command."""

from sharedrag.cli import app

app(prog_name="sharedrag")
