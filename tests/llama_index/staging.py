"""The machinery of the conformance suite: one test, many places where its calls are executed.

`Alternating` looks like a store to a test. It passes each call to the next of its sides, in the synchronous or the
asynchronous form; a side is a store in this process, or one in another process, which gets calls through a pipe.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import multiprocessing
import multiprocessing.connection
from collections.abc import Callable
from typing import Any

import sharedrag.llama_index
from sharedrag import Pool

# Core's stores, for each of ours: what both answer alike is LlamaIndex's own meaning of a method.
CORE = {
    "SharedKVStore": "llama_index.core.storage.kvstore.SimpleKVStore",
    "SharedDocumentStore": "llama_index.core.storage.docstore.SimpleDocumentStore",
    "SharedIndexStore": "llama_index.core.storage.index_store.SimpleIndexStore",
    "SharedChatStore": "llama_index.core.storage.chat_store.SimpleChatStore",
    "SharedAsyncChatStore": "llama_index.core.storage.chat_store.sql.SQLAlchemyChatStore",
    "SharedVectorStore": "llama_index.core.vector_stores.SimpleVectorStore",
}


def make(name: str, pool: Pool, collection: str) -> Any:
    """A store of the class `name`."""
    return getattr(sharedrag.llama_index, name)(pool, collection)


def call(
    store: Any,
    style: str,
    method: str,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    run: Callable[[Any], Any] = asyncio.run,
) -> Any:
    """The result of a method in the form that is asked for, as far as the class has it; attributes as they are.

    `run` executes coroutines: by default each in an event loop of its own.
    """
    names = [f"async_{method}", f"a{method}", method] if style == "async" else [method]
    found = getattr(store, next(name for name in names if hasattr(store, name)))
    if not callable(found):
        return found
    result = found(*args, **kwargs)
    return run(result) if inspect.iscoroutine(result) else result


class Local:
    """A store in this process."""

    def __init__(self, name: str, pool: Pool, collection: str) -> None:
        self.store = make(name, pool, collection)

    def call(self, style: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `call`."""
        return call(self.store, style, method, args, kwargs)


class Core(Local):
    """One of core's own stores; one event loop for all calls, since core's SQL store is bound to its first."""

    def __init__(self, store: Any) -> None:
        self.store = store
        self._loop = asyncio.new_event_loop()

    def call(self, style: str, method: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """See `call`."""
        return call(self.store, style, method, args, kwargs, self._loop.run_until_complete)

    def close(self) -> None:
        """End the SQL store's connections in the loop in which they were made."""
        engine = getattr(self.store, "_async_engine", None)
        if engine is not None:
            self._loop.run_until_complete(engine.dispose())
        self._loop.close()


def fresh_core_store(path: str) -> Core:
    """A new store of core's, by its class's full name."""
    module, name = path.rsplit(".", 1)
    cls = getattr(__import__(module, fromlist=[name]), name)
    return Core(cls(table_name="messages") if name == "SQLAlchemyChatStore" else cls())


class Remote:
    """A store in the worker process."""

    def __init__(self, worker: Worker, *what: str) -> None:
        self._worker = worker
        self._what = what

    def call(self, *what: Any) -> Any:
        """See `call`; errors are raised here."""
        return self._worker.ask(self._what, what)


class Worker:
    """Another process (spawned: it shares nothing but the pool) that executes calls on stores by name."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=work, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()

    def store(self, name: str, pool_path: str, collection: str) -> Remote:
        """A store of the class `name` over there."""
        return Remote(self, name, pool_path, collection)

    def ask(self, *question: Any) -> Any:
        """The answer; raises what was raised there."""
        self._connection.send(question)
        return self.answer()

    def begin(self, task: Callable[..., Any], *args: Any) -> None:
        """Have a function executed over there; `answer` waits for what it returns."""
        self._connection.send((task, args))

    def answer(self) -> Any:
        """What the worker was last asked; raises what was raised there."""
        ok, answer = self._connection.recv()
        if not ok:
            raise answer
        return answer

    def forget(self, pool_path: str) -> None:
        """Have the worker close its handle on a pool."""
        self.ask(None, pool_path)

    def stop(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.join(10)
        self._process.kill()


def work(connection: multiprocessing.connection.Connection) -> None:
    """The worker's loop: until the pipe is closed, execute what comes and send back how it went.

    A request is (what, with what): a function and its arguments; a store's class, pool and collection, and a call; or
    None and the path of a pool to be closed.
    """
    pools: dict[str, Pool] = {}
    stores: dict[tuple[str, ...], Any] = {}
    while True:
        try:
            what, request = connection.recv()
        except EOFError:
            return
        try:
            if what is None:
                stores = {key: store for key, store in stores.items() if key[1] != request}
                if request in pools:
                    pools.pop(request).close()
                connection.send((True, None))
                continue
            if callable(what):
                connection.send((True, what(*request)))
                continue
            name, path, collection = what
            if path not in pools:
                pools[path] = Pool.open(path)
            if what not in stores:
                stores[what] = make(name, pools[path], collection)
            answer: tuple[bool, Any] = (True, call(stores[what], *request))
        except Exception as error:  # noqa: BLE001 - whatever it is, the test's process is to see it
            answer = (False, error)
        connection.send(answer)


class Alternating:
    """A store as a test sees it: each call goes to the next side."""

    def __init__(self, sides: list[Any], style: str) -> None:
        self.sides = itertools.cycle(sides)
        self.style = style

    def __getattr__(self, method: str) -> Callable[..., Any]:
        return lambda *args, **kwargs: next(self.sides).call(self.style, method, args, kwargs)
