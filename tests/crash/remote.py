"""A pool handle in another process, used from the test: each call is sent over a pipe, its result or error comes back."""

from __future__ import annotations

import traceback
from multiprocessing.connection import Connection
from typing import Any

from sharedrag import Pool
from tests.crash.launcher import Launcher, Worker


class Remote:
    """A process with one handle; `pool(...)` calls a method of it, `on(collection, ...)` one of a collection."""

    def __init__(self, launcher: Launcher, path: str, fault: str = "", **options: Any) -> None:
        self.worker: Worker = launcher.start("tests.crash.remote:serve", path, options, fault=fault)
        self.pid = self.worker.pid
        assert self._answer() == "ready"

    def pool(self, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of the pool there; what it raises there is raised here."""
        return self._call("", method, args, kwargs)

    def on(self, collection: str, method: str, *args: Any, **kwargs: Any) -> Any:
        """Call a method of a collection there."""
        return self._call(collection, method, args, kwargs)

    def begin(self, collection: str, method: str, *args: Any, **kwargs: Any) -> None:
        """Send a call and do not wait: the process may stop or die in it."""
        self.worker.conn.send((collection, method, args, kwargs))

    def finish(self) -> Any:
        """The result of the call that was begun."""
        return self._answer()

    def _call(self, collection: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self.begin(collection, method, *args, **kwargs)
        return self._answer()

    def _answer(self) -> Any:
        answer = self.worker.receive()
        if answer is None:
            raise AssertionError(f"process {self.pid} is gone")
        kind, value = answer
        if kind == "raised":
            raise value
        return value


def serve(conn: Connection, path: str, options: dict[str, Any]) -> None:
    """Open the pool and answer calls until the pipe is closed."""
    try:
        pool = Pool.open(path, **options)
    except Exception as error:  # noqa: BLE001 (handed to the caller)
        conn.send(("raised", error))
        return
    conn.send(("value", "ready"))
    while True:
        try:
            collection, method, args, kwargs = conn.recv()
        except EOFError:
            return
        try:
            target: Any = pool.collection(collection) if collection else pool
            found = getattr(target, method)
            value = found(*args, **kwargs) if callable(found) else found
            if method == "collection":
                value = None  # made there; only its name crosses
            elif method == "scan":
                value = value.to_pylist()
            conn.send(("value", value))
        except Exception as error:  # noqa: BLE001 (handed to the caller)
            if isinstance(error, AssertionError):
                traceback.print_exc()
            conn.send(("raised", error))
