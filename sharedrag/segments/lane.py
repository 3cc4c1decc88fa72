"""A lane: the right to append. One process at a time holds it, with one open segment per collection.

The order of an append, and what others see if it is killed there (rows beyond the watermark do not exist for anyone):

    1  intent := a lower bound of the key to come       nothing
    2  the lane's last clock; columns of the new rows   nothing
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
from array import array
from collections.abc import Iterable
from itertools import accumulate, repeat

import xxhash

from sharedrag import faults
from sharedrag.arena.attachment import Arena
from sharedrag.arena.row import FLAGS_PRIME, HAS_VECTOR, NORM_ONE, ROW_BITS, ROW_MASK, rows_in
from sharedrag.arena.segment import Segment
from sharedrag.arena.session import write_label
from sharedrag.errors import PoolBusy
from sharedrag.memory import layout, order
from sharedrag.memory.layout import CLOCK_AHEAD_US_MAX, KEY_EPOCH_US, KEY_LANE_BITS
from sharedrag.segments.batch import Batch

_VALUE_MASK, _VALUE_BITS, _PRIME = order.VALUE_MASK, order.VALUE_BITS, order.CHECK_PRIME
_U64 = (1 << 64) - 1
_ZEROS = repeat(0)
_xxh3 = xxhash.xxh3_64_intdigest


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
        self.last_index = (self.offset + layout.LANE_LAST) >> 3
        words[self.intent_index] = 0  # a dead holder's
        words[(self.offset + layout.LANE_SINCE) >> 3] = time.time_ns() // 1000
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
        self.has_room = True  # False: the segment is to be closed, though there may be room
        self.segment = segment
        self.lane = lane
        self.others: list[int] = []  # the words with the last clocks of lanes that have the collection open
        self.floor = 0  # clock of the newest key in sealed segments
        self.dirty = False
        arena = lane.arena
        self._words = arena.region.words
        self._watermark_index = segment.watermark_index
        self._intent_index = lane.intent_index
        self._last_index = lane.last_index
        self._lane_number = lane.global_number
        shape = segment.shape
        self._room = (shape.rows, shape.id_bytes, shape.text_bytes, shape.metadata_bytes)
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
        )
        self._vector_width = segment.vector_width
        self._chains = (segment.link, segment.heads, segment.bucket_mask)
        repair(segment)
        segment.check_end(segment.watermark())

    def _starts(self, batch: Batch, rows: int) -> tuple[int, int, int] | None:
        """Where in its heaps the batch goes, behind the `rows` published; None if it does not fit."""
        row_max, id_max, text_max, metadata_max = self._room
        if not self.has_room or rows + len(batch.ids) > row_max or (self.only_deletes and not batch.only_deletes):
            return None
        ids, texts, metadata = heap_needs(batch)
        id_offsets, text_offsets, metadata_offsets = self._offsets
        id_at, text_at, metadata_at = id_offsets[rows], text_offsets[rows], metadata_offsets[rows]
        if id_at + ids <= id_max and text_at + texts <= text_max and metadata_at + metadata <= metadata_max:
            return id_at, text_at, metadata_at
        return None

    def _next_clock(self, now_us: int, rows: int) -> int:
        """A clock later than this lane's last key and than every key of this collection that can be seen.

        Keys further ahead of our own clock than a day are not followed: one wrong clock must not poison all.
        """
        clock = now_us if now_us > self.floor else self.floor + 1
        words = self._words
        followed = now_us + CLOCK_AHEAD_US_MAX
        for index in self.others:
            seen = words[index]
            if clock <= seen <= followed:
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
        starts = self._starts(batch, rows)
        if starts is None:
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
        key = clock << KEY_LANE_BITS | self._lane_number
        count = len(batch.ids)
        words[self._last_index] = clock + count - 1
        if count == 1:
            self._write_one(batch, rows, starts, key, now)
        else:
            self._write_many(batch, rows, starts, key, now)
        if hit:
            hit("put.linked")
        rows += count
        words[self._watermark_index] = rows | (rows % _PRIME + 1) << _VALUE_BITS
        if hit:
            hit("put.published")
        self.dirty = False
        words[self._intent_index] = 0
        return True

    def _write_one(self, batch: Batch, row: int, starts: tuple[int, int, int], key: int, now: int) -> None:
        """`_write_many` for a single row, spelled out: the hottest path there is."""
        (encoded,), hashes, (text,), (metadata,), (flag,), created_us, vectors, norm_bits = batch
        segment = self.segment
        id_heap, text_heap, metadata_heap = self._heaps
        id_offsets, text_offsets, metadata_offsets = self._offsets
        flag_column, key_column, created_column, checksums, norms = self._columns
        id_at, text_at, metadata_at = starts
        id_end, text_end, metadata_end = id_at + len(encoded), text_at + len(text), metadata_at + len(metadata)
        id_heap[id_at:id_end] = encoded
        text_heap[text_at:text_end] = text
        metadata_heap[metadata_at:metadata_end] = metadata
        created = now if created_us is None else created_us[0]
        norm = NORM_ONE if norm_bits is None else norm_bits[0]
        seed = key ^ (created & _U64) ^ flag << 48 ^ norm << 8
        if vectors is not None:
            stored = vectors.tobytes()
            at = row * self._vector_width
            segment.vector_bytes[at : at + self._vector_width] = stored
            if flag & HAS_VECTOR:
                seed ^= _xxh3(stored)
        elif self._vector_width:
            segment.vectors_array[row] = 0
        if self._vector_width:
            norms[row] = norm
        checksums[row] = _xxh3(encoded + text + metadata, seed)
        key_column[row] = key
        created_column[row] = created
        flag_column[row] = flag | ((key + (flag << 8)) % FLAGS_PRIME + 1) << 4
        self._link(row, hashes)
        id_offsets[row + 1] = id_end
        text_offsets[row + 1] = text_end
        metadata_offsets[row + 1] = metadata_end

    def _write_many(self, batch: Batch, row: int, starts: tuple[int, int, int], key: int, now: int) -> None:
        """Columns first, each whole, then the links that lead to them, row by row."""
        ids, hashes, texts, metadatas, flags, created_us, vectors, norm_bits = batch
        count = len(ids)
        stop = row + count
        width = self._vector_width
        for heap, offsets, strings, start in zip(self._heaps, self._offsets, (ids, texts, metadatas), starts, strict=True):
            ends = array("i", accumulate(map(len, strings), initial=start))
            heap[start : ends[-1]] = b"".join(strings)
            offsets[row + 1 : stop + 1] = ends[1:]
        vector_sums: Iterable[int] = _ZEROS
        if vectors is not None:
            stored = vectors.data.cast("B")
            self.segment.vector_bytes[row * width : stop * width] = stored
            vector_sums = [_xxh3(stored[at : at + width]) for at in range(0, len(stored), width)]
        elif width:
            self.segment.vectors_array[row:stop] = 0
        flag_column, key_column, created_column, checksums, norms = self._columns
        created_of = [now] * count if created_us is None else created_us
        norm_of = [NORM_ONE] * count if norm_bits is None else norm_bits
        keys = range(key, key + (count << KEY_LANE_BITS), 1 << KEY_LANE_BITS)
        key_column[row:stop] = array("Q", keys)
        created_column[row:stop] = array("q", created_of)
        if width:
            norms[row:stop] = array("I", norm_of)
        seeds: Iterable[int] = repeat(now ^ NORM_ONE << 8)  # what most rows have in common
        if created_us is not None or norm_bits is not None:
            seeds = [(created & _U64) ^ norm << 8 for created, norm in zip(created_of, norm_of, strict=True)]
        at = row
        rows = zip(ids, texts, metadatas, flags, keys, seeds, vector_sums)  # noqa: B905 (some may be endless)
        for encoded, text, metadata, flag, own_key, seed, vector_sum in rows:
            # the checksum of `row.row_checksum`, and `row.flags_word`
            seed ^= own_key ^ flag << 48
            checksums[at] = _xxh3(encoded + text + metadata, seed ^ vector_sum if flag & HAS_VECTOR else seed)
            flag_column[at] = flag | ((own_key + (flag << 8)) % FLAGS_PRIME + 1) << 4
            at += 1
        self._link(row, hashes)

    def _link(self, row: int, hashes: list[int]) -> None:
        """Make the rows from `row` on the newest of their buckets, one after the other."""
        hit = faults.hit
        link, heads, mask = self._chains
        for hashed in hashes:
            bucket = hashed & mask
            word = heads[bucket]
            newest = word & _VALUE_MASK
            if word >> _VALUE_BITS != newest % _PRIME + 1:  # a sound head over a lost chain would hide its rows for good
                raise self.segment.damaged("a bucket head fails its check", "heads", bucket)
            value = hashed << ROW_BITS
            before = value | newest & ROW_MASK
            link[row] = before | (before % _PRIME + 1) << _VALUE_BITS
            if hit:
                hit("put.row_written")
            row += 1
            value |= row
            heads[bucket] = value | (value % _PRIME + 1) << _VALUE_BITS


def heap_needs(batch: Batch) -> tuple[int, int, int]:
    """Bytes of (ids, texts, metadata) that a batch brings."""
    if len(batch.ids) == 1:
        return len(batch.ids[0]), len(batch.texts[0]), len(batch.metadata[0])
    return sum(map(len, batch.ids)), sum(map(len, batch.texts)), sum(map(len, batch.metadata))
