r"""TERMS: the block of the arena that holds a sealed segment's postings, read in place by every process.

    offset  size  field
         0     8  magic "SHRDTRM\x01"
         8     8  the analyser that made the terms (`words.ANALYSER`)
        16     4  rows of the segment that are covered: its first ones
        20     4  runs: `Postings` of 65,536 rows each but the last
        24    40  zero
        64    64  for each run: u8 x 8: offset of its arrays, rows, documents, total, terms, postings, many, zero
               …  each run's arrays, each 64-byte aligned, in this order (see `postings`):
                  hashes u8, starts u4, lengths u4, many_at u4, many u4, places u2, counts u1

There is no dictionary of words: a term is its hash, found by binary search, so opening a block touches its directory alone.
"""

from __future__ import annotations

import struct
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.arena.segment import Segment
from sharedrag.search import words
from sharedrag.search.postings import Postings, of_rows

_MAGIC = b"SHRDTRM\x01"
_HEADER = struct.Struct("<8sQII40x")
_RUN = struct.Struct("<8Q")
_ALIGNMENT = 64
assert _HEADER.size == _ALIGNMENT and _RUN.size == _ALIGNMENT


class Terms(NamedTuple):
    """The postings of a segment's first `rows` rows, as views of the block."""

    rows: int
    runs: tuple[Postings, ...]

    @classmethod
    def open(cls, payload: npt.NDArray[np.uint8]) -> Terms | None:
        """The block in `payload`, nothing copied; None if another version or analyser made it.

        REQUIRES: the bytes are as `build` made them (their checksum was verified), 64-byte aligned.
        """
        if len(payload) < _HEADER.size:
            return None
        magic, analyser, rows, count = _HEADER.unpack(bytes(payload[: _HEADER.size]))
        if magic != _MAGIC or analyser != words.ANALYSER:
            return None
        runs: list[Postings] = []
        for index in range(count):
            at = _HEADER.size + index * _RUN.size
            found = _RUN.unpack(bytes(payload[at : at + _RUN.size]))
            runs.append(_view(payload, sum(run.rows for run in runs), found))
        assert rows == sum(run.rows for run in runs)
        return cls(rows, tuple(runs))


def build(segment: Segment, rows: int) -> bytes:
    """The block for the first `rows` rows of a segment. Raises `PoolDamaged`."""
    runs = of_rows(segment, 0, rows)
    buffers = [_HEADER.pack(_MAGIC, words.ANALYSER, rows, len(runs))]
    at = _HEADER.size + _RUN.size * len(runs)
    arrays: list[bytes | memoryview] = []
    for run in runs:
        sizes = (run.rows, run.documents, run.total, len(run.hashes), len(run.places), len(run.many))
        buffers.append(_RUN.pack(at, *sizes, 0))
        for array in (run.hashes, run.starts, run.lengths, run.many_at, run.many, run.places, run.counts):
            arrays += [array.view(np.uint8).data, bytes(-array.nbytes % _ALIGNMENT)]
            at += len(arrays[-2]) + len(arrays[-1])
    return b"".join((*buffers, *arrays))


def _view(payload: npt.NDArray[np.uint8], first: int, run: tuple[int, ...]) -> Postings:
    """One run of a block, `first` the row where it begins."""
    at, rows, documents, total, terms, postings, many, _ = run
    sizes = (8 * terms, 4 * (terms + 1), 4 * rows, 4 * many, 4 * many, 2 * postings, postings)
    begins = list(accumulate((size + -size % _ALIGNMENT for size in sizes), initial=at))
    assert begins[-1] <= len(payload)
    hashes, starts, lengths, many_at, counts_many, places, counts = (
        payload[begin : begin + size] for begin, size in zip(begins, sizes, strict=False)
    )
    return Postings(
        first,
        rows,
        documents,
        total,
        hashes.view(np.uint64),
        starts.view(np.uint32),
        places.view(np.uint16),
        counts,
        many_at.view(np.uint32),
        counts_many.view(np.uint32),
        lengths.view(np.uint32),
    )
