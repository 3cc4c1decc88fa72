from __future__ import annotations

from collections.abc import Iterator

import pytest

from sharedrag import Pool
from sharedrag.history import History
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory, WordsEmbedder


@pytest.fixture(scope="session")
def started_launcher() -> Iterator[Launcher]:
    """The warm parent of all workers of these tests."""
    started = Launcher()
    yield started
    started.close()


@pytest.fixture
def launcher(started_launcher: Launcher) -> Iterator[Launcher]:
    """The same; no worker outlives its test."""
    yield started_launcher
    started_launcher.end_workers()


@pytest.fixture
def history(pool: Pool) -> History:
    """A history in a new pool."""
    return History(pool, embedder=WordsEmbedder())


@pytest.fixture
def group(history: History) -> str:
    """A group with ann (its owner), bob and cid."""
    made = history.groups.create("Hawaii", owner="ann")
    for user in ("bob", "cid"):
        history.groups.add_member(made.id, user)
    return made.id


@pytest.fixture
def remote(launcher: Launcher, history: History) -> RemoteHistory:
    """The same history in another process."""
    return RemoteHistory(launcher, history.pool.path)
