"""Filters over a living pool: tails that grow, blocks that come, segments that merge, times, and damage."""

from __future__ import annotations

import gc
import random
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sharedrag import Collection, Pool
from sharedrag.arena.segment import Segment
from sharedrag.errors import InvalidFilter, PoolDamaged
from sharedrag.filters import And, Created, Filter, Not, Or, Where, parse
from sharedrag.search import columns_tail, masks
from sharedrag.search.columns import Columns, build
from sharedrag.search.columns_rows import Object, Rows, chunks
from sharedrag.search.columns_tail import Tail
from sharedrag.search.masks import Masks
from sharedrag.segments.live import Part
from tests.conftest import SHARED_MEMORY
from tests.test_columns import filters, records

ROOMS = ["hawaii", "maui", "oahu"]
START = datetime(2026, 1, 1, tzinfo=UTC)


def metadata(number: int) -> dict[str, Any] | None:
    """Some record's metadata; every seventh has none."""
    if number % 7 == 6:
        return None
    one: dict[str, Any] = {"room": ROOMS[number % 3], "n": number, "tags": [ROOMS[number % 2], number % 5]}
    if number % 100 == 3:
        one |= {f"rare{number % 5}": number, "long": f"{number} " * 50}
    return one


def fill(collection: Collection, start: int, stop: int) -> None:
    """Records numbered [start, stop), a second apart."""
    numbers = range(start, stop)
    collection.put(
        [str(number) for number in numbers],
        metadata=[metadata(number) for number in numbers],
        created=[START + timedelta(seconds=number) for number in numbers],
    )


def parts(collection: Collection) -> tuple[Part, ...]:
    """The collection's segments as of now."""
    view = collection.live.acquire()
    collection.live.release()
    return view.parts


def only_part(collection: Collection, sealed: bool = False) -> Part:
    """The collection's one segment as of now."""
    (part,) = parts(collection)
    return part._replace(sealed=sealed)


def expected(part: Part, wanted: Filter) -> list[int]:
    """The rows that match, one by one, by what was put under their ids."""
    segment = part.segment
    made = [metadata(int(segment.id_at(row))) or {} for row in range(part.rows)]
    return [row for row, held in enumerate(made) if wanted.matches(held, segment.created[row])]


WANTED: list[Filter] = [
    Where("room", "==", "maui"),
    Not(Where("room", "in", ["maui", "oahu"])),
    And(Where("n", ">=", 30), Where("tags", "contains", "hawaii")),
    Or(Where("rare3", ">", 5), Where("long", "text_match", "203 "), Where("n", "==", 2)),
    Where("room", "is_empty"),
    And(Created(">=", START + timedelta(seconds=40)), Where("room", "==", "oahu")),
    Created("<", START + timedelta(seconds=77)),
]


@contextmanager
def small_pool() -> Iterator[Pool]:
    """A pool for one of Hypothesis' examples."""
    folder = SHARED_MEMORY if SHARED_MEMORY.is_dir() else None
    with tempfile.TemporaryDirectory(dir=folder) as at, Pool.open(f"{at}/a.pool", create=True, capacity="16 MiB") as pool:
        yield pool


def rows_of(mask: np.ndarray[Any, Any]) -> list[int]:
    """The rows that a mask tells."""
    return np.flatnonzero(mask).tolist()


class TestTails:
    def test_a_tail_grows_by_any_steps(self, pool: Pool) -> None:
        """Filters asked at any size of a growing segment, some again and some anew, always answer for all its rows."""
        collection = pool.collection("c")
        choice = random.Random(5)
        kept, rows = Masks(), 0
        for step in (1, 2, 250, 5, 300, 1, 700, 256, 257, 1, 1500, 3000, 1):
            fill(collection, rows, rows + step)
            rows += step
            view = parts(collection)
            assert sum(part.rows for part in view) == rows
            for part in view:
                for wanted in choice.sample(WANTED, 3):
                    assert rows_of(kept.of(part, wanted)) == expected(part, wanted)
        fresh = Masks()
        for part in view:
            for wanted in WANTED:
                assert rows_of(fresh.of(part, wanted)) == rows_of(kept.of(part, wanted)) == expected(part, wanted)

    def test_an_older_view_is_answered_as_of_then(self, pool: Pool) -> None:
        """A mask asked for a view that is no longer the newest has that view's rows, and spoils nothing."""
        collection = pool.collection("c")
        kept = Masks()
        fill(collection, 0, 300)
        older = parts(collection)[-1]
        for number in range(300, 700):
            fill(collection, number, number + 1)
        (newer,) = (part for part in parts(collection) if part.segment is older.segment)
        assert newer.rows > older.rows
        for part in (newer, older, newer):
            for wanted in WANTED:
                assert rows_of(kept.of(part, wanted)) == expected(part, wanted)

    def test_a_row_is_made_into_columns_a_few_times(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Growing by single rows, the columns of a tail stay few, and each row is built into some few times."""
        built: list[int] = []

        def counted(segment: Segment, rows: int, start: int = 0) -> bytes:
            built.append(rows - start)
            return build(segment, rows, start)

        monkeypatch.setattr(columns_tail, "build", counted)
        monkeypatch.setattr(columns_tail, "_PENDING_MAX", 16)
        monkeypatch.setattr(columns_tail, "_MERGED_MAX", 1024)
        collection = pool.collection("c")
        fill(collection, 0, 3000)
        segment, tail = only_part(collection).segment, Tail()
        for rows in range(1, 3001):
            tail = tail.grown(segment, rows, masks.decode)
            assert tail.rows == rows
        assert len(tail.pieces) <= 3000 / 1024 * 4 + 3 * 4
        assert sum(built) <= 5 * 3000 and max(built) <= 1024
        assert [one.start for one in tail.pieces[1:]] == np.cumsum([one.columns.rows for one in tail.pieces])[:-1].tolist()

    def test_a_cold_segment_is_searched_before_it_is_decoded(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """The first few sharp questions to many undecoded rows search their bytes; whoever asks on gets columns, once."""
        built: list[int] = []

        def counted(segment: Segment, rows: int, start: int = 0) -> bytes:
            built.append(rows - start)
            return build(segment, rows, start)

        monkeypatch.setattr(columns_tail, "build", counted)
        collection = pool.collection("c")
        fill(collection, 0, 3000)
        part, kept = only_part(collection), Masks()
        for number in range(12):
            wanted = Where("room", "==", ROOMS[number]) if number < 3 else Where("n", "==", number)
            assert rows_of(kept.of(part, wanted)) == expected(part, wanted)
            assert len(built) == (number > 2)

    def test_what_is_kept_is_bounded_and_goes_with_the_segment(
        self, pool: Pool, pool_path: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Masks per segment and private columns per collection are bounded; nothing is kept of a segment that is gone."""
        monkeypatch.setattr(masks, "_TAILS_BYTES", 20_000)
        kept = Masks()
        with Pool.open(pool_path) as reader:
            for name in "abcd":
                fill(pool.collection(name), 0, 600)
                part = only_part(reader.collection(name))
                for number in range(100):
                    assert rows_of(kept.of(part, Where("n", "==", number))) == expected(part, Where("n", "==", number))
            known = list(kept._segments.values())
            assert [len(one.masks) for one in known] == [64] * 4
            assert 0 < sum(one.tail.size for one in known) <= 40_000
            del part, known
            for name in "abcd":
                pool.drop(name)
            for _ in range(100):  # until idle views have moved on, and the memory is reclaimed
                pool.maintain()
                gc.collect()
                if not len(kept._segments):
                    break
                time.sleep(0.05)
            assert len(kept._segments) == 0

    def test_threads_may_ask_at_once(self, pool: Pool) -> None:
        """Readers of one growing segment in several threads each get the rows of their own view."""
        collection = pool.collection("c")
        kept, failed, done = Masks(), [], threading.Event()

        def ask(seed: int) -> None:
            choice = random.Random(seed)
            try:
                while not done.is_set():
                    part, wanted = parts(collection)[-1], choice.choice(WANTED)
                    assert rows_of(kept.of(part, wanted)) == expected(part, wanted)
            except BaseException as error:
                failed.append(error)
                raise

        fill(collection, 0, 1)
        threads = [threading.Thread(target=ask, args=(seed,)) for seed in range(3)]
        for thread in threads:
            thread.start()
        for at in range(1, 1500, 60):
            fill(collection, at, at + 60)
        done.set()
        for thread in threads:
            thread.join()
        assert not failed


class TestBlocks:
    @settings(max_examples=60, deadline=None)
    @given(records, st.lists(filters, min_size=1, max_size=3), st.data())
    def test_a_segments_block_its_tail_and_its_rows_agree(
        self, made: list[Object], wanted: list[Filter], data: st.DataObject
    ) -> None:
        """Any metadata put into a pool is filtered alike by a block, by private columns, by a look and row by row."""
        rows = [one for one in made if one] or [{"a": 1}]
        with small_pool() as pool:
            collection = pool.collection("c")
            collection.put([str(number) for number in range(len(rows))], metadata=rows)
            part = only_part(collection, sealed=True)
            block = Columns.open(np.frombuffer(build(part.segment, part.rows), np.uint8))
            whole = Rows(part.segment, 0, part.rows)
            decoded = [record.metadata for record in collection.find()]
            for one in wanted:
                truth = [row for row, held in enumerate(decoded) if one.matches(held, part.segment.created[row])]
                assert rows_of(block.mask(one, whole)) == truth
                assert rows_of(whole.look(np.arange(part.rows), one)) == truth
                assert rows_of(Masks(lambda _: block).of(part, one)) == rows_of(Masks().of(part, one)) == truth
                assert [record.metadata for record in collection.find(one)] == [decoded[row] for row in truth]

    def test_a_block_takes_over(self, pool: Pool) -> None:
        """Once a sealed segment has its block, filters are answered by it alone, and private columns are given back."""
        collection = pool.collection("c")
        fill(collection, 0, 1000)
        part = only_part(collection, sealed=True)
        blocks: dict[int, Columns] = {}
        kept = Masks(lambda part: blocks.get(part.segment.uid))
        assert rows_of(kept.of(part, WANTED[0])) == expected(part, WANTED[0])
        assert kept._segments[part.segment].tail.size > 0
        short = build(part.segment, 900)
        blocks[part.segment.uid] = Columns.open(np.frombuffer(short, np.uint8))  # of fewer rows: not used
        assert rows_of(kept.of(part, WANTED[1])) == expected(part, WANTED[1])
        blocks[part.segment.uid] = Columns.open(np.frombuffer(build(part.segment, 1000), np.uint8))
        for wanted in WANTED:
            assert rows_of(kept.of(part, wanted)) == expected(part, wanted)
        assert kept._segments[part.segment].tail.size == 0

    def test_a_block_knows_its_times(self, pool: Pool) -> None:
        """A block tells the least and greatest `created` of its rows."""
        collection = pool.collection("c")
        fill(collection, 0, 50)
        block = Columns.open(np.frombuffer(build(only_part(collection).segment, 50), np.uint8))
        first = int(START.timestamp()) * 1_000_000
        assert block.created == (first, first + 49_000_000)


class TestTimes:
    def test_the_last_hour(self, pool: Pool) -> None:
        """`$created` bounds records' own times, alone and with metadata, in `find`, `search` and `scan`."""
        collection = pool.collection("c", 2)
        now = datetime(2026, 5, 1, 12, tzinfo=UTC)
        ages = [timedelta(minutes=minutes) for minutes in (0, 30, 60, 61, 600)]
        collection.put(
            [str(number) for number in range(5)],
            [[1, number] for number in range(5)],
            metadata=[{"room": ROOMS[number % 2]} for number in range(5)],
            created=[now - age for age in ages],
        )
        hour: dict[str, Any] = {"$created": {">=": now - timedelta(hours=1)}}
        cases: list[tuple[dict[str, Any], str]] = [
            (hour, "012"),
            ({"$created": {">=": "2026-05-01T11:00:00Z", "<": "2026-05-01T13:30:00.000001+02:00"}}, "12"),
            ({**hour, "room": "hawaii"}, "02"),
            ({"$or": [{"$not": hour}, {"room": "maui"}]}, "134"),
            ({"$created": now}, "0"),
            ({"$created": {"$not": {"==": now}}}, "1234"),
            ({"$created": {"<": "2026-05-01"}}, ""),
        ]
        for given_filter, ids in cases:
            for _ in range(2):
                assert "".join(record.id for record in collection.find(given_filter)) == ids
                assert sorted(hit.id for hit in collection.search([1, 0], 9, given_filter)) == list(ids)
                assert collection.scan(given_filter, ["id"])["id"].to_pylist() == list(ids)

    def test_times_alone_decide_over_sealed_segments(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A sealed segment outside the span asked for is not looked into; one wholly inside needs no comparison."""
        collection = pool.collection("c")
        fill(collection, 0, 100)
        part, kept = only_part(collection, sealed=True), Masks()
        before, after = Created("<", START), Created(">", START - timedelta(days=1))
        monkeypatch.setattr(Created, "among", None)
        monkeypatch.setattr(masks, "decode", None)
        room = Where("room", "==", "maui")
        cases: list[tuple[Filter, bool]] = [
            (before, False),
            (after, True),
            (And(before, room), False),
            (Or(after, room), True),
            (Not(And(before, room)), True),
            (And(after, Not(before)), True),
        ]
        for wanted, verdict in cases:
            assert kept.of(part, wanted).tolist() == [verdict] * 100
            assert kept.may_match(part, wanted) is verdict
        assert kept.may_match(part, room) and kept.may_match(part, And(after, room))
        assert kept.may_match(part._replace(sealed=False), before)

    @given(st.integers(-3, 3), st.integers(0, 3), st.sampled_from(["==", "!=", ">", "<", ">=", "<="]))
    def test_a_span_decides_only_where_all_agree(self, first: int, length: int, op: str) -> None:
        """`within` says True or False exactly if all or none of the times could match."""
        one = Created(op, datetime(1970, 1, 1, tzinfo=UTC))
        answers = {one.matches({}, us) for us in range(first, first + length + 1)}
        assert one.within(first, first + length) == (answers.pop() if len(answers) == 1 else None)

    @pytest.mark.parametrize(
        ("given_filter", "hint"),
        [
            ({"$created": 1_700_000_000}, "datetime"),
            ({"$created": {">": "yesterday"}}, "datetime"),
            ({"$created": {"in": [START]}}, "Operators"),
            ({"$created": {"gte": START}}, "'>='"),
            ({"$created": {"is_empty": True}}, "Operators"),
            ({"$created": {}}, "=="),
            ({"$created": None}, "is_empty"),
        ],
    )
    def test_nonsense_about_times_is_refused(self, given_filter: Any, hint: str) -> None:
        """What means nothing raises `InvalidFilter`, which says what to write instead."""
        with pytest.raises(InvalidFilter) as caught:
            parse(given_filter)
        assert hint in caught.value.hint

    def test_a_time_needs_a_record(self) -> None:
        """Metadata alone does not tell a record's time; a key of that name in metadata is another thing."""
        with pytest.raises(InvalidFilter):
            Created("<", START).matches({"$created": 1})
        assert And(Created("<", START), Where("a", "==", 1)).matches({"a": 1}, 0)
        assert Where("$created", "==", 1).matches({"$created": 1})
        assert parse({"$created": START}) == Created("==", "2026-01-01") == Created("==", START.date())
        assert parse({"$created": {"$not": {"<": START}}}) == Not(Created("<", START))


@pytest.mark.parametrize("damage", [b"x", b"[", b"\xff"])
def test_damaged_metadata_is_named(pool: Pool, damage: bytes) -> None:
    """Whatever decodes a row whose metadata is no JSON object raises `PoolDamaged` with that row, and nothing is kept."""
    collection = pool.collection("c")
    fill(collection, 0, 2600)
    part = only_part(collection, sealed=True)
    segment, row = part.segment, 2500
    at = segment.metadata_offsets[row]
    whole = bytes(segment.metadata_heap[at : at + 1])
    segment.metadata_heap[at : at + 1] = damage
    kept = Masks()
    ways: tuple[Callable[[], object], ...] = (
        lambda: build(segment, part.rows),
        lambda: list(chunks(segment, 0, part.rows)),
        lambda: kept.of(part, Not(Where("n", "==", 1))),
        lambda: kept.of(part, Where("n", ">", 1)),
        lambda: Tail().grown(segment, 2400, masks.decode).grown(segment, 2600, masks.decode),
    )
    for decode in ways:
        with pytest.raises(PoolDamaged, match=f"row {row}: metadata is not a JSON object") as caught:
            decode()
        assert caught.value.offset == segment.offset + segment.columns["metadata_offsets"][0] + 4 * row
    segment.metadata_heap[at : at + 1] = whole
    for wanted in WANTED:
        assert rows_of(kept.of(part, wanted)) == expected(part, wanted)


def test_a_row_that_is_two_values_is_damage(pool: Pool) -> None:
    """Rows are decoded each by itself: two that are JSON only together are not."""
    collection = pool.collection("c")
    collection.put(["a", "b"], metadata=[{"a": [11111]}, {"b": 1}])
    part = only_part(collection)
    heap = part.segment.metadata_heap
    at = part.segment.metadata_offsets[1] - 2
    heap[at : at + 2] = b",1"
    with pytest.raises(PoolDamaged, match="row 0"):
        build(part.segment, 2)
