"""What the nodes measure when the replay is over: how soon a write is found elsewhere, and what memory a reader costs."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt

from demos.events import Ballast, BallastWritten, Memory, ProbesFound, ProbesWritten, monotonic_ns
from demos.memory import SEARCHES, settle, usage
from sharedrag import Collection, Pool

PROBE_SEED = 11
PROBE_PAUSE_S = 0.003
PROBE_WAIT_S = 5.0
FINDER_START_S = 0.1
BALLAST_BATCH = 1_000


def _unit_vectors(seed: int, count: int, dimension: int) -> npt.NDArray[np.float32]:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write_probes(collection: Collection, count: int) -> ProbesWritten:
    """Put `count` records one by one, with pauses; note when each put returned. Who finds them deletes them."""
    assert collection.dimension is not None
    vectors = _unit_vectors(PROBE_SEED, count, collection.dimension)
    ids = [f"probe-{number}" for number in range(count)]
    time.sleep(FINDER_START_S)
    returned = []
    for one, vector in zip(ids, vectors, strict=True):
        time.sleep(PROBE_PAUSE_S)
        collection.put([one], vector[None, :], ["probe"], [{"probe": True}])
        returned.append(monotonic_ns())
    return ProbesWritten(tuple(returned))


def find_probes(collection: Collection, count: int) -> ProbesFound:
    """Search for each of the same records until it is found; note when the search that found it returned."""
    assert collection.dimension is not None
    vectors = _unit_vectors(PROBE_SEED, count, collection.dimension)
    found = []
    for number, vector in enumerate(vectors):
        give_up_ns = monotonic_ns() + int(PROBE_WAIT_S * 1e9)
        moment = 0
        while not moment and monotonic_ns() < give_up_ns:
            hits = collection.search(vector, k=1)
            now = monotonic_ns()
            moment = now if hits and hits[0].id == f"probe-{number}" else 0
        found.append(moment)
    collection.delete([f"probe-{number}" for number in range(count)])
    return ProbesFound(tuple(found))


def write_ballast(pool: Pool, ballast: Ballast, node: int, dimension: int, texts: list[str]) -> BallastWritten:
    """Put made-up rows: random unit vectors, texts of the chat over and over, metadata as the chat's records have it."""
    settle()
    before = usage(pool.path)
    vectors = _unit_vectors(100 + node, BALLAST_BATCH, dimension)
    collection = pool.collection(ballast.collection, dimension=dimension)
    rng = np.random.default_rng(node)
    started = time.perf_counter()
    for start in range(0, ballast.rows, BALLAST_BATCH):
        rows = range(start, min(start + BALLAST_BATCH, ballast.rows))
        # The same vectors turned about: as many different ones, at the price of a permutation.
        turned = vectors[: len(rows), rng.permutation(dimension)]
        collection.put(
            [f"{node}-{row}" for row in rows],
            turned,
            [texts[row % len(texts)] if texts else "" for row in rows],
            [{"author": f"member {row % 97}", "node": node, "place": row} for row in rows],
        )
    return BallastWritten(ballast.rows, time.perf_counter() - started, before)


def search_ballast(pool: Pool, name: str) -> Memory:
    """Search the made-up rows of all nodes a hundred times; memory of this process after it."""
    collection = pool.collection(name)
    assert collection.dimension is not None
    queries = _unit_vectors(7, SEARCHES, collection.dimension)
    for query in queries:
        collection.search(query, k=5)
    settle()
    return Memory(usage(pool.path))
