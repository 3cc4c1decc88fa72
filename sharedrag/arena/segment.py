"""A segment: an Arrow record batch that is still being written. Where its columns lie, and how its bytes are checked.

One writer (the holder of its lane) fills row after row and stores the watermark last; a prefix of the columns never
changes, so a reader uses the first `watermark` rows where they lie. Sealed, it is the same bytes, closed for good.

Header page (offset, size, field; writer: the holder of the lane, before the manifest names the segment):

       0   4  magic "SSEG"                   28   4  buckets (a power of two)
       4   4  dtype: 0 none, 1 f4, 2 f2      32   8  id heap, B
       8   8  uid                            40   8  text heap, B
      16   4  dimension (0 = no vectors)     48   8  metadata heap, B
      20   4  rows it has room for           56   8  xxh3-64 of bytes 0..55
      24   4  lane (of the pool)
   1,024   8  watermark: checked word, rows published          stored last
   1,088   8  epoch: raised before unpublished rows are undone

Columns, each 64-byte aligned, from byte 4,096 on (n = rows it has room for):

    flags      u2[n]   1 put, 2 has vector, 4 has text, 8 has metadata; upper 12 bits: check of flags and key
    key        u8[n]   order key, strictly increasing
    created    i8[n]   the record's own time, us since 1970
    checksum   u8[n]   xxh3-64 of id + text + metadata, seeded with the vector's xxh3-64 ^ key ^ created ^ flags ^ norm
    link       u8[n]   checked word: hash31 of the id << 24 | 1 + the row before it in its bucket (0 = none)
    heads      u8[b]   checked word: hash31 << 24 | 1 + newest row of the bucket (0 = none)
    *_offsets  i4[n+1] Arrow string offsets, for id, text and metadata (JSON)
    norm       f4[n]   length of the vector as it was given (cosine: vectors are stored as unit vectors)
    vectors    f4 or f2 [n, dimension]
    *_heap     u1      the strings' bytes

f4 vectors begin at a multiple of their width in the file, where that or its least multiple of 64 is at most 16 KiB: so any
two segments' vectors are whole rows apart, and FAISS can be given rows of all of them by number.
"""

from __future__ import annotations

import struct
from math import lcm
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from sharedrag.arena.row import (
    FLAGS_MASK,
    FLAGS_PRIME,
    HAS_METADATA,
    HAS_TEXT,
    HAS_VECTOR,
    NORM_ONE,
    ROW_BITS,
    ROW_MASK,
    ROWS_MAX,
    RawRow,
    are_flags_words,
    flags_word,
    hash31,
)
from sharedrag.errors import PoolDamaged
from sharedrag.memory import layout, order
from sharedrag.memory.region import Region

_HEADER = struct.Struct("<4sIQIIIIQQQ")
_HEADER_CHECKSUM = struct.Struct("<Q")
_MAGIC = b"SSEG"
_WATERMARK_OFFSET = 1024
_EPOCH_OFFSET = 1088
HEADER_SIZE = layout.PAGE
assert _HEADER.size == 56


HEAP_MAX = (1 << 31) - 1
_VECTORS_STEP_MAX = 16 << 10
_CHECKED_TOGETHER = 16 << 10  # rows: what NumPy makes between is still in the cache when it is read
DTYPES: dict[str, int] = {"none": 0, "float32": 1, "float16": 2}
_NUMPY: dict[int, type[np.generic]] = {1: np.float32, 2: np.float16}
_U64 = (1 << 64) - 1
_new = tuple.__new__  # half the price of calling a NamedTuple
_digest = xxhash.xxh3_64_intdigest
_EMPTY_BUCKET = order.checked(0)


class Shape(NamedTuple):
    """What a segment has room for: rows, hash buckets, vector kind and bytes of each heap."""

    rows: int
    buckets: int
    dimension: int
    dtype: int
    id_bytes: int
    text_bytes: int
    metadata_bytes: int

    @property
    def vectors_step(self) -> int:
        """Of what the place of the vectors in the file is a multiple: see above; at least 64."""
        step = lcm(64, 4 * self.dimension) if self.dimension and self.dtype == 1 else 64
        return step if step <= _VECTORS_STEP_MAX else 64

    def columns(self, offset: int = 0) -> dict[str, tuple[int, int]]:
        """Name -> (offset from the start of a segment that lies at `offset` in the file, size), in bytes, in file order."""
        width = 4 if self.dtype == 1 else 2
        sizes = {
            "flags": 2 * self.rows,
            "key": 8 * self.rows,
            "created": 8 * self.rows,
            "checksum": 8 * self.rows,
            "link": 8 * self.rows,
            "heads": 8 * self.buckets,
            "id_offsets": 4 * (self.rows + 1),
            "text_offsets": 4 * (self.rows + 1),
            "metadata_offsets": 4 * (self.rows + 1),
            "norm": 4 * self.rows if self.dimension else 0,
            "vectors": width * self.dimension * self.rows,
            "id_heap": self.id_bytes,
            "text_heap": self.text_bytes,
            "metadata_heap": self.metadata_bytes,
        }
        at, skipped, placed = HEADER_SIZE, 0, {}
        for name, size in sizes.items():
            if name == "vectors":
                at, skipped = at + -(offset + at) % self.vectors_step, -(offset + at) % self.vectors_step
            placed[name] = (at, size)
            at += (size + 63) & ~63
        placed["end"] = (at + self.vectors_step - 64 - skipped, 0)  # the same at any offset
        return placed

    @property
    def size(self) -> int:
        """Bytes from the header to the end of the last column."""
        return self.columns()["end"][0]


def buckets_for(rows: int) -> int:
    """Hash buckets for that many rows: the greatest power of two that is not more."""
    return 1 << max(0, rows.bit_length() - 1)


class Segment:
    """A segment's columns as views of the pool's memory.

    Memoryviews (`key`, `link`, ...) serve single rows: item access is one load or store (see `order`). The `*_array`
    properties and `vectors_array` are NumPy views of whole columns. Rows at or beyond the watermark are the writer's alone.
    """

    def __init__(self, region: Region, offset: int, uid: int, size_allocated: int) -> None:
        """View the segment at a file offset; raises `PoolDamaged` if the header is not what the manifest says."""
        self.region = region
        self.offset = offset
        self.uid = uid
        self.shape, self.lane = self._read_header(region, offset, uid, size_allocated)
        self.watermark_index = (offset + _WATERMARK_OFFSET) >> 3
        self.epoch_index = (offset + _EPOCH_OFFSET) >> 3
        self.columns = self.shape.columns(offset)
        view = self._view
        self.flags = view("flags", "H")
        self.key = view("key", "Q")
        self.created = view("created", "q")
        self.checksum = view("checksum", "Q")
        self.link = view("link", "Q")
        self.heads = view("heads", "Q")
        self.id_offsets = view("id_offsets", "i")
        self.text_offsets = view("text_offsets", "i")
        self.metadata_offsets = view("metadata_offsets", "i")
        self.norm_bits = view("norm", "I")
        self.id_heap = view("id_heap", "B")
        self.text_heap = view("text_heap", "B")
        self.metadata_heap = view("metadata_heap", "B")
        self.vector_bytes = view("vectors", "B")
        self.vector_width = self.shape.dimension * (4 if self.shape.dtype == 1 else 2)
        self.bucket_mask = self.shape.buckets - 1
        self._row_columns = self._columns_of_a_row()
        self.vectors_array = self._vectors()

    def _columns_of_a_row(self) -> tuple[Any, ...]:
        """What `read` needs, in one tuple: unpacking it costs less than as many attributes."""
        return (
            self.flags,
            self.key,
            self.created,
            self.checksum,
            self.norm_bits,
            self.id_offsets,
            self.id_heap,
            len(self.id_heap),
            self.text_offsets,
            self.text_heap,
            len(self.text_heap),
            self.metadata_offsets,
            self.metadata_heap,
            len(self.metadata_heap),
            self.vector_bytes,
            self.vector_width,
        )

    @staticmethod
    def _read_header(region: Region, offset: int, uid: int, size_allocated: int) -> tuple[Shape, int]:
        header = bytes(region.bytes[offset : offset + _HEADER.size])
        (checksum,) = _HEADER_CHECKSUM.unpack(region.bytes[offset + _HEADER.size : offset + _HEADER.size + 8])
        magic, dtype, written_uid, dimension, rows, lane, buckets, ids, texts, metadata = _HEADER.unpack(header)
        shape = Shape(rows, buckets, dimension, dtype, ids, texts, metadata)
        if (
            magic != _MAGIC
            or checksum != xxhash.xxh3_64_intdigest(header)
            or written_uid != uid
            or shape.size > size_allocated
        ):
            raise PoolDamaged(
                f"the header of segment {uid:#x} is wrong", offset=offset, operation="open segment", path=region.path
            )
        return shape, lane

    @classmethod
    def create(cls, region: Region, offset: int, uid: int, lane: int, shape: Shape, size_allocated: int) -> Segment:
        """Write an empty segment into reserved memory, whatever that holds. REQUIRES: nobody else can see it."""
        assert shape.size <= size_allocated and shape.rows <= ROWS_MAX and shape.buckets & (shape.buckets - 1) == 0
        header = _HEADER.pack(
            _MAGIC,
            shape.dtype,
            uid,
            shape.dimension,
            shape.rows,
            lane,
            shape.buckets,
            shape.id_bytes,
            shape.text_bytes,
            shape.metadata_bytes,
        )
        region.bytes[offset : offset + HEADER_SIZE] = bytes(HEADER_SIZE)
        region.bytes[offset : offset + _HEADER.size] = header
        region.bytes[offset + _HEADER.size : offset + _HEADER.size + 8] = _HEADER_CHECKSUM.pack(
            xxhash.xxh3_64_intdigest(header)
        )
        segment = cls(region, offset, uid, size_allocated)
        segment.heads_array[:] = order.checked(0)
        for offsets in (segment.id_offsets, segment.text_offsets, segment.metadata_offsets):
            offsets[0] = 0
        region.words[segment.watermark_index] = order.checked(0)
        return segment

    def _view(self, column: str, code: Literal["B", "H", "I", "Q", "i", "q"]) -> memoryview:
        at, size = self.columns[column]
        start = self.offset + at
        return self.region.bytes[start : start + size].cast(code)

    def array(self, column: str, dtype: npt.DTypeLike) -> npt.NDArray[np.generic]:
        """A whole column as a one-dimensional NumPy view of the pool's memory."""
        at, size = self.columns[column]
        start = self.offset + at
        return self.region.array[start : start + size].view(dtype)

    @property
    def heads_array(self) -> npt.NDArray[np.uint64]:
        """Bucket heads, (buckets,) uint64."""
        return self.array("heads", np.uint64)  # type: ignore[return-value]

    @property
    def link_array(self) -> npt.NDArray[np.uint64]:
        """Links, (rows,) uint64."""
        return self.array("link", np.uint64)  # type: ignore[return-value]

    @property
    def key_array(self) -> npt.NDArray[np.uint64]:
        """Order keys, (rows,) uint64."""
        return self.array("key", np.uint64)  # type: ignore[return-value]

    @property
    def flags_array(self) -> npt.NDArray[np.uint16]:
        """Flags words, (rows,) uint16: flags in the lowest four bits, their check above."""
        return self.array("flags", np.uint16)  # type: ignore[return-value]

    def _vectors(self) -> npt.NDArray[np.floating]:
        """Vectors as they are stored, (rows, dimension) float32 or float16; (0, 0) in a collection without."""
        if not self.shape.dimension:
            return np.empty((0, 0), np.float32)
        column: npt.NDArray[np.floating] = self.array("vectors", _NUMPY[self.shape.dtype])  # type: ignore[assignment]
        return column.reshape(self.shape.rows, self.shape.dimension)

    def damaged(self, what: str, column: str, row: int = 0, width: int = 8) -> PoolDamaged:
        """The error for a row's bytes that fail a check."""
        return PoolDamaged(
            f"segment {self.uid:#x}, row {row}: {what}",
            offset=self.offset + self.columns[column][0] + row * width,
            operation="read",
            path=self.region.path,
        )

    def watermark(self) -> int:
        """Rows published; the acquire side of `LaneWriter`'s last store. Raises `PoolDamaged`."""
        return self.rows_of(self.region.words[self.watermark_index])

    def rows_of(self, word: int) -> int:
        """The rows that a watermark word tells; raises `PoolDamaged` if it fails its check."""
        rows = word & order.VALUE_MASK
        if word >> order.VALUE_BITS != rows % order.CHECK_PRIME + 1 or rows > self.shape.rows:
            raise PoolDamaged(
                f"the watermark of segment {self.uid:#x} fails its check",
                offset=self.watermark_index << 3,
                operation="read",
                path=self.region.path,
            )
        return rows

    def id_at(self, row: int) -> bytes:
        """The id of a row; raises `PoolDamaged` on impossible offsets."""
        return self._string(self.id_offsets, self.id_heap, row, "id_offsets")

    def check_flags(self, rows: npt.NDArray[np.int64] | slice) -> None:
        """Raise `PoolDamaged` unless flags and key of each of these rows, (m,) int64 or a slice, pass their check."""
        flags, keys = self.flags_array[rows], self.key_array[rows]
        for start in range(0, len(flags), _CHECKED_TOGETHER):
            piece = slice(start, start + _CHECKED_TOGETHER)
            right = are_flags_words(flags[piece], keys[piece])
            if not right.all():
                row = int(np.arange(self.shape.rows)[rows][piece][~right][0])
                raise self.damaged("flags and key fail their check", "flags", row, 2)

    def check_id(self, row: int) -> None:
        """Raise `PoolDamaged` unless the id of a row is the one that its link was made of."""
        word = self.link[row]
        if not order.is_checked(word) or (word & order.VALUE_MASK) >> ROW_BITS != hash31(self.id_at(row)):
            raise self.damaged("the id is not the one that its link tells", "link", row)

    def check_end(self, rows: int) -> None:
        """Raise `PoolDamaged` unless the strings of the first `rows` rows end where the next writer would begin."""
        if rows:
            self.read(rows - 1)
        elif self.id_offsets[0] or self.text_offsets[0] or self.metadata_offsets[0]:
            raise self.damaged("impossible string offsets", "id_offsets", 0, 4)

    def _string(self, offsets: memoryview, heap: memoryview, row: int, column: str) -> bytes:
        start, stop = offsets[row], offsets[row + 1]
        if not 0 <= start <= stop <= len(heap):
            raise self.damaged("impossible string offsets", column, row, 4)
        return bytes(heap[start:stop])

    def flags_at(self, row: int) -> int:
        """The flags of a row; raises `PoolDamaged` if they or its key fail their check."""
        word = self.flags[row]
        flags: int = word & FLAGS_MASK
        if word != flags_word(flags, self.key[row]):
            raise self.damaged("flags and key fail their check", "flags", row, 2)
        return flags

    def string_offsets(self, column: str, rows: int) -> npt.NDArray[np.int32]:
        """The first rows + 1 offsets of "id", "text" or "metadata", checked: they rise from 0 and stay in the heap.

        (rows + 1,) int32, a view of the pool's memory. Raises `PoolDamaged`.
        """
        offsets: npt.NDArray[np.int32] = self.array(f"{column}_offsets", np.int32)[: rows + 1]  # type: ignore[assignment]
        if offsets[0] != 0 or offsets[-1] > self.columns[f"{column}_heap"][1] or (offsets[1:] < offsets[:-1]).any():
            raise self.damaged("impossible string offsets", f"{column}_offsets", 0, 4)
        return offsets

    def lookup(self, encoded_id: bytes, hashed: int, rows: int) -> int:
        """The newest of the first `rows` rows with this id, or -1. Raises `PoolDamaged`."""
        return self.lookup_from(self.head_below(hashed & self.bucket_mask, rows), encoded_id, hashed)

    def head_below(self, bucket: int, rows: int) -> int:
        """The newest of the first `rows` rows that is in a bucket, or -1. Raises `PoolDamaged`.

        The chain may lead through newer rows, which are being written just now; if the writer undid such rows meanwhile
        (the epoch rose), what was met there means nothing, and the walk starts again.
        """
        words, index = self.region.words, self.epoch_index
        while True:
            epoch = words[index]
            word, above = self.heads[bucket], self.shape.rows
            while True:
                value = word & order.VALUE_MASK
                row = (value & ROW_MASK) - 1
                if word >> order.VALUE_BITS != value % order.CHECK_PRIME + 1 or row >= above:
                    break
                if row < rows:
                    if above == self.shape.rows or words[index] == epoch:
                        return row
                    break
                word, above = self.link[row], row
            if words[index] == epoch:
                if above == self.shape.rows:
                    raise self.damaged("a bucket head fails its check", "heads", bucket)
                raise self.damaged("a link fails its check", "link", above)

    def may_have(self, hashed: int, rows: int) -> bool:
        """False if none of the first `rows` rows has an id with this hash; where that is not plain, `lookup` will tell."""
        mask, links = self.bucket_mask, self.link
        word = self.heads[hashed & mask]
        if word == _EMPTY_BUCKET:
            return False
        value = word & order.VALUE_MASK
        if word >> order.VALUE_BITS != value % order.CHECK_PRIME + 1:
            return True
        before = (value & ROW_MASK) - 1
        row = rows
        while 0 <= before < row:
            row = before
            word = links[row]
            value = word & order.VALUE_MASK
            linked = value >> ROW_BITS
            if linked == hashed or word >> order.VALUE_BITS != value % order.CHECK_PRIME + 1 or (linked ^ hashed) & mask:
                return True
            before = (value & ROW_MASK) - 1
        return before >= 0

    def lookup_from(self, row: int, encoded_id: bytes, hashed: int) -> int:
        """The newest row with this id in the chain that begins at a published row, or -1. Raises `PoolDamaged`."""
        mask = self.bucket_mask
        bucket = hashed & mask
        while row >= 0:
            word = self.link[row]
            value = word & order.VALUE_MASK
            before = (value & ROW_MASK) - 1
            if word >> order.VALUE_BITS != value % order.CHECK_PRIME + 1 or before >= row:
                raise self.damaged("a link fails its check", "link", row)
            linked = value >> ROW_BITS
            if (linked & mask) != bucket:
                raise self.damaged("a link is in the wrong bucket", "link", row)
            if linked == hashed:
                found = self.id_at(row)
                if found == encoded_id:
                    return row
                if hash31(found) != linked:
                    raise self.damaged("the id is not the one that its link tells", "link", row)
            row = before
        return -1

    def read(self, row: int) -> RawRow:
        """A published row, its checksum verified; raises `PoolDamaged`."""
        # Spelled out, as are `flags_word` and `row_checksum` in it: a search does this for each hit.
        (
            flags_column,
            keys,
            created_column,
            checksums,
            norms,
            id_offsets,
            ids,
            ids_size,
            text_offsets,
            texts,
            texts_size,
            metadata_offsets,
            metadata,
            metadata_size,
            vectors,
            width,
        ) = self._row_columns
        key = keys[row]
        word = flags_column[row]
        flags = word & FLAGS_MASK
        if word != flags | ((key + (flags << 8)) % FLAGS_PRIME + 1) << 4:
            raise self.damaged("flags and key fail their check", "flags", row, 2)
        after = row + 1
        start, stop = id_offsets[row], id_offsets[after]
        if not 0 <= start <= stop <= ids_size:
            raise self.damaged("impossible string offsets", "id_offsets", row, 4)
        encoded_id = ids[start:stop].tobytes()
        start, stop = text_offsets[row], text_offsets[after]
        if not 0 <= start <= stop <= texts_size:
            raise self.damaged("impossible string offsets", "text_offsets", row, 4)
        text = texts[start:stop].tobytes()
        start, stop = metadata_offsets[row], metadata_offsets[after]
        if not 0 <= start <= stop <= metadata_size:
            raise self.damaged("impossible string offsets", "metadata_offsets", row, 4)
        fields = metadata[start:stop].tobytes()
        created_us = created_column[row]
        norm_bits = norms[row] if width else NORM_ONE
        seed = key ^ (created_us & _U64) ^ flags << 48 ^ norm_bits << 8
        if flags & HAS_VECTOR:
            seed ^= _digest(vectors[row * width : row * width + width])
        if _digest(encoded_id + text + fields, seed) != checksums[row]:
            raise self.damaged("the row's checksum is wrong", "checksum", row)
        return _new(
            RawRow,
            (
                encoded_id,
                text if flags & HAS_TEXT else None,
                fields if flags & HAS_METADATA else None,
                created_us,
                key,
                flags,
                norm_bits,
            ),
        )

    def stored_vector(self, row: int) -> memoryview:
        """The bytes of a row's vector as they lie."""
        start = row * self.vector_width
        return self.vector_bytes[start : start + self.vector_width]

    def vector(self, row: int, norm_bits: int) -> npt.NDArray[np.float32]:
        """A copy of a row's vector as it was given, (dimension,) float32."""
        copy: npt.NDArray[np.float32] = self.vectors_array[row].astype(np.float32)
        if norm_bits != NORM_ONE:
            copy *= np.uint32(norm_bits).view(np.float32)
        return copy
