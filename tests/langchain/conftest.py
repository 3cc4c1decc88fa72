"""Another process to write from, and stores whose calls go there."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from typing import Any

import pytest

from sharedrag.pool import shared

_PATIENCE_S = 60.0


class Elsewhere:
    """Runs functions, and methods of stores that are pickled on the way, in one other process."""

    def __init__(self) -> None:
        self._executor = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        self._paths: set[str] = set()

    def start(self, function: Callable[..., Any], *args: Any, **options: Any) -> Future[Any]:
        """Begin; the result is a future."""
        return self._executor.submit(function, *args, **options)

    def __call__(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        """Run, and wait for the result."""
        return self.start(function, *args, **options).result(_PATIENCE_S)

    def forget(self, path: str) -> None:
        """Close the other process's handle, so that nothing keeps the pool's memory."""
        self(_close, path)

    def stop(self) -> None:
        """End the process."""
        self._executor.shutdown()


def _close(path: str) -> None:
    shared(path).close()


@pytest.fixture(scope="session")
def other_process() -> Iterator[Elsewhere]:
    """The other process, one for all tests."""
    started = Elsewhere()
    yield started
    started.stop()


@pytest.fixture
def elsewhere(other_process: Elsewhere, pool_path: str) -> Iterator[Elsewhere]:
    """The other process, which lets go of the test's pool at the end."""
    yield other_process
    other_process.forget(pool_path)
