"""A pool with real rows, loaded and indexed, and what that took."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from sharedrag import Pool
from sharedrag.arena.manifest import Kind
from tests.peers.corpus import Corpus
from tests.peers.protocol import DIMENSION

NAME = "records"
BATCH = 1_000
_BYTES_PER_ROW = 5_500  # twice what a row takes: merging needs room for both
_ROOM = 1 << 30

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Loaded:
    """Seconds of putting and of maintenance until nothing was left to do, and what the pool then held, in bytes."""

    rows: int
    put_s: float
    settle_s: float
    index_bytes: int
    terms_bytes: int
    columns_bytes: int
    memory_bytes: int
    recall: float

    @property
    def rows_per_s(self) -> float:
        """From the first put until all is indexed."""
        return self.rows / (self.put_s + self.settle_s)


def load(path: Path, corpus: Corpus, tell: Tell) -> Loaded:
    """Make a pool with all rows; the time to make the batches is not counted."""
    rows = len(corpus.vectors)
    with Pool.open(path, create=True, capacity=_BYTES_PER_ROW * rows + _ROOM, maintenance=False) as pool:
        collection = pool.collection(NAME, dimension=DIMENSION)
        put_s = 0.0
        for number, batch in enumerate(corpus.batches(BATCH)):
            begun = time.perf_counter()
            collection.put(batch.ids, batch.vectors, batch.texts, batch.metadata)
            put_s += time.perf_counter() - begun
            if number % 20 == 0:
                tell(f"loading {rows:,} rows: {number * BATCH:,}")
        tell(f"indexing {rows:,} rows")
        settle_s = settle(pool)
        assert len(collection) == rows
        sizes = dict.fromkeys(Kind, 0)
        for one in pool.arena.refresh().manifests:
            for entry in one.entries:
                if entry.visible:
                    sizes[Kind(entry.kind)] += entry.size_used
        [info] = pool.info().collections
        recall = min((one.recall for one in info.indexes), default=1.0)
    return Loaded(rows, put_s, settle_s, sizes[Kind.INDEX], sizes[Kind.TERMS], sizes[Kind.COLUMNS], held(path), recall)


def settle(pool: Pool) -> float:
    """Maintain until a round finds nothing to do; the seconds it took."""
    begun = time.perf_counter()
    pool.settle()
    return time.perf_counter() - begun


def held(path: Path) -> int:
    """Bytes of memory behind a pool's file."""
    return os.stat(path).st_blocks * 512
