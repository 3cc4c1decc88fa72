"""From the moment a put returns in one process to the moment a search in another finds the row."""

from __future__ import annotations

import random
import time

import faiss
import numpy as np

from sharedrag import Pool
from tests.bench import data
from tests.bench.children import Child, Pipe
from tests.bench.figures import Figure, Limit, percentile
from tests.bench.workshop import COLLECTION, Workshop

_PAUSE_S = (0.0005, 0.002)  # between puts, so that the reader is met at any point of its search
_LONG_TEXT = "x" * (1 << 20)  # a segment to its measure, after which the next one is large enough for all rows
_GIVEN_UP_S = 20.0


def write(pipe: Pipe, path: str, before: int, samples: int) -> None:
    """Put `before` rows, then one row now and then; sends when each of those puts had returned, in ns."""
    rows = data.records(before + samples, seed=3)
    choice = random.Random(3)
    with Pool.open(path, create=True, capacity="256 MiB") as pool:
        collection = pool.collection(COLLECTION, dimension=data.DIMENSION)
        collection.put(["long"], texts=[_LONG_TEXT])
        calls = rows.calls(1)
        for call in calls[:before]:
            collection.put(*call)
        [info] = pool.info().collections
        pipe.send((info.segments_open, info.segments_sealed))
        pipe.recv()
        returned = []
        for call in calls[before:]:
            time.sleep(choice.uniform(*_PAUSE_S))
            collection.put(*call)
            returned.append(time.monotonic_ns())
        pipe.send(returned)


def read(pipe: Pipe, path: str, before: int, samples: int) -> None:
    """Search for each of those rows until it is there; sends when each search that found it returned, in ns."""
    rows = data.records(before + samples, seed=3)
    with Pool.open(path) as pool:
        collection = pool.collection(COLLECTION)
        warm = []
        for row in range(min(100, before)):
            start = time.perf_counter_ns()
            collection.search(rows.vectors[row], k=1)
            warm.append((time.perf_counter_ns() - start) / 1000)
        pipe.send((percentile(warm, 0.5), private_knn_us(rows.vectors[: before + samples // 2])))
        pipe.recv()
        found = []
        for name, vector in zip(rows.ids[before:], rows.vectors[before:], strict=True):
            give_up = time.monotonic_ns() + int(_GIVEN_UP_S * 1e9)
            while True:
                hits = collection.search(vector, k=1)
                now = time.monotonic_ns()
                if hits and hits[0].id == name:
                    break
                if now > give_up:
                    raise TimeoutError(f"row {name} was not found within {_GIVEN_UP_S:.0f} s")
            found.append(now)
        pipe.send(found)


def private_knn_us(vectors: data.Vectors, k: int = 1, repeats: int = 200) -> float:
    """Median time of faiss.knn for one query over a private array, in us."""
    queries = data.vectors(repeats, seed=4)
    taken = []
    for query in queries:
        start = time.perf_counter_ns()
        faiss.knn(query[np.newaxis], vectors, k, metric=faiss.METRIC_INNER_PRODUCT)
        taken.append((time.perf_counter_ns() - start) / 1000)
    return percentile(taken, 0.5)


def latency(workshop: Workshop) -> list[Figure]:
    """Writer A pauses between puts, reader B spins."""
    size = workshop.size
    before = max(1, size.unsealed - size.samples // 2)
    median, slow, warm, private = [], [], [], []
    segments = (0, 0)
    for number in range(size.rounds):
        workshop.tell(f"put in A, found in B, round {number + 1}")
        path = workshop.fresh("latency")
        with Child(write, path, before, size.samples) as writer:
            segments = writer.receive()
            with Child(read, path, before, size.samples) as reader:
                searching, knn = reader.receive()
                reader.send("go")
                writer.send("go")
                returned, found = writer.receive(), reader.receive()
        workshop.remove(path)
        taken = [(there - here) / 1000 for here, there in zip(returned, found, strict=True)]
        median.append(percentile(taken, 0.5))
        slow.append(percentile(taken, 0.99))
        warm.append(searching)
        private.append(knn)
    notes = {"rows on average": size.unsealed, "open, sealed segments": segments, "a warm search in B, us": min(warm)}
    limit = Limit("faiss.knn over as many private rows", min(private))
    return [
        Figure("visible p50", "put returns in A -> search in B finds it, p50", "us", median, False, 100, limit, notes),
        Figure("visible p99", "the same, p99", "us", slow, False, None, limit, {"samples a round": size.samples}),
    ]
