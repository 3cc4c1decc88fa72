"""One way to ask a pool, whether its handle lives in this process or in another one behind a pipe."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from multiprocessing.connection import Connection
from typing import Any, NamedTuple, Protocol

import pyarrow as pa

from sharedrag import Pool

DIMENSION = 4
DEFINITIONS: dict[str, dict[str, Any]] = {
    "vectors": {"dimension": DIMENSION, "metric": "l2"},
    "plain": {},
}


class Row(NamedTuple):
    """A record as it was put, or as it came back."""

    id: str
    text: str | None
    metadata: dict[str, Any]
    created: datetime
    vector: tuple[float, ...] | None


class Handle(Protocol):
    """An attached pool, here or elsewhere."""

    def ask(self, question: str, *arguments: Any, **options: Any) -> Any:
        """The answer of the `Session` method of that name; raises what it raises."""

    def begin(self, question: str, *arguments: Any) -> Callable[[], Any]:
        """Ask without waiting; what comes back gives the answer. Nothing else may be asked in between."""

    def close(self) -> None:
        """Detach."""


class Session:
    """What can be asked of one attached pool; answers are plain data."""

    def __init__(self, path: str, node: int, maintenance: bool) -> None:
        self.pool = Pool.open(path, node=node, maintenance=maintenance)
        self.held: dict[int, pa.Table] = {}

    def declare(self) -> None:
        """Make the collections where they are not there."""
        for name, definition in DEFINITIONS.items():
            self.pool.collection(name, **definition)

    def put(self, name: str, rows: list[Row], delete: list[str]) -> None:
        """One batch."""
        self.pool.collection(name).put(
            [row.id for row in rows],
            [row.vector for row in rows] if name == "vectors" else None,
            [row.text for row in rows],
            [row.metadata or None for row in rows],
            created=[row.created for row in rows],
            delete=delete,
        )

    def delete(self, name: str, ids: list[str]) -> int:
        """How many there were."""
        return self.pool.collection(name).delete(ids)

    def get(self, name: str, ids: list[str]) -> list[Row | None]:
        """The records of these ids."""
        return [None if record is None else _row(record) for record in self.pool.collection(name).get(ids)]

    def find(self, name: str, where: dict[str, Any] | None, limit: int | None, newest_first: bool) -> list[Row]:
        """The records that match."""
        return [_row(record) for record in self.pool.collection(name).find(where, limit, newest_first)]

    def search(
        self, query: list[float], k: int, where: dict[str, Any] | None, ids: list[str] | None
    ) -> list[tuple[str, float, str | None]]:
        """(id, score, text) of the best hits."""
        hits = self.pool.collection("vectors").search(query, k, where, ids=ids)
        return [(hit.id, hit.score, hit.text) for hit in hits]

    def scan(self, name: str) -> list[tuple[str, str | None]]:
        """(id, text) of all records."""
        return _rows(self.pool.collection(name).scan())

    def counts(self, name: str) -> tuple[int, int]:
        """(len, version)."""
        collection = self.pool.collection(name)
        return len(collection), collection.version

    def contains(self, name: str, one: str) -> bool:
        """Whether a record has this id."""
        return one in self.pool.collection(name)

    def hold(self, name: str, key: int) -> list[tuple[str, str | None]]:
        """Keep a table of the pool's own memory; its (id, text) rows now."""
        self.held[key] = self.pool.collection(name).scan()
        return _rows(self.held[key])

    def look_again(self, key: int) -> list[tuple[str, str | None]]:
        """The rows of a table that was kept, which is then let go."""
        return _rows(self.held.pop(key))

    def maintain(self) -> None:
        """One round of maintenance."""
        self.pool.maintain()

    def drop(self, name: str) -> None:
        """Drop a collection."""
        self.pool.drop(name)

    def space(self) -> str:
        """Who has the pool's memory: every entry as (collection, state, lane, rows, extents), and what is free."""
        info = self.pool.info()
        entries = [
            (entry.collection, entry.state, entry.lane, entry.rows, entry.extents)
            for one in self.pool.arena.refresh().manifests
            for entry in one.entries
        ]
        return f"free {info.free}, {[(one.name, one.rows, one.rows_dead) for one in info.collections]}, {entries}"

    def verify(self) -> list[str]:
        """What `verify` finds wrong."""
        return [f"{problem.what} at {problem.offset}" for problem in self.pool.verify().problems]

    def close(self) -> None:
        """Detach."""
        self.held.clear()
        self.pool.close()


def _row(record: Any) -> Row:
    vector = None if record.vector is None else tuple(record.vector.tolist())
    return Row(record.id, record.text, record.metadata, record.created, vector)


def _rows(table: pa.Table) -> list[tuple[str, str | None]]:
    return sorted(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))


class Here:
    """A handle in this process."""

    def __init__(self, path: str, node: int, maintenance: bool) -> None:
        self._session = Session(path, node, maintenance)
        self._thread = ThreadPoolExecutor(1)

    def ask(self, question: str, *arguments: Any, **options: Any) -> Any:
        """See `Handle`."""
        return getattr(self._session, question)(*arguments, **options)

    def begin(self, question: str, *arguments: Any) -> Callable[[], Any]:
        """See `Handle`."""
        return self._thread.submit(self.ask, question, *arguments).result

    def close(self) -> None:
        """See `Handle`."""
        self._thread.shutdown()
        self._session.close()


class Elsewhere:
    """A handle in a process of its own, forked from a server that never opened a pool."""

    def __init__(self, path: str, node: int, maintenance: bool) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["tests.property.handles", "sharedrag"])
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs, path, node, maintenance), daemon=True)
        self._process.start()
        theirs.close()
        self._receive()  # it is attached, or says why not

    def ask(self, question: str, *arguments: Any, **options: Any) -> Any:
        """See `Handle`."""
        self._pipe.send((question, arguments, options))
        return self._receive()

    def begin(self, question: str, *arguments: Any) -> Callable[[], Any]:
        """See `Handle`."""
        self._pipe.send((question, arguments, {}))
        return self._receive

    def _receive(self) -> Any:
        answer, error = self._pipe.recv()
        if error is not None:
            raise error
        return answer

    def close(self) -> None:
        """See `Handle`."""
        self.ask("close")
        self._pipe.close()
        self._process.join(30)
        assert self._process.exitcode == 0

    def kill(self) -> None:
        """Let the process die as it stands."""
        self._process.kill()
        self._process.join(30)
        self._pipe.close()


def _answer(pipe: Connection, path: str, node: int, maintenance: bool) -> None:
    """The other process: answer until told to close, or until nobody asks any more."""
    try:
        session = Session(path, node, maintenance)
        pipe.send((None, None))
        while True:
            question, arguments, options = pipe.recv()
            try:
                pipe.send((getattr(session, question)(*arguments, **options), None))
            except Exception as error:  # noqa: BLE001 - whatever it is, it is the asker's
                error.add_note(traceback.format_exc())
                pipe.send((None, error))
            if question == "close":
                return
    except EOFError:
        return
