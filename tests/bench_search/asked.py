"""Questions by turns to the pool and to a private FAISS index of the same kind, in a process of their own.

The private index is the pool's own, copied into this process's memory with the vectors beside it: the same lists, codes,
probes and candidates, re-ranked inside FAISS (`IndexRefineFlat`), one thread. So its answers are the same, and what it
takes is the least that this kind of index can take. It gives ids and scores; the pool gives texts, metadata and times too.

Drift and other processes fall on both alike: blocks of questions alternate, and neither side is asked what the other was
asked just before, since that would find the rows in the caches.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sharedrag import Pool
from sharedrag.search.ivf_layout import faiss
from tests.bench.children import Child, Pipe
from tests.bench.figures import percentile
from tests.bench_search.stage import NAME
from tests.peers.corpus import Corpus, K
from tests.peers.protocol import identifier

BLOCK = 20
_QUESTIONS = 1_000
_WRITERS = 2
_WRITES_PER_S = 1_000
Ask = Callable[[int], Any]


class Turns(NamedTuple):
    """The median time of one question in us, for each round: of the first asked and of the second."""

    first_us: list[float]
    second_us: list[float]
    first_p99_us: float
    second_p99_us: float

    @property
    def ratios(self) -> list[float]:
        """How much longer the first took, for each round."""
        return [one / other for one, other in zip(self.first_us, self.second_us, strict=True)]


class Private:
    """A copy of the pool's largest index in this process's memory, and of the vectors that it leads to."""

    def __init__(self, collection: Any) -> None:
        """Copy. REQUIRES: the index covers all rows that are searched."""
        with collection._view() as view:
            covered = collection._planner._plan(view).indexes[0]
            settings, payload = covered.index.settings, np.array(covered.index._array)
            vectors = [np.asarray(one, np.float32) for one in covered.rows.arrays]
        self.settings = settings
        self._vectors = np.concatenate(vectors)
        base = faiss.deserialize_index(payload)
        self._index = faiss.IndexRefineFlat(base, faiss.swig_ptr(self._vectors))
        coarse = faiss.SearchParametersHNSW(efSearch=settings.ef) if settings.hnsw else None
        probes = faiss.IVFRaBitQSearchParameters(
            nprobe=settings.nprobe, qb=settings.qb, centered=False, quantizer_params=coarse
        )
        factor = settings.candidates / K
        self._parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=probes)
        self._scale = np.float32(settings.query_scale)

    def search(self, query: np.ndarray[Any, np.dtype[np.float32]]) -> Any:
        """(scores, rows) of the best ten."""
        scores, rows = self._index.search((query * self._scale)[np.newaxis], K, params=self._parameters)
        return scores[0] / self._scale, rows[0]


def by_turns(first: Ask, second: Ask, rounds: int, questions: int, until: float = 0.0) -> Turns:
    """Ask both, a block of questions each by turns; with `until`, on the clock of `time.monotonic`, no longer than that."""
    firsts: list[float] = []
    seconds: list[float] = []
    every: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        taken: tuple[list[float], list[float]] = ([], [])
        for start in range(0, questions, BLOCK):
            for side, ask in ((0, first), (1, second)) if start // BLOCK % 2 else ((1, second), (0, first)):
                apart = side * questions // 2
                for at in range(start, start + BLOCK):
                    question = (at + apart) % questions
                    begun = time.perf_counter_ns()
                    ask(question)
                    taken[side].append((time.perf_counter_ns() - begun) / 1000)
            if until and time.monotonic() > until:
                break
        firsts.append(percentile(taken[0], 0.5))
        seconds.append(percentile(taken[1], 0.5))
        every[0].extend(taken[0])
        every[1].extend(taken[1])
        if until and time.monotonic() > until:
            break
    return Turns(firsts, seconds, percentile(every[0], 0.99), percentile(every[1], 0.99))


def _recall(ask: Ask, corpus: Corpus, questions: int) -> float:
    """The share of the ten best found; an answer is right if its true similarity is that of the tenth best or more."""
    bars = corpus._bars[0]
    right = 0
    for question in range(questions):
        scores = np.asarray(ask(question), np.float32)
        right += int((scores >= bars[question] - 1e-5).sum())
    return right / (K * questions)


def alone(pipe: Pipe, path: Path, folder: Path, rounds: int) -> None:
    """The pool and the private index by turns; unfiltered and filtered by turns. Sends a dict."""
    faiss.omp_set_num_threads(1)
    corpus = Corpus(folder)
    queries = np.ascontiguousarray(corpus.queries)
    count = min(_QUESTIONS, len(queries))
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection(NAME)
        private = Private(collection)
        rooms = [{"room": corpus.room(question)} for question in range(count)]

        def shared(question: int) -> Any:
            return collection.search(queries[question], k=K)

        def filtered(question: int) -> Any:
            return collection.search(queries[question], k=K, filter=rooms[question])

        found = {
            "recall": _recall(lambda one: [hit.score for hit in shared(one)], corpus, count),
            "recall private": _recall(lambda one: private.search(queries[one])[0], corpus, count),
            "settings": private.settings._asdict(),
        }
        for question in range(count):
            filtered(question)
        found["private"] = by_turns(shared, lambda one: private.search(queries[one]), rounds, count)
        found["filter"] = by_turns(filtered, shared, rounds, count)
        found["newest"] = _newest(collection, len(corpus.vectors), rounds)
    pipe.send(found)


def _newest(collection: Any, rows: int, rounds: int) -> list[float]:
    """Us to list the newest 20 of what was said since a thousandth of all was still to come, the median of each round."""
    [record] = collection.get([identifier(rows - max(100, rows // 1000))])
    wanted = {"$created": {">=": record.created}}
    medians = []
    for _ in range(rounds):
        taken = []
        for _ in range(200):
            begun = time.perf_counter_ns()
            found = collection.find(wanted, limit=20, newest_first=True)
            taken.append((time.perf_counter_ns() - begun) / 1000)
            assert len(found) == 20
        medians.append(percentile(taken, 0.5))
    return medians


def write(pipe: Pipe, path: Path, folder: Path, number: int) -> None:
    """Put single records, `_WRITES_PER_S` a second, until told to stop; sends how many, and in how many seconds."""
    rows = Corpus(folder).fresh(number * 1_000_000, 4_000)
    with Pool.open(path) as pool:
        put = pool.collection(NAME).put
        pipe.send("ready")
        pipe.recv()
        begun, done = time.monotonic(), 0
        while not pipe.poll():
            at = done % len(rows.ids)
            one = slice(at, at + 1)
            put([f"w{number}-{done}"], rows.vectors[one], rows.texts[one], rows.metadata[one])
            done += 1
            early = begun + done / _WRITES_PER_S - time.monotonic()
            if early > 0:
                time.sleep(early)
        pipe.send((done, time.monotonic() - begun))


def meanwhile(pipe: Pipe, path: Path, folder: Path, seconds: float) -> None:
    """The pool and the private index by turns for so long, once told to; sends `Turns` of 100 questions a round."""
    faiss.omp_set_num_threads(1)
    queries = np.ascontiguousarray(Corpus(folder).queries)
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection(NAME)
        private = Private(collection)
        collection.search(queries[0], k=K)
        pipe.send("ready")
        pipe.recv()

        def shared(question: int) -> Any:
            return collection.search(queries[question], k=K)

        until = time.monotonic() + seconds
        pipe.send(by_turns(shared, lambda one: private.search(queries[one]), 1_000, 100, until))


def beside_writers(path: Path, folder: Path, seconds: float) -> tuple[Turns, list[float]]:
    """`meanwhile` two processes write; and how many records each put in a second."""
    with ExitStack() as stack:
        reader = stack.enter_context(Child(meanwhile, path, folder, seconds))
        writers = [stack.enter_context(Child(write, path, folder, number)) for number in range(_WRITERS)]
        for child in (reader, *writers):
            child.receive()
        for child in (reader, *writers):
            child.send("go")
        turns: Turns = reader.receive()
        for writer in writers:
            writer.send("stop")
        written = [writer.receive() for writer in writers]
    return turns, [done / took_s for done, took_s in written]
