"""What a peer says of itself; asks for its server's command, which may prepare the folder."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from tests.peers.job import Job


def run(job: Job) -> dict[str, Any]:
    """Version, settings, and how many rows it is given."""
    kind = job.kind
    fewer = kind.rows_max and kind.rows_max < job.place.rows
    return {
        "package": kind.package,
        "version": version(kind.package),
        "settings": kind.settings,
        "processes": kind.processes,
        "rows": kind.rows_max if fewer else job.place.rows,
        "why_rows": kind.why_rows if fewer else "",
        "server": kind.serve(job.place),
    }
