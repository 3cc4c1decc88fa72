"""Exact search in the pool beside faiss.knn over a private array of the same rows."""

from __future__ import annotations

import time

import faiss
import numpy as np

from sharedrag import Pool
from tests.bench import data
from tests.bench.children import Pipe, ask
from tests.bench.figures import Figure, Limit, percentile
from tests.bench.workshop import COLLECTION, Workshop

_K = 10
_IN_A_ROW = 20  # so that each side finds its own rows in the caches as far as they fit


def both(pipe: Pipe, path: str, rows: int, queries: int) -> None:
    """Ask the pool and a private array by turns; sends the median us of each and the pool's segments."""
    private = data.records(rows, seed=1).vectors
    asked = data.vectors(queries, seed=6)
    threads = faiss.omp_get_max_threads()
    shared_us: list[float] = []
    private_us: list[float] = []
    with Pool.open(path) as pool:
        collection = pool.collection(COLLECTION)
        collection.search(asked[0], k=_K)
        for start in range(0, queries, _IN_A_ROW):
            for query in asked[start : start + _IN_A_ROW]:
                begun = time.perf_counter_ns()
                collection.search(query, k=_K)
                shared_us.append((time.perf_counter_ns() - begun) / 1000)
            # One thread is FAISS at its best here: from 10,000 rows on it would split a query, and wait for the threads.
            faiss.omp_set_num_threads(1)
            for query in asked[start : start + _IN_A_ROW]:
                begun = time.perf_counter_ns()
                faiss.knn(query[np.newaxis], private, _K, metric=faiss.METRIC_INNER_PRODUCT)
                private_us.append((time.perf_counter_ns() - begun) / 1000)
            faiss.omp_set_num_threads(threads)
        [info] = pool.info().collections
    pipe.send((percentile(shared_us, 0.5), percentile(private_us, 0.5), info.segments_open + info.segments_sealed))


def search(workshop: Workshop) -> list[Figure]:
    """p50 of one query, 10 hits with their texts and metadata, over each size of pool."""
    size = workshop.size
    figures = []
    for rows in size.searched:
        path = workshop.loaded(rows)
        queries = min(size.queries, max(20, 10_000_000 // rows))
        rounds, private, segments = [], [], 0
        for number in range(size.rounds):
            workshop.tell(f"search over {rows:,} rows, round {number + 1}")
            pool_us, private_us, segments = ask(both, path, rows, queries)
            rounds.append(pool_us)
            private.append(private_us)
        limit = Limit("faiss.knn, private array, no texts", min(private))
        notes = {"segments": segments, "queries a round": queries}
        what = f"search over {rows:,} rows, p50 ({'indexed' if rows > 2500 else 'exact'})"
        figures.append(Figure(f"search {rows}", what, "us", rounds, False, None, limit, notes))
    return figures
