"""One server of two workers for most tests: starting one takes seconds."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import SHARED_MEMORY
from tests.server.serving import Crowd, Serving

FOLDER = Path(__file__).parent
#: So that bounds are reached soon.
SMALL = {"body_max": 262_144, "stream_queue": 100, "stream_patience_s": 200}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A machine that is loaded starts a server slowly: that is no failure."""
    for item in items:
        if item.path.is_relative_to(FOLDER) and item.get_closest_marker("timeout") is None:
            item.add_marker(pytest.mark.timeout(230))


@pytest.fixture(scope="session")
def server_pool_folder() -> Iterator[Path]:
    """A folder on shared memory that is removed in the end."""
    folder = tempfile.mkdtemp(prefix="sharedrag-test-server-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
    yield Path(folder)
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def server_pool(server_pool_folder: Path) -> str:
    """The path of the pool that the tests' servers share."""
    return str(server_pool_folder / "server.pool")


@pytest.fixture(scope="session")
def serving(server_pool: str) -> Iterator[Serving]:
    """A server of two workers."""
    with Serving(server_pool, label="node-a", arguments=("--access-log",), keepalive_s=1, **SMALL) as server:
        yield server


@pytest.fixture(scope="session")
def other_node(server_pool: str, serving: Serving) -> Iterator[Serving]:
    """Another server over the same pool."""
    with Serving(server_pool, 1, label="node-b", keepalive_s=1) as server:
        yield server


@pytest.fixture
def crowd(serving: Serving) -> Crowd:
    """A new group."""
    return Crowd(serving)
