"""One row: its flags, the hash of its id, its link to the row before it in its bucket, and its checksum."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import xxhash

from sharedrag.memory import order

PUT, HAS_VECTOR, HAS_TEXT, HAS_METADATA = 1, 2, 4, 8
FLAGS_MASK = 15
FLAGS_PRIME = 4093  # with flags weighed by 256, any change of one byte of a flags word or of its key is noticed

ROW_BITS = 24
ROW_MASK = (1 << ROW_BITS) - 1
ROWS_MAX = ROW_MASK - 1
HASH_MASK = (1 << 31) - 1
NORM_ONE = 0x3F800000  # the bits of float32 1.0
_U64 = (1 << 64) - 1


def hash31(encoded_id: bytes) -> int:
    """The 31 bits of an id's xxh3-64 that index it; the full id is compared in the end."""
    return xxhash.xxh3_64_intdigest(encoded_id) & HASH_MASK


def hashes_in(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The hash31 in each of these links or heads."""
    hashes: npt.NDArray[np.uint64] = np.right_shift(words & order.VALUE_MASK, ROW_BITS, dtype=np.uint64)
    return hashes


def rows_in(words: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """The row that each of these links or heads leads to; -1 for none."""
    return (words & ROW_MASK).astype(np.int64) - 1


def flags_word(flags: int, key: int) -> int:
    """The stored form of a row's flags: what decides whether a row counts, and before which other, checks itself.

    No word is 0, so rows that nobody wrote fail.
    """
    return flags | ((key + (flags << 8)) % FLAGS_PRIME + 1) << 4


def are_flags_words(words: npt.NDArray[np.uint16], keys: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Whether each of these is a `flags_word` of its row's key."""
    sums = np.left_shift(words & FLAGS_MASK, 8, dtype=np.uint64)
    sums += keys
    whole = sums // FLAGS_PRIME  # NumPy's remainder takes thirteen times as long as its division by a constant
    whole *= FLAGS_PRIME
    sums -= whole
    right: npt.NDArray[np.bool_] = sums.astype(np.uint16) == (words >> 4) - np.uint16(1)
    return right


def row_checksum(payload: bytes, vector: memoryview | bytes, key: int, created_us: int, flags: int, norm_bits: int) -> int:
    """The checksum of one row; `payload` is id + text + metadata joined, `norm_bits` the float32's bits.

    It covers nothing that depends on the row's place, so merging copies it unchanged.
    """
    seed = key ^ (created_us & _U64) ^ flags << 48 ^ norm_bits << 8
    if vector:
        seed ^= xxhash.xxh3_64_intdigest(vector)
    return xxhash.xxh3_64_intdigest(payload, seed)


class RawRow(NamedTuple):
    """One row as it lies, its strings copied out."""

    id: bytes
    text: bytes | None
    metadata: bytes | None
    created_us: int
    key: int
    flags: int
    norm_bits: int
