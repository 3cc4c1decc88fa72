"""What one more reader process costs in memory that is its own."""

from __future__ import annotations

import gc

import faiss
import numpy as np

from sharedrag import Pool
from tests.bench import data
from tests.bench.children import Pipe, ask
from tests.bench.figures import Figure, Limit
from tests.bench.workshop import COLLECTION, Workshop

_MIB = 1 << 20


def private_bytes() -> int:
    """Private_Clean + Private_Dirty of this process, in bytes."""
    gc.collect()
    total = 0
    with open("/proc/self/smaps_rollup") as file:
        for line in file:
            if line.startswith(("Private_Clean:", "Private_Dirty:")):
                total += int(line.split()[1]) * 1024
    return total


def idle(pipe: Pipe, path: str, queries: int) -> None:
    """The same imports and the same questions, but no pool."""
    asked = data.vectors(queries, seed=5)
    pipe.send(private_bytes())
    del path, asked


def reader(pipe: Pipe, path: str, queries: int) -> None:
    """Open the pool and ask all questions."""
    asked = data.vectors(queries, seed=5)
    with Pool.open(path) as pool:
        collection = pool.collection(COLLECTION)
        for query in asked:
            collection.search(query, k=10)
        pipe.send(private_bytes())


def private_copy(pipe: Pipe, path: str, queries: int) -> None:
    """What people do without a pool: an own FAISS index, the texts and metadata beside it."""
    asked = data.vectors(queries, seed=5)
    with Pool.open(path) as pool:
        table = pool.collection(COLLECTION).scan(columns=["id", "text", "metadata", "vector"])
        kept = [table.column(name).to_pylist() for name in ("id", "text", "metadata")]
        index = faiss.IndexFlatIP(data.DIMENSION)
        for batch in table.to_batches():
            column = batch.column(batch.schema.get_field_index("vector"))
            index.add(np.ascontiguousarray(column.flatten().to_numpy()).reshape(-1, data.DIMENSION))
        del table, batch, column
    for query in asked[:10]:
        index.search(query[np.newaxis], 10)
    pipe.send(private_bytes())
    del kept


def memory(workshop: Workshop) -> list[Figure]:
    """Private memory of a reader that asked all questions, less that of a process with the same imports."""
    size = workshop.size
    path = workshop.loaded(size.rows)
    rounds, private = [], 0.0
    for number in range(min(3, size.rounds)):
        workshop.tell(f"memory of one more reader, round {number + 1}")
        bare = ask(idle, path, size.queries)
        rounds.append((ask(reader, path, size.queries) - bare) / _MIB)
        if not number:
            private = (ask(private_copy, path, size.queries) - bare) / _MIB
    limit = Limit("a private copy: FAISS flat, texts, metadata", private)
    notes = {"rows": size.rows, "queries": size.queries, "an interpreter with the same imports, MiB": round(bare / _MIB, 1)}
    return [Figure("memory", "one more reader process, private memory", "MiB", rounds, False, 8, limit, notes)]
