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

import xxhash

from sharedrag import faults, layout, order
from sharedrag.arena import Arena
from sharedrag.batch import Batch
from sharedrag.errors import PoolBusy
from sharedrag.layout import CLOCK_AHEAD_US_MAX, KEY_EPOCH_US, KEY_LANE_BITS
from sharedrag.segment import HAS_VECTOR, NORM_ONE, ROW_BITS, ROW_MASK, Segment
from sharedrag.session import write_label

_VALUE_MASK, _VALUE_BITS, _PRIME = order.VALUE_MASK, order.VALUE_BITS, order.CHECK_PRIME
_U64 = (1 << 64) - 1


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
        holders = [words[(arena.geometry.lane_offset(arena.node, lane) + layout.LANE_PID) >> 3] for lane in range(layout.LANES_PER_NODE)]
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

    REQUIRES: the segment's lane. Readers that were walking through such a row see the epoch rise and walk again.
    """
    rows = segment.watermark()
    heads = segment.heads_array
    newest = (heads & ROW_MASK).astype("int64") - 1
    lost = (newest >= rows).nonzero()[0].tolist()
    if not lost:
        return 0
    words = segment.region.words
    words[segment.epoch_index] = words[segment.epoch_index] + 1
    faults.passing("lane.epoch")
    for bucket in lost:
        row = int(newest[bucket])
        while row >= rows:
            before = (segment.link[row] & ROW_MASK) - 1
            if before >= row:
                raise segment.damaged("a link does not lead back", "link", row)
            row = before
        value = 0 if row < 0 else (segment.link[row] & _VALUE_MASK) & ~ROW_MASK | (row + 1)
        segment.heads[bucket] = order.checked(value)
    return len(lost)


class Appender:
    """Appends batches to one open segment. One thread at a time (the handle's write lock)."""

    def __init__(self, lane: Lane, segment: Segment) -> None:
        """Take over an open segment of the lane, undoing what a killed holder left half-done."""
        self.segment = segment
        self.lane = lane
        self.others: list[Segment] = []  # open segments of the same collection on other lanes
        self.floor = 0  # clock of the newest key in sealed segments
        self.dirty = False
        arena = lane.arena
        self._words = arena.region.words
        self._horizons = [
            (arena.geometry.node_offset(node) + layout.HORIZON_OFFSET) >> 3 for node in range(arena.geometry.nodes)
        ]
        repair(segment)

    def room_for(self, batch: Batch, rows: int) -> bool:
        """True if the batch fits behind the `rows` published."""
        segment = self.segment
        shape = segment.shape
        if len(batch.ids) == 1:
            ids, texts, metadata = len(batch.ids[0]), len(batch.texts[0]), len(batch.metadata[0])
        else:
            ids, texts, metadata = heap_needs(batch)
        return (
            rows + len(batch.ids) <= shape.rows
            and segment.id_offsets[rows] + ids <= shape.id_bytes
            and segment.text_offsets[rows] + texts <= shape.text_bytes
            and segment.metadata_offsets[rows] + metadata <= shape.metadata_bytes
        )

    def next_clock(self, now_us: int, rows: int) -> int:
        """A clock later than this lane's last key and than every key of this collection that can be seen.

        Keys further ahead of our own clock than a day are not followed: one wrong clock must not poison all.
        """
        clock = max(now_us, self.floor + 1)
        trusted = now_us + CLOCK_AHEAD_US_MAX
        words = self._words
        for other in self.others:
            published = words[other.watermark_index] & _VALUE_MASK
            if 0 < published <= other.shape.rows:
                seen = other.key[published - 1] >> KEY_LANE_BITS
                if clock <= seen <= trusted:
                    clock = seen + 1
        if rows:
            clock = max(clock, (self.segment.key[rows - 1] >> KEY_LANE_BITS) + 1)
        return clock

    def append(self, batch: Batch) -> bool:
        """Append and publish the batch whole; False if this segment cannot take it. REQUIRES: the lane, the write lock."""
        hit = faults.hit
        if self.dirty:
            repair(self.segment)
        words = self._words
        segment = self.segment
        rows = segment.rows_of(words[segment.watermark_index])
        if not self.room_for(batch, rows):
            return False
        now = time.time_ns() // 1000
        clock = self.next_clock(now - KEY_EPOCH_US, rows)
        if clock > now - KEY_EPOCH_US + CLOCK_AHEAD_US_MAX:
            return False  # an earlier holder's clock was far ahead: leave its segment alone
        words[self.lane.intent_index] = clock
        if hit:
            hit("put.intent")
        for index in self._horizons:
            horizon = words[index] & _VALUE_MASK
            if horizon >= clock and horizon <= clock + CLOCK_AHEAD_US_MAX:
                clock = horizon + 1
        self._write_columns(batch, rows, clock, now)
        if hit:
            hit("put.row_written")
        self.dirty = True
        self._link(batch, rows)
        if hit:
            hit("put.linked")
        total = rows + len(batch.ids)
        words[segment.watermark_index] = total | (total % _PRIME + 1) << _VALUE_BITS
        if hit:
            hit("put.published")
        self.dirty = False
        words[self.lane.intent_index] = 0
        return True

    def _write_columns(self, batch: Batch, rows: int, clock: int, now: int) -> None:
        segment = self.segment
        ids, texts, metadata, flags, vectors = batch.ids, batch.texts, batch.metadata, batch.flags, batch.vectors
        id_heap, text_heap, metadata_heap = segment.id_heap, segment.text_heap, segment.metadata_heap
        id_offsets, text_offsets, metadata_offsets = segment.id_offsets, segment.text_offsets, segment.metadata_offsets
        id_at, text_at, metadata_at = id_offsets[rows], text_offsets[rows], metadata_offsets[rows]
        key_column, created_column, checksums, flag_column = segment.key, segment.created, segment.checksum, segment.flags
        xxh3 = xxhash.xxh3_64_intdigest
        key = clock << KEY_LANE_BITS | self.lane.global_number
        created_us, norm_bits = batch.created_us, batch.norm_bits
        created, norm, width = now, NORM_ONE, segment.vector_width
        vector_bytes = None
        if vectors is not None:
            vector_bytes = memoryview(vectors).cast("B")
            segment.vector_bytes[rows * width : (rows + len(ids)) * width] = vector_bytes
        elif width:
            segment.vectors_array[rows : rows + len(ids)] = 0
        row = rows
        for index, encoded in enumerate(ids):
            text, one = texts[index], metadata[index]
            flag = flags[index]
            after = row + 1
            end = id_at + len(encoded)
            id_heap[id_at:end] = encoded
            id_offsets[after] = id_at = end
            end = text_at + len(text)
            text_heap[text_at:end] = text
            text_offsets[after] = text_at = end
            end = metadata_at + len(one)
            metadata_heap[metadata_at:end] = one
            metadata_offsets[after] = metadata_at = end
            if created_us is not None:
                created = created_us[index]
            if width:
                norm = NORM_ONE if norm_bits is None else norm_bits[index]
                segment.norm_bits[row] = norm
            # the checksum of `segment.row_checksum`, spelled out: this is the hottest loop there is
            seed = key ^ (created & _U64) ^ flag << 48 ^ norm << 8
            if flag & HAS_VECTOR and vector_bytes is not None:
                seed ^= xxh3(vector_bytes[index * width : (index + 1) * width])
            checksums[row] = xxh3(encoded + text + one, seed)
            key_column[row] = key
            created_column[row] = created
            flag_column[row] = flag
            key += 1 << KEY_LANE_BITS
            row = after

    def _link(self, batch: Batch, rows: int) -> None:
        link, heads, mask = self.segment.link, self.segment.heads, self.segment.bucket_mask
        row = rows
        for hashed in batch.hashes:
            bucket = hashed & mask
            high = hashed << ROW_BITS
            value = high | heads[bucket] & ROW_MASK
            link[row] = value | (value % _PRIME + 1) << _VALUE_BITS
            row += 1
            value = high | row
            heads[bucket] = value | (value % _PRIME + 1) << _VALUE_BITS


def heap_needs(batch: Batch) -> tuple[int, int, int]:
    """Bytes of (ids, texts, metadata) that a batch brings."""
    return sum(map(len, batch.ids)), sum(map(len, batch.texts)), sum(map(len, batch.metadata))

