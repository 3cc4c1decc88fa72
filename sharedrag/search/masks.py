"""Filters over metadata, row by row but once: a mask per segment and filter, kept and extended as the segment grows."""

from __future__ import annotations

import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc

from sharedrag.arena.segment import HAS_METADATA, Segment
from sharedrag.segments.live import Part

if TYPE_CHECKING:
    from sharedrag.filters import Filter

_MASKS_MAX = 256  # kept per collection, over all segments and filters

Mask = npt.NDArray[np.bool_]


class Masks:
    """Which rows of which segment a filter matches; what was decoded once is not decoded again."""

    def __init__(self) -> None:
        """Start with nothing kept."""
        self._lock = threading.Lock()
        self._kept: OrderedDict[tuple[int, str], Mask] = OrderedDict()

    def of(self, part: Part, wanted: Filter) -> Mask:
        """The rows of a part that match, (rows,) bool. Raises `PoolDamaged` for metadata that is not JSON."""
        key = (part.segment.uid, wanted.key())
        with self._lock:
            known = self._kept.get(key)
            if known is not None:
                self._kept.move_to_end(key)
        start = 0 if known is None else len(known)
        if start >= part.rows:
            assert known is not None
            return known[: part.rows]
        fresh = _evaluate(part.segment, start, part.rows, wanted)
        whole = fresh if known is None else np.concatenate((known, fresh))
        with self._lock:
            self._kept[key] = whole
            while len(self._kept) > _MASKS_MAX:
                self._kept.popitem(last=False)
        return whole

    def after_fork_in_child(self) -> None:
        """A lock of our own."""
        self._lock = threading.Lock()


def _evaluate(segment: Segment, start: int, stop: int, wanted: Filter) -> Mask:
    """Decode and test the rows [start, stop), after a vectorised look for bytes that every match must contain."""
    offsets = segment.string_offsets("metadata", stop)
    mask = np.zeros(stop - start, np.bool_)
    candidates = np.arange(start, stop)
    needles = wanted.needles()
    if needles:
        heap = segment.array("metadata_heap", np.uint8)
        column = pa.BinaryArray.from_buffers(
            pa.binary(), stop - start, [None, pa.py_buffer(offsets[start:]), pa.py_buffer(heap)]
        )
        for needle in needles:
            hit = pc.match_substring(column, needle).to_numpy(zero_copy_only=False)
            column = column.filter(pa.array(hit))
            candidates = candidates[hit]
    flags = segment.flags
    for row in candidates.tolist():
        mask[row - start] = wanted.matches(decode(segment, row) if flags[row] & HAS_METADATA else {})
    return mask


def decode(segment: Segment, row: int) -> dict[str, object]:
    """A row's metadata; raises `PoolDamaged` unless it is a JSON object."""
    try:
        found = orjson.loads(segment.metadata_heap[segment.metadata_offsets[row] : segment.metadata_offsets[row + 1]])
    except orjson.JSONDecodeError:
        found = None
    if not isinstance(found, dict):
        raise segment.damaged("metadata is not a JSON object", "metadata_offsets", row, 4)
    return found
