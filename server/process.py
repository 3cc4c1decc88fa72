"""What a worker process owes its surroundings: it tells its streams that it ends, and does not outlive its parent."""

from __future__ import annotations

import asyncio
import ctypes
import os
import signal
import threading
from types import FrameType

PARENT_VARIABLE = "SHAREDRAG_SERVE_PARENT"
_PR_SET_PDEATHSIG = 1
forked_by: int | None = None  # the process that forks workers, in which `preloaded` says so


def tell_when_stopped(stopping: asyncio.Event) -> None:
    """Set `stopping` at SIGTERM and SIGINT, before the server's own handlers: it waits for streams, which wait for this."""
    if threading.current_thread() is not threading.main_thread():
        return
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        before = signal.getsignal(number)

        def handle(received: int, frame: FrameType | None, before: object = before) -> None:
            if not loop.is_closed():
                loop.call_soon_threadsafe(stopping.set)
            if callable(before):
                before(received, frame)

        signal.signal(number, handle)


def end_with_parent() -> None:
    """End as if by SIGTERM when `serve` is gone, if that is what started this: else orphans would keep the port.

    `serve` is not the parent: the process that forks the workers is. With that one they end too, since nobody could
    start others.
    """
    serving = os.environ.get(PARENT_VARIABLE)
    if serving is None:
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if forked_by is not None and os.getppid() != forked_by:  # it went before we asked
        signal.raise_signal(signal.SIGTERM)
        return
    try:
        process = os.pidfd_open(int(serving))
    except ProcessLookupError:
        signal.raise_signal(signal.SIGTERM)
        return

    def gone() -> None:
        asyncio.get_running_loop().remove_reader(process)
        signal.raise_signal(signal.SIGTERM)

    asyncio.get_running_loop().add_reader(process, gone)
