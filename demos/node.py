"""One node of the group, in a process of its own: writes its share, asks its questions, waits for others' answers.

Three threads work side by side on one handle of the pool: the writer embeds exchanges as they fall due and puts them; the
asker embeds questions and searches; the waiter has the questions that nobody has answered yet and searches again whenever
something new is in the pool. The main thread takes commands. When the demo's own process is gone, the pipe ends and the
node leaves, so nothing is left behind.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.schema import QueryBundle

from demos import history, measures
from demos.events import (
    Answers,
    Asked,
    Ballast,
    Begin,
    Command,
    Done,
    Event,
    Failed,
    Finished,
    Found,
    Probe,
    Ready,
    SearchBallast,
    Task,
    Wrote,
    monotonic_ns,
)
from sharedrag import Pool
from sharedrag.chats import Exchange
from sharedrag.embed import load_embedder
from sharedrag.llama_index.embedding import as_llama_index

BATCH_MAX = 16
LOOK_EVERY_S = 0.0002
ASK_EVERY_S = 0.08
# Python lets another thread in every 5 ms by default: as long as that, a found answer could wait to be told.
SWITCH_INTERVAL_S = 0.0005
WARM_UP_TEXT = "the same words again and again " * 40


def run(channel: Connection, task: Task) -> None:
    """The process's main function."""
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    try:
        try:
            node = Node(channel, task)
        except Exception as error:  # noqa: BLE001  the demo shows it, whatever it is
            channel.send(Failed("start", f"{type(error).__name__}: {error}"))
            return
        node.serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        os._exit(1)  # the demo is gone; threads that still write need not be waited for


class Node:
    """A node's state: its part of the corpus, its pool handle and its model."""

    def __init__(self, channel: Connection, task: Task) -> None:
        self.task = task
        self._channel = channel
        self._sending = threading.Lock()
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        embedder = load_embedder(task.embedder, threads=1)
        self._dimension = embedder.dimension
        self._model = as_llama_index(embedder)
        # So that the model's buffers have their full size before anything is measured.
        self._model.get_text_embedding_batch([WARM_UP_TEXT] * 2)
        self._vectors = self._question_vectors()
        started = time.perf_counter()
        self._pool = Pool.open(task.pool_path, node=task.node, name=f"demo: node {task.node}")
        self._records = self._pool.collection(history.COLLECTION, dimension=self._dimension, embedding_model=embedder.name)
        self._store = history.open_store(self._pool, embedder.name)
        # Restarted after a kill: what was acknowledged is there and is not written again.
        there = self._records.get([exchange.id for exchange in task.share])
        self._attach_ms = (time.perf_counter() - started) * 1e3
        missing = [at for at, record in enumerate(there) if record is None]
        self._missing = [(task.due[at], task.share[at]) for at in missing]

    def _question_vectors(self) -> np.ndarray[Any, np.dtype[np.float32]]:
        vectors = [self._model.get_query_embedding(question.text) for question in self.task.questions]
        return np.asarray(vectors, np.float32).reshape(len(vectors), self._dimension)

    def serve(self) -> None:
        """Carry out commands until told to quit."""
        self._tell(Ready(os.getpid(), len(self._missing), self._attach_ms))
        with self._pool:
            while True:
                command: Command = self._channel.recv()
                if command == "quit":
                    self._quiet()
                    return
                with self._reported(type(command).__name__ if not isinstance(command, str) else command):
                    self._carry_out(command)

    def _carry_out(self, command: Command) -> None:
        if isinstance(command, Begin):
            for work in (self._write, self._ask, self._wait_for_answers):
                self._start(work, command.at_ns)
        elif isinstance(command, Probe):
            measure = measures.write_probes if command.role == "write" else measures.find_probes
            self._tell(measure(self._pool.collection(command.collection), command.count))
        elif isinstance(command, Ballast):
            texts = [exchange.answer for exchange in self.task.share]
            self._tell(measures.write_ballast(self._pool, command, self.task.node, self._dimension, texts))
        elif isinstance(command, SearchBallast):
            self._tell(measures.search_ballast(self._pool, command.collection))
        elif command == "evaluate":
            self._tell(self._answers())
        else:
            if command == "quiet":
                self._quiet()
            else:
                self._pool.maintain()
            self._tell(Done())

    def _start(self, work: Callable[[int], None], begin_ns: int) -> None:
        def reported() -> None:
            with self._reported(work.__name__.strip("_")):
                work(begin_ns)

        thread = threading.Thread(target=reported, name=work.__name__, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _quiet(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    @contextmanager
    def _reported(self, doing: str) -> Iterator[None]:
        """An error is an event too: the demo counts it and shows it, instead of a traceback amid its tables."""
        try:
            yield
        except (EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, the report must say that it happened
            self._tell(Failed(doing, f"{type(error).__name__}: {error}"))

    def _tell(self, event: Event) -> None:
        with self._sending:
            self._channel.send(event)

    # ------------------------------------------------------------------ writing

    def _write(self, begin_ns: int) -> None:
        pipeline = IngestionPipeline(transformations=[self._model], disable_cache=True)
        left = self._missing
        while left and not self._stop.is_set():
            played = (monotonic_ns() - begin_ns) / 1e9 / self.task.replay_s
            due = [exchange for moment, exchange in left[:BATCH_MAX] if moment <= played]
            if due:
                self._write_batch(pipeline, due)
                left = left[len(due) :]
            else:
                self._stop.wait(max(0.0, (left[0][0] - played) * self.task.replay_s))
        if not left:
            self._tell(Finished(monotonic_ns()))

    def _write_batch(self, pipeline: IngestionPipeline, batch: list[Exchange]) -> None:
        started = time.perf_counter()
        nodes = pipeline.run(nodes=[history.to_node(exchange, self.task.node) for exchange in batch])
        embedded = time.perf_counter()
        # A pipeline can add to the store itself; done here, so that the moment the call returns is known exactly.
        self._store.add(list(nodes))
        returned_ns = monotonic_ns()
        put_ms = (time.perf_counter() - embedded) * 1e3
        ids = tuple(exchange.id for exchange in batch)
        self._tell(Wrote(ids, returned_ns, (embedded - started) * 1e3, put_ms))

    # ------------------------------------------------------------------ asking

    def _ask(self, begin_ns: int) -> None:
        """Ask one question after the other, as an application would: embed it, retrieve nodes by LlamaIndex."""
        retriever = history.retriever(self._store, self._model)
        number = 0
        while self.task.questions and not self._stop.wait(ASK_EVERY_S):
            text = self.task.questions[number % len(self.task.questions)].text
            number += 1
            started = time.perf_counter()
            vector = self._model.get_query_embedding(text)
            embedded = time.perf_counter()
            retriever.retrieve(QueryBundle(text, embedding=vector))
            found = time.perf_counter()
            self._tell(Asked(monotonic_ns(), (embedded - started) * 1e3, (found - embedded) * 1e3))

    def _wait_for_answers(self, begin_ns: int) -> None:
        """Search for all questions that have no answer yet, again whenever the pool has something new."""
        waiting = [at for at, question in enumerate(self.task.questions) if question.relevant]
        seen, at_first = -1, True
        while waiting and not self._stop.is_set():
            version = self._records.version
            if version == seen:
                time.sleep(LOOK_EVERY_S)
                continue
            answered = self._look(waiting, at_first)
            waiting = [at for at in waiting if at not in answered]
            seen, at_first = version, False

    def _look(self, waiting: list[int], at_first: bool) -> set[int]:
        best = self._records.search(self._vectors[waiting], k=1)
        found_ns = monotonic_ns()
        answered = set()
        for at, hits in zip(waiting, best, strict=True):
            question = self.task.questions[at]
            if hits and hits[0].id in question.relevant:
                hit = hits[0]
                answered.add(at)
                author, node = hit.metadata.get("author"), hit.metadata["node"]
                self._tell(Found(question, hit.id, hit.text or "", author, node, hit.score, found_ns, at_first))
        return answered

    def _answers(self) -> Answers:
        found = {}
        retriever = history.retriever(self._store, self._model)
        for question, vector in zip(self.task.questions, self._vectors, strict=True):
            nodes = retriever.retrieve(QueryBundle(question.text, embedding=vector.tolist()))
            found[question.id] = tuple(node.node_id for node in nodes)
        return Answers(found)
