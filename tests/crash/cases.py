"""One case: a pool with an onlooker attached, a worker that is killed, stopped or interrupted at a point, what follows."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

from sharedrag import Pool
from tests.crash import checks, script
from tests.crash.helpers import alone
from tests.crash.launcher import Launcher, Worker
from tests.crash.script import STEPS, STEPS_BEFORE, State, after_steps

CAPACITY = 8 << 20
# At these points the process holds the node lock: whoever needs it too must wait, or be told who has it.
NODE_LOCKED = {
    "roll.locked",
    "roll.reserved",
    "roll.initialised",
    "manifest.written",
    "manifest.published",
    "deletions.reserved",
}
_counted: dict[str, int] = {}


class Case:
    """A pool, an onlooker of node 0 that was attached before anything happened, and the worker, of `node`."""

    def __init__(self, launcher: Launcher, path: str, node: int, onlooker: Pool, fixed: int) -> None:
        self.launcher = launcher
        self.path = path
        self.node = node
        self.onlooker = onlooker
        self.fixed = fixed
        self.worker: Worker | None = None
        self.begun = -1
        self.done = -1

    def run(self, fault: str) -> str:
        """Let a worker do all steps with a fault; returns how its pipe fell silent: "ended", "interrupted" or "stopped"."""
        self.worker = self.launcher.start("tests.crash.script:work", self.path, self.node, STEPS, fault=fault)
        return self.follow(stops=":stop" in fault)

    def follow(self, stops: bool = False) -> str:
        """Listen to the worker until it ends, is interrupted or stops."""
        assert self.worker is not None
        stopped = False
        while True:
            if stops and not self.worker.conn.poll(0 if stopped else 0.002):
                if stopped:
                    return "stopped"
                stopped = self.worker.is_stopped()
                continue  # what it said before it stopped may have come meanwhile
            message = self.worker.receive()
            if message is None:
                return "ended"
            kind, number = message
            if kind == "begin":
                self.begun = number
                if STEPS[number].kind == "maintain":
                    self.onlooker.move_pins_on()
                    self.worker.conn.send("go on")
            elif kind == "done":
                self.done = number
            elif kind == "interrupted":
                return "interrupted"

    def admissible(self) -> tuple[State, State]:
        """What may be seen: everything acknowledged, without or with the one step under way, never a part of it."""
        acknowledged = after_steps([*STEPS_BEFORE, *STEPS[: self.done + 1]])
        under_way = STEPS[self.done + 1 : self.begun + 1]
        return acknowledged, after_steps(under_way, acknowledged)

    def check_seen(self, pool: Pool) -> State:
        """A handle sees one of the admissible states of the worker's collections; returns it."""
        seen = checks.observe(pool, script.DIMENSIONS)
        without, with_it = self.admissible()
        if seen != without and seen != with_it:
            raise AssertionError(f"step {self.begun} {STEPS[self.begun]!r:.80}: {difference(seen, without, with_it)}")
        return seen


def difference(seen: State, without: State, with_it: State) -> str:
    """A short account of what is wrong."""
    lines = []
    for name in script.DIMENSIONS:
        have, may = seen.get(name), [without.get(name), with_it.get(name)]
        if have in may:
            continue
        if have is None or None in may:
            lines.append(f"collection {name!r} {'is missing' if have is None else 'is there'}")
            continue
        lost = [one for one in without[name] if one in with_it[name] and one not in have]
        extra = [one for one in have if one not in without[name] and one not in with_it[name]]
        wrong = [one for one in have if have[one] not in (without[name].get(one), with_it[name].get(one))]
        lines.append(f"{name}: lost {lost[:5]}, back from the dead {extra[:5]}, wrong {wrong[:5]}, of {len(have)}")
    return "; ".join(lines) or "a batch is there in part"


class Stage:
    """Where cases are played."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self.launcher = launcher
        self.folder = folder
        self._cases = 0

    @contextmanager
    def case(self, node: int = 0) -> Iterator[Case]:
        """A new pool of node + 1 nodes; a first worker has died in it, leaving linked rows that were never published."""
        self._cases += 1
        path = str(self.folder / f"{self._cases}.pool")
        nodes = node + 1
        with Pool.open(
            path, create=True, capacity=CAPACITY * nodes, nodes=nodes, maintenance=False, name="onlooker"
        ) as onlooker:
            fixed = checks.fixed_memory(alone(onlooker))
            onlooker.collection("other").put(["o1"], texts=["of the onlooker"])
            first = self.launcher.start("tests.crash.script:leave_half_linked", path, node)
            assert first.wait() == -signal.SIGKILL
            assert checks.observe(onlooker, script.DIMENSIONS) == after_steps(STEPS_BEFORE)
            try:
                yield Case(self.launcher, path, node, onlooker, fixed)
            finally:
                self.launcher.end_workers()
        Path(path).unlink()

    def passages(self, point: str, most: int) -> list[int]:
        """Which passages of a point to try: all, or when there are more than `most`, the first, the last, some between."""
        if not _counted:
            _counted.update(self._count())
        times = _counted.get(point, 0)
        if times <= most:
            return list(range(1, times + 1))
        return sorted({1 + round(index * (times - 1) / (most - 1)) for index in range(most)})

    def _count(self) -> dict[str, int]:
        with self.case() as case:
            case.worker = self.launcher.start("tests.crash.script:count", case.path, case.node, STEPS)
            found: dict[str, int] = {}
            while (message := case.worker.receive()) is not None:
                if message[0] == "passed":
                    found = message[1]
                elif message[0] == "begin" and STEPS[message[1]].kind == "maintain":
                    case.onlooker.move_pins_on()
                    case.worker.conn.send("go on")
            assert case.worker.wait() == 0
            return found


@lru_cache
def all_steps() -> State:
    """The state after the whole script."""
    return after_steps([*STEPS_BEFORE, *STEPS])
