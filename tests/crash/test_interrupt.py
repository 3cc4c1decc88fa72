"""Ctrl-C at every fault point: the process lives on, holds nothing that it should not, and can do the same again."""

from __future__ import annotations

import pytest

from sharedrag import Pool
from sharedrag.faults import POINTS
from sharedrag.memory import layout
from tests.crash import checks, script
from tests.crash.cases import Case, Stage, all_steps
from tests.crash.helpers import reclaimed, until


@pytest.mark.parametrize("point", sorted(POINTS))
def test_interrupted_there_the_process_goes_on_and_nobody_waits(stage: Stage, point: str) -> None:
    """After a KeyboardInterrupt at the point no lock is left held, and the same handle repeats the step and finishes."""
    for nth in stage.passages(point, 2):
        with stage.case() as case:
            assert case.run(f"{point}:raise:{nth}") == "interrupted"
            assert case.worker is not None
            seen = case.check_seen(case.onlooker)
            others_go_on(case, sessions=1 if point.startswith("attach") else 2)
            assert checks.observe(case.onlooker, script.DIMENSIONS) == seen
            case.worker.conn.send("go on")
            assert case.follow() == "ended"
            assert case.worker.wait() == 0
            assert checks.observe(case.onlooker, script.DIMENSIONS) == all_steps()
            finish(case)


def others_go_on(case: Case, sessions: int) -> None:
    """The interrupted process is alive and idle: node lock and maintenance lock are free, it has no session to spare."""
    with Pool.open(case.path, maintenance=False, lock_timeout_s=1.0, name="next") as following:
        following.collection("new").put(["x"], texts=["needs the node lock"])
        assert following.maintain().elected, "the maintenance lock is still held"
        geometry, locks = following.arena.geometry, following.arena.session.locks
        slots = [geometry.session_offset(0, slot) for slot in range(layout.SESSIONS_PER_NODE)]
        assert sum(map(locks.held_elsewhere, slots)) == sessions, "the interrupted process holds a session for nothing"
        lanes = [geometry.lane_offset(0, lane) for lane in range(layout.LANES_PER_NODE)]
        assert sum(map(locks.held_elsewhere, lanes)) <= 2, "the interrupted process holds a lane for nothing"


def finish(case: Case) -> None:
    """With the worker gone and all dropped, every byte comes back."""
    with Pool.open(case.path, maintenance=False) as following:
        checks.check_verifies(following)
        until(lambda: reclaimed(following, case.onlooker), "nobody sees what was retired")
        checks.check_space(following, case.fixed)
        for name in following.collections():
            following.drop(name)
        until(lambda: reclaimed(following, case.onlooker), "nobody sees what was dropped")
        checks.check_space(following, case.fixed)
