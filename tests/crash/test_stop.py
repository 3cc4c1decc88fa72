"""SIGSTOP at every fault point: others read and write on, waits are bounded and name the process; continued, it goes on."""

from __future__ import annotations

import re
import signal

import pytest

from sharedrag import Pool, PoolBusy
from sharedrag.faults import POINTS
from tests.crash import checks, script
from tests.crash.cases import NODE_LOCKED, Case, Stage, all_steps
from tests.crash.test_interrupt import finish

# At these the process is the node's maintainer.
MAINTAINING = {point for point in POINTS if point.split(".")[0] in ("merge", "horizon", "reclaim", "deletions", "block")}


@pytest.mark.parametrize("point", sorted(POINTS))
def test_stopped_there_others_go_on_and_it_finishes_later(stage: Stage, point: str) -> None:
    """While the process is stopped at the point nobody waits without end or sees a part; continued, it does all the rest."""
    for nth in stage.passages(point, 2):
        with stage.case() as case:
            assert case.run(f"{point}:stop:{nth}") == "stopped"
            assert case.worker is not None
            seen = case.check_seen(case.onlooker)
            others_go_on(case, point)
            assert checks.observe(case.onlooker, script.DIMENSIONS) == seen
            case.worker.signal(signal.SIGCONT)
            assert case.follow() == "ended"
            assert case.worker.wait() == 0
            assert checks.observe(case.onlooker, script.DIMENSIONS) == all_steps()
            finish(case)


def others_go_on(case: Case, point: str) -> None:
    """Writes into open segments, reads and attaching never wait; what needs the stopped process's lock says who has it."""
    assert case.worker is not None
    case.onlooker.collection("other").put(["o2"], texts=["written meanwhile"])
    with Pool.open(case.path, maintenance=False, lock_timeout_s=0.05, name="next") as following:
        assert following.collection("other").get(["o2"])[0] is not None
        case.check_seen(following)
        if point in NODE_LOCKED:
            with pytest.raises(PoolBusy, match=re.escape(f"process {case.worker.pid} for")):
                following.collection("new")
        else:
            following.collection("new").put(["x"], texts=["needs the node lock"])
        if point in MAINTAINING:
            assert not following.maintain().elected, "two maintainers at once"
        elif point not in NODE_LOCKED:
            assert following.maintain().elected
    if point != "attach.locked":
        assert [one.stopped for one in case.onlooker.info().sessions if one.pid == case.worker.pid] == [True]
