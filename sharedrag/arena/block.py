"""A block: bytes derived from segments (typed columns, postings, an index), written once and read where they lie.

Header (offset, size, field; writer: the node's maintainer, before the manifest shows the block):

       0   4  magic "SBLK"              24   8  xxh3-64 of the payload
       4   4  kind, as in the manifest  32   8  xxh3-64 of bytes 0..31
       8   8  uid                       40  24  zeros
      16   8  length of the payload, B  64      the payload

A block says nothing that its segments do not: one that is damaged or missing costs time, never an answer.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import xxhash

from sharedrag.errors import PoolDamaged
from sharedrag.memory.region import Region

_HEADER = struct.Struct("<4sIQQQ")
_HEADER_CHECKSUM = struct.Struct("<Q")
_MAGIC = b"SBLK"
HEADER_SIZE = 64
assert _HEADER.size == 32

Payload = npt.NDArray[np.uint8]
Buffers = Sequence[bytes | memoryview]


def size_of(buffers: Buffers) -> int:
    """Bytes that a block of this payload takes."""
    return HEADER_SIZE + sum(memoryview(one).nbytes for one in buffers)


def write(region: Region, offset: int, kind: int, uid: int, buffers: Buffers) -> None:
    """Write a block whose payload is these buffers, one after the other. REQUIRES: reserved memory that nobody reads."""
    at = offset + HEADER_SIZE
    checksum = xxhash.xxh3_64()
    for one in buffers:
        data = memoryview(one).cast("B")
        region.bytes[at : at + data.nbytes] = data
        checksum.update(data)
        at += data.nbytes
    header = _HEADER.pack(_MAGIC, kind, uid, at - offset - HEADER_SIZE, checksum.intdigest())
    header += _HEADER_CHECKSUM.pack(xxhash.xxh3_64_intdigest(header))
    region.bytes[offset : offset + HEADER_SIZE] = header.ljust(HEADER_SIZE, b"\0")


def read(region: Region, offset: int, size_allocated: int, kind: int, uid: int) -> Payload:
    """The payload of a block, (n,) uint8 over the pool's own memory; raises `PoolDamaged` unless every byte is right."""
    head = bytes(region.bytes[offset : offset + _HEADER.size + _HEADER_CHECKSUM.size])
    header, (checksum,) = head[: _HEADER.size], _HEADER_CHECKSUM.unpack(head[_HEADER.size :])
    magic, written_kind, written_uid, length, payload_checksum = _HEADER.unpack(header)
    if (
        (magic, written_kind, written_uid) != (_MAGIC, kind, uid)
        or checksum != xxhash.xxh3_64_intdigest(header)
        or length > size_allocated - HEADER_SIZE
    ):
        raise PoolDamaged(f"the header of block {uid:#x} is wrong", offset=offset, operation="read", path=region.path)
    start = offset + HEADER_SIZE
    payload = region.array[start : start + length]
    if xxhash.xxh3_64_intdigest(payload.data) != payload_checksum:
        raise PoolDamaged(f"block {uid:#x} fails its checksum", offset=start, operation="read", path=region.path)
    payload.flags.writeable = False
    return payload
