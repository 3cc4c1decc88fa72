"""What the tests of a history share: an embedder without a model, and a history in another process."""

from __future__ import annotations

import re
import traceback
import zlib
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag import Pool
from sharedrag.history import History, NewMessage
from tests.crash.launcher import Launcher, Worker

DIMENSION = 64


class WordsEmbedder:
    """A text's vector is the sum of its words' random directions: texts that share words are near each other."""

    name = "words-64"
    dimension = DIMENSION

    def embed_texts(self, texts: Sequence[str]) -> npt.NDArray[np.float32]:
        """Unit vectors, (n, 64) float32."""
        return np.stack([self.embed_query(text) for text in texts])

    def embed_query(self, query: str) -> npt.NDArray[np.float32]:
        """A unit vector, (64,) float32."""
        words = re.findall(r"\w+", query.lower()) or [""]
        total: npt.NDArray[np.float32] = np.sum([_direction(word) for word in words], axis=0)
        return (total / np.linalg.norm(total)).astype(np.float32)


def _direction(word: str) -> npt.NDArray[np.float64]:
    return np.random.default_rng(zlib.crc32(word.encode())).normal(size=DIMENSION)


def open_history(path: str, **options: Any) -> History:
    """A history on a handle of its own."""
    return History(Pool.open(path, **options), embedder=WordsEmbedder())


def asked(question: str, answer: str, **fields: Any) -> list[NewMessage]:
    """A user's question and a model's answer."""
    return [NewMessage(text=question), NewMessage(role="assistant", text=answer, model="toy", **fields)]


class RemoteHistory:
    """A process with one history: `call("messages.append", ...)` calls it there; what it raises there is raised here."""

    def __init__(self, launcher: Launcher, path: str, fault: str = "", **options: Any) -> None:
        options.setdefault("maintenance", False)
        self.worker: Worker = launcher.start("tests.history.helpers:serve", path, options, fault=fault)
        assert self.finish() == "ready"

    def call(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """What the call gives there."""
        self.begin(method, *args, **kwargs)
        return self.finish()

    def begin(self, method: str, *args: Any, **kwargs: Any) -> None:
        """Send a call and do not wait: the process may stop or die in it."""
        self.worker.conn.send((method, args, kwargs))

    def finish(self) -> Any:
        """The result of the call that was begun; fails if the process is gone."""
        answer = self.worker.receive()
        assert answer is not None, f"process {self.worker.pid} is gone"
        kind, value = answer
        if kind == "raised":
            raise value
        return value


def serve(conn: Connection, path: str, options: dict[str, Any]) -> None:
    """Open the history and answer calls until the pipe is closed."""
    history = open_history(path, **options)
    conn.send(("value", "ready"))
    while True:
        try:
            method, args, kwargs = conn.recv()
        except EOFError:
            return
        target: Any = history
        try:
            for name in method.split("."):
                target = getattr(target, name)
            conn.send(("value", target(*args, **kwargs)))
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            if isinstance(error, AssertionError):
                traceback.print_exc()
            conn.send(("raised", error))
