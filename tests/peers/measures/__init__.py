"""The measures; each is `run(job) -> dict`, plain data for the JSON. `Cannot` where the peer cannot."""

from __future__ import annotations

import importlib
from typing import Any

from tests.peers.job import Job

#: name -> module, in the order in which they are measured: the last three add rows (`facts` is asked first, of every peer)
MEASURES = {
    "load": "load",
    "query": "query",
    "opening": "opening",
    "memory": "memory",
    "visible": "visible",
    "writers": "writers",
    "kills": "kills",
}

#: Those that say how a store does with more rows; the others write, and tell as much with fewer.
READING = ["load", "query", "opening", "memory"]


def run(measure: str, job: Job) -> dict[str, Any]:
    """What the measure found."""
    found: dict[str, Any] = importlib.import_module(f"tests.peers.measures.{MEASURES.get(measure, measure)}").run(job)
    return found
