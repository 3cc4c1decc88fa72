"""A new process: imports, then opens the store and asks its first question."""

from __future__ import annotations

import time
from statistics import median
from typing import Any

from tests.bench.children import Pipe, ask
from tests.peers.corpus import K
from tests.peers.job import Job, milliseconds_since, rounded, tell


def run(job: Job) -> dict[str, Any]:
    """The median of some new processes, in ms."""
    found = []
    for number in range(job.effort.openings):
        tell(f"opening {number + 1}")
        found.append(ask(_open, job))
    imported, opened, warm = (rounded(median(column)) for column in zip(*found, strict=True))
    return {"import_ms": imported, "open_and_query_ms": opened, "warm_query_ms": warm}


def _open(pipe: Pipe, job: Job) -> None:
    queries = job.corpus.queries
    begun = time.perf_counter_ns()
    _ = job.kind
    imported = milliseconds_since(begun)
    begun = time.perf_counter_ns()
    peer = job.open()
    if not peer.search(queries[0], K):
        raise RuntimeError("the first query found nothing")
    opened = milliseconds_since(begun)
    begun = time.perf_counter_ns()
    peer.search(queries[1], K)
    pipe.send((imported, opened, milliseconds_since(begun)))
    peer.close()
