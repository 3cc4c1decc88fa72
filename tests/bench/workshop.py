"""Where a run of the bench keeps its pools, how large it is, and how it says what it is doing."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from sharedrag import Pool
from tests.bench import data

COLLECTION = "history"
_LOAD_BATCH = 1000
_SETTLE_ROUNDS_MAX = 20


@dataclass(frozen=True)
class Size:
    """How much of everything."""

    rounds: int
    records: int  # written by one writer in a round
    fleet_records: int  # written by each of four writers in a round
    samples: int  # rows whose way from writer to reader is timed
    unsealed: int  # rows in the open segment meanwhile, on average
    rows: int  # of the large pool
    queries: int
    searched: tuple[int, ...]  # sizes of the pools that are searched


SIZES = {
    "tiny": Size(1, 200, 100, 20, 50, 300, 20, (100, 300)),
    "quick": Size(3, 20_000, 10_000, 300, 1000, 20_000, 200, (1000, 20_000)),
    "full": Size(5, 50_000, 40_000, 1000, 1000, 100_000, 1000, (1000, 10_000, 100_000)),
}


class Workshop:
    """A folder on shared memory for one run; gone afterwards."""

    def __init__(self, size: Size, tell: Callable[[str], None]) -> None:
        shared_memory = Path("/dev/shm")
        self.size = size
        self.tell = tell
        self.folder = Path(
            tempfile.mkdtemp(prefix="sharedrag-bench-", dir=shared_memory if shared_memory.is_dir() else None)
        )
        self._pools: dict[int, Pool] = {}
        self._fresh = 0

    def fresh(self, name: str) -> str:
        """A path that nothing has used yet."""
        self._fresh += 1
        return str(self.folder / f"{name}-{self._fresh}")

    def remove(self, path: str) -> None:
        """Give its memory back now: the next round wants it."""
        Path(path).unlink(missing_ok=True)

    def made(self, name: str, capacity: str, *, preallocate: bool) -> str:
        """The path of a new, empty pool."""
        path = self.fresh(name)
        Pool.open(path, create=True, capacity=capacity, preallocate=preallocate).close()
        return path

    def loaded(self, rows: int) -> str:
        """The path of a pool with that many rows, merged until it settled, which this process keeps open and has read."""
        if rows not in self._pools:
            self.tell(f"loading {rows:,} rows")
            pool = self._pools[rows] = Pool.open(self.fresh("loaded"), create=True, capacity="1 GiB", maintenance=False)
            collection = pool.collection(COLLECTION, dimension=data.DIMENSION)
            for call in data.records(rows, seed=1).calls(_LOAD_BATCH):
                collection.put(*call)
            for _ in range(_SETTLE_ROUNDS_MAX):
                report = pool.maintain()
                if not (report.segments_merged or report.segments_freed or report.blocks_built):
                    break
            collection.search(data.vectors(1, seed=2)[0])
        return self._pools[rows].path

    def __enter__(self) -> Workshop:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for pool in self._pools.values():
            pool.close()
        shutil.rmtree(self.folder, ignore_errors=True)
