"""Watching a pool: what a look shows, and that the rates between two looks are those of what was written."""

from __future__ import annotations

import json
import multiprocessing
from collections import Counter

import numpy as np
import pytest

from sharedrag import Pool, info
from sharedrag.arena.extents import gaps
from sharedrag.watch import PoolSample, PoolWatch


def _put(pool: Pool, first: int, count: int, collection: str = "history") -> None:
    vectors = np.random.default_rng(first).standard_normal((count, 8)).astype(np.float32)
    ids = [f"m{number}" for number in range(first, first + count)]
    pool.collection(collection, dimension=8).put(ids, vectors, [f"text of {one}" for one in ids], [{"user": "ann"}] * count)


def _rows(sample: PoolSample) -> int:
    """How many rows were written between the look before and this one."""
    return round(sample.rows_per_s * sample.seconds)


def test_the_first_look_has_no_rates(pool: Pool) -> None:
    """What was there before the watch began is no news; later looks count from it."""
    _put(pool, 0, 500)
    watched = PoolWatch(pool, newest=3)
    first = watched.sample()
    assert (first.seconds, first.rows_per_s, first.lanes[0].rows_per_s) == (0.0, 0.0, 0.0)
    assert [one.id for one in first.newest] == ["m499", "m498", "m497"]
    assert watched.sample().rows_per_s == 0.0
    assert first.collections[0].rows == 500


def test_rows_are_counted_for_pool_node_lane_and_collection(pool: Pool) -> None:
    """All four agree on what was written since, over several segments that came and were sealed meanwhile."""
    watched = PoolWatch(pool)
    watched.sample()
    for start in range(0, 6000, 100):
        _put(pool, start, 100)
    _put(pool, 0, 30, "other")
    pool.collection("history").delete(["m1", "m2"])
    seen = watched.sample()
    assert _rows(seen) == 6032
    assert round(seen.nodes[0].rows_per_s * seen.seconds) == 6032
    assert round(seen.lanes[0].rows_per_s * seen.seconds) == 6032
    assert {one.name: round(one.rows_per_s * seen.seconds) for one in seen.collections} == {"history": 6002, "other": 30}
    assert seen.bytes_per_s > seen.rows_per_s * 8 * 4
    assert watched.sample().rows_per_s == 0.0


def test_merging_is_no_writing(pool: Pool) -> None:
    """Rows that maintenance copies are not counted again, and those written before it in the same interval are."""
    watched = PoolWatch(pool)
    for start in range(0, 3000, 100):
        _put(pool, start, 100)
        if start % 500 == 0:
            pool.maintain()
    watched.sample()
    _put(pool, 3000, 70)
    _put(pool, 0, 1500)  # half of the old rows are superseded: their segments are worth a merge
    assert pool.maintain().segments_merged
    assert _rows(watched.sample()) == 1570


def test_newest_writes_come_newest_first(pool: Pool) -> None:
    """The last writes are shown with where and when they were written; deletes too, and no more than were asked for."""
    watched = PoolWatch(pool, newest=3)
    watched.sample()
    _put(pool, 0, 10)
    pool.collection("history").delete(["m4"])
    newest = watched.sample().newest
    assert [(one.id, one.deleted) for one in newest] == [("m4", True), ("m9", False), ("m8", False)]
    assert (newest[1].text, newest[1].metadata, newest[1].collection) == ("text of m9", {"user": "ann"}, "history")
    _put(pool, 10, 1)
    assert [one.id for one in watched.sample().newest] == ["m10", "m4", "m9"]


def test_the_map_covers_exactly_what_is_not_free(pool: Pool) -> None:
    """Runs lie in file order, do not overlap, and leave out what the allocator calls free."""
    for start in range(0, 4000, 100):
        _put(pool, start, 100)
    pool.maintain()
    (node,) = PoolWatch(pool).sample().nodes
    covered = Counter(extent for run in node.runs for extent in range(run.first, run.first + run.extents))
    assert max(covered.values()) == 1
    assert list(node.runs) == sorted(node.runs)
    geometry = pool.arena.geometry
    free = {at for gap in gaps(pool.arena.refresh().manifests[0], geometry) for at in range(gap.first, sum(gap))}
    rescue = set(range(node.extents - geometry.rescue_extents, node.extents))
    assert set(range(node.extents)) - set(covered) - rescue == free
    assert {run.collection for run in node.runs} == {"history"}
    assert {"columns", "terms"} <= {run.kind for run in node.runs}


def test_open_segments_show_how_full_they_are(pool: Pool) -> None:
    """The lane says what it appends to; a run of the map begins there."""
    watched = PoolWatch(pool)
    _put(pool, 0, 50)
    seen = watched.sample()
    (segment,) = seen.lanes[0].open
    assert (segment.collection, segment.rows) == ("history", 50)
    assert segment.room >= 50
    assert segment.first in {run.first for run in seen.nodes[0].runs if run.state == "open"}


def test_json_is_compact_and_complete(pool: Pool) -> None:
    """A sample goes over the wire; runs are arrays."""
    _put(pool, 0, 50)
    seen = PoolWatch(pool).sample()
    told = json.loads(seen.model_dump_json())
    assert told["nodes"][0]["runs"] == [list(run) for run in seen.nodes[0].runs]
    assert told["sessions"][0]["memory_private"] > 0
    assert PoolSample.model_validate(told).nodes == seen.nodes


def _write_in_a_process(path: str) -> None:
    with Pool.open(path, maintenance=False) as pool:
        _put(pool, 1000, 200)


def test_another_process_is_seen(pool: Pool) -> None:
    """What another process wrote between two looks counts, though it is gone."""
    _put(pool, 0, 10)
    watched = PoolWatch(pool)
    watched.sample()
    writer = multiprocessing.get_context("spawn").Process(target=_write_in_a_process, args=(pool.path,))
    writer.start()
    writer.join(60)
    assert writer.exitcode == 0
    assert _rows(watched.sample()) == 200


def test_a_dropped_collection_ends_its_counts(pool: Pool) -> None:
    """Dropping is no writing, and what comes under the same name again is counted from nothing."""
    watched = PoolWatch(pool)
    _put(pool, 0, 100)
    watched.sample()
    pool.drop("history")
    gone = watched.sample()
    assert (gone.rows_per_s, gone.collections) == (0.0, [])
    _put(pool, 0, 40)
    assert _rows(watched.sample()) == 40


def test_memory_of_processes_is_looked_up_seldom(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten looks in a row ask the kernel once for this process; it is the dearest part of a look."""
    asked: list[int] = []
    real = info.process_memory

    def counted(pid: int, pool_inode: int) -> tuple[int | None, int | None]:
        asked.append(pid)
        return real(pid, pool_inode)

    monkeypatch.setattr(info, "process_memory", counted)
    watched = PoolWatch(pool)
    for _ in range(10):
        assert watched.sample().sessions[0].memory_private
    assert 1 <= len(asked) <= 3
