"""Damage of one known place at a time: what is noticed, by whom, and what it never leads to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sharedrag import Collection, Pool, PoolDamaged, SharedRagError, faults
from sharedrag.arena import manifest, session
from sharedrag.arena.manifest import State
from sharedrag.arena.row import hash31
from sharedrag.arena.segment import Segment
from sharedrag.memory import layout, order
from sharedrag.segments import lane

OLD, NEW = "the old text", "the new text"


def _fill(path: str) -> None:
    """A pool in which two lanes wrote: x is replaced by the second lane, y deleted by it."""
    with Pool.open(path, create=True, capacity="4 MiB", maintenance=False) as first, Pool.open(path) as second:
        mine = first.collection("notes", dimension=4)
        mine.put(["w", "x", "y"], np.eye(4)[:3], ["plain", OLD, "deleted"], [{"n": 1}, None, {"n": 3}])
        theirs = second.collection("notes")
        theirs.put(["z", "x"], np.eye(4)[2:], ["other", NEW], [{"n": 4}, {"n": 5}])
        theirs.delete(["y"])


def _segments(pool: Pool, name: str = "notes") -> list[Segment]:
    current = pool.arena.refresh().manifests[0]
    found = current.collection(name)
    assert found is not None
    return [
        pool.arena.segment(0, entry)
        for entry in current.entries
        if entry.visible and entry.kind == manifest.Kind.SEGMENT and entry.collection == found.number
    ]


def _text(collection: Collection, one: str) -> str | None:
    (record,) = collection.get([one])
    return record.text if record else None


def _change(path: str, offset: int, change: int = 0x10) -> None:
    with open(path, "r+b") as file:
        file.seek(offset)
        before = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([before ^ change]))


def _place(path: str, column: str, row: int, segment: int = 0, byte: int = 0) -> int:
    """File offset of a row's bytes in a column of the n-th segment."""
    widths = {"flags": 2, "id_offsets": 4, "text_offsets": 4, "metadata_offsets": 4, "norm": 4, "vectors": 16}
    with Pool.open(path, maintenance=False) as pool:
        found = _segments(pool)[segment]
        at = found.columns[column][0]
        if column.endswith("_heap"):
            return found.offset + at + int(getattr(found, column.replace("heap", "offsets"))[row]) + byte
        return found.offset + at + widths.get(column, 8) * row + byte


def _ask_everything(path: str) -> list[SharedRagError]:
    """Ask in every way; what is not an error must be right. Returns the errors."""
    errors: list[SharedRagError] = []
    truth = {"w": "plain", "x": NEW, "y": None, "z": "other"}

    def attempt(call: Callable[[], Any]) -> Any:
        try:
            return call()
        except SharedRagError as error:
            errors.append(error)
            return None

    pool = attempt(lambda: Pool.open(path, maintenance=False))
    if pool is None:
        return errors
    with pool:
        notes = pool.collection("notes")
        for one, text in truth.items():
            found = attempt(partial(notes.get, [one]))
            if found is not None:
                assert (found[0].text if found[0] else None) == text, one
        assert attempt(lambda: len(notes)) in (None, 3)
        hits = attempt(lambda: notes.search(np.eye(4)[3], k=10))
        if hits is not None:
            assert {hit.id: hit.text for hit in hits} == {one: text for one, text in truth.items() if text}
    return errors


@pytest.mark.parametrize(
    "column", ["flags", "key", "created", "checksum", "link", "id_heap", "text_heap", "metadata_heap", "norm", "vectors"]
)
@pytest.mark.parametrize(("segment", "row"), [(0, 0), (0, 2), (1, 0), (1, 1)])
def test_a_changed_byte_of_a_row_is_an_error_and_verify_names_it(
    pool_path: str, column: str, segment: int, row: int
) -> None:
    """A changed byte of any column of a row is never an answer, and verify finds it, with its place and advice."""
    _fill(pool_path)
    if column == "metadata_heap" and (segment, row) == (0, 1):
        pytest.skip("that row has no metadata")
    offset = _place(pool_path, column, row, segment)
    _change(pool_path, offset)
    errors = _ask_everything(pool_path)
    assert all(isinstance(error, PoolDamaged) for error in errors)
    superseded = segment == 0 and row == 2  # the deleted record: nobody is shown it, so nobody need notice
    assert errors or superseded
    for error in errors:
        assert pool_path in str(error)
        assert "verify" in error.hint
        assert str(error.offset) in str(error)  # type: ignore[attr-defined]
    with Pool.open(pool_path, maintenance=False) as pool:
        report = pool.verify()
    assert not report.ok
    assert all(0 < problem.offset < pool.arena.geometry.file_size and problem.advice for problem in report.problems)


def test_the_oldest_text_does_not_come_back_by_a_damaged_key(pool_path: str) -> None:
    """An order key made older than that of the row it replaced is noticed, though the keys still rise in its segment."""
    _fill(pool_path)
    for byte in range(8):
        for bit in range(8):
            offset = _place(pool_path, "key", 0, segment=1, byte=byte)
            _change(pool_path, offset, 1 << bit)
            with Pool.open(pool_path, maintenance=False) as pool, pytest.raises(PoolDamaged, match="key"):
                pool.collection("notes").get(["x"])
            _change(pool_path, offset, 1 << bit)
    assert _ask_everything(pool_path) == []


def test_a_deleted_record_does_not_come_back_by_a_damaged_tombstone(pool_path: str) -> None:
    """Flags or an id that no longer say what was deleted are an error, not a resurrection."""
    _fill(pool_path)
    for column in ("flags", "id_heap"):
        for bit in range(8):
            offset = _place(pool_path, column, 2, segment=1)
            _change(pool_path, offset, 1 << bit)
            with Pool.open(pool_path, maintenance=False) as pool, pytest.raises(PoolDamaged):
                pool.collection("notes").get(["y"])
            _change(pool_path, offset, 1 << bit)
    assert _ask_everything(pool_path) == []


@pytest.mark.parametrize("where", ["watermark_index", "heads"])
def test_damaged_ways_to_the_rows_are_errors(pool_path: str, where: str) -> None:
    """A watermark or bucket head with a changed byte hides nothing: it is an error."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        segment = _segments(pool)[1]
        first = segment.watermark_index << 3 if where == "watermark_index" else segment.offset + segment.columns["heads"][0]
        words = 1 if where == "watermark_index" else segment.shape.buckets
    for byte in range(8):
        for word in range(words):
            _change(pool_path, first + 8 * word + byte, 0x01)
        errors = _ask_everything(pool_path)
        assert errors
        assert all(isinstance(error, PoolDamaged) for error in errors)
        for word in range(words):
            _change(pool_path, first + 8 * word + byte, 0x01)


@pytest.mark.parametrize("offset", [0, 3, 8, 12, 16, 24, 40, 48, 64, 80, 87])
def test_a_damaged_superblock_is_refused(pool_path: str, offset: int) -> None:
    """No byte of the superblock may differ: opening says what is wrong and touches nothing."""
    _fill(pool_path)
    _change(pool_path, offset)
    before = Path(pool_path).read_bytes()
    with pytest.raises(SharedRagError, match=r"superblock|magic|version"):
        Pool.open(pool_path, maintenance=False)
    assert Path(pool_path).read_bytes() == before


def test_a_damaged_manifest_is_refused(pool_path: str) -> None:
    """Root, header and body of the manifest in force: each changed byte is refused at open, with its offset."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        geometry = pool.arena.geometry
        start = geometry.manifest_offset(0, pool.arena.current.manifests[0].generation)
        root = geometry.node_offset(0) + layout.ROOT_OFFSET
    for offset in (root, root + 6, start, start + 8, start + 16, start + 50, start + 180, start + 184, start + 300):
        _change(pool_path, offset, 0x01)
        with pytest.raises(PoolDamaged) as caught:
            Pool.open(pool_path, maintenance=False)
        assert root <= caught.value.offset <= offset
        _change(pool_path, offset, 0x01)
    assert _ask_everything(pool_path) == []


def test_a_handle_that_is_open_goes_on_without_the_superblock_and_says_so(pool_path: str) -> None:
    """Damage of what a handle read once and kept does not stop it, but verify tells."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        notes = pool.collection("notes")
        geometry, (segment, *_) = pool.arena.geometry, _segments(pool)
        assert _text(notes, "x") == NEW
        slot = geometry.manifest_offset(0, pool.arena.current.manifests[0].generation)
        for offset in (20, slot + 20, segment.offset + 20):
            assert pool.verify().ok
            _change(pool_path, offset)
            assert [problem.offset for problem in pool.verify().problems] in ([0], [slot], [segment.offset])
            assert _text(notes, "x") == NEW
            _change(pool_path, offset)


@pytest.mark.parametrize("count", [1, 40])
def test_a_key_that_is_damaged_under_an_open_handle_decides_nothing(pool_path: str, count: int) -> None:
    """A handle that has looked at a row looks at its key again before that key decides which of two rows is newer."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool, Pool.open(pool_path) as other:
        notes = pool.collection("notes")
        ids = [f"note-{number}" for number in range(count)]
        notes.put(ids, None, [OLD] * count)
        assert len(notes) == count
        (segment,) = _segments(pool)
        for row in range(count):
            segment.key[row] |= 1 << 60
        other.collection("notes").put(ids, None, [NEW] * count)
        with pytest.raises(PoolDamaged, match="key"):
            notes.get(ids)


def test_a_tombstone_that_is_damaged_under_an_open_handle_is_not_merged_away(pool_path: str) -> None:
    """Maintenance looks at flags again before it decides what a merge may leave out: the victims stay deleted."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as first:
        first.collection("notes").put([f"note-{number}" for number in range(60)], None, [OLD] * 60)
        with Pool.open(pool_path, maintenance=False) as second:
            theirs = second.collection("notes")
            theirs.delete([f"note-{number}" for number in range(10)])
        assert len(first.collection("notes")) == 50
        tombstones = next(one for one in _segments(first) if one.watermark() == 10)
        for row in range(10):
            tombstones.flags[row] |= 1
        with pytest.raises(PoolDamaged, match="flags"):
            first.maintain()
        for row in range(10):
            tombstones.flags[row] &= 0xFFFE
        first.maintain()
        with Pool.open(pool_path, maintenance=False) as third:
            assert len(third.collection("notes")) == 50
            assert third.verify().ok


def test_nothing_is_appended_where_damaged_offsets_lead(pool_path: str) -> None:
    """A writer that takes over a segment whose end of strings is damaged refuses, and overwrites nobody's bytes."""
    _fill(pool_path)
    for column in ("id_offsets", "text_offsets", "metadata_offsets"):
        for byte, change in ((0, 0x01), (0, 0x40), (3, 0x80)):
            offset = _place(pool_path, column, 3, segment=0, byte=byte)
            _change(pool_path, offset, change)
            before = Path(pool_path).read_bytes()[layout.PAGE * 256 :]
            with Pool.open(pool_path, maintenance=False) as pool, pytest.raises(PoolDamaged):
                pool.collection("notes").put(["new"], None, ["appended"])
            assert Path(pool_path).read_bytes()[layout.PAGE * 256 :] == before
            _change(pool_path, offset, change)
    assert _ask_everything(pool_path) == []


def test_the_strings_of_an_empty_segment_begin_at_zero(pool_path: str) -> None:
    """A segment without rows whose first offset is damaged is not written to, nor sealed."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        collection.put(["a"], None, ["b"])
        (segment,) = _segments(pool)
        pool.arena.region.words[segment.watermark_index] = order.checked(0)
        segment.text_offsets[0] = -5
    with Pool.open(pool_path, maintenance=False) as pool, pytest.raises(PoolDamaged, match="offsets"):
        pool.collection("notes").put(["a"], None, ["b"])
    with Pool.open(pool_path, maintenance=False) as pool:
        with pytest.raises(PoolDamaged, match="offsets"):
            pool.maintain()
        assert not pool.verify().ok


# ---------------------------------------------------------------------- rows that were linked, but never published


def _half_put(pool: Pool) -> Segment:
    """Let a put be interrupted between linking its rows and publishing them; the segment it left that way."""
    (segment,) = _segments(pool)
    faults.hit = faults._arm("put.linked:raise")
    try:
        with pytest.raises(KeyboardInterrupt):
            pool.collection("notes").put([f"half-{number}" for number in range(50)], None, ["half"] * 50)
    finally:
        faults.hit = None
    return segment


def test_damaged_links_of_unpublished_rows_do_not_hide_published_ones(pool_path: str) -> None:
    """Looking up an id whose chain leads through damaged, unpublished rows is an error, not "there is none"."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        notes = pool.collection("notes")
        ids = [f"note-{number}" for number in range(30)]
        notes.put(ids, None, ids)
        segment = _half_put(pool)
        assert [record.text for record in notes.get(ids) if record] == ids
        for row in range(30, 80):
            segment.link[row] = 0
        raised = 0
        for one in ids:
            try:
                assert _text(notes, one) == one
            except PoolDamaged:
                raised += 1
        assert raised


@pytest.mark.parametrize("point", ["before", "lane.epoch"])
def test_a_reader_that_came_by_an_old_head_walks_again(pool_path: str, point: str) -> None:
    """A reader stopped after it read a head that leads to unpublished rows finds what is published, though the writer
    has meanwhile led the head back and put other ids into those rows.
    """
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        notes = pool.collection("notes")
        ids = [f"note-{number}" for number in range(30)]
        notes.put(ids, None, ids)
        segment = _half_put(pool)
        heads = segment.heads
        victim = next(one for one in ids if (heads[hash31(one.encode()) & segment.bucket_mask] & 0xFFFFFF) > 30)
        read, go_on = threading.Event(), threading.Event()
        found: list[int] = []

        class Slow:
            def __getitem__(self, bucket: int) -> int:
                word = int(heads[bucket])
                read.set()
                assert go_on.wait(10)
                return word

        reader_of = Segment(segment.region, segment.offset, segment.uid, segment.shape.size)
        reader_of.heads = Slow()  # type: ignore[assignment]
        encoded = victim.encode()
        reader = threading.Thread(target=lambda: found.append(reader_of.lookup(encoded, hash31(encoded), 30)))

        def start(reached: str = "before") -> None:
            if reached == point:
                reader.start()
                assert read.wait(10)

        start()
        faults.hit = start
        try:
            notes.put([f"other-{number}" for number in range(50)], None, ["other"] * 50)
        finally:
            faults.hit = None
            go_on.set()
        reader.join(10)
        assert found == [ids.index(victim)]


def test_repair_believes_no_damaged_head(pool_path: str) -> None:
    """Whoever takes over a lane with a damaged index gets an error, not a walk to nowhere."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        segment = _segments(pool)[0]
        for word in ((1 << 64) - 1, order.checked(segment.shape.rows + 5)):
            segment.heads[0] = word
            with pytest.raises(PoolDamaged):
                lane.repair(segment)
        assert not pool.verify().ok


def test_a_put_does_not_cover_a_damaged_head(pool_path: str) -> None:
    """A put into a bucket whose head is damaged is refused: a sound head over a lost chain would hide its rows for good."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        notes = pool.collection("notes")
        notes.put(["own"], None, ["taken over"])
        segment = next(one for one in _segments(pool) if one.lookup(b"own", hash31(b"own"), one.watermark()) >= 0)
        right = list(segment.heads)
        for bucket in range(segment.shape.buckets):
            segment.heads[bucket] = 0
        with pytest.raises(PoolDamaged, match="head"):
            notes.put(["own"], None, ["again"])
        for bucket, word in enumerate(right):
            segment.heads[bucket] = word
        notes.put(["own"], None, ["at last"])
        assert [one.text for one in notes.get(["own", "x"]) if one] == ["at last", NEW]


def test_a_damaged_epoch_does_no_harm(pool_path: str) -> None:
    """The epoch is only compared with itself: at its end it begins anew."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        for segment in _segments(pool):
            pool.arena.region.words[segment.epoch_index] = (1 << 64) - 1
        pool.collection("notes").put(["new"], None, ["put"])
        assert _text(pool.collection("notes"), "x") == NEW
    with Pool.open(pool_path, maintenance=False) as pool:
        assert _text(pool.collection("notes"), "new") == "put"


# ---------------------------------------------------------------------- words beside the data


def test_noise_in_lanes_and_holders_stops_nobody(pool_path: str) -> None:
    """Who holds what is told by kernel locks: noise in the words beside them changes no answer, info still reads."""
    _fill(pool_path)
    noise = np.random.default_rng(4).bytes(4096)
    with Pool.open(pool_path, maintenance=False) as pool:
        geometry = pool.arena.geometry
        start = geometry.node_offset(0)
    with open(pool_path, "r+b") as file:
        for offset, length in (
            (start + layout.NODE_HOLDER_OFFSET, 16),
            (start + layout.MAINTENANCE_HOLDER_OFFSET, 16),
            (start + layout.BOOT_ID_OFFSET, 16),
            (start + layout.NODE_LABEL_OFFSET, 64),
            (geometry.lane_offset(0, 0), 4 * layout.LANE_SIZE),
        ):
            file.seek(offset)
            file.write(noise[:length])
    assert _ask_everything(pool_path) == []
    with Pool.open(pool_path, maintenance=False) as pool:
        assert pool.info().collections[0].rows == 3
        pool.collection("notes").put(["new"], None, ["put"])
        pool.maintain()
        assert _text(pool.collection("notes"), "new") == "put"


@pytest.mark.parametrize("word", [1, (1 << 64) - 1, order.checked(1 << 54), order.checked(1)])
def test_a_damaged_horizon_poisons_no_clock(pool_path: str, word: int) -> None:
    """Whatever the horizon says, what is put later is newer, and no key leads the clock by more than a day."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        pool.arena.region.words[(pool.arena.geometry.node_offset(0) + layout.HORIZON_OFFSET) >> 3] = word
        notes = pool.collection("notes")
        for turn in range(5):
            notes.put(["x"], None, [f"turn {turn}"])
            assert _text(notes, "x") == f"turn {turn}"
        (newest,) = notes.scan({"n": {"is_empty": True}})["key"].to_pylist()
        now = int(np.datetime64("now", "us").astype(int)) - layout.KEY_EPOCH_US
        assert abs(layout.clock_of(newest) - now) < layout.CLOCK_AHEAD_US_MAX


def test_a_damaged_pin_keeps_memory_and_frees_none(pool_path: str) -> None:
    """A live session's pin that fails its check counts as the oldest; verify says what to do."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as reader, Pool.open(pool_path, maintenance=False) as pool:
        at = (reader.arena.session.offset + layout.SESSION_PINS) >> 3
        right = pool.arena.region.words[at]
        pool.arena.region.words[at] = right ^ (1 << 5)
        assert any("pin" in problem.what and problem.advice for problem in pool.verify().problems)
        arena = pool.arena
        assert session.oldest_pins(arena.region, arena.geometry, arena.session.locks, arena.session)[0] == 0
        pool.drop("notes")
        pool.maintain()
        assert any(entry.state == State.RETIRED for entry in arena.refresh().manifests[0].entries)
        pool.arena.region.words[at] = right


def test_a_manifest_that_relies_on_what_is_not_there_is_damage(pool_path: str) -> None:
    """Opening a pool in which one node's manifest lags behind what another relies on ends, with an error."""
    with (
        Pool.open(pool_path, create=True, capacity="2 MiB", nodes=2, maintenance=False) as pool,
        pool.arena.node_locked("test") as current,
    ):
        assert current is not None
        pool.arena.publish(current.successor(relies_on=(0, 99, *[0] * 14)))
    with pytest.raises(PoolDamaged, match="node 1 is older than others rely on"):
        Pool.open(pool_path, maintenance=False)


def test_damaged_deletion_vectors_cost_time_but_no_answer(pool_path: str) -> None:
    """Readers do without deletion vectors that fail their checksum, verify reports them, maintenance writes new ones."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        notes = pool.collection("notes")
        ids = [f"note-{number}" for number in range(100)]
        for turn in range(3):
            notes.put(ids[turn:], None, [f"{turn}"] * (100 - turn))
    with Pool.open(pool_path, maintenance=False) as pool:
        pool.maintain()
        current = pool.arena.refresh().manifests[0]
        (block,) = [one for one in current.entries if one.kind == manifest.Kind.DELETIONS and one.visible]
        start = pool.arena.geometry.extent_offset(0, block.first_extent)
    for offset in (start, start + 8, start + 16, start + 40, start + block.size_used - 1):
        _change(pool_path, offset, 0x01)
        with Pool.open(pool_path, maintenance=False) as pool:
            texts = {one.id: one.text for one in pool.collection("notes").find()}
            assert texts == dict(zip(ids, ["0", "1"] + ["2"] * 98, strict=True))
            assert [problem.offset for problem in pool.verify().problems] == [start]
        _change(pool_path, offset, 0x01)
    _change(pool_path, start, 0x01)
    with Pool.open(pool_path, maintenance=False) as pool:
        pool.maintain()
        assert pool.verify().ok
        assert len(pool.collection("notes")) == 100


# ---------------------------------------------------------------------- the documented limits


def test_what_reading_does_not_look_at_verify_does(pool_path: str) -> None:
    """scan() hands out a changed text as it lies, and a changed vector or metadata can cost a record its place among
    the hits; verify reports each.
    """
    _fill(pool_path)
    _change(pool_path, _place(pool_path, "text_heap", 0), 0x01)
    with Pool.open(pool_path, maintenance=False) as pool:
        assert "qlain" in pool.collection("notes").scan()["text"].to_pylist()
        assert len(pool.verify().problems) == 1
    _change(pool_path, _place(pool_path, "text_heap", 0), 0x01)
    _change(pool_path, _place(pool_path, "metadata_heap", 0, byte=5), 0x02)
    with Pool.open(pool_path, maintenance=False) as pool:
        assert pool.collection("notes").find({"n": 1}) == []
        assert len(pool.verify().problems) == 1


# ---------------------------------------------------------------------- what the errors advise


def test_a_damaged_record_can_be_deleted_and_is_merged_away(pool_path: str) -> None:
    """The advice holds: a record whose text is damaged is deleted by its id, maintenance drops it, verify is content."""
    _fill(pool_path)
    _change(pool_path, _place(pool_path, "text_heap", 1, segment=1))
    with Pool.open(pool_path, maintenance=False) as pool:
        notes = pool.collection("notes")
        with pytest.raises(PoolDamaged, match="delete the record"):
            notes.get(["x"])
        assert notes.delete(["x"]) == 1
        assert [one.id for one in notes.find()] == ["w", "z"]
    with Pool.open(pool_path, maintenance=False) as pool:
        for _ in range(3):
            pool.maintain()
        assert pool.verify().ok
        assert [one.id for one in pool.collection("notes").find()] == ["w", "z"]


def test_a_collection_that_cannot_be_read_can_be_dropped_and_harms_no_other(pool_path: str) -> None:
    """Damage that makes a collection unreadable leaves the others as they are; dropping it ends the damage."""
    _fill(pool_path)
    with Pool.open(pool_path, maintenance=False) as pool:
        other = pool.collection("other")
        other.put([f"id-{number}" for number in range(50)], None, ["text"] * 50)
        other.put([f"id-{number}" for number in range(40)], None, ["newer"] * 40)
    _change(pool_path, _place(pool_path, "key", 0, segment=0))
    with Pool.open(pool_path, maintenance=False) as pool:
        other = pool.collection("other")
        with pytest.raises(PoolDamaged):
            len(pool.collection("notes"))
        with pytest.raises(PoolDamaged):
            pool.maintain()
        assert len(other) == 50
        notes_info, other_info = pool.info().collections
        assert "key" in notes_info.damage
        assert (other_info.rows, other_info.damage) == (50, "")
        pool.drop("notes")
        pool.maintain()
        assert pool.verify().ok
        assert [one.text for one in other.find()] == ["text"] * 10 + ["newer"] * 40
        notes = pool.collection("notes", dimension=4)
        notes.put(["w"], None, ["anew"])
        assert _text(notes, "w") == "anew"
