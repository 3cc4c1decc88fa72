"""A lane: the right to append. One process at a time holds it, with one open segment per collection.

The order of an append, and what others see if it is killed there (rows beyond the watermark do not exist for anyone):

    1  intent := a lower bound of the key to come       nothing
    2  columns of the new rows                          nothing
    3  link[row], then heads[bucket], row by row        nothing: readers walk on past unpublished rows
    4  watermark := rows                                the whole batch
    5  intent := 0                                      the whole batch

Row, text offsets and clock are derived from the shared watermark and columns each time, never from a private cursor. A
holder that was killed or interrupted between 3 and 4 leaves bucket heads that lead to unpublished rows: whoever appends
next raises the segment's epoch and leads them back (`repair`) before it overwrites those rows.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from itertools import repeat

import xxhash

from sharedrag import faults
from sharedrag.arena.attachment import Arena
from sharedrag.arena.segment import FLAGS_PRIME, HAS_VECTOR, NORM_ONE, ROW_BITS, ROW_MASK, Segment, rows_in
from sharedrag.arena.session import write_label
from sharedrag.errors import PoolBusy
from sharedrag.memory import layout, order
from sharedrag.memory.layout import CLOCK_AHEAD_US_MAX, KEY_EPOCH_US, KEY_LANE_BITS
from sharedrag.segments.batch import Batch

_VALUE_MASK, _VALUE_BITS, _PRIME = order.VALUE_MASK, order.VALUE_BITS, order.CHECK_PRIME
_U64 = (1 << 64) - 1
_ZEROS, _ONES = repeat(0), repeat(NORM_ONE)


class Lane:
    """A lane of this process's node, held until the handle closes or the process dies."""

    def __init__(self, arena: Arena) -> None:
        """Claim the first free lane; raises `PoolBusy` with the holders when all are taken."""
        self.arena = arena
        self.number = self._claim()
        self.global_number = arena.node * layout.LANES_PER_NODE + self.number
        self.offset = arena.geometry.lane_offset(arena.node, self.number)
        faults.passing("lane.locked")
        words = arena.region.words
        self.intent_index = (self.offset + layout.LANE_INTENT) >> 3
        words[self.intent_index] = 0  # a dead holder's
        words[(self.offset + layout.LANE_SINCE) >> 3] = time.time_ns() // 1000
        words[(self.offset + layout.LANE_RECORDS) >> 3] = 0
        words[(self.offset + layout.LANE_PID) >> 3] = os.getpid()
        write_label(arena.region, self.offset + layout.LANE_LABEL, layout.LANE_LABEL_SIZE, arena.label)

    def _claim(self) -> int:
        arena = self.arena
        for lane in range(layout.LANES_PER_NODE):
            if arena.session.locks.try_lock(arena.geometry.lane_offset(arena.node, lane)):
                return lane
        words = arena.region.words
        holders = [
            words[(arena.geometry.lane_offset(arena.node, lane) + layout.LANE_PID) >> 3]
            for lane in range(layout.LANES_PER_NODE)
        ]
        raise PoolBusy(
            f"all {layout.LANES_PER_NODE} lanes of node {arena.node} are held, by processes {sorted(set(holders))}",
            operation="put",
            path=arena.path,
            hint="Close writers that are not needed, or attach some processes as another node",
        )

    def release(self) -> None:
        """Give the lane back; its open segments stay open for the next holder."""
        words = self.arena.region.words
        words[self.intent_index] = 0
        words[(self.offset + layout.LANE_PID) >> 3] = 0
        self.arena.session.locks.unlock(self.offset)


def repair(segment: Segment) -> int:
    """Lead every bucket head that points at an unpublished row back to a published one; returns how many there were.

    REQUIRES: the segment's lane. The epoch rises after the heads and before any such row is written again: a reader that
    came by an old head read the epoch before it rose, and walks again. It rises always: who was killed in between left
    no trace in the heads.
    """
    rows = segment.watermark()
    heads = segment.heads_array
    newest = rows_in(heads)
    lost = (newest >= rows).nonzero()[0].tolist()
    for bucket in lost:
        row = int(newest[bucket])
        if not order.is_checked(segment.heads[bucket]) or row >= segment.shape.rows:
            raise segment.damaged("a bucket head fails its check", "heads", bucket)
        while row >= rows:
            word = segment.link[row]
            before = (word & ROW_MASK) - 1
            if not order.is_checked(word) or before >= row:
                raise segment.damaged("a link fails its check", "link", row)
            row = before
        value = 0 if row < 0 else (segment.link[row] & _VALUE_MASK) & ~ROW_MASK | (row + 1)
        segment.heads[bucket] = order.checked(value)
    if lost:
        faults.passing("lane.epoch")
    words = segment.region.words
    words[segment.epoch_index] = (words[segment.epoch_index] + 1) & _U64
    return len(lost)


class Appender:
    """Appends batches to one open segment. One thread at a time (the handle's write lock)."""

    def __init__(self, lane: Lane, segment: Segment, *, only_deletes: bool = False) -> None:
        """Take over an open segment of the lane, undoing what a killed holder left half-done."""
        self.only_deletes = only_deletes  # a collection with vectors, but a segment made for deletes in a full pool
        self.segment = segment
        self.lane = lane
        self.others: list[Segment] = []  # open segments of the same collection on other lanes
        self.floor = 0  # clock of the newest key in sealed segments
        self.dirty = False
        arena = lane.arena
        self._words = arena.region.words
        self._watermark_index = segment.watermark_index
        self._intent_index = lane.intent_index
        nodes = range(arena.geometry.nodes)
        self._horizons = [(arena.geometry.node_offset(node) + layout.HORIZON_OFFSET) >> 3 for node in nodes]
        # what the loop over rows touches, in one tuple: unpacking it is several times cheaper than as many attributes
        self._heaps = (segment.id_heap, segment.text_heap, segment.metadata_heap)
        self._offsets = (segment.id_offsets, segment.text_offsets, segment.metadata_offsets)
        self._columns = (
            segment.flags,
            segment.key,
            segment.created,
            segment.checksum,
            segment.norm_bits,
            segment.link,
            segment.heads,
        )
        repair(segment)
        segment.check_end(segment.watermark())

    def _has_room(self, batch: Batch, rows: int) -> bool:
        """True if the batch fits behind the `rows` published."""
        shape = self.segment.shape
        if rows + len(batch.ids) > shape.rows or (self.only_deletes and not batch.only_deletes):
            return False
        if len(batch.ids) == 1:
            ids, texts, metadata = len(batch.ids[0]), len(batch.texts[0]), len(batch.metadata[0])
        else:
            ids, texts, metadata = heap_needs(batch)
        id_offsets, text_offsets, metadata_offsets = self._offsets
        return (
            id_offsets[rows] + ids <= shape.id_bytes
            and text_offsets[rows] + texts <= shape.text_bytes
            and metadata_offsets[rows] + metadata <= shape.metadata_bytes
        )

    def _next_clock(self, now_us: int, rows: int) -> int:
        """A clock later than this lane's last key and than every key of this collection that can be seen.

        Keys further ahead of our own clock than a day are not followed: one wrong clock must not poison all.
        """
        clock = now_us if now_us > self.floor else self.floor + 1
        words = self._words
        for other in self.others:
            published = words[other.watermark_index] & _VALUE_MASK
            if 0 < published <= other.shape.rows:
                seen = other.key[published - 1] >> KEY_LANE_BITS
                if clock <= seen <= now_us + CLOCK_AHEAD_US_MAX:
                    clock = seen + 1
        if rows:
            last = self.segment.key[rows - 1] >> KEY_LANE_BITS
            if clock <= last:
                clock = last + 1
        return clock

    def append(self, batch: Batch) -> bool:
        """Append and publish the batch whole; False if this segment cannot take it. REQUIRES: the lane, the write lock."""
        hit = faults.hit
        if self.dirty:
            repair(self.segment)
        words = self._words
        word = words[self._watermark_index]
        rows = word & _VALUE_MASK
        if word >> _VALUE_BITS != rows % _PRIME + 1:
            self.segment.rows_of(word)  # raises
        if not self._has_room(batch, rows):
            return False
        now = time.time_ns() // 1000
        now_us = now - KEY_EPOCH_US
        clock = self._next_clock(now_us, rows)
        if clock > now_us + CLOCK_AHEAD_US_MAX:
            return False  # an earlier holder's clock was far ahead: leave its segment alone
        words[self._intent_index] = clock
        if hit:
            hit("put.intent")
        for index in self._horizons:
            horizon = words[index] & _VALUE_MASK
            if clock <= horizon <= clock + CLOCK_AHEAD_US_MAX:
                clock = horizon + 1
        self.dirty = True
        self._write_rows(batch, rows, clock << KEY_LANE_BITS | self.lane.global_number, now)
        if hit:
            hit("put.linked")
        rows += len(batch.ids)
        words[self._watermark_index] = rows | (rows % _PRIME + 1) << _VALUE_BITS
        if hit:
            hit("put.published")
        self.dirty = False
        words[self._intent_index] = 0
        return True

    def _write_rows(self, batch: Batch, row: int, key: int, now: int) -> None:
        """Columns first, then the links that lead to them, row by row. The hottest loop there is."""
        hit = faults.hit
        segment = self.segment
        id_heap, text_heap, metadata_heap = self._heaps
        id_offsets, text_offsets, metadata_offsets = self._offsets
        flag_column, key_column, created_column, checksums, norms, link, heads = self._columns
        id_at, text_at, metadata_at = id_offsets[row], text_offsets[row], metadata_offsets[row]
        ids, hashes, texts, metadatas, flags, created_us, vectors, norm_bits = batch
        width, mask = segment.vector_width, segment.bucket_mask
        xxh3 = xxhash.xxh3_64_intdigest
        vector_sums: Iterable[int] = _ZEROS
        if vectors is not None:
            stored = vectors.data.cast("B")
            segment.vector_bytes[row * width : row * width + len(stored)] = stored
            if len(ids) == 1:
                vector_sums = (xxh3(stored),)
            else:
                vector_sums = [xxh3(stored[at : at + width]) for at in range(0, len(stored), width)]
        elif width:
            segment.vectors_array[row : row + len(ids)] = 0
        created_of: Iterable[int] = repeat(now) if created_us is None else created_us
        norm_of: Iterable[int] = _ONES if norm_bits is None else norm_bits
        rows = zip(ids, hashes, texts, metadatas, flags, created_of, norm_of, vector_sums)  # noqa: B905 (some are endless)
        for encoded, hashed, text, metadata, flag, created, norm, vector_sum in rows:
            end = id_at + len(encoded)
            id_heap[id_at:end] = encoded
            id_at = end
            end = text_at + len(text)
            text_heap[text_at:end] = text
            text_at = end
            end = metadata_at + len(metadata)
            metadata_heap[metadata_at:end] = metadata
            metadata_at = end
            if width:
                norms[row] = norm
            # the checksum of `segment.row_checksum`, spelled out
            seed = key ^ (created & _U64) ^ flag << 48 ^ norm << 8
            checksums[row] = xxh3(encoded + text + metadata, seed ^ vector_sum if flag & HAS_VECTOR else seed)
            key_column[row] = key
            created_column[row] = created
            # and `segment.flags_word`
            flag_column[row] = flag | ((key + (flag << 8)) % FLAGS_PRIME + 1) << 4
            bucket = hashed & mask
            word = heads[bucket]
            newest = word & _VALUE_MASK
            if word >> _VALUE_BITS != newest % _PRIME + 1:  # a sound head over a lost chain would hide its rows for good
                raise segment.damaged("a bucket head fails its check", "heads", bucket)
            value = hashed << ROW_BITS | newest & ROW_MASK
            link[row] = value | (value % _PRIME + 1) << _VALUE_BITS
            if hit:
                hit("put.row_written")
            row += 1
            id_offsets[row] = id_at
            text_offsets[row] = text_at
            metadata_offsets[row] = metadata_at
            value = hashed << ROW_BITS | row
            heads[bucket] = value | (value % _PRIME + 1) << _VALUE_BITS
            key += 1 << KEY_LANE_BITS


def heap_needs(batch: Batch) -> tuple[int, int, int]:
    """Bytes of (ids, texts, metadata) that a batch brings."""
    return sum(map(len, batch.ids)), sum(map(len, batch.texts)), sum(map(len, batch.metadata))
