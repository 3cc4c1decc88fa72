"""An index blob and which rows it covers: ranges of segments, whose rows are its internal ids, one range after the other.

Payload (offset, size, field):

       0   4  magic "SCOV"             16  24  for each range: segment's uid u8, first row u8, rows u8
       4   4  ranges                           then, at the next multiple of 64, the index (`ivf_layout`)
       8   8  where the index begins

Published rows never change, so a range may end in the midst of a segment that is still open.
"""

from __future__ import annotations

import struct
import sys
import threading
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.arena.block import Buffers, Payload
from sharedrag.search.ivf import Allowed, Index
from sharedrag.search.ivf_rows import F32, I64, Rows
from sharedrag.segments.live import Part

_HEADER = struct.Struct("<4sIQ")
_RANGE = struct.Struct("<QQQ")
_MAGIC = b"SCOV"
_ALLOWED_BYTES = 16 << 20  # of masks packed for FAISS, kept per index: of a million rows one takes 125 kB
_KEPT_BYTES = 1 << 10  # about, of what is around a mask
_EXACT_MAX = 1500  # rows up to which all of them are scored rather than the index asked
_WIDER = 4.0  # times as many lists are probed where those probed hold too little of what may be found
Mask = npt.NDArray[np.bool_]
Asked = tuple[str, tuple[int, ...]]  # what a filter says, and how many rows of each covered segment are dead


class Range(NamedTuple):
    """Rows of one segment."""

    uid: int
    start: int
    rows: int


def encode(ranges: Sequence[Range], index: Buffers) -> list[bytes | memoryview]:
    """The payload: the ranges, then the index."""
    table = b"".join(_RANGE.pack(*one) for one in ranges)
    at = -(-(_HEADER.size + len(table)) // 64) * 64
    return [(_HEADER.pack(_MAGIC, len(ranges), at) + table).ljust(at, b"\0"), *index]


def decode(payload: Payload) -> tuple[list[Range], Payload]:
    """(ranges, the index's own payload); raises `ValueError`."""
    if len(payload) < _HEADER.size:
        raise ValueError("an index block is shorter than its header")
    magic, count, at = _HEADER.unpack(payload[: _HEADER.size].tobytes())
    if magic != _MAGIC or at > len(payload) or _HEADER.size + count * _RANGE.size > at:
        raise ValueError(f"not an index block of this version: {magic!r}")
    table = payload[_HEADER.size : _HEADER.size + count * _RANGE.size].tobytes()
    return [Range(*fields) for fields in _RANGE.iter_unpack(table)], payload[at:]


def joined(ranges: Sequence[Range]) -> list[Range]:
    """The same rows, sorted, neighbours as one range."""
    found: list[Range] = []
    for one in sorted(ranges):
        if found and found[-1].uid == one.uid and found[-1].start + found[-1].rows == one.start:
            found[-1] = found[-1]._replace(rows=found[-1].rows + one.rows)
        else:
            found.append(one)
    return found


class CoveredIndex:
    """One index blob, open, with the vectors of its rows."""

    def __init__(self, payload: Payload, segments: Mapping[int, Part], metric: str) -> None:
        """Raises `ValueError` for a payload that is none, `KeyError` when a segment is not in `segments` (by uid)."""
        self.ranges, own = decode(payload)
        self.index = Index.open(own, payload)
        vectors = [segments[one.uid].segment.vectors_array[one.start : one.start + one.rows] for one in self.ranges]
        self.rows = Rows(vectors, metric)
        self.starts = list(accumulate((one.rows for one in self.ranges), initial=0))
        if self.starts[-1] != self.index.settings.rows:
            raise ValueError("an index block covers another number of rows than it says")
        self.by_uid: dict[int, list[Range]] = {}
        for one in self.ranges:
            self.by_uid.setdefault(one.uid, []).append(one)
        self._lock = threading.Lock()
        self._allowed: OrderedDict[Asked, tuple[Allowed | I64, int]] = OrderedDict()  # and the bytes that it costs
        self._allowed_bytes = 0

    def fits(self, segments: Mapping[int, Part]) -> bool:
        """Whether a view has all that is covered."""
        return all(
            uid in segments and segments[uid].rows >= max(one.start + one.rows for one in ranges)
            for uid, ranges in self.by_uid.items()
        )

    def places(self, internal: Sequence[int], positions: Mapping[int, int]) -> tuple[list[int], list[int]]:
        """(positions, rows) of internal ids: `positions` says by uid which part of a view a segment is."""
        parts, rows = [], []
        starts, ranges = self.starts, self.ranges
        for one in internal:
            at = bisect_right(starts, one) - 1
            uid, start, _ = ranges[at]
            parts.append(positions[uid])
            rows.append(one - starts[at] + start)
        return parts, rows

    def search(self, query: F32, k: int, allowed: Allowed | None = None) -> tuple[F32, I64]:
        """`Index.search`; but fewer than k are found only where there are fewer.

        How many lists to probe follows from how much a filter admits, as if that lay everywhere. Where it is another
        corner than the query's, the nearest lists may hold nothing of it.
        """
        scores, rows = self.index.search(query, k, self.rows, allowed=allowed)
        settings = self.index.settings
        if len(rows) >= min(k, settings.indexed if allowed is None else allowed.count):
            return scores, rows
        factor, enough = _WIDER, False
        while not enough:
            enough = factor * settings.nprobe >= settings.lists
            found = self.index.candidates(query[None], k, allowed=allowed, nprobe_factor=factor)[0]
            if found[-1] >= 0 and not enough:  # there they are; their neighbours are of the kind too
                found = self.index.candidates(query[None], k, allowed=allowed, nprobe_factor=2 * factor)[0]
                enough = True
            factor *= _WIDER
        return self.rows.best(query, found, k)

    def after_fork_in_child(self) -> None:
        """A lock of our own."""
        self._lock = threading.Lock()

    def allowed(self, key: Asked | None, masks_of: Callable[[], Mapping[int, Mask | None]]) -> Allowed | I64:
        """What may be found, packed once for each `key` (None: not kept), from masks over the segments' rows by uid.

        The internal ids themselves where they are so few that looking at all of them is the faster way.
        """
        kept = self._allowed.get(key) if key is not None else None
        if kept is not None:
            return kept[0]
        masks = masks_of()
        pieces = []
        for one in self.ranges:
            mask = masks[one.uid]
            pieces.append(np.ones(one.rows, np.bool_) if mask is None else mask[one.start : one.start + one.rows])
        whole = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
        few = int(np.count_nonzero(whole)) <= _EXACT_MAX
        known = np.flatnonzero(whole) if few else Allowed(whole)
        if key is not None:
            self._keep(key, known)
        return known

    def _keep(self, key: Asked, known: Allowed | I64) -> None:
        """Remember it, and forget the oldest where there are too many."""
        size = _KEPT_BYTES + sys.getsizeof(key[0]) + known.nbytes
        with self._lock:
            if key in self._allowed:
                return  # another thread's
            self._allowed[key] = known, size
            self._allowed_bytes += size
            while self._allowed_bytes > _ALLOWED_BYTES and len(self._allowed) > 1:
                _, (_, old) = self._allowed.popitem(last=False)
                self._allowed_bytes -= old
