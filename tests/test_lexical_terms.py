"""Blocks of postings: what is built is what the rows hold, it is read in place, and any text can be in it."""

from __future__ import annotations

import re
import struct
import threading
from collections import Counter
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedrag import Collection, Pool, PoolDamaged
from sharedrag.arena.segment import Segment
from sharedrag.search import postings, tail, terms, words
from sharedrag.search.postings import Postings
from sharedrag.search.terms import Terms
from sharedrag.segments.live import Part


def only_part(collection: Collection) -> Part:
    """The collection's one segment."""
    with collection._view() as view:
        (part,) = view.parts
        return part


class Texts:
    """What building postings needs of a segment, over texts that lie as they do in one."""

    def __init__(self, given_texts: Sequence[str | None]) -> None:
        encoded = [(text or "").encode() for text in given_texts]
        self.offsets = np.cumsum([0, *map(len, encoded)]).astype(np.int32)
        self.text_heap = memoryview(b"".join(encoded))

    def array(self, column: str, dtype: Any) -> np.ndarray[Any, Any]:
        """The offsets."""
        assert (column, dtype) == ("text_offsets", np.int32)
        return self.offsets


def opened(part: Part) -> Terms:
    """The part's block, built and opened."""
    found = Terms.open(np.frombuffer(terms.build(part.segment, part.rows), np.uint8))
    assert found is not None and found.rows == part.rows
    return found


def content(runs: tuple[Postings, ...] | list[Postings]) -> list[Counter[int]]:
    """For each row the terms that the postings say it has."""
    rows = sum(run.rows for run in runs)
    found: list[Counter[int]] = [Counter() for _ in range(rows)]
    for run in runs:
        counts = run.counts_of(0, len(run.places)).astype(int).tolist()
        assert counts == run.counts_at(np.arange(len(run.places))).astype(int).tolist()
        for index, term in enumerate(run.hashes.tolist()):
            held = slice(int(run.starts[index]), int(run.starts[index + 1]))
            assert (np.diff(run.places[held].astype(int)) > 0).all()
            for place, count in zip(run.places[held].tolist(), counts[held], strict=True):
                found[run.first + place][term] = count
        lengths = [sum(one.values()) for one in found[run.first : run.first + run.rows]]
        assert lengths == run.lengths.tolist()
        assert (run.total, run.documents) == (sum(lengths), sum(map(bool, lengths)))
    return found


def expected(given_texts: list[str | None]) -> list[Counter[int]]:
    """The same, analysed text by text."""
    return [Counter(words.of_text(text or "").tolist()) for text in given_texts]


texts = st.one_of(
    st.none(),
    st.text(max_size=30),
    st.lists(st.sampled_from(["beach", "hotel", "東京"]), max_size=3).map(lambda chosen: " ".join(chosen * 400)),
)


@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(texts, min_size=1, max_size=40))
def test_a_block_has_what_the_rows_have(pool: Pool, given_texts: list[str | None]) -> None:
    """Every term of every text as often as it occurs, empty and missing texts nothing."""
    collection = pool.collection("notes")
    collection.put([f"{number}" for number in range(len(given_texts))], texts=given_texts)
    assert content(opened(only_part(collection)).runs) == expected(given_texts)
    pool.drop("notes")


@settings(max_examples=40)
@given(st.lists(st.lists(texts, min_size=1, max_size=30), min_size=1, max_size=12))
def test_a_tail_has_what_the_rows_have(batches: list[list[str | None]]) -> None:
    """However the segment grows, and however the postings were frozen and joined on the way."""
    given_texts = [text for batch in batches for text in batch]
    everything = np.unique(np.concatenate([words.of_text(text or "") for text in given_texts]))
    grown = tail.Tail(cast("Segment", Texts(given_texts)), 0)
    with pytest.MonkeyPatch.context() as small:
        small.setattr(tail, "_FEW", 12)
        small.setattr(tail, "_YOUNG_MAX", 25)
        small.setattr(tail, "_SMALL_MAX", 3)
        small.setattr(tail, "_MEDIUM_ROWS", 40)
        small.setattr(tail, "_LARGE_ROWS", 80)
        for rows in np.cumsum([len(batch) for batch in batches]).tolist():
            found = grown.of(rows, everything)
            assert [run.first for run in found] == np.cumsum([0, *(run.rows for run in found)])[:-1].tolist()
            assert content(found) == expected(given_texts[:rows])
            assert len(found) <= 2 + rows // 40 + 3


def test_a_block_is_read_in_place(pool: Pool) -> None:
    """Every array is a view of the payload and 64-byte aligned in it."""
    collection = pool.collection("notes")
    collection.put(["a", "b"], texts=["beach " * 300, "hotel beach"])
    part = only_part(collection)
    built = terms.build(part.segment, part.rows)
    memory = np.zeros(len(built) + 64, np.uint8)
    start = -memory.ctypes.data % 64
    payload = memory[start : start + len(built)]
    payload[:] = np.frombuffer(built, np.uint8)
    found = Terms.open(payload)
    assert found is not None
    arrays = [one for run in found.runs for one in run if isinstance(one, np.ndarray)]
    assert len(arrays) == 7
    for one in arrays:
        assert not len(one) or np.shares_memory(one, payload)
        assert one.ctypes.data % 64 == 0


def test_a_block_of_others_making_is_none(pool: Pool) -> None:
    """Another version or another analyser, and what is too short to be any."""
    collection = pool.collection("notes")
    collection.put(["a"], texts=["beach"])
    part = only_part(collection)
    built = bytearray(terms.build(part.segment, part.rows))
    for at in (7, 8, 15):
        other = built.copy()
        other[at] ^= 1
        assert Terms.open(np.frombuffer(other, np.uint8)) is None
    assert Terms.open(np.frombuffer(built[:63], np.uint8)) is None
    assert Terms.open(np.frombuffer(built, np.uint8)) is not None


def test_the_byte_table_says_how_a_block_lies() -> None:
    """Offsets and sizes of the header's fields, one after the other, to the start of the runs."""
    fields = [tuple(map(int, one)) for one in re.findall(r"^ {8,9}(\d+) +(\d+)  \w", terms.__doc__ or "", re.MULTILINE)]
    assert fields[0][0] == 0
    assert all(at + size == after for (at, size), (after, _) in pairwise(fields))
    assert fields[-1] == (terms._HEADER.size, terms._RUN.size)
    assert struct.calcsize("<8s") == fields[0][1]


def test_rows_beyond_65536_are_in_runs_of_their_own() -> None:
    """A block of 140,000 rows, of which every one is found where it is."""
    count = 140_000
    segment = cast("Segment", Texts([f"all n{row}" for row in range(count)]))
    found = Terms.open(np.frombuffer(terms.build(segment, count), np.uint8))
    assert found is not None and found.rows == count
    assert [run.rows for run in found.runs] == [65_536, 65_536, 140_000 - 131_072]
    assert [run.first for run in found.runs] == [0, 65_536, 131_072]
    common = words.of_question("all")[0]
    for row in (0, 65_535, 65_536, 131_071, 131_072, count - 1):
        (run,) = [one for one in found.runs if len(one.find(words.of_question(f"n{row}")[0])[0])]
        (at,) = run.find(words.of_question(f"n{row}")[0])[1].tolist()
        assert run.places[run.starts[at] : run.starts[at + 1]].tolist() == [row - run.first]
        (at,) = run.find(common)[1].tolist()
        assert run.places[run.starts[at] : run.starts[at + 1]].tolist() == list(range(run.rows))


@pytest.mark.parametrize("separator", [" ", "", "\u3000"], ids=["spaced", "one word", "wide spaces"])
def test_huge_texts(pool_path: str, separator: str) -> None:
    """Some megabytes in one record, between others: counted piece by piece, and found."""
    many = 1_500_000
    huge = separator.join(["東京" if separator != " " else "aloha"] * many)
    with Pool.open(pool_path, create=True, capacity="256 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        collection.put(["small", "huge", "last"], texts=["one beach", f"first {huge} end", "two"])
        found = opened(only_part(collection))
        term = words.of_question("東京" if separator != " " else "aloha")[0]
        (run,) = found.runs
        which, at = run.find(term)
        assert len(which) == 1
        counts = run.counts_of(int(run.starts[at[0]]), int(run.starts[at[0] + 1])).tolist()
        assert counts == [pytest.approx(many, abs=len(huge.encode()) // postings._PIECE_BYTES + 1)]
        assert run.lengths[0] == run.lengths[2] * 2 == 2
        for question, expected_ids in (("end", ["huge"]), ("beach", ["small"]), ("two", ["last"]), ("first", ["huge"])):
            assert [hit.id for hit in collection.search(text=question)] == expected_ids
        collection.put(["later"], texts=[huge])
        assert {hit.id for hit in collection.search(text="東京 aloha")} == {"huge", "later"}


def test_counts_beyond_255_are_whole(pool: Pool) -> None:
    """In the block, joined in a tail, and looked up one by one."""
    collection = pool.collection("notes")
    counts = [1, 254, 255, 256, 70_000, 3]
    collection.put([f"{number}" for number in range(6)], texts=["beach " * count for count in counts])
    part = only_part(collection)
    parts = [postings.of_rows(part.segment, row, row + 1)[0] for row in range(6)]
    for run in (opened(part).runs[0], postings.joined(parts)):
        assert run.counts_of(0, 6).tolist() == counts
        assert run.counts_of(3, 5).tolist() == [256, 70_000]
        assert run.counts_at(np.array([4, 0, 2])).tolist() == [70_000, 1, 255]


def test_a_damaged_text_is_said_to_be(pool: Pool) -> None:
    """Offsets that lead astray and bytes that are no text raise `PoolDamaged`; others are searched as before."""
    collection = pool.collection("notes")
    collection.put(["a", "b"], texts=["beach", "hotel"])
    segment = only_part(collection).segment
    segment.text_heap[0] = 0xFF
    for use in (lambda: collection.search(text="beach"), lambda: terms.build(segment, 2)):
        with pytest.raises(PoolDamaged, match="not UTF-8"):
            use()
    segment.text_heap[0] = ord("b")
    assert [hit.id for hit in collection.search(text="beach")] == ["a"]
    for broken in (-1, 1 << 30):
        before, segment.text_offsets[1] = segment.text_offsets[1], broken
        with pytest.raises(PoolDamaged, match="offsets"):
            terms.build(segment, 2)
        segment.text_offsets[1] = before


def test_threads_search_while_others_put(pool: Pool) -> None:
    """Each finds what it just put, on one lexicon."""
    collection = pool.collection("notes")
    errors: list[Any] = []

    def work(name: str) -> None:
        try:
            for number in range(150):
                collection.put([f"{name}{number}"], texts=[f"{name}x{number} common"])
                found = [hit.id for hit in collection.search(text=f"{name}x{number}")]
                assert found == [f"{name}{number}"]
                assert len(collection.search(text="common", k=1000)) > number
        except BaseException as error:  # noqa: BLE001 - shown below
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    assert len(collection.search(text="common", k=1000)) == 600


def test_arrow_reads_where_the_texts_lie(pool: Pool) -> None:
    """Tokenising allocates for what it finds, not for a copy of the texts' column."""
    collection = pool.collection("notes")
    collection.put([f"{number}" for number in range(100)], texts=["beach"] * 100)
    part = only_part(collection)
    before = pa.total_allocated_bytes()
    runs = postings.of_rows(part.segment, 0, part.rows)
    assert pa.total_allocated_bytes() == before
    assert content(runs) == expected(["beach"] * 100)
