"""Processes of the bench: spawned, so that each imports for itself, and talked to through a pipe."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Any

Pipe = multiprocessing.connection.Connection
_PATIENCE_S = 300.0


@dataclass(frozen=True)
class _Failure:
    trace: str


class ChildFailed(RuntimeError):
    """A process of the bench raised or died; the bench has no figure then."""


class Child:
    """A process that runs `target(pipe, *args)`; killed at the end if it has not ended by itself."""

    def __init__(self, target: Callable[..., None], *args: Any) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_run, args=(theirs, target, args), daemon=True)
        self.process.start()
        theirs.close()

    def receive(self, patience_s: float = _PATIENCE_S) -> Any:
        """The next thing it sends; raises `ChildFailed` when it failed or takes too long."""
        if not self.pipe.poll(patience_s):
            raise ChildFailed(f"nothing from process {self.process.pid} for {patience_s:.0f} s")
        try:
            found = self.pipe.recv()
        except EOFError:
            self.process.join()
            raise ChildFailed(f"process {self.process.pid} ended with code {self.process.exitcode}") from None
        if isinstance(found, _Failure):
            raise ChildFailed(found.trace)
        return found

    def send(self, order: Any) -> None:
        """Give it an order."""
        self.pipe.send(order)

    def kill(self) -> None:
        """SIGKILL, and wait until the kernel has taken everything from it."""
        assert self.process.pid is not None
        os.kill(self.process.pid, signal.SIGKILL)
        self.process.join()

    def __enter__(self) -> Child:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.process.join(timeout=10.0)
        if self.process.is_alive():
            self.kill()
        self.pipe.close()


def _run(pipe: Pipe, target: Callable[..., None], args: tuple[Any, ...]) -> None:
    try:
        target(pipe, *args)
    except BaseException:
        pipe.send(_Failure(traceback.format_exc()))
        raise


def ask(target: Callable[..., None], *args: Any) -> Any:
    """What `target(pipe, *args)` sends first, run in a process of its own."""
    with Child(target, *args) as child:
        return child.receive()
