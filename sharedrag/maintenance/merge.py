"""Copying the live rows of sealed segments into one new segment: the same bytes, keys and checksums, in key order."""

from __future__ import annotations

from typing import Any, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharedrag.arena.row import HASH_MASK, NORM_ONE, PUT, ROW_BITS, ROWS_MAX, hashes_in
from sharedrag.arena.segment import HEADER_SIZE, HEAP_MAX, Segment, Shape, buckets_for
from sharedrag.memory import order
from sharedrag.segments.live import Part

_CHUNK_ROWS = 8192
_Rows: TypeAlias = "npt.NDArray[np.int64] | slice"
_STRINGS = (("id", "id_bytes"), ("text", "text_bytes"), ("metadata", "metadata_bytes"))


class Source(NamedTuple):
    """A segment and the rows of it to keep, ascending int64."""

    segment: Segment
    rows: npt.NDArray[np.int64]


def source_of(part: Part, tombstones: npt.NDArray[np.int64]) -> Source:
    """The live rows of a part, and those of its tombstones that must stay."""
    rows = np.flatnonzero(part.alive[: part.rows])
    return Source(part.segment, np.union1d(rows, tombstones).astype(np.int64))


def shape_of(sources: list[Source]) -> Shape | None:
    """The shape that holds the sources' rows exactly, or None where one segment cannot."""
    shapes = [source.segment.shape for source in sources if _keeps_a_record(source)]
    model = max(shapes, key=lambda shape: shape.dimension, default=None)
    heaps = []
    for column, _ in _STRINGS:
        total = 0
        for source in sources:
            if source.rows.size:
                offsets = source.segment.string_offsets(column, int(source.rows[-1]) + 1).astype(np.int64)
                total += int((offsets[source.rows + 1] - offsets[source.rows]).sum())
        heaps.append(total)
    rows = sum(source.rows.size for source in sources)
    if rows > ROWS_MAX or max(heaps) > HEAP_MAX:
        return None
    dimension, dtype = (model.dimension, model.dtype) if model else (0, 0)  # tombstones have no vectors
    return Shape(rows, buckets_for(max(1, rows)), dimension, dtype, *heaps)


def _keeps_a_record(source: Source) -> bool:
    return bool((source.segment.flags_array[source.rows] & PUT).any())


def size_estimate(part: Part) -> int:
    """Bytes that the live rows of a part would take in a merged segment, about."""
    share = (part.rows - part.dead) / part.rows
    return HEADER_SIZE + int(part.segment.shape.size * share)


def with_less_to_keep(group: list[Part], sources: list[Source]) -> list[Part]:
    """A smaller group, for want of room: the parts that nothing stays of, or else the first half; may be empty."""
    gone = [part for part, source in zip(group, sources, strict=True) if not source.rows.size]
    return gone or group[: len(group) // 2]


def copy_rows(sources: list[Source], target: Segment) -> None:
    """Fill the (empty, invisible) target with the sources' rows in key order, and its index. Raises `PoolDamaged`."""
    keys = np.concatenate([source.segment.key_array[source.rows] for source in sources])
    by_key = np.argsort(keys, kind="stable")
    place = np.empty(len(keys), np.int64)
    place[by_key] = np.arange(len(keys))
    count = len(keys)
    columns: list[tuple[str, npt.DTypeLike]] = [
        ("flags", np.uint16),
        ("key", np.uint64),
        ("created", np.int64),
        ("checksum", np.uint64),
    ]
    at = 0
    for source in sources:
        places, rows = _run(place[at : at + source.rows.size]), _run(source.rows)
        at += source.rows.size
        for column, dtype in columns:
            target.array(column, dtype)[places] = source.segment.array(column, dtype)[rows]
        if target.shape.dimension and not source.segment.shape.dimension:  # only tombstones
            target.array("norm", np.uint32)[places] = NORM_ONE
            target.vectors_array[places] = 0
        elif target.shape.dimension:
            target.array("norm", np.uint32)[places] = source.segment.array("norm", np.uint32)[rows]
            _copy_vectors(source.segment.vectors_array, rows, target.vectors_array, places)
    for column, _ in _STRINGS:
        _copy_strings(sources, target, column, _run(by_key))
    links = np.concatenate([source.segment.link_array[source.rows] for source in sources])
    if not order.are_checked(links).all():
        raise sources[0].segment.damaged("a link fails its check", "link")
    _index(target, hashes_in(links)[by_key], count)


def _run(rows: npt.NDArray[np.int64]) -> _Rows:
    """The same rows as a slice where they follow each other: then nothing is gathered on the way."""
    if len(rows) and rows[-1] - rows[0] + 1 == len(rows) and (rows[1:] > rows[:-1]).all():
        return slice(int(rows[0]), int(rows[-1]) + 1)
    return rows


def _copy_vectors(source: npt.NDArray[Any], rows: _Rows, target: npt.NDArray[Any], places: _Rows) -> None:
    if isinstance(rows, slice) and isinstance(places, slice):
        target[places] = source[rows]
        return
    every, to = (np.arange(one.start, one.stop) if isinstance(one, slice) else one for one in (rows, places))
    for start in range(0, len(every), _CHUNK_ROWS):
        chunk = slice(start, start + _CHUNK_ROWS)
        target[to[chunk]] = source[every[chunk]]


def _taken(strings: pa.BinaryArray, rows: _Rows) -> pa.BinaryArray:
    return strings[rows] if isinstance(rows, slice) else strings.take(pa.array(rows))


def _copy_strings(sources: list[Source], target: Segment, column: str, by_key: _Rows) -> None:
    pieces = []
    for source in sources:
        if not source.rows.size:
            continue
        offsets = source.segment.string_offsets(column, int(source.rows[-1]) + 1)
        heap = source.segment.array(f"{column}_heap", np.uint8)
        # Binary, not string: the bytes are copied as they are, whatever they hold
        whole = pa.BinaryArray.from_buffers(pa.binary(), len(offsets) - 1, [None, pa.py_buffer(offsets), pa.py_buffer(heap)])
        pieces.append(_taken(whole, _run(source.rows)))
    merged = _taken(pa.concat_arrays(pieces), by_key)
    _, offset_buffer, data = merged.buffers()
    offsets = np.frombuffer(offset_buffer, np.int32, count=merged.offset + len(merged) + 1)[merged.offset :]
    target.array(f"{column}_offsets", np.int32)[: len(merged) + 1] = offsets - offsets[0]
    length = int(offsets[-1] - offsets[0])
    if length:
        target.array(f"{column}_heap", np.uint8)[:length] = np.frombuffer(data, np.uint8)[offsets[0] : offsets[-1]]


def _index(target: Segment, hashes: npt.NDArray[np.uint64], count: int) -> None:
    buckets = (hashes & np.uint64(target.bucket_mask)).astype(np.int64)
    by_bucket = np.argsort(buckets, kind="stable")  # within a bucket: oldest row first
    sorted_buckets = buckets[by_bucket]
    same = np.empty(count, np.bool_)
    same[:1] = False
    same[1:] = sorted_buckets[1:] == sorted_buckets[:-1]
    before = np.zeros(count, np.uint64)
    before[by_bucket[1:]] = np.where(same[1:], by_bucket[:-1] + 1, 0).astype(np.uint64)
    high = (hashes & np.uint64(HASH_MASK)) << np.uint64(ROW_BITS)
    target.link_array[:count] = order.are_words(high | before)
    newest = np.flatnonzero(np.append(~same[1:], True))
    rows = by_bucket[newest]
    target.heads_array[sorted_buckets[newest]] = order.are_words(high[rows] | (rows + 1).astype(np.uint64))
