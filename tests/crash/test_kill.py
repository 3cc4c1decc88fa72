"""kill -9 at every fault point: nothing acknowledged is lost, nothing else is half there, nobody waits, no memory leaks."""

from __future__ import annotations

import re
import signal
from pathlib import Path

import pytest

import sharedrag
from sharedrag import Pool
from sharedrag.faults import POINTS
from tests.crash import checks, script
from tests.crash.cases import Case, Stage
from tests.crash.helpers import reclaimed, until
from tests.crash.script import STEPS

_PASSAGES_MOST = 4
_MORE_PASSAGES = {"manifest.written": 14, "manifest.published": 14}


@pytest.mark.parametrize("point", sorted(POINTS))
def test_killed_there_nothing_is_lost_and_nobody_waits(stage: Stage, point: str) -> None:
    """A process that dies at the point, at its first passage, its last or one between, is missed by nobody."""
    passages = stage.passages(point, _MORE_PASSAGES.get(point, _PASSAGES_MOST))
    assert passages, f"the script never passes {point}"
    for nth in passages:
        with stage.case() as case:
            die_there(case, f"{point}:kill:{nth}")


@pytest.mark.parametrize("point", sorted(POINTS))
def test_killed_there_in_another_node(stage: Stage, point: str) -> None:
    """The same, seen from another node than the one whose process died."""
    with stage.case(node=1) as case:
        die_there(case, f"{point}:kill:1")


def die_there(case: Case, fault: str) -> None:
    """Run the worker to its death, look at what is left, go on."""
    assert case.run(fault) == "ended"
    assert case.worker is not None
    assert case.worker.wait() == -signal.SIGKILL, f"{fault} was not reached"
    assert case.begun == case.done + 1, "it died between two steps"
    seen = case.check_seen(case.onlooker)
    go_on(case, seen)


def go_on(case: Case, seen: script.State) -> None:
    """A new process attaches, writes in the dead one's place, maintains; in the end all memory comes back."""
    with Pool.open(case.path, maintenance=False, node=case.node, name="next") as following:
        assert case.check_seen(following) == seen, "an old and a new handle see different things"
        checks.check_verifies(following)
        checks.check_map(following)
        more = script.Step("put", "history", ("after", "n1"), value=99, size=100)
        script.perform(more, case.path, following)
        lanes = [(lane.node, lane.lane) for lane in following.info().lanes if lane.held]
        assert lanes == [(0, 0), (1, 0) if case.node else (0, 1)], "the dead process's lane was not taken over"
        case.onlooker.collection("other").put(["o2"], texts=["still writing"])
        expected = script.apply(seen, more)
        assert checks.observe(following, script.DIMENSIONS) == expected
        assert following.maintain().elected, "the dead process still holds the maintenance lock"
        until(lambda: reclaimed(following, case.onlooker), "nobody sees what was retired")
        checks.check_space(following, case.fixed)
        checks.check_verifies(following)
        for pool in (following, case.onlooker):
            assert checks.observe(pool, script.DIMENSIONS) == expected, "maintenance changed what is seen"
        for name in following.collections():
            following.drop(name)
        until(lambda: reclaimed(following, case.onlooker), "nobody sees what was dropped")
        checks.check_space(following, case.fixed)
        assert following.info().allocated == 0


def test_every_point_is_in_the_table_and_in_the_code() -> None:
    """The table of fault points names what the code passes: no more, no less."""
    sources = Path(sharedrag.__file__).parent.rglob("*.py")
    text = "\n".join(source.read_text() for source in sources if source.name != "faults.py")
    passed = set(re.findall(r'(?:faults\.passing|\bhit)\("([a-z_.]+)"\)', text))
    assert passed == set(POINTS)


def test_the_script_comes_to_an_end_without_a_fault(stage: Stage) -> None:
    """The control: undisturbed, the worker does every step, and every one of them is seen."""
    with stage.case() as case:
        assert case.run("") == "ended"
        assert case.done == len(STEPS) - 1
        go_on(case, case.check_seen(case.onlooker))
