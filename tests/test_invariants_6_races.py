"""Invariant 6, nothing is reused while a pin can see it: the interleavings that a proof must exclude, forced."""

from __future__ import annotations

import pytest

from sharedrag import Pool
from sharedrag.arena.manifest import State
from sharedrag.memory import layout, order
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import Interrupting, fill_and_decay, reclaimed, until
from tests.crash.launcher import Launcher


def test_invariant_06_a_view_that_changes_hands_while_pins_are_read_is_not_overlooked(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """After the maintainer passed an empty slot, a fork puts a child with an old view there, and its parent moves on."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:hand_a_view_to_a_child", pool_path)
        assert worker.receive() == "ready"
        fill_and_decay(pool)
        changed_hands = []

        def change_hands() -> None:
            worker.conn.send("hand it over")
            changed_hands.append(worker.receive())

        empty = (pool.arena.geometry.session_offset(0, 1) + layout.SESSION_PINS) >> 3
        pool.arena.region.words = Interrupting(pool.arena.region.words, empty, change_hands)  # type: ignore[assignment]
        report = pool.maintain()
        assert report.segments_merged
        assert changed_hands == [2], "the pins were not read, or in another order"
        assert report.segments_waiting == report.segments_merged
        worker.conn.send("look")
        assert worker.receive() is True, "the child's view changed under it"
        until(lambda: reclaimed(pool), "the child is gone")


def test_invariant_06_what_is_retired_after_the_fence_waits_for_the_next(
    pool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection dropped between the fence and the look at the pins is not freed by that look: its fence is to come."""
    with (
        Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool,
        Pool.open(pool_path, maintenance=False) as other,
    ):
        pool.collection("kept").put(["x"], texts=["x"])
        pool.collection("passing").put(["x"], texts=["x"])
        other.collection("passing").put(["y"], texts=["y"])
        fill_and_decay(pool)
        fence = order.fence_all_processes
        fences = []

        def fence_then_drop() -> None:
            fence()
            fences.append("fence")
            if len(fences) == 2:  # the first is the horizon's
                other.drop("passing")
                other.move_pins_on()
                pool.move_pins_on()

        monkeypatch.setattr(order, "fence_all_processes", fence_then_drop)
        report = pool.maintain()
        assert len(fences) == 2
        assert report.segments_freed, "nothing was retired before the fence"
        states = [entry.state for entry in pool.arena.refresh().manifests[0].entries]
        assert states.count(State.RETIRED) == report.segments_waiting == 2, "freed without a fence of its own"
        assert reclaimed(pool)
