"""Deletion vectors in the pool: which rows of which segments are dead, as of a stated cut, so that nobody folds twice.

    0   4  magic "SDEL"     8   8  xxh3-64 of everything from byte 16 on     24  8  (kept zero)
    4   4  segments        16   8  length of everything, B                  32     table, then bits

Table row (24 B): uid u64 | rows it holds for u32 | dead rows u32 | offset of its bits u64. Bits: 1 = dead, little-endian.

A block is written whole by a node's maintainer before a manifest names it and never changes. It is a start, not the
truth: a reader folds whatever was written after the block's cut itself.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from sharedrag.errors import PoolDamaged
from sharedrag.memory.region import Region

_HEADER = struct.Struct("<4sIQQQ")
_ROW = struct.Struct("<QIIQ")
_MAGIC = b"SDEL"
assert _HEADER.size == 32 and _ROW.size == 24

Dead = npt.NDArray[np.bool_]


class Covered(NamedTuple):
    """The dead rows among the first `rows` of one segment, (rows,) bool."""

    rows: int
    dead: Dead


def encode(covered: dict[int, Covered]) -> bytes:
    """The block for these segments, by uid."""
    bits = [np.packbits(one.dead, bitorder="little").tobytes() for one in covered.values()]
    at = _HEADER.size + _ROW.size * len(covered)
    table = []
    for (uid, one), packed in zip(covered.items(), bits, strict=True):
        table.append(_ROW.pack(uid, one.rows, int(one.dead.sum()), at))
        at += len(packed)
    body = b"".join(table) + b"".join(bits)
    checked = struct.pack("<QQ", at, 0) + body
    return struct.pack("<4sIQ", _MAGIC, len(covered), xxhash.xxh3_64_intdigest(checked)) + checked


def decode(region: Region, offset: int, size_allocated: int) -> dict[int, Covered]:
    """What the block at a file offset says, copied out; raises `PoolDamaged`."""
    magic, count, checksum, length, _ = _HEADER.unpack(region.bytes[offset : offset + _HEADER.size])
    if magic != _MAGIC or not _HEADER.size <= length <= size_allocated:
        raise PoolDamaged("deletion vectors have a wrong header", offset=offset, operation="read", path=region.path)
    data = bytes(region.bytes[offset : offset + length])
    if checksum != xxhash.xxh3_64_intdigest(data[16:]):
        raise PoolDamaged("deletion vectors fail their checksum", offset=offset, operation="read", path=region.path)
    found: dict[int, Covered] = {}
    for index in range(count):
        uid, rows, _, at = _ROW.unpack_from(data, _HEADER.size + index * _ROW.size)
        packed = np.frombuffer(data, np.uint8, count=-(-rows // 8), offset=at)
        found[uid] = Covered(rows, np.unpackbits(packed, count=rows, bitorder="little").astype(np.bool_))
    return found
