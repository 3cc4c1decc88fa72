"""Bulk load of all rows until the index stands; the time to make the rows themselves is not counted.

A peer that is so slow that it cannot be done in time is not waited for: the table says how far it was.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tests.peers.job import Job, rounded, tell
from tests.peers.protocol import Cannot, Rows

_BATCH = 1_000
_JUDGED_AFTER_S = 60.0


class _Timed:
    """Batches of rows, and the time it took to make them."""

    def __init__(self, batches: Iterator[Rows], rows: int, limit_s: float) -> None:
        self._batches = batches
        self._rows = rows
        self._limit_s = limit_s
        self._begun = time.perf_counter()
        self.loaded = 0
        self.making_s = 0.0

    def __iter__(self) -> Iterator[Rows]:
        while True:
            begun = time.perf_counter()
            batch = next(self._batches, None)
            self.making_s += time.perf_counter() - begun
            if batch is None:
                tell("indexing")
                return
            yield batch
            self.loaded += len(batch.ids)
            if self.loaded % (10 * _BATCH) == 0:
                tell(f"loaded {self.loaded:,} of {self._rows:,}")
            self._judge()

    def _judge(self) -> None:
        """Raises `Cannot` if at this rate the limit is missed, even if indexing afterwards took no time."""
        taken = time.perf_counter() - self._begun
        if taken > _JUDGED_AFTER_S and taken / self.loaded * self._rows > self._limit_s:
            so_far = f"after {taken:.0f} s it had taken {self.loaded:,} of {self._rows:,} rows"
            raise Cannot(f"not done within {self._limit_s:.0f} s: {so_far}")


def run(job: Job) -> dict[str, Any]:
    """Make the store, load it, close it."""
    rows = job.place.rows
    batches = _Timed(job.corpus.batches(_BATCH, rows), rows, job.limit_s)
    job.kind.create(job.place)
    begun = time.perf_counter()
    peer = job.kind(job.place)
    peer.load(batches)
    taken = time.perf_counter() - begun - batches.making_s
    peer.close()
    stored = sum(file.stat().st_blocks * 512 for file in Path(job.place.folder).rglob("*") if file.is_file())
    return {
        "rows": batches.loaded,
        "seconds": rounded(taken),
        "rows_per_s": rounded(batches.loaded / taken),
        "bytes_per_row": round(stored / batches.loaded),
    }
