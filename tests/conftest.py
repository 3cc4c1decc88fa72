"""What every test may use: pools on shared memory that leave nothing behind, real data, Hypothesis profiles."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

# Before anything imports a library that would look for a hub: no test may depend on one, or wait for one.
os.environ["HF_HUB_OFFLINE"] = "1"

# A shell that starts the tests in the background has them ignore Ctrl-C, and so would every process that they start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

import pytest
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from sharedrag import Pool

SHARED_MEMORY = Path("/dev/shm")
REPOSITORY = Path(__file__).resolve().parent.parent

# A loaded machine is no failure, so no example has a deadline. In CI every run tries the same examples, and prints how
# to repeat one that fails.
settings.register_profile("dev", deadline=None)
settings.register_profile(
    "ci",
    deadline=None,
    derandomize=True,
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.register_profile("deep", parent=settings.get_profile("dev"))  # tests/property: a hundred times as many examples
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci" if os.environ.get("CI") else "dev"))


@pytest.fixture
def pool_path() -> Iterator[str]:
    """A path for one pool, in a fresh folder on shared memory that is removed afterwards."""
    folder = tempfile.mkdtemp(prefix="sharedrag-test-", dir=SHARED_MEMORY if SHARED_MEMORY.is_dir() else None)
    try:
        yield str(Path(folder) / "test.pool")
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def pool(pool_path: str) -> Iterator[Pool]:
    """A new pool of 64 MiB, open."""
    from sharedrag import Pool

    with Pool.open(pool_path, create=True, capacity="64 MiB") as opened:
        yield opened


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real chats and questions beside the repository; the test is skipped where it is not there."""
    folder = REPOSITORY.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the real data is not beside this repository (../shared/data)")
    return folder
