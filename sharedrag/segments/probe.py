"""Looking up many ids in a segment's hash index at once: all chains are walked together, in NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag.arena.row import hashes_in, rows_in
from sharedrag.arena.segment import Segment
from sharedrag.memory import order

_FIRST_BYTES = np.array([(1 << 8 * size) - 1 for size in range(9)], np.uint64)  # masks


def checked_links(segment: Segment, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """The links of rows [start, stop); raises `PoolDamaged` if one fails its check."""
    links = segment.link_array[start:stop]
    good = order.are_checked(links)
    if not good.all():
        raise segment.damaged("a link fails its check", "link", start + int(np.flatnonzero(~good)[0]))
    return links


def heads_below(
    segment: Segment, hashes: npt.NDArray[np.uint64], limit: int, known: dict[int, int]
) -> npt.NDArray[np.int64]:
    """The newest row below `limit` in each hash's bucket, (n,), -1 for none; raises `PoolDamaged`.

    Rows at or beyond `limit` are being written just now; an id that is written again and again has thousands of them by the
    time its older rows are counted in. `known` keeps what they led to, by bucket, while the limit is the same.
    """
    buckets = (hashes & np.uint64(segment.bucket_mask)).astype(np.int64)
    heads = segment.heads_array[buckets]
    good = order.are_checked(heads)
    if not good.all():
        raise segment.damaged("a bucket head fails its check", "heads", int(buckets[np.flatnonzero(~good)[0]]))
    rows = rows_in(heads)
    for at in np.flatnonzero(rows >= limit).tolist():
        bucket = int(buckets[at])
        if bucket not in known:
            known[bucket] = segment.head_below(bucket, limit)
        rows[at] = known[bucket]
    return rows


def matches(
    segment: Segment, hashes: npt.NDArray[np.uint64], firsts: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """For the hashes at (m,) these indexes, the (m,) newest rows with that hash; raises `PoolDamaged`.

    The chains begin at `firsts`, which are published rows, -1 for none.
    """
    links = segment.link_array
    index = np.flatnonzero(firsts >= 0)
    rows = firsts[index]
    if rows.max(initial=0) >= segment.shape.rows:
        raise segment.damaged("a link leads beyond the segment", "link")
    found_index, found_rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    while index.size:
        words = links[rows]
        before = rows_in(words)
        good = order.are_checked(words) & (before < rows)
        if not good.all():
            raise segment.damaged("a link fails its check", "link", int(rows[np.flatnonzero(~good)[0]]))
        hit = hashes_in(words) == hashes[index]
        found_index.append(index[hit])
        found_rows.append(rows[hit])
        going_on = ~hit & (before >= 0)
        index, rows = index[going_on], before[going_on]
    return np.concatenate(found_index), np.concatenate(found_rows)


def same_ids(
    one: Segment, one_rows: npt.NDArray[np.int64], other: Segment, other_rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether the ids of the rows are equal, pair by pair, (m,) bool. Raises `PoolDamaged`.

    Compared in NumPy, eight bytes of each at a time: below a few hundred elements it keeps the interpreter's lock, where
    Arrow gives it up at each step, and in a process with busy threads gets it back 5 ms later.
    """
    starts, sizes = _id_places(one, one_rows)
    other_starts, other_sizes = _id_places(other, other_rows)
    same: npt.NDArray[np.bool_] = sizes == other_sizes
    heap, other_heap = one.array("id_heap", np.uint8), other.array("id_heap", np.uint8)
    for at in range(0, int(sizes[same].max(initial=0)), 8):
        same &= _eight_bytes(heap, starts + at, sizes - at) == _eight_bytes(other_heap, other_starts + at, sizes - at)
    return same


def _id_places(segment: Segment, rows: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where in the heap the ids of these rows start, and their lengths in bytes."""
    offsets = segment.array("id_offsets", np.int32)
    starts, stops = offsets[rows].astype(np.int64), offsets[rows + 1].astype(np.int64)
    good = (starts >= 0) & (starts <= stops) & (stops <= segment.shape.id_bytes)
    if not good.all():
        raise segment.damaged("impossible string offsets", "id_offsets", int(rows[~good][0]), 4)
    return starts, stops - starts


def _eight_bytes(
    heap: npt.NDArray[Any], starts: npt.NDArray[np.int64], sizes: npt.NDArray[np.int64]
) -> npt.NDArray[np.uint64]:
    """The first eight bytes of each of these strings as a number; what is beyond a string's size is 0."""
    if len(heap) < 8:
        heap = np.concatenate([heap, np.zeros(8, np.uint8)])
    at_each_byte = np.ndarray((len(heap) - 7,), "<u8", heap, strides=(1,))
    within = np.minimum(starts, len(heap) - 8)  # at the very end the eight bytes before it, moved
    moved = np.minimum(starts - within, 7).astype(np.uint64) << 3
    words: npt.NDArray[np.uint64] = at_each_byte[within] >> moved & _FIRST_BYTES[np.clip(sizes, 0, 8)]
    return words
