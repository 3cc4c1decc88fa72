"""Where the demo's pool lies: made anew each time, kept or removed at the end, and never in the place of another's."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sharedrag import Pool
from sharedrag.errors import PoolDamaged, PoolTruncated, PoolVersionUnsupported, SharedRagError

SHARED_MEMORY = Path("/dev/shm")
KEPT_NAME = "sharedrag-hawaii.pool"
CAPACITY = "2 GiB"  # address space; memory is taken as rows arrive
MARK = "made_by_demo"


class PlaceTaken(SharedRagError):
    """At the demo's path lies a pool that no demo made, or that processes have open."""


def default_pool_path(keep: bool) -> Path:
    """One known place for a pool that stays, a new one for a pool that goes."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else Path(tempfile.gettempdir())
    return folder / (KEPT_NAME if keep else f"sharedrag-demo-{os.getpid()}.pool")


@contextmanager
def claimed(path: Path, nodes: int, keep: bool) -> Iterator[Pool]:
    """A new pool at `path`, removed afterwards unless `keep`, and in any case if something raised meanwhile.

    A pool of an earlier demo is replaced. Raises `PlaceTaken`, and what `Pool.open` raises.
    """
    if path.exists():
        _check_replaceable(path)
        path.unlink()
    with Pool.open(path, create=True, capacity=CAPACITY, nodes=nodes, name="demo", maintenance=False) as pool:
        stays = False
        try:
            pool.collection(MARK).put(["made_by"], texts=["python -m demos.hawaii"])
            yield pool
            stays = keep
        finally:
            if not stays:
                os.unlink(pool.path)


def _check_replaceable(path: Path) -> None:
    try:
        with Pool.open(path, name="demo", maintenance=False) as pool:
            ours = MARK in pool.collections()
            others = [one for one in pool.info().sessions if one.pid != os.getpid()]
    except (PoolDamaged, PoolTruncated, PoolVersionUnsupported):
        if path.name == KEPT_NAME:
            return  # an earlier demo's, of an older format or cut short: only its name can still say so
        raise
    if not ours:
        what = "there is a pool already, and no demo made it"
        raise PlaceTaken(what, operation="demo", path=str(path), hint="Give another path with --pool")
    if others:
        who = ", ".join(f"{one.label or 'process'} ({one.pid})" for one in others[:4])
        hint = "Let them end first, or give another path with --pool"
        raise PlaceTaken(f"processes have this pool open: {who}", operation="demo", path=str(path), hint=hint)
