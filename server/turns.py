"""One thread of a worker computes at a time; those that wait for something else are out of its way.

Threads of one interpreter that compute in Python do not go faster together, only slower: they take the interpreter from one
another, and from the event loop, in the middle of what they do. Four threads that answer `/v1/ask` took 2.15 ms of processor
for each answer, and 1.6 ms by turns. So a call computes in its turn, to its end. A call that embeds gives its turn up while
the model runs (outside the interpreter), and whoever has waited `WAIT_S` for a turn goes on without one: the call that
has it waits for a lock, or for a disk.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sharedrag.embed import Embedder, Vectors

WAIT_S = 0.03


class Turn:
    """Used by the threads of one worker."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._thread = threading.local()

    @contextmanager
    def taken(self) -> Iterator[None]:
        """In one's turn, or after a while without it."""
        self._take()
        try:
            yield
        finally:
            self._give()

    @contextmanager
    def given_up(self) -> Iterator[None]:
        """Others may compute meanwhile."""
        had = self._give()
        try:
            yield
        finally:
            if had:
                self._take()

    def _take(self) -> None:
        self._thread.has = self._lock.acquire(timeout=WAIT_S)

    def _give(self) -> bool:
        had: bool = getattr(self._thread, "has", False)
        if had:
            self._thread.has = False
            self._lock.release()
        return had


class EmbedderAside:
    """An embedder whose callers give their turn up while it runs."""

    def __init__(self, embedder: Embedder, turn: Turn) -> None:
        self._embedder = embedder
        self._turn = turn
        self.name = embedder.name
        self.dimension = embedder.dimension

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """As the embedder's own."""
        with self._turn.given_up():
            return self._embedder.embed_texts(texts)

    def embed_query(self, query: str) -> Vectors:
        """As the embedder's own."""
        with self._turn.given_up():
            return self._embedder.embed_query(query)
