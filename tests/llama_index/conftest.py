"""Stores to be tested: on one handle, over two handles, alternating between two processes, and core's own for comparison."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import llama_index.core
import pytest

# A process that counts tokens would download an encoding, or hang where it cannot: core brings its own.
os.environ["TIKTOKEN_CACHE_DIR"] = str(Path(llama_index.core.__file__).parent / "_static" / "tiktoken_cache")

from sharedrag import Pool
from tests.llama_index.staging import CORE, Alternating, Core, Local, Worker, fresh_core_store


def pytest_configure(config: pytest.Config) -> None:
    """The marker of this folder."""
    config.addinivalue_line("markers", "core_differs(why): core's own store answers otherwise, and why ours does not")


@pytest.fixture(scope="session")
def worker() -> Iterator[Worker]:
    """Another process, which does what it is told."""
    started = Worker()
    yield started
    started.stop()


@pytest.fixture(params=["core", "one handle", "two handles", "two processes", "two processes, the other first"])
def place(request: pytest.FixtureRequest) -> str:
    """Where a store's calls are executed, one after the other."""
    return str(request.param)


@pytest.fixture(params=["sync", "async"])
def style(request: pytest.FixtureRequest) -> str:
    """Which of a method's two forms is called."""
    return str(request.param)


@pytest.fixture
def stores(request: pytest.FixtureRequest, place: str, style: str, pool_path: str) -> Iterator[Callable[[str], Alternating]]:
    """`stores("SharedKVStore")` is a store whose calls alternate as `place` says, in the form that `style` says."""
    marker = request.node.get_closest_marker("core_differs")
    if place == "core":
        if marker:
            pytest.skip(f"core differs: {marker.args[0]}")
        made_core: list[Core] = []

        def fresh(name: str) -> Alternating:
            made_core.append(fresh_core_store(CORE[name]))
            return Alternating(made_core[-1:], style)

        yield fresh
        for one in made_core:
            one.close()
        return
    handles = [Pool.open(pool_path, create=True, capacity="64 MiB")]
    if place == "two handles":
        handles.append(Pool.open(pool_path))

    def made(name: str) -> Alternating:
        sides = [Local(name, handle, "main") for handle in handles]
        if place.startswith("two processes"):
            sides.append(request.getfixturevalue("worker").store(name, pool_path, "main"))
        return Alternating(sides[::-1] if place.endswith("other first") else sides, style)

    yield made
    if place.startswith("two processes"):
        request.getfixturevalue("worker").forget(pool_path)
    for handle in handles:
        handle.close()
