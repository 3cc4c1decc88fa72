"""Nine of ten rows deleted: what of the memory comes back to the system."""

from __future__ import annotations

import time
from pathlib import Path

from sharedrag import Pool
from tests.bench_search.stage import NAME, Tell, held, settle
from tests.peers.protocol import identifier

_AT_ONCE = 10_000


def delete_most(path: Path, rows: int, tell: Tell) -> dict[str, float]:
    """Delete all but every tenth row and maintain; seconds, and bytes of memory before and after."""
    before = held(path)
    ids = [identifier(number) for number in range(rows) if number % 10]
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection(NAME)
        begun = time.perf_counter()
        for start in range(0, len(ids), _AT_ONCE):
            collection.delete(ids[start : start + _AT_ONCE])
            tell(f"deleting: {start:,} of {len(ids):,}")
        deleted_s = time.perf_counter() - begun
        tell("giving memory back")
        settle_s = settle(pool)
        left = len(collection)
    return {"before": before, "after": held(path), "delete_s": deleted_s, "settle_s": settle_s, "left": left}
