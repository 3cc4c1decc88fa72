"""A columns block: the metadata of a segment's first rows as typed columns. What lies where.

    offset size field
         0   4  magic "SCOL"
         4   4  version, u32: 1
         8   8  rows, u64
        16   8  least and
        24   8  greatest `created` of these rows, i64 us (0 and -1 of no rows)
        32   8  offset and
        40   8  size of the directory, u64 B
        48  16  zero
        64      arrays, each 64-byte aligned, zero between them; then the directory, JSON

An array is named in the directory as [NumPy dtype, offset, items]. The directory:

    {"columns": {key: [lane, ...]}, "rest": rest}

A key's values lie in up to four *lanes*, one for each kind of value, in which no row occurs twice:

    lane.kind  arrays
    ints       values: true, false and whole numbers of 64 bits, in the narrowest dtype
    floats     values f8: the others; also all whole numbers, if each of them is one of these exactly
    texts      codes u1, u2 or u4: 1 + position in the dictionary; offsets i4 and heap u1: the dictionary, distinct, in
               the order of their UTF-8 bytes, which is that of their characters
    lists      codes: 1 + position among the lists; starts i4: where each begins in its items, the end last; `items`:
               {"count": how many, "lanes": as here}, null in none of them. Lists of plain values only

Three ways to say whose row an item is: with `rows` u4, rising, there is an item for each of them. Without, there is one
for every row; rows without a value have code 0, or a 0 in `present`, bits (little-endian) that ints and floats have then.

What no lane holds, `rest` names: for each key the rows whose metadata tells (dicts, lists of lists, long texts, keys of few
rows). Sorted by key: keys u4, starts i4 (one more), rows u4, digests u4 (of the value): 1 for "" and [], otherwise 2 or
more for a text and 0 for anything else. A key with lanes has its place among `columns` here, below 512; for rows that
came before it had lanes, and for keys that have none, there is a digest of the name, which other names may have too. A row
in `rest` is in none of the key's lanes.

null is a key that is missing. Equal values (1, 1.0, true) are one value: no filter tells them apart. Texts are compared
as they are, so a digest only says where to look.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

MAGIC = b"SCOL"
VERSION = 1
HEADER = struct.Struct("<4sIQqqQQ16x")
assert HEADER.size == 64

KEYS_MAX = 512  # keys with lanes
DIGEST_OTHER, DIGEST_EMPTY = 0, 1


def digest(text: str) -> int:
    """The digest of a text as a value; a lone surrogate, which no record holds, has one too."""
    return max(DIGEST_EMPTY + 1, _digest(text)) if text else DIGEST_EMPTY


def key_digest(name: str) -> int:
    """The digest of a key's name; never the place of a key that has lanes."""
    return max(KEYS_MAX, _digest(name))


def _digest(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode("utf-8", "surrogatepass")) & 0xFFFFFFFF


class Writer:
    """Puts arrays one after another and tells where they are."""

    def __init__(self) -> None:
        """Begin behind the header."""
        self._pieces: list[bytes] = []
        self._end = HEADER.size

    def place(self, array: npt.NDArray[Any]) -> list[Any]:
        """Append an array; its entry in the directory."""
        at = self._append(array.tobytes())
        return [array.dtype.str, at, array.size]

    def _append(self, piece: bytes) -> int:
        at = self._end
        padding = -len(piece) % 64
        self._pieces += (piece, bytes(padding))
        self._end += len(piece) + padding
        return at

    def finish(self, directory: dict[str, Any], rows: int, created: tuple[int, int]) -> bytes:
        """The whole block."""
        encoded = orjson.dumps(directory)
        at = self._append(encoded)
        header = HEADER.pack(MAGIC, VERSION, rows, *created, at, len(encoded))
        return b"".join((header, *self._pieces))


class Reader:
    """A block as it lies; what it hands out are views of it."""

    def __init__(self, payload: npt.NDArray[np.uint8]) -> None:
        """Look at header and directory. Raises `ValueError` if it is no block, or one of another version."""
        magic, version, rows, first, last, at, size = HEADER.unpack(
            payload[: HEADER.size].tobytes().ljust(HEADER.size, b"\0")
        )
        if magic != MAGIC or version != VERSION or at + size > len(payload):
            raise ValueError(f"not a columns block of version {VERSION}: {magic!r}, {version}, {len(payload):,} B")
        self.payload = payload
        self.rows: int = rows
        self.created: tuple[int, int] = (first, last)
        self.directory: dict[str, Any] = orjson.loads(payload[at : at + size].tobytes())

    def array(self, entry: list[Any]) -> npt.NDArray[Any]:
        """The array that an entry of the directory names."""
        dtype, at, count = entry
        kind = np.dtype(dtype)
        return self.payload[at : at + count * kind.itemsize].view(kind)
