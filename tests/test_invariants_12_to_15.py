"""Invariants 12 to 15: what holds of blocks, and of a lane's last clock."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sharedrag import Collection, Pool, faults
from sharedrag.arena import block
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import Entry, Kind, Manifest
from sharedrag.memory import layout
from sharedrag.memory.layout import clock_of
from sharedrag.search import coverage
from sharedrag.search.blocks import Blocks

_WIDTH = 16
_ROWS = 3200
_ROOMS = ("maui", "oahu", "kauai")
_DERIVED = (Kind.COLUMNS, Kind.TERMS, Kind.INDEX)


def _vectors(count: int, seed: int = 0) -> npt.NDArray[np.float32]:
    return np.random.default_rng(seed).standard_normal((count, _WIDTH)).astype(np.float32)


def _put(path: str, start: int, stop: int) -> None:
    """By a handle of its own, which leaves its segment for maintenance to seal."""
    numbers = range(start, stop)
    with Pool.open(path, maintenance=False) as pool:
        pool.collection("notes", dimension=_WIDTH).put(
            [f"n{number}" for number in numbers],
            _vectors(stop, 1)[start:],
            [f"note {number % 41} of {_ROOMS[number % 3]}" for number in numbers],
            [{"room": _ROOMS[number % 3], "n": number} for number in numbers],
        )


def _delete(path: str, numbers: range) -> None:
    """The same."""
    with Pool.open(path, maintenance=False) as pool:
        pool.collection("notes").delete([f"n{number}" for number in numbers])


def _derived(pool: Pool) -> list[Entry]:
    """The visible blocks of node 0."""
    return [one for one in pool.arena.refresh().manifests[0].entries if one.kind in _DERIVED and one.visible]


def _answers(notes: Collection) -> tuple[Any, ...]:
    """What may not depend on blocks: filters, words, and all of few rows by vector."""
    wanted = {"room": "oahu", "n": {"<": 900}}
    return (
        [one.id for one in notes.find(wanted)],
        [(hit.id, round(hit.score, 4)) for hit in notes.search(text="note 7 of kauai", k=20)],
        [(hit.id, hit.text) for hit in notes.search(_vectors(1, 2)[0], k=10, filter=wanted)],
        notes.version,
    )


def _without_blocks(path: str, monkeypatch: pytest.MonkeyPatch) -> tuple[Any, ...]:
    """The same of a handle that opens none."""
    with Pool.open(path, maintenance=False) as pool, monkeypatch.context() as patch:
        patch.setattr(Blocks, "_open", lambda *_: None)
        return _answers(pool.collection("notes"))


@pytest.fixture
def derived_path(pool_path: str) -> str:
    """A pool whose one collection has rows that are dead, and blocks of all kinds."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        _put(pool_path, 0, _ROWS)
        _delete(pool_path, range(0, _ROWS, 7))
        pool.maintain()
        assert {one.kind for one in _derived(pool)} == set(_DERIVED)
    return pool_path


def test_invariant_12_a_block_says_nothing_that_its_segments_do_not(
    derived_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With blocks and without, all that is exact is the same; an index finds live rows only, with their own scores."""
    with Pool.open(derived_path, maintenance=False) as pool:
        notes = pool.collection("notes")
        assert _answers(notes) == _without_blocks(derived_path, monkeypatch)
        for query in _vectors(20, 3):
            exact = {hit.id: hit.score for hit in notes.search(query, k=len(notes), exact=True)}
            hits = notes.search(query, k=10)
            assert len(hits) == 10
            assert all(abs(exact[hit.id] - hit.score) < 1e-5 for hit in hits)


@pytest.mark.parametrize("at", [0, 16, 40 + block.HEADER_SIZE, -1], ids=["magic", "length", "payload", "last byte"])
@pytest.mark.parametrize("kind", _DERIVED, ids=lambda kind: kind.name.lower())
def test_invariant_13_a_damaged_block_costs_time_but_no_answer(
    derived_path: str, monkeypatch: pytest.MonkeyPatch, kind: Kind, at: int
) -> None:
    """Who opens the pool then answers from the segments, exactly; verify names the block's place."""
    right = _without_blocks(derived_path, monkeypatch)
    with Pool.open(derived_path, maintenance=False) as pool:
        entry = next(one for one in _derived(pool) if one.kind == kind)
        start = pool.arena.geometry.extent_offset(0, entry.first_extent)
        pool.arena.region.bytes[start + at % entry.size_used] ^= 0x10
    with Pool.open(derived_path, maintenance=False) as pool:
        notes = pool.collection("notes")
        assert _answers(notes) == right
        for query in _vectors(5, 3):
            found = {hit.id for hit in notes.search(query, k=10)}
            if kind == Kind.INDEX:
                assert found == {hit.id for hit in notes.search(query, k=10, exact=True)}
        offsets = [problem.offset for problem in pool.verify().problems]
        assert offsets in ([start], [start + block.HEADER_SIZE])


def test_invariant_14_what_an_index_covers_changes_with_the_segments(
    derived_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In every manifest that maintenance publishes, each index that is shown covers only segments that are shown too."""
    looked_at = [0, 0]
    publish = Arena.publish

    def looking(arena: Arena, new: Manifest) -> None:
        publish(arena, new)
        shown = {one.uid for one in new.entries if one.visible and one.kind == Kind.SEGMENT}
        looked_at[0] += 1
        for one in new.entries:
            if one.visible and one.kind == Kind.INDEX:
                offset = arena.geometry.extent_offset(new.node, one.first_extent)
                size = one.extents * layout.EXTENT_SIZE
                ranges, _ = coverage.decode(block.read(arena.region, offset, size, one.kind, one.uid))
                assert {piece.uid for piece in ranges} <= shown
                looked_at[1] += 1
            if one.visible and one.of:
                assert one.of in shown

    monkeypatch.setattr(Arena, "publish", looking)
    with Pool.open(derived_path, maintenance=False) as pool:
        merged = 0
        for turn in range(1, 7):
            _put(derived_path, _ROWS * turn, _ROWS * (turn + 1))
            _delete(derived_path, range(_ROWS * (turn - 1), _ROWS * turn, 2))
            merged += pool.maintain().segments_merged
        assert merged > 1 and looked_at[0] > 20 and looked_at[1] > 10
        assert pool.verify().ok


@pytest.mark.parametrize("rows", [1, 5])
def test_invariant_15_a_lanes_last_clock_is_stored_before_the_rows_are_published(
    pool_path: str, rows: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each step of a put, no key of the lane, published or just about to be, is later than its slot says."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        notes = pool.collection("notes")
        notes.put(["first"], texts=["x"])
        lane = pool._writer.lane
        assert lane is not None
        (part,) = notes.live.acquire().parts
        notes.live.release()
        segment, words = part.segment, pool.arena.region.words
        seen: list[tuple[str, int, int]] = []

        def look(point: str) -> None:
            newest = max(segment.key[row] for row in range(1 + rows))
            seen.append((point, clock_of(newest), words[lane.last_index]))

        monkeypatch.setattr(faults, "hit", look)
        notes.put([f"r{number}" for number in range(rows)], texts=["y"] * rows)
        monkeypatch.setattr(faults, "hit", None)
        assert {"put.row_written", "put.linked", "put.published"} <= {point for point, _, _ in seen}
        assert all(newest <= last for _, newest, last in seen)
        last_row = next(newest for point, newest, _ in seen if point == "put.published")
        assert last_row == words[lane.last_index]
