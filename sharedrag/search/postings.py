"""Postings of consecutive rows: for each term the rows that hold it and how often, as flat arrays for NumPy.

The same arrays lie in a block of the arena (`terms`) or in a process's own memory (`tail`). One `Postings` is of at most
65,536 rows, so that a row's place fits 16 bits and one score for each row fits a processor's cache.

    hashes    u8[n]      the terms, rising
    starts    u4[n + 1]  term i's postings are those from starts[i] to starts[i + 1]
    places    u2[m]      row - first, rising within a term
    counts    u1[m]      how often the row holds the term; 255 may mean more
    many_at   u4[x]      the postings that mean more, rising
    many      u4[x]      and how many that is
    lengths   u4[rows]   terms in each row, as often as they occur
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharedrag.arena.segment import HEAP_MAX, Segment
from sharedrag.search import words

ROWS_MAX = 1 << 16
COUNT_MAX = 255  # what a count of one byte can say: at least so many
_BATCH_BYTES = 4 << 20  # of text, tokenised at a time: bounds the memory that building takes
_PIECE_BYTES = 1 << 20  # a text that is longer than a batch is tokenised in pieces of this

U8 = npt.NDArray[np.uint8]
U16 = npt.NDArray[np.uint16]
U32 = npt.NDArray[np.uint32]
U64 = npt.NDArray[np.uint64]
I64 = npt.NDArray[np.int64]


class Postings(NamedTuple):
    """See above; `documents` rows hold a term at all, and `total` terms are in all rows together."""

    first: int
    rows: int
    documents: int
    total: int
    hashes: U64
    starts: U32
    places: U16
    counts: U8
    many_at: U32
    many: U32
    lengths: U32

    def find(self, wanted: U64) -> tuple[I64, I64]:
        """(which of `wanted`, which term here) for those of them that some row holds; `wanted` rises."""
        if not len(self.hashes):
            return np.empty(0, np.int64), np.empty(0, np.int64)
        at = self.hashes.searchsorted(wanted)
        at[at == len(self.hashes)] = 0
        which = np.flatnonzero(self.hashes[at] == wanted)
        return which, at[which]

    def counts_of(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The counts of the postings [start, stop), each in full, as float32."""
        counts = self.counts[start:stop].astype(np.float32)
        if len(self.many_at):
            low, high = self.many_at.searchsorted((start, stop))
            counts[self.many_at[low:high] - np.uint32(start)] = self.many[low:high]
        return counts

    def counts_at(self, at: I64) -> npt.NDArray[np.float32]:
        """The counts of these postings, each in full, as float32."""
        counts = self.counts[at].astype(np.float32)
        if len(self.many_at):
            more = np.flatnonzero(counts == COUNT_MAX)
            counts[more] = self.many[self.many_at.searchsorted(at[more].astype(np.uint32))]
        return counts


def from_counts(first: int, lengths: U32, hashes: U64, starts: I64, places: I64, counts: I64) -> Postings:
    """Postings of `len(lengths)` rows, their columns narrowed. REQUIRES: sorted as `Postings` says."""
    assert len(lengths) <= ROWS_MAX and len(hashes) + 1 == len(starts) and len(places) == len(counts)
    many_at = np.flatnonzero(counts >= COUNT_MAX)
    return Postings(
        first,
        len(lengths),
        int(np.count_nonzero(lengths)),
        int(lengths.sum(dtype=np.int64)),
        hashes,
        starts.astype(np.uint32),
        places.astype(np.uint16),
        np.minimum(counts, COUNT_MAX).astype(np.uint8),
        many_at.astype(np.uint32),
        counts[many_at].astype(np.uint32),
        lengths,
    )


def from_tokens(first: int, rows: int, found: words.Tokens) -> Postings:
    """Postings of rows whose texts, in this order, were tokenised."""
    keys = np.sort(found.terms.astype(np.uint64) << np.uint64(16) | found.texts.astype(np.uint64))
    edges = np.flatnonzero(keys[1:] != keys[:-1]) + 1 if len(keys) else np.empty(0, np.int64)
    begins = np.concatenate(([0], edges)) if len(keys) else edges
    counts = np.diff(np.append(begins, len(keys)))
    keys = keys[begins]
    starts = np.concatenate(
        ([0], np.cumsum(np.bincount((keys >> np.uint64(16)).astype(np.int64), minlength=len(found.hashes))))
    )
    lengths = np.bincount(found.texts, minlength=rows).astype(np.uint32)
    return from_counts(first, lengths, found.hashes, starts, (keys & np.uint64(0xFFFF)).astype(np.int64), counts)


def joined(parts: Sequence[Postings]) -> Postings:
    """One `Postings` of several that follow each other, at most 65,536 rows together. Copies; sorts only the terms."""
    if len(parts) == 1:
        return parts[0]
    first = parts[0].first
    hashes, where = np.unique(np.concatenate([part.hashes for part in parts]), return_inverse=True)
    bounds = np.cumsum([0, *(len(part.hashes) for part in parts)])
    ranks = [where[start:stop] for start, stop in pairwise(bounds.tolist())]
    each = np.zeros(len(hashes), np.int64)
    for part, rank in zip(parts, ranks, strict=True):
        each[rank] += np.diff(part.starts)
    starts = np.concatenate(([0], np.cumsum(each)))
    filled = starts[:-1].copy()
    places = np.empty(starts[-1], np.uint16)
    counts = np.empty(starts[-1], np.uint8)
    many_at: list[I64] = []
    for part, rank in zip(parts, ranks, strict=True):
        of_part = np.diff(part.starts)
        to = np.repeat(filled[rank] - part.starts[:-1], of_part) + np.arange(len(part.places))
        places[to] = part.places + np.uint16(part.first - first)
        counts[to] = part.counts
        many_at.append(to[part.many_at])
        filled[rank] += of_part
    at = np.concatenate(many_at)
    order = at.argsort()
    many = np.concatenate([part.many for part in parts])[order]
    return Postings(
        first,
        sum(part.rows for part in parts),
        sum(part.documents for part in parts),
        sum(part.total for part in parts),
        hashes,
        starts.astype(np.uint32),
        places,
        counts,
        at[order].astype(np.uint32),
        many,
        np.concatenate([part.lengths for part in parts]),
    )


# ---------------------------------------------------------------------- from a segment


def of_rows(segment: Segment, start: int, stop: int) -> list[Postings]:
    """Postings of the rows [start, stop) of a segment, 65,536 rows each but the last. Raises `PoolDamaged`."""
    return [joined(list(_batches(segment, at, min(stop, at + ROWS_MAX)))) for at in range(start, stop, ROWS_MAX)]


def text_bytes(segment: Segment, start: int, stop: int) -> int:
    """How long the texts of the rows [start, stop) are together. Raises `PoolDamaged`."""
    offsets = _offsets(segment, start, stop)
    return int(offsets[-1]) - int(offsets[0])


def tokens_of(segment: Segment, start: int, stop: int) -> words.Tokens:
    """The terms of the rows [start, stop), all at once. Raises `PoolDamaged`."""
    return _tokens(segment, _offsets(segment, start, stop), start)


def _offsets(segment: Segment, start: int, stop: int) -> npt.NDArray[np.int32]:
    """Where the texts of the rows [start, stop) begin and end, (stop - start + 1,), checked as far as Arrow relies on it."""
    offsets: npt.NDArray[np.int32] = segment.array("text_offsets", np.int32)[start : stop + 1]  # type: ignore[assignment]
    if offsets[0] < 0 or offsets[-1] > len(segment.text_heap) or (offsets[1:] < offsets[:-1]).any():
        raise segment.damaged("impossible string offsets", "text_offsets", start, 4)
    return offsets


def _batches(segment: Segment, start: int, stop: int) -> Iterator[Postings]:
    offsets = _offsets(segment, start, stop)
    at = 0
    while at < stop - start:
        reach = np.int32(min(int(offsets[at]) + _BATCH_BYTES, HEAP_MAX))
        upto = max(at + 1, int(offsets.searchsorted(reach, "right")) - 1)
        if offsets[upto] - offsets[at] > _BATCH_BYTES:
            yield _long_text(segment, start + at, int(offsets[at]), int(offsets[upto]))
        else:
            yield from_tokens(start + at, upto - at, _tokens(segment, offsets[at : upto + 1], start + at))
        at = upto


def _tokens(segment: Segment, offsets: npt.NDArray[np.int32], row: int) -> words.Tokens:
    """The terms of the texts between these offsets, read where they lie."""
    bounds = pa.py_buffer(np.ascontiguousarray(offsets))
    texts = pa.StringArray.from_buffers(len(offsets) - 1, bounds, pa.py_buffer(segment.text_heap))
    try:
        return words.tokens(texts)
    except pa.ArrowInvalid:
        raise segment.damaged("a text is not UTF-8", "text_offsets", row, 4) from None


def _long_text(segment: Segment, row: int, start: int, stop: int) -> Postings:
    """Postings of one row whose text is tokenised piece by piece."""
    hashes, counts = np.empty(0, np.uint64), np.empty(0, np.int64)
    for begin, end in _pieces(segment.text_heap, start, stop):
        found = _tokens(segment, np.array((begin, end), np.int32), row)
        hashes, where = np.unique(np.concatenate((hashes, found.hashes)), return_inverse=True)
        weights = np.concatenate((counts, np.bincount(found.terms, minlength=len(found.hashes))))
        counts = np.bincount(where, weights, len(hashes)).astype(np.int64)
    lengths = np.array([counts.sum()], np.uint32)
    return from_counts(row, lengths, hashes, np.arange(len(hashes) + 1), np.zeros(len(hashes), np.int64), counts)


def _pieces(heap: memoryview, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Where to cut a text: at its last space within reach, or, without one, between two characters."""
    while stop - start > _PIECE_BYTES:
        window = bytes(heap[start : start + _PIECE_BYTES])
        size = max(window.rfind(b" "), window.rfind(b"\n"))
        if size <= 0:
            size = _PIECE_BYTES
            while size > 1 and heap[start + size] & 0xC0 == 0x80:  # not the first byte of a character
                size -= 1
        yield start, start + size
        start += size
    yield start, stop
