"""Short forms of the soak and of the overwrite workload; `python -m tests.soak` runs the long ones."""

from __future__ import annotations

import io

import pytest
from rich.console import Console

from tests.crash.overwrite import overwrite
from tests.soak import soak


@pytest.mark.parametrize(("nodes", "kills", "seed"), [(1, 60, 1), (2, 40, 2)])
def test_random_kills_and_stops_lose_nothing(nodes: int, kills: int, seed: int) -> None:
    """Writers, readers and maintainers are killed and stopped at random: logs and pool agree, memory comes back."""
    done = soak(kills, seed, nodes, Console(file=io.StringIO()))
    assert done.anomalies == []
    assert done.kills >= kills
    assert done.checked > 0


def test_overwriting_many_times_what_the_pool_holds_does_not_fill_it() -> None:
    """Some 30,000 records under 500 ids, five times what the pool holds, while two readers query."""
    printed = io.StringIO()
    assert overwrite(30_000, Console(file=printed), capacity="2 MiB", ids=500) == 0, printed.getvalue()
