from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.crash.cases import Stage
from tests.crash.launcher import Launcher


@pytest.fixture(scope="session")
def launcher() -> Iterator[Launcher]:
    """The warm parent of all workers."""
    started = Launcher()
    yield started
    started.close()


@pytest.fixture
def stage(launcher: Launcher, pool_path: str) -> Iterator[Stage]:
    """Makes pools in a folder of their own, and workers on them; nothing is left of either."""
    yield Stage(launcher, Path(pool_path).parent)
    launcher.end_workers()
    shutil.rmtree(Path(pool_path).parent, ignore_errors=True)
