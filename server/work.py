"""Where calls block: a few threads for the pool, FAISS and embedding, with a short queue in front.

The event loop never calls the pool. What does not fit in the queue is refused at once (`Overloaded`, a 503): a client that
waits in a queue that only grows gets an answer that nobody wants any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from server.turns import Turn

P = ParamSpec("P")
T = TypeVar("T")


class Overloaded(Exception):
    """The queue is full; try again in `retry_after_s`."""

    def __init__(self, what: str = "this worker has more to do than it can queue", retry_after_s: int = 1) -> None:
        super().__init__(what)
        self.retry_after_s = retry_after_s


class Work:
    """`threads` calls at a time, one of which computes, and at most `queue` that wait."""

    def __init__(self, threads: int, queue: int) -> None:
        """Threads start with the first calls."""
        self._executor = ThreadPoolExecutor(threads, thread_name_prefix="sharedrag-work")
        self._places = threads + queue
        self.turn = Turn()
        self.waiting = 0  # calls begun or queued; only the event loop counts

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """What `call` returns or raises, from one of the threads. Raises `Overloaded` before it begins.

        A caller that goes away does not stop a call that has begun: it ends in its thread, and keeps its place until then.
        """
        if self.waiting >= self._places:
            raise Overloaded
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[T] = loop.create_future()

        def work() -> None:
            result: T | None = None
            error: BaseException | None = None
            if not answer.cancelled():  # else its caller went away while it waited
                try:
                    with self.turn.taken():
                        result = call(*args, **kwargs)
                except BaseException as raised:  # noqa: BLE001 (it is the caller's, on the other side)
                    error = raised
            if not loop.is_closed():
                loop.call_soon_threadsafe(self._done, answer, result, error)

        self._executor.submit(work)
        self.waiting += 1
        return await answer

    def _done(self, answer: asyncio.Future[Any], result: object, error: BaseException | None) -> None:
        self.waiting -= 1
        if answer.cancelled():
            return
        if error is None:
            answer.set_result(result)
        else:
            answer.set_exception(error)

    def close(self) -> None:
        """Wait for what has begun, forget what waits."""
        self._executor.shutdown(wait=True, cancel_futures=True)
