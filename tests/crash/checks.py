"""What must be true of a pool whatever happened to the processes that used it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from sharedrag import Collection, Pool
from sharedrag.arena import extents
from sharedrag.arena.manifest import State as EntryState
from sharedrag.memory.layout import EXTENT_SIZE
from tests.crash.script import Records, State, Stored


def observe(pool: Pool, collections: Iterable[str] | None = None) -> State:
    """Everything that a handle sees, after a look whether all ways of reading agree."""
    found = pool.collections()
    return {name: records_of(pool.collection(name)) for name in found if collections is None or name in collections}


def records_of(collection: Collection) -> Records:
    """The live records, read by find, get, scan, search and len, which must tell the same."""
    records = {record.id: record for record in collection.find()}
    seen = {
        one: Stored(
            record.text or "",
            record.metadata,
            None if record.vector is None else tuple(round(float(part), 3) for part in record.vector),
        )
        for one, record in records.items()
    }
    assert len(collection) == len(seen)
    got = collection.get(list(seen))
    assert [one and one.text for one in got] == [one.text for one in seen.values()], "get and find differ"
    scanned = collection.scan(columns=["id"])["id"].to_pylist()
    assert sorted(scanned) == sorted(seen), "scan and find differ"
    if collection.dimension:
        query = np.ones(collection.dimension, np.float32)
        hits = [hit.id for hit in collection.search(query, k=len(seen) + 10)]
        assert sorted(hits) == sorted(one for one, record in seen.items() if record.vector), "search and find differ"
    return seen


def fixed_memory(pool: Pool) -> int:
    """Bytes behind everything but extents, counted in a pool without collections."""
    return pool.arena.region.allocated() - entry_bytes(pool)


def entry_bytes(pool: Pool) -> int:
    """Bytes that the manifests' entries name, those in the rescue extents left out: their memory is always there."""
    geometry = pool.arena.geometry
    return sum(
        entry.extents * EXTENT_SIZE
        for one in pool.arena.refresh().manifests
        for entry in one.entries
        if not extents.is_rescue(geometry, entry.first_extent)
    )


def check_map(pool: Pool) -> None:
    """No extent has two owners, none lies outside, every entry's collection exists or is on its way out."""
    for one in pool.arena.refresh().manifests:
        numbers = {collection.number for collection in one.collections}
        assert len(numbers) == len(one.collections)
        taken: set[int] = set()
        for entry in one.entries:
            run = set(range(entry.first_extent, entry.first_extent + entry.extents))
            assert not run & taken, f"extents {sorted(run & taken)} have two owners"
            assert max(run) < pool.arena.geometry.extents_per_node
            taken |= run
            assert not entry.visible or entry.collection in numbers, "a visible entry without its collection"


def check_space(pool: Pool, fixed: int) -> None:
    """After maintenance nothing is half-done, and memory stands behind the manifests' entries and nowhere else."""
    check_map(pool)
    states = {EntryState(entry.state).name for one in pool.arena.refresh().manifests for entry in one.entries}
    assert not states & {"BUILDING", "PUNCHING", "RETIRED"}, states
    allocated, named = pool.arena.region.allocated(), fixed + entry_bytes(pool)
    assert allocated == named, f"{allocated - named:,} bytes stand behind nothing"


def check_verifies(pool: Pool) -> None:
    """`verify` finds nothing."""
    report = pool.verify()
    assert report.ok, report.problems[:3]
