"""Metadata as it lies in a segment: decoded row by row, where no typed column answers or one is to be made."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sharedrag.arena.row import HAS_METADATA
from sharedrag.arena.segment import Segment

if TYPE_CHECKING:
    from sharedrag.filters import Filter

Mask = npt.NDArray[np.bool_]
Object = dict[str, object]

_CHUNK_ROWS = 1024  # decoded at a time, so that their Python objects stay in the cache
_NEEDLES_FROM = 16  # rows from which looking for needles first is worth its calls


def decode(segment: Segment, row: int) -> Object:
    """A row's metadata; raises `PoolDamaged` unless it is a JSON object. REQUIRES: the row has metadata."""
    try:
        found = orjson.loads(segment.metadata_heap[segment.metadata_offsets[row] : segment.metadata_offsets[row + 1]])
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise segment.damaged("metadata is not a JSON object", "metadata_offsets", row, 4)
    return found


def chunks(segment: Segment, start: int, stop: int) -> Iterator[list[Object]]:
    """The metadata of the rows [start, stop) in order, some rows at a time; {} for a row without.

    Raises `PoolDamaged` for the first row whose metadata is not a JSON object.
    """
    offsets = segment.string_offsets("metadata", stop)
    heap, loads = segment.metadata_heap, orjson.loads
    for first in range(start, stop, _CHUNK_ROWS):
        last = min(stop, first + _CHUNK_ROWS)
        has = (segment.flags_array[first:last] & HAS_METADATA) != 0
        try:
            if has.all():
                found = [loads(heap[at:end]) for at, end in pairwise(offsets[first : last + 1].tolist())]
            else:
                spans = zip(has.tolist(), pairwise(offsets[first : last + 1].tolist()), strict=True)
                found = [loads(heap[at:end]) if given else {} for given, (at, end) in spans]
        except orjson.JSONDecodeError:
            found = []
        if set(map(type, found)) != {dict}:
            found = [decode(segment, row) if given else {} for row, given in enumerate(has.tolist(), first)]
        yield found


class Rows(NamedTuple):
    """The rows [start, stop) of a segment, numbered from 0 here."""

    segment: Segment
    start: int
    stop: int

    def created(self) -> npt.NDArray[np.int64]:
        """Their own times, (stop - start,) int64 us since 1970, where they lie."""
        return self.segment.array("created", np.int64)[self.start : self.stop]  # type: ignore[return-value]

    def look(self, rows: npt.NDArray[np.int64], wanted: Filter) -> Mask:
        """Which of these rows, rising, match, (len(rows),) bool: byte strings they must hold first, then their JSON.

        Raises `PoolDamaged` for metadata that is not a JSON object.
        """
        segment, flags = self.segment, self.segment.flags
        mask = np.zeros(len(rows), np.bool_)
        candidates = np.arange(len(rows))
        needles = wanted.needles() if len(rows) >= _NEEDLES_FROM else []
        if needles:
            column = self._metadata(rows)
            for needle in needles:
                hit = pc.match_substring(column, needle).to_numpy(zero_copy_only=False)
                column = column.filter(pa.array(hit))
                candidates = candidates[hit]
        for place in candidates.tolist():
            row = self.start + int(rows[place])
            metadata = decode(segment, row) if flags[row] & HAS_METADATA else {}
            mask[place] = wanted.matches(metadata, segment.created[row])
        return mask

    def _metadata(self, rows: npt.NDArray[np.int64]) -> pa.BinaryArray:
        offsets = self.segment.string_offsets("metadata", self.stop)[self.start :]
        heap = self.segment.array("metadata_heap", np.uint8)
        column = pa.BinaryArray.from_buffers(
            pa.binary(), self.stop - self.start, [None, pa.py_buffer(offsets), pa.py_buffer(heap)]
        )
        return column if len(rows) == len(column) else column.take(pa.array(rows))
