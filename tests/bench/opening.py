"""How soon a process that has just been started gets its first answer."""

from __future__ import annotations

import mmap
import os
import time

import faiss
import numpy as np

from sharedrag import Pool
from tests.bench import data
from tests.bench.children import Pipe, ask
from tests.bench.figures import Figure, Limit, percentile
from tests.bench.workshop import COLLECTION, Workshop

_WARM = 15


def first_answer(pipe: Pipe, path: str) -> None:
    """Open, ask, ask again; sends ms of (open, collection, first search, a warm search)."""
    queries = data.vectors(_WARM + 1, seed=6)
    faiss.knn(queries[:1], queries, 1)  # a library's own first call is not the pool's doing
    times = [time.perf_counter()]
    pool = Pool.open(path)
    times.append(time.perf_counter())
    collection = pool.collection(COLLECTION)
    times.append(time.perf_counter())
    collection.search(queries[0], k=10)
    times.append(time.perf_counter())
    warm = []
    for query in queries[1:]:
        start = time.perf_counter()
        collection.search(query, k=10)
        warm.append((time.perf_counter() - start) * 1000)
    pool.close()
    opened, declared, first = np.diff(times) * 1000
    pipe.send((float(opened), float(declared), float(first), percentile(warm, 0.5)))


def bare_file(pipe: Pipe, path: str) -> None:
    """The same for a file that holds nothing but the vectors: map it, faiss.knn over it, and again."""
    queries = data.vectors(_WARM + 1, seed=6)
    faiss.omp_set_num_threads(1)  # splitting a query between threads only costs
    faiss.knn(queries[:1], queries, 1)
    start = time.perf_counter()
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
    vectors = np.frombuffer(mapped, np.float32).reshape(-1, data.DIMENSION)
    faiss.knn(queries[:1], vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)
    first = time.perf_counter() - start
    warm = []
    for row in range(1, _WARM + 1):
        start = time.perf_counter()
        faiss.knn(queries[row : row + 1], vectors, 10, metric=faiss.METRIC_INNER_PRODUCT)
        warm.append(time.perf_counter() - start)
    pipe.send((first - percentile(warm, 0.5)) * 1000)


def opening(workshop: Workshop) -> list[Figure]:
    """Open + first query, less a warm query; each round in a new process that has all imports behind it."""
    size = workshop.size
    path = workshop.loaded(size.rows)
    plain = workshop.fresh("vectors")
    data.records(size.rows, seed=1).vectors.tofile(plain)
    rounds, parts, bare = [], [], []
    for number in range(size.rounds):
        workshop.tell(f"open and first query, round {number + 1}")
        opened, declared, first, warm = ask(first_answer, path)
        rounds.append(opened + declared + first - warm)
        parts.append(
            {"open": round(opened, 2), "collection": round(declared, 2), "first": round(first, 2), "warm": round(warm, 2)}
        )
        bare.append(ask(bare_file, plain))
    os.unlink(plain)
    limit = Limit("mapping a file of bare vectors, faiss.knn: first less warm", percentile(bare, 0.5))
    return [
        Figure(
            "opening",
            "open + first query, beyond imports and the query",
            "ms",
            rounds,
            False,
            10,
            limit,
            {"rows": size.rows, "ms": parts},
        )
    ]
