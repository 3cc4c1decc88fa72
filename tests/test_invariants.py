"""One test, or a few, for each of the numbered invariants of the design, on the arena as it is built. Here 1 to 6."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import xxhash

from sharedrag import Pool, PoolBusy, PoolFull, faults
from sharedrag.arena import manifest as manifests
from sharedrag.arena import session
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import Manifest, State
from sharedrag.arena.segment import Segment
from sharedrag.arena.session import Session
from sharedrag.memory import layout, locks, order
from sharedrag.memory.layout import EXTENT_SIZE, KEY_EPOCH_US, clock_of
from tests.crash import checks
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import Interrupting, alone, fill_and_decay, keys_of, notes, reclaimed, segments_of, texts_of, until
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote

_HOUR_US = 3600 * 1_000_000


# ---------------------------------------------------------------------- 1  every byte has one writer


def test_invariant_01_nothing_that_one_node_writes_is_written_by_another(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Node 0 puts, rolls, deletes, merges and reclaims: not one byte of node 1's area or extents changes."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", nodes=2, maintenance=False) as pool:
        other = Remote(launcher, pool_path, node=1, maintenance=False)
        other.on("notes", "put", ["x"], texts=["of node 1"])
        other.worker.signal(signal.SIGSTOP)  # its keeper moves its own pins: still its own bytes, but not now
        other.worker.wait_stopped()
        geometry = pool.arena.geometry
        start, end = geometry.node_offset(1), geometry.node_offset(1) + geometry.node_stride
        area = bytes(pool.arena.region.bytes[start:end])
        (own,) = [(entry, segment) for entry, segment in segments_of(pool) if entry.uid >> manifests.UID_NODE_SHIFT == 1]
        extents = bytes(pool.arena.region.bytes[own[1].offset : own[1].offset + own[0].extents * EXTENT_SIZE])
        fill_and_decay(pool)
        pool.collection("notes").delete(["x", "n1"])
        assert pool.maintain().segments_merged
        for _ in range(3):
            pool.maintain()
        assert bytes(pool.arena.region.bytes[start:end]) == area
        assert bytes(pool.arena.region.bytes[own[1].offset : own[1].offset + own[0].extents * EXTENT_SIZE]) == extents
        other.worker.signal(signal.SIGCONT)


def test_invariant_01_an_open_segment_belongs_to_the_one_holder_of_its_lane(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Three writers of one collection hold three lanes, and append to three segments."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        writers = [Remote(launcher, pool_path, maintenance=False) for _ in range(3)]
        for number, writer in enumerate(writers):
            writer.on("notes", "put", *notes(f"w{number}-", 5)[:1], texts=notes(f"w{number}-", 5)[1])
        held = {lane.lane: lane.pid for lane in pool.info().lanes if lane.held}
        assert sorted(held.values()) == sorted(writer.pid for writer in writers)
        found = segments_of(pool)
        assert sorted(entry.lane for entry, _ in found) == sorted(held)
        for _entry, segment in found:
            writers_of_rows = {segment.id_at(row).split(b"-")[0] for row in range(segment.watermark())}
            assert len(writers_of_rows) == 1


def test_invariant_01_the_manifest_changes_only_under_the_node_lock(pool: Pool) -> None:
    """While somebody else holds the node lock no manifest byte changes: appends go on, rolls and maintenance wait."""
    collection = alone(pool).collection("notes")
    collection.put(["a"], texts=["opens a segment"])
    pool.arena.lock_timeout_s = 0.05
    other = locks.LockFile(pool.path)
    geometry = pool.arena.geometry
    assert other.try_lock(geometry.node_offset(0) + layout.ROOT_OFFSET)
    slots = slice(geometry.manifest_offset(0, 0), geometry.manifest_offset(0, 0) + 2 * layout.MANIFEST_RESERVED)
    before = bytes(pool.arena.region.bytes[slots])
    root = pool.arena.region.words[manifests.root_index(geometry, 0)]
    collection.put(["b"], texts=["needs no lock"])
    with pytest.raises(PoolBusy):
        collection.put(["c"], texts=["x" * 5_000_000])
    with pytest.raises(PoolBusy):
        pool.drop("notes")
    with pytest.raises(PoolBusy):
        pool.maintain()
    assert bytes(pool.arena.region.bytes[slots]) == before
    assert pool.arena.region.words[manifests.root_index(geometry, 0)] == root
    other.close()
    assert set(texts_of(collection)) == {"a", "b"}
    collection.put(["c"], texts=["x" * 5_000_000])


# ---------------------------------------------------------------------- 2  publish last


def test_invariant_02_a_published_row_is_whole_the_moment_it_is_published(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """While two writers spin and roll, no watermark, root or newest row that is read at any moment fails its check."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        pool.collection("notes", 16)
        writers = [launcher.start("tests.crash.workers:spin", pool_path, name) for name in "ab"]
        words, root = pool.arena.region.words, manifests.root_index(pool.arena.geometry, 0)
        until(lambda: len(segments_of(pool)) >= 2, "the writers start")
        deadline = time.monotonic() + 1.5
        looked = rows_seen = 0
        while time.monotonic() < deadline or looked < 1000 or rows_seen < 10:
            for _entry, segment in segments_of(pool):
                for _ in range(50):
                    assert order.is_checked(words[root])
                    rows = segment.watermark()  # raises unless it is whole
                    if rows:
                        row = segment.read(rows - 1)  # raises unless its checksum is right
                        assert row.text is not None
                        assert row.text.startswith(row.id)
                        assert segment.lookup(row.id, xxhash.xxh3_64_intdigest(row.id) & (2**31 - 1), rows) == rows - 1
                    looked += 1
                    rows_seen = max(rows_seen, rows)
        for writer in writers:
            writer.conn.send("stop")
            assert writer.receive() > 0
            assert writer.wait() == 0
        checks.check_verifies(pool)


def test_invariant_02_what_the_writer_stores_is_derived_from_the_shared_watermark(pool: Pool) -> None:
    """An interrupt before the watermark leaves nothing behind in the handle: the next put takes the rows' place."""
    collection = pool.collection("notes")
    collection.put(["a"], texts=["first"])
    for point in ("put.row_written", "put.linked", "put.intent"):
        faults.hit = faults._arm(f"{point}:raise")
        try:
            with pytest.raises(KeyboardInterrupt):
                collection.put(["never", f"never-{point}"], texts=["lost", "lost"])
        finally:
            faults.hit = None
        assert set(texts_of(collection)) == {"a"} | {f"after-{earlier}" for earlier in _before(point)}
        collection.put([f"after-{point}"], texts=["second"])
    (found,) = segments_of(pool)
    assert found[1].watermark() == 4
    assert collection.get(["never"]) == [None]
    checks.check_verifies(pool)


def _before(point: str) -> list[str]:
    points = ["put.row_written", "put.linked", "put.intent"]
    return points[: points.index(point)]


# ---------------------------------------------------------------------- 3  a published prefix never changes


def prefix_digest(segment: Segment, rows: int) -> int:
    """A digest of all bytes that the first `rows` rows are made of."""
    hashing = xxhash.xxh3_64()
    for column, (at, size) in segment.columns.items():
        if column in ("heads", "end") or not size:
            continue
        start = segment.offset + at
        if column.endswith("_heap"):
            used = {"id": segment.id_offsets, "text": segment.text_offsets, "metadata": segment.metadata_offsets}
            stop = used[column.removesuffix("_heap")][rows]
        elif column.endswith("_offsets"):
            stop = 4 * (rows + 1)
        else:
            stop = size // segment.shape.rows * rows
        hashing.update(segment.region.bytes[start : start + stop])
    return hashing.intdigest()


def test_invariant_03_published_bytes_stay_as_they_are(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Prefixes seen at many moments have the same bytes at the end, though writers spun on, died, and others took over."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        pool.collection("notes", 16)
        seen: dict[tuple[int, int], tuple[Segment, int]] = {}
        pin = pool.arena.refresh().pin
        for round_number in range(4):
            writer = launcher.start("tests.crash.workers:spin", pool_path, "abcd"[round_number])
            until(lambda: bool(segments_of(pool)), "the writer starts")
            deadline = time.monotonic() + 0.25
            while time.monotonic() < deadline or len(seen) < 3 * round_number:
                for entry, segment in segments_of(pool):
                    rows = segment.watermark()
                    if (entry.uid, rows) not in seen:
                        seen[entry.uid, rows] = (segment, prefix_digest(segment, rows))
                time.sleep(0.01)
            writer.signal(signal.SIGKILL)
            writer.wait()
        pool.maintain()  # seals and perhaps merges; our pin keeps the sources
        for (uid, rows), (segment, digest) in seen.items():
            assert prefix_digest(segment, rows) == digest, f"segment {uid:#x}: the first {rows} rows changed"
        del pin


# ---------------------------------------------------------------------- 4  one cut


def test_invariant_04_one_query_sees_one_cut(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Two processes answer each other in turn, on two lanes: no query ever sees an answer without what it answers."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("chain")
        sides = [
            launcher.start("tests.crash.workers:play_chain", pool_path, "a", "b"),
            launcher.start("tests.crash.workers:play_chain", pool_path, "b", "a"),
        ]
        deadline = time.monotonic() + 1.5
        looked = answers = 0
        while time.monotonic() < deadline or looked < 20 or answers < 20:
            ids = set(collection.scan(columns=["id"])["id"].to_pylist())
            count = {side: sum(one.startswith(side) for one in ids) for side in "ab"}
            for side in "ab":
                assert all(f"{side}{number}" in ids for number in range(count[side])), "a link is missing in between"
            assert count["b"] <= count["a"] <= count["b"] + 1, f"an answer without its question: {count}"
            looked, answers = looked + 1, count["b"]
        for worker in sides:
            worker.conn.send("stop")
            assert worker.receive() >= answers
            assert worker.wait() == 0


def test_invariant_04_a_cut_is_collected_again_when_it_changed_meanwhile(pool_path: str) -> None:
    """Question and answer are written between the looks at the one's and the other's watermark: seen together or not."""
    with (
        Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as asking,
        Pool.open(pool_path, maintenance=False) as answering,
        Pool.open(pool_path, maintenance=False) as pool,
    ):
        for handle, first in ((asking, "q0"), (answering, "a0")):
            handle.collection("chain").put([first], texts=["first"])
        collection = pool.collection("chain")
        assert len(collection) == 2
        (_, questions), _ = segments_of(pool, "chain")

        def ask_and_answer() -> None:
            asking.collection("chain").put(["q1"], texts=["why?"])
            answering.collection("chain").put(["a1"], texts=["because"])

        pool.arena.region.words = Interrupting(pool.arena.region.words, questions.watermark_index, ask_and_answer)  # type: ignore[assignment]
        assert sorted(texts_of(collection)) == ["a0", "a1", "q0", "q1"]


def test_invariant_04_a_segment_that_is_new_meanwhile_belongs_to_the_cut(pool_path: str) -> None:
    """A question begins a segment while a cut is collected, and an answer follows in one that is known: both are seen."""
    with (
        Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as asking,
        Pool.open(pool_path, maintenance=False) as answering,
        Pool.open(pool_path, maintenance=False) as pool,
    ):
        answering.collection("chain").put(["a0"], texts=["first"])
        collection = pool.collection("chain")
        assert len(collection) == 1
        ((_, answers),) = segments_of(pool, "chain")

        def ask_and_answer() -> None:
            asking.collection("chain").put(["q1"], texts=["why?"])
            answering.collection("chain").put(["a1"], texts=["because"])

        pool.arena.region.words = Interrupting(pool.arena.region.words, answers.watermark_index, ask_and_answer)  # type: ignore[assignment]
        assert sorted(texts_of(collection)) == ["a0", "a1", "q1"]


def test_invariant_04_a_batch_is_seen_whole_or_not_at_all(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Batches of ten records with one value each, written without pause by another process: every read sees one value."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("groups", 4)
        writer = launcher.start("tests.crash.workers:write_groups", pool_path)
        until(lambda: len(collection) == 10, "the writer starts")
        values: set[str | None] = set()
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline or len(values) < 5:
            for found in (
                [record.text for record in collection.get([f"g{number}" for number in range(10)]) if record],
                collection.scan(columns=["text"])["text"].to_pylist(),
                [hit.text for hit in collection.search(np.ones(4), k=30)],
            ):
                assert len(found) == 10
                assert len(set(found)) == 1, set(found)
                values.add(found[0])
        writer.conn.send("stop")
        assert writer.wait() == 0


# ---------------------------------------------------------------------- 5  newest wins


def test_invariant_05_keys_are_unique_and_follow_what_was_seen(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Written in turn by three processes, each key is greater than all before; merging copies keys unchanged."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        writers = [Remote(launcher, pool_path, maintenance=False) for _ in range(3)]
        collection = pool.collection("notes")
        last = 0
        for number in range(60):
            writers[number % 3].on("notes", "put", [f"n{number}"], texts=["x" * 6000])
            key = keys_of(collection)[f"n{number}"]
            assert key > last
            last = key
        before = keys_of(collection)
        assert len(set(before.values())) == 60
        pool.maintain()
        for writer in writers:
            writer.pool("close")
        pool.maintain()
        assert keys_of(collection) == before


@contextmanager
def fast_clock(launcher: Launcher, path: str, ahead_us: int, leaves: bool) -> Iterator[None]:  # noqa: F811
    """A writer whose clock is ahead has written; inside, it is gone, or still holds its lane and its open segment."""
    worker = launcher.start("tests.crash.workers:write_with_clock", path, ahead_us)
    assert worker.receive() == "written"
    if leaves:
        worker.conn.send("leave")
        assert worker.wait() == 0
    yield
    worker.end()


@pytest.mark.parametrize("leaves", [True, False])
def test_invariant_05_a_clock_an_hour_ahead_is_followed(launcher: Launcher, pool_path: str, leaves: bool) -> None:  # noqa: F811
    """What a process with a fast clock wrote can be overwritten at once by one whose clock is right."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        with fast_clock(launcher, pool_path, _HOUR_US, leaves):
            collection.put(["contested"], texts=["overwritten"])
            assert texts_of(collection) == {"by the fast clock": "ahead", "contested": "overwritten"}
            assert collection.delete(["by the fast clock"]) == 1
            assert set(texts_of(collection)) == {"contested"}


@pytest.mark.parametrize("leaves", [True, False])
def test_invariant_05_a_clock_in_2099_does_not_poison_the_others(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
    leaves: bool,
) -> None:
    """Others' keys stay near their own clocks, also of who takes the lane over; their puts and deletes work."""
    with (
        Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool,
        fast_clock(launcher, pool_path, 73 * 365 * 24 * _HOUR_US, leaves),
    ):
        collection = pool.collection("notes")
        for number in range(5):
            collection.put([f"n{number}"], texts=[f"{number}"])
            collection.put([f"n{number}"], texts=[f"{number} again"])
        collection.delete(["n4"])
        pool.maintain()
        fresh = Remote(launcher, pool_path, maintenance=False)
        fresh.on("notes", "put", ["n0"], texts=["by another"])
        now = time.time_ns() // 1000 - KEY_EPOCH_US
        clocks = {one: clock_of(key) - now for one, key in keys_of(collection).items()}
        assert all(abs(ahead) < _HOUR_US for one, ahead in clocks.items() if one.startswith("n")), clocks
        expected = {"n0": "by another", **{f"n{number}": f"{number} again" for number in (1, 2, 3)}}
        assert {one: text for one, text in texts_of(collection).items() if one.startswith("n")} == expected
        assert pool.verify().ok


# ---------------------------------------------------------------------- 6  nothing is reused while a pin can see it


def test_invariant_06_a_full_pool_does_not_take_what_a_view_sees(pool_path: str) -> None:
    """With a view of everything held, overwriting ends in PoolFull, not in the view's memory; let go, there is room."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        fill_and_decay(pool)
        table = collection.scan()
        content = table.to_pydict()
        with pytest.raises(PoolFull):
            fill_and_decay(pool, rounds=80)
        assert table.to_pydict() == content
        del table
        fill_and_decay(pool, rounds=80)
        assert len(collection) == 60


def test_invariant_06_the_reclaimer_publishes_then_fences_then_reads_pins(
    pool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the manifest that retires and the look at the pins lies the fence; without it both sides may read old."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(alone(pool))
        events: list[str] = []
        publish, fence, oldest = Arena.publish, order.fence_all_processes, session.oldest_pins

        def publishing(arena: Arena, new: Manifest) -> None:
            events.append("retire" if any(entry.state == State.RETIRED for entry in new.entries) else "publish")
            publish(arena, new)

        def fencing() -> None:
            events.append("fence")
            fence()

        def looking_at_pins(*given: Any) -> tuple[int | None, ...]:
            events.append("pins")
            return oldest(*given)

        monkeypatch.setattr(Arena, "publish", publishing)
        monkeypatch.setattr(order, "fence_all_processes", fencing)
        monkeypatch.setattr(session, "oldest_pins", looking_at_pins)
        assert pool.maintain().segments_freed
        pins = events.index("pins")
        assert events[pins - 1] == "fence"
        assert "retire" in events[: pins - 1], events


def test_invariant_06_the_first_pin_is_checked_against_the_root(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a generation shows is reclaimed just before its pin is stored: the newcomer pins the newest."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(alone(pool))
        old = pool.arena.refresh().manifests[0].generation
        store = Session._store
        late = [old]

        def slow(one: Session, generations: tuple[int, ...]) -> None:
            if one is not pool.arena.session and late and generations == (late[0],):
                late.pop()
                assert pool.maintain().segments_freed
            store(one, generations)

        monkeypatch.setattr(Session, "_store", slow)
        with Pool.open(pool_path, maintenance=False) as newcomer:
            assert not late, "the newcomer did not pin the old generation"
            words, offset = pool.arena.region.words, newcomer.arena.session.offset
            pinned = words[(offset + layout.SESSION_PINS) >> 3] & order.VALUE_MASK
            assert pinned > old
            assert len(newcomer.collection("notes")) == 60


def test_invariant_06_who_attaches_in_the_middle_of_a_reclaim_sees_the_newest(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Stopped between storing its pin and reading the root again, a process holds that generation, then moves on."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool)
        worker = launcher.start("tests.crash.remote:serve", pool_path, {"maintenance": False}, fault="attach.pinned:stop")
        worker.wait_stopped()
        assert pool.maintain().segments_merged
        for _ in range(2):
            assert not reclaimed(pool), "its pin was overlooked"
        worker.signal(signal.SIGCONT)
        assert worker.receive() == ("value", "ready")
        until(lambda: reclaimed(pool), "it moves on")
        worker.conn.send(("notes", "__len__", (), {}))
        assert worker.receive() == ("value", 60)
