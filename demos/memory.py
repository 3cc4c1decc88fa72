"""What memory a process holds for itself, and what of the pool it has mapped; and what a private copy costs instead.

A page of the pool that so far only one process has looked at counts as "private" in the kernel's sums, though it is the
pool's. So the pool's mapping is taken out of a process's sums, and the pool's memory is counted once, from its file.
"""

from __future__ import annotations

import ctypes
import gc
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

import faiss
import numpy as np

from sharedrag import Pool

HEADER = re.compile(r"^[0-9a-f]+-[0-9a-f]+ \S+ \S+ \S+ \d+\s*(.*)$")
Documents = dict[str, tuple[str | None, str | None]]  # id -> text, metadata as JSON
ROWS_COPIED_AT_ONCE = 5_000
SEARCHES = 100


@dataclass(frozen=True, slots=True)
class Usage:
    """Bytes of one process: its own (without the pool), and of the pool's memory what it has mapped and touched."""

    private: int
    pool_mapped: int


def usage(pool_path: str, pid: int | str = "self") -> Usage:
    """Memory of a process now, from the kernel's own account of each mapping (smaps)."""
    private = mapped = 0
    of_pool = False
    real = os.path.realpath(pool_path)
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
        for line in file:
            header = HEADER.match(line)
            if header:
                of_pool = header[1] == real
            elif of_pool and line.startswith("Rss:"):
                mapped += _kibibytes(line)
            elif not of_pool and line.startswith("Private_"):
                private += _kibibytes(line)
    return Usage(private, mapped)


def _kibibytes(line: str) -> int:
    return int(line.split()[1]) * 1024


def pool_bytes(pool_path: str) -> int:
    """Memory behind a pool's file, all processes together."""
    return os.stat(pool_path).st_blocks * 512


def settle() -> None:
    """Give back what the allocators only keep: neither design is to be charged for another phase's leavings."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def private_copies(channel: Connection, pool_path: str, collections: Sequence[str]) -> None:
    """In a process of its own: hold each collection as a worker without a pool would, and send what each costs in bytes.

    That is a FAISS flat index, and a dict of texts and metadata (as JSON): less than LlamaIndex's own stores take.
    """
    # What the libraries load at first use is no part of a copy, so the first, a small one, is made once before.
    _searched_copy(pool_path, collections[0])
    for name in collections:
        settle()
        before = usage(pool_path).private
        copy = _searched_copy(pool_path, name)
        settle()
        channel.send(usage(pool_path).private - before)
        del copy


def _searched_copy(pool_path: str, collection: str) -> tuple[Any, Documents, list[str]]:
    with Pool.open(pool_path, name="demo: private copy", maintenance=False) as pool:
        dimension = pool.collection(collection).dimension
    assert dimension is not None
    copy = _copied(pool_path, collection, dimension)
    for query in np.random.default_rng(1).standard_normal((SEARCHES, dimension), np.float32):
        copy[0].search(query[None, :], 5)
    return copy


def _copied(pool_path: str, collection: str, dimension: int) -> tuple[Any, Documents, list[str]]:
    index = faiss.IndexFlatIP(dimension)
    documents: Documents = {}
    ids: list[str] = []
    with Pool.open(pool_path, name="demo: private copy", maintenance=False) as pool:
        for batch in pool.collection(collection).scan(columns=["id", "text", "metadata", "vector"]).to_batches():
            for start in range(0, len(batch), ROWS_COPIED_AT_ONCE):
                part = batch.slice(start, ROWS_COPIED_AT_ONCE)
                vectors = part.column("vector").flatten().to_numpy(zero_copy_only=False)
                index.add(np.ascontiguousarray(vectors.reshape(len(part), dimension), np.float32))
                texts, metadata = part.column("text").to_pylist(), part.column("metadata").to_pylist()
                part_ids = part.column("id").to_pylist()
                documents.update(zip(part_ids, zip(texts, metadata, strict=True), strict=True))
                ids += part_ids
    return index, documents, ids
