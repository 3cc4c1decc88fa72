"""What becomes of indexes, columns and postings: merges, deletes, drops, damage, want of room, kills, new processes."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from typing import Any

import numpy as np
import pytest

from sharedrag import Collection, Pool, PoolFull
from sharedrag.arena import block
from sharedrag.arena.manifest import Entry, Kind, State
from sharedrag.maintenance import derive
from sharedrag.memory.layout import EXTENT_SIZE
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import alone, segments_of
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote
from tests.index_helpers import World, compared, counted_uses, covered_rows, index_entries, leftovers, put_all, settled

ROWS = 3000
WIDTH = 32
RECALL = 0.9  # of few questions; test_indexes measures it
BLOCKS = (Kind.COLUMNS, Kind.TERMS, Kind.INDEX)


@pytest.fixture
def kept(pool_path: str) -> Iterator[Pool]:
    """A new pool without care in the background: what is maintained is maintained by the test."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as opened:
        yield alone(opened)


def numbered(count: int) -> list[dict[str, Any]]:
    """Metadata for records."""
    return [{"number": number, "third": number % 3 == 0} for number in range(count)]


def fill(pool: Pool, name: str = "c", rows: int = ROWS, seed: int = 1) -> tuple[Collection, World]:
    """A collection with vectors, texts and metadata, with all blocks that belong to it."""
    world = World(WIDTH, seed=seed)
    collection = pool.collection(name, dimension=WIDTH)
    put_all(collection, world.draw(rows), metadata=numbered(rows))
    settled(pool)
    return collection, world


def answers_right(collection: Collection, world: World) -> None:
    """By vector, with a filter, by words: all is found that belongs in."""
    questions = world.draw(30)
    assert compared(collection, questions) >= RECALL
    assert compared(collection, questions, filter={"third": True}) >= RECALL
    assert compared(collection, questions, filter={"number": {"<": 40}}) == 1.0
    for record in collection.find({"number": {"<": 40}}, limit=1):
        assert record.text and record.id in [hit.id for hit in collection.search(text=record.text, k=20)]


def held(path: str) -> int:
    """Bytes of memory behind the file."""
    return os.stat(path).st_blocks * 512


# ---------------------------------------------------------------------- merges and deletes


def test_an_index_follows_its_rows_through_merges(kept: Pool) -> None:
    """Updates and deletes until segments are rewritten: the index is renumbered, not built anew, and drops what is dead."""
    collection, world = fill(kept)
    (before,) = index_entries(kept)
    gone = range(0, ROWS, 2)
    collection.delete([str(number) for number in gone])
    settled(kept)
    (after,) = index_entries(kept)
    assert after.uid != before.uid
    assert ROWS - len(gone) <= after.rows < 0.7 * ROWS, "dead rows stay only in the open segment"
    assert (after.nprobe, after.candidates) == (before.nprobe, before.candidates), "it was made anew"
    answers_right(collection, world)


def test_an_index_covers_a_merged_segment_whole(kept: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Segments that it covers are merged with others: it takes the others' rows in, and no row is left to compare."""
    collection, world = fill(kept)
    (before,) = index_entries(kept)
    monkeypatch.setattr(derive, "_TAIL_ROWS", 1 << 40)  # no index is extended but by merging
    more = put_all(collection, world.draw(4 * ROWS), "more", numbered(4 * ROWS))
    collection.delete([str(number) for number in range(0, ROWS, 2)] + more[::2])  # all sealed segments are rewritten
    settled(kept)
    with collection._view() as view:
        sealed = [part.rows for part in view.parts if part.sealed]
    (after,) = index_entries(kept)
    assert len(sealed) == 1 and sealed[0] > before.rows
    assert sealed[0] <= covered_rows(kept) <= after.rows
    assert (after.nprobe, after.candidates) == (before.nprobe, before.candidates), "it was made anew"
    answers_right(collection, world)


def test_deletes_give_memory_back_with_all_that_was_derived(kept: Pool) -> None:
    """Of 12,000 records nine in ten go: blocks and segments shrink with them. When all go, so does every block."""
    rows = 12_000
    collection, world = fill(kept, rows=rows)
    before = _sizes(kept)
    collection.delete([str(number) for number in range(rows) if number % 10])
    settled(kept)
    after = _sizes(kept)
    assert not leftovers(kept)
    assert all(before.values()) and all(after[kind] <= max(1, before[kind] // 3) for kind in before), (before, after)
    fixed = _beside_entries(kept)
    answers_right(collection, world)
    collection.delete([str(number) for number in range(rows)])
    settled(kept)
    assert not any(_sizes(kept)[kind] for kind in BLOCKS)
    assert collection.search(world.draw(1)[0]) == []
    fill(kept, "again")
    kept.drop("again")
    settled(kept)
    assert _beside_entries(kept) <= fixed + (1 << 16), "rounds leave something behind"


def _sizes(pool: Pool) -> dict[Kind, int]:
    """Extents of sealed segments and of blocks. (An open segment keeps what a lane has yet to fill.)"""
    kinds = (Kind.SEGMENT, *BLOCKS)
    found = {kind: [entry for entry in index_entries(pool, kind) if entry.state == State.SEALED] for kind in kinds}
    return {kind: sum(entry.extents for entry in entries) for kind, entries in found.items()}


def _beside_entries(pool: Pool) -> int:
    """Bytes of memory that no entry accounts for: areas, manifests, what is kept for rescue, and what leaks."""
    entries = [entry for one in pool.arena.refresh().manifests for entry in one.entries]
    return held(pool.path) - sum(entry.extents for entry in entries) * EXTENT_SIZE


def test_many_rounds_of_overwriting_keep_few_blocks(kept: Pool) -> None:
    """Every record is replaced ten times over, maintained in between: no index, block or byte is left of what was."""
    collection, world = fill(kept)
    most = []
    for _ in range(10):
        put_all(collection, world.draw(ROWS), metadata=numbered(ROWS))
        settled(kept)
        most.append(held(kept.path))
        assert len(index_entries(kept)) <= 2 and not leftovers(kept)
        assert compared(collection, world.draw(10)) >= RECALL
    assert max(most[5:]) <= 1.5 * max(most[:5])
    answers_right(collection, world)
    assert kept.verify().ok


# ---------------------------------------------------------------------- other pools and nodes


def test_a_preallocated_pool_has_indexes_over_used_memory(pool_path: str) -> None:
    """Blocks are written over what older ones left; nothing of that is taken for theirs."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", preallocate=True, maintenance=False) as pool:
        alone(pool)
        for round_ in range(4):
            collection, world = fill(pool, f"round {round_}", seed=round_)
            assert covered_rows(pool) == ROWS
            answers_right(collection, world)
            with Pool.open(pool_path, maintenance=False) as other:
                answers_right(other.collection(collection.name), world)
            pool.drop(collection.name)
            settled(pool)
            assert not leftovers(pool)
        assert pool.verify().ok


def test_each_node_indexes_what_is_its_own(pool_path: str) -> None:
    """Two nodes write the same ids in turn; each one's index leaves out what the other replaced, whoever asks."""
    with (
        Pool.open(pool_path, create=True, capacity="64 MiB", nodes=2, maintenance=False) as first,
        Pool.open(pool_path, node=1, maintenance=False) as second,
    ):
        alone(first), alone(second)
        world = World(WIDTH, seed=4)
        ours, theirs = first.collection("c", dimension=WIDTH), second.collection("c", dimension=WIDTH)
        put_all(ours, world.draw(2 * ROWS), metadata=numbered(2 * ROWS))
        settled(first)
        put_all(theirs, world.draw(ROWS), metadata=numbered(ROWS))  # replaces half of the first node's
        for _ in range(3):
            for pool in (second, first):
                settled(pool)
                for collection in (ours, theirs):
                    answers_right(collection, world)
            ours.delete([str(number) for number in range(0, ROWS, 7)])
            put_all(theirs, world.draw(600), metadata=numbered(600))
        assert {entry.uid >> 48 for entry in index_entries(first)} == {0, 1}
        with counted_uses() as uses:
            ours.search(world.draw(1)[0])
        assert uses == [2]
        assert first.verify().ok


def test_a_collection_is_dropped_and_made_anew_while_indexed(kept: Pool) -> None:
    """Its blocks go with it; the new one of that name starts without, and never finds what was in the old one."""
    collection, world = fill(kept)
    other, other_world = fill(kept, "other", seed=2)
    assert collection.search(world.draw(1)[0])
    for seed in (3, 4):
        kept.drop("c")
        again = kept.collection("c", dimension=WIDTH)
        assert again.search(world.draw(1)[0]) == []
        again.put(["only"], world.draw(1))
        assert [hit.id for hit in again.search(world.draw(1)[0])] == ["only"]
        assert [hit.id for hit in collection.search(world.draw(1)[0])] == ["only"], "the old object is of the same name"
        settled(kept)
        assert not leftovers(kept) and covered_rows(kept) == ROWS
        _, world = fill(kept, "c", seed=seed)
        answers_right(again, world)
        answers_right(other, other_world)
    wider = World(2 * WIDTH, seed=9)
    kept.drop("c")
    other_kind = kept.collection("c", dimension=2 * WIDTH, metric="l2")
    put_all(other_kind, wider.draw(ROWS))
    settled(kept)
    assert compared(other_kind, wider.draw(30)) >= RECALL


# ---------------------------------------------------------------------- damage


def damage(pool: Pool, entry: Entry, at: int) -> None:
    """Change one byte of a block, counted from its start, or from the end of what is used."""
    offset = pool.arena.geometry.extent_offset(pool.arena.node, entry.first_extent)
    with open(pool.path, "r+b") as file:
        file.seek(offset + (at if at >= 0 else entry.size_used + at))
        before = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([before ^ 0x40]))


@pytest.mark.parametrize("at", [0, 5, 20, block.HEADER_SIZE + 2, block.HEADER_SIZE + 200, -3])
@pytest.mark.parametrize("kind", BLOCKS)
def test_a_damaged_block_costs_time_and_never_an_answer(kept: Pool, kind: Kind, at: int) -> None:
    """Who opens the pool after the damage answers right, `verify` names the place, and maintenance makes the block anew."""
    collection, world = fill(kept)
    for entry in index_entries(kept, kind):
        damage(kept, entry, at)
    answers_right(collection, world)  # it was opened before
    report = kept.verify()
    assert not report.ok
    start = kept.arena.geometry.extent_offset(0, index_entries(kept, kind)[0].first_extent)
    assert any(start <= problem.offset < start + (1 << 20) for problem in report.problems)
    with Pool.open(kept.path, maintenance=False) as other:
        alone(other)
        answers_right(other.collection("c"), world)
        settled(other)
        assert other.verify().ok
        assert sum(bool(index_entries(other, one)) for one in BLOCKS) == 3
        answers_right(other.collection("c"), world)
    answers_right(collection, world)


# ---------------------------------------------------------------------- want of room


def test_a_full_pool_answers_without_blocks(pool_path: str) -> None:
    """There is no room for an index: puts, deletes and searches go on; with room again, there is one."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        alone(pool)
        world = World(64, seed=5)
        collection = pool.collection("c", dimension=64)
        written = 0
        with suppress(PoolFull):
            for written in range(0, 100_000, 100):
                ids = [str(number) for number in range(written, written + 100)]
                collection.put(ids, world.draw(100), metadata=[{"number": int(one)} for one in ids])
        assert written > ROWS
        settled(pool)
        assert compared(collection, world.draw(20)) >= RECALL
        assert compared(collection, world.draw(20), filter={"number": {"<": 2000}}) >= RECALL
        assert pool.verify().ok
        full = len(collection)
        assert full == written
        collection.delete([str(number) for number in range(0, written, 2)])
        settled(pool)
        assert compared(collection, world.draw(20)) >= RECALL
        assert covered_rows(pool) >= ROWS, "there is room for an index now"
        with suppress(PoolFull):  # and again: what is derived must not keep records out for good
            for start in range(0, written, 100):
                collection.put([f"new {start + number}" for number in range(100)], world.draw(100))
        assert len(collection) >= 0.7 * full
        settled(pool)
        assert compared(collection, world.draw(20)) >= RECALL
        assert pool.verify().ok


# ---------------------------------------------------------------------- kills


@pytest.mark.parametrize("nth", [1, 2, 3])
@pytest.mark.parametrize("point", ["block.building", "block.written", "block.published"])
def test_a_killed_build_leaves_nothing(launcher: Launcher, kept: Pool, point: str, nth: int) -> None:  # noqa: F811
    """Columns, postings and the index in turn: readers see nothing of it, the next round builds, no extent is lost."""
    world = World(WIDTH, seed=6)
    empty = _beside_entries(kept)
    collection = kept.collection("c", dimension=WIDTH)
    put_all(collection, world.draw(ROWS), metadata=numbered(ROWS))
    remote = Remote(launcher, kept.path, fault=f"{point}:kill:{nth}", maintenance=False)
    remote.begin("", "maintain")
    assert remote.worker.wait() == -9
    answers_right(collection, world)
    settled(kept)
    assert not leftovers(kept)
    assert covered_rows(kept) == ROWS and len(index_entries(kept)) == 1
    answers_right(collection, world)
    assert _beside_entries(kept) <= empty + (1 << 16)
    assert kept.verify().ok


@pytest.mark.parametrize("point", ["block.written", "block.published", "merge.copied", "merge.published"])
def test_a_killed_merge_leaves_the_index_right(launcher: Launcher, kept: Pool, point: str) -> None:  # noqa: F811
    """The index that was to follow a merge, and the one that is there, are never mixed up with the wrong segments."""
    collection, world = fill(kept)
    collection.delete([str(number) for number in range(0, ROWS, 2)])
    remote = Remote(launcher, kept.path, fault=f"{point}:kill", maintenance=False)
    remote.begin("", "maintain")
    assert remote.worker.wait() == -9
    answers_right(collection, world)
    settled(kept)
    assert not leftovers(kept) and len(collection) == ROWS // 2
    answers_right(collection, world)
    assert kept.verify().ok


# ---------------------------------------------------------------------- processes


def test_a_new_process_uses_the_index_as_it_is(launcher: Launcher, kept: Pool) -> None:  # noqa: F811
    """It opens, searches with the index, and its own maintenance finds nothing to do."""
    collection, world = fill(kept)
    before = [entry.uid for kind in BLOCKS for entry in index_entries(kept, kind)]
    questions = world.draw(20)
    remote = Remote(launcher, kept.path, maintenance=False)
    found = remote.on("c", "search", questions, 10)
    assert found == collection.search(questions, 10)
    assert compared(collection, questions, found=found) >= RECALL
    report = remote.pool("maintain")
    assert report.elected and not report.blocks_built and not report.segments_merged
    assert [entry.uid for kind in BLOCKS for entry in index_entries(kept, kind)] == before
    kept.close()
    with Pool.open(kept.path, maintenance=False) as again, counted_uses() as uses:
        assert again.collection("c").search(questions, 10) == found
        assert uses == [20]


def test_an_index_is_used_across_fork(kept: Pool) -> None:
    """The child of a process that built and used an index searches with it, builds one itself, and ends."""
    collection, world = fill(kept)
    questions = world.draw(20)
    before = collection.search(questions, 10, {"third": True})
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            same = collection.search(questions, 10, {"third": True}) == before
            put_all(collection, world.draw(ROWS), prefix="child ", metadata=numbered(ROWS))
            built = kept.maintain().blocks_built
            code = 0 if same and built and compared(collection, questions) >= RECALL else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    settled(kept)
    assert len(collection) == 2 * ROWS
    answers_right(collection, world)


def test_a_lock_that_another_thread_held_at_the_fork_is_not_the_childs(kept: Pool) -> None:
    """Whatever a thread of the parent is in the midst of, searching or reading or remembering a filter."""
    collection, world = fill(kept)
    question = world.draw(1)[0]
    collection.search(question, 10, {"third": True}), collection.search(text="text")
    with collection._view() as view:
        (index, *_) = collection._planner._plan(view).indexes
    locks = [index._lock, collection.masks._lock, collection.lexicon._lock, collection.live._readers_lock]
    with ExitStack() as held:
        for lock in locks:
            held.enter_context(lock)
        pid = os.fork()
        if pid == 0:
            signal.alarm(30)
            code = 1
            try:
                found = collection.search(question, 10, {"third": False}), collection.search(text="text")
                code = 0 if all(found) else 2
            finally:
                os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


def test_an_old_view_keeps_its_answers(kept: Pool) -> None:
    """A handle that does not move on searches its own cut with the index of that time, while others rebuild and merge."""
    collection, world = fill(kept)
    questions = world.draw(20)
    before = collection.search(questions, 10)
    view = collection.live.acquire()
    with Pool.open(kept.path, maintenance=False) as other:
        alone(other)
        theirs = other.collection("c")
        for _ in range(3):
            put_all(theirs, world.draw(ROWS), metadata=numbered(ROWS))
            other.maintain()
        masks: list[Any] = [None] * len(view.parts)
        unit = (questions / np.linalg.norm(questions, axis=1, keepdims=True)).astype(np.float32)
        found = collection._planner.search(view, masks, "", unit, 10, False)
        ids = [[_id(view, part, row) for part, row in zip(one.parts, one.rows, strict=True)] for one in found]
        assert ids == [[hit.id for hit in hits] for hits in before]
        collection.live.release()
        del view
        answers_right(collection, world)
        settled(other)
    assert segments_of(kept, "c")


def _id(view: Any, part: int, row: int) -> str:
    found: bytes = view.parts[part].segment.id_at(row)
    return found.decode()
