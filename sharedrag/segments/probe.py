"""Looking up many ids in a segment's hash index at once: all chains are walked together, in NumPy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharedrag.arena.segment import Segment, hashes_in, rows_in
from sharedrag.memory import order


class Matches(NamedTuple):
    """For the hashes `at` these indexes the newest row below the limit with that hash; `unsure` wants a single `lookup`.

    `at` and `rows` are (m,) int64. A chain that led through unpublished rows which were undone meanwhile is unsure.
    """

    at: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]
    unsure: list[int]


def checked_links(segment: Segment, start: int, stop: int) -> npt.NDArray[np.uint64]:
    """The links of rows [start, stop); raises `PoolDamaged` if one fails its check."""
    links = segment.link_array[start:stop]
    good = order.are_checked(links)
    if not good.all():
        raise segment.damaged("a link fails its check", "link", start + int(np.flatnonzero(~good)[0]))
    return links


def newest_of(segment: Segment, hashes: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The newest row in each hash's bucket, -1 for none; raises `PoolDamaged`."""
    buckets = (hashes & np.uint64(segment.bucket_mask)).astype(np.int64)
    heads = segment.heads_array[buckets]
    good = order.are_checked(heads)
    if not good.all():
        raise segment.damaged("a bucket head fails its check", "heads", int(buckets[np.flatnonzero(~good)[0]]))
    return rows_in(heads)


def matches(
    segment: Segment, hashes: npt.NDArray[np.uint64], limit: int, firsts: npt.NDArray[np.int64] | None = None
) -> Matches:
    """Walk each hash's chain to its first row below `limit`; raises `PoolDamaged`.

    The chains begin at `firsts` (rows, -1 for none), or else at the newest rows of their buckets. Those may be rows at or
    beyond `limit` that are being written just now. They are passed through; but if the writer undid such rows meanwhile
    (the epoch rose), what was met there means nothing.
    """
    epoch = segment.region.words[segment.epoch_index]
    links, room = segment.link_array, segment.shape.rows
    rows = newest_of(segment, hashes) if firsts is None else firsts
    index = np.flatnonzero(rows >= 0)
    rows = rows[index]
    found_index, found_rows = [np.empty(0, np.int64)], [np.empty(0, np.int64)]
    passed_through = np.zeros(len(hashes), np.bool_)
    unsure: list[int] = []
    while index.size:
        unpublished = rows >= limit
        passed_through[index[unpublished]] = True
        words = links[np.minimum(rows, room - 1)]
        before = rows_in(words)
        good = order.are_checked(words) & (before < rows) & (rows < room)
        if not good.all():
            bad = np.flatnonzero(~good & ~unpublished)
            if bad.size:
                raise segment.damaged("a link fails its check", "link", int(rows[bad[0]]))
            unsure += index[~good].tolist()
        hit = good & ~unpublished & (hashes_in(words) == hashes[index])
        found_index.append(index[hit])
        found_rows.append(rows[hit])
        going_on = good & ~hit & (before >= 0)
        index, rows = index[going_on], before[going_on]
    at, found = np.concatenate(found_index), np.concatenate(found_rows)
    if passed_through.any() and segment.region.words[segment.epoch_index] != epoch:
        unsure = np.flatnonzero(passed_through).tolist()
        sure = ~passed_through[at]
        at, found = at[sure], found[sure]
    return Matches(at, found, unsure)


def same_ids(
    one: Segment, one_rows: npt.NDArray[np.int64], other: Segment, other_rows: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """Whether the ids of the rows are equal, pair by pair, (m,) bool."""
    equal = pc.equal(_ids(one, one_rows), _ids(other, other_rows))
    result: npt.NDArray[np.bool_] = equal.to_numpy(zero_copy_only=False)
    return result


def _ids(segment: Segment, rows: npt.NDArray[np.int64]) -> pa.BinaryArray:
    count = int(rows.max()) + 1
    offsets = segment.string_offsets("id", count)
    heap = segment.array("id_heap", np.uint8)
    column = pa.BinaryArray.from_buffers(pa.binary(), count, [None, pa.py_buffer(offsets), pa.py_buffer(heap)])
    return column.take(pa.array(rows))
