"""Kill and stop processes at random for a long time: nothing acknowledged may be lost, nobody may see a part or wait.

    python -m tests.soak [--kills N] [--seed S] [--nodes N] [--quick]
                                              4 writers, 2 readers, a maintainer; every 50 ms one is struck
    python -m tests.soak --overwrite [--records N]            a million overwrites in a pool that holds a few of them

Ends with exit code 1 on any anomaly.
"""

from __future__ import annotations

import argparse
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table

from sharedrag import Pool
from sharedrag.faults import POINTS
from tests.crash import checks
from tests.crash.launcher import Launcher, Worker
from tests.crash.overwrite import overwrite
from tests.crash.soak_workers import DIMENSION, WRITERS, Anomaly, Ledger, check_own, check_record

CAPACITY = "192 MiB"
READERS = 2
_TICK_S = 0.05
_BETWEEN, _GRACE_S = 10, 1.0  # operations between two strikes, by all; or this long
_STOP_S = (0.005, 0.25)
_KILL_SHARE = 0.75
_ARMED_SHARE = 0.3
_SILENT_S = 60.0
_SHOW_S = 0.5
_ROUNDS_MAX = 200


class Place:
    """One process of the soak, and whoever is started in its place after a kill."""

    def __init__(self, soak: Soak, name: str, target: str, *args: Any) -> None:
        self._soak = soak
        self.name = name
        self._target = target
        self._args = args
        self.stopped_until = 0.0
        self.heard = soak.clock
        self.worker = self._start()

    def _start(self) -> Worker:
        chance = self._soak.chance
        fault = ""
        if chance.random() < _ARMED_SHARE and not self._soak.ending:
            fault = f"{chance.choice(sorted(POINTS))}:kill:{chance.choice((1, 1, 2, 5, 20, 100))}"
        self.heard = self._soak.clock
        return self._soak.launcher.start(self._target, *self._args, chance.getrandbits(32), fault=fault)

    def listen(self) -> None:
        """Take what the process said; put another in its place if it died."""
        try:
            while self.worker.conn.poll(0):
                kind, value = self.worker.conn.recv()
                self.heard = self._soak.clock
                if kind == "beat":
                    self._soak.operations += value
                else:
                    self._soak.anomalies.append(f"{self.name}: {value}")
        except (EOFError, ConnectionResetError):
            code = self.worker.wait()
            if code == -signal.SIGKILL:
                self._soak.kills += 1
            elif not self._soak.ending or code:
                self._soak.anomalies.append(f"{self.name} ended with {code}")
            self.worker.conn.close()
            if not self._soak.ending or code:
                self.worker = self._start()
        if self._soak.clock - self.heard > _SILENT_S and not self.stopped_until:
            self._soak.anomalies.append(f"BLOCKED: {self.name} did nothing for {_SILENT_S} s")

    def go_on(self) -> None:
        """End a stop whose time is over."""
        if self.stopped_until and time.monotonic() >= self.stopped_until:
            self.stopped_until = 0.0
            self.heard = self._soak.clock
            self.worker.signal(signal.SIGCONT)

    def strike(self) -> None:
        """Kill or stop the process."""
        chance = self._soak.chance
        if chance.random() < _KILL_SHARE:
            self.stopped_until = 0.0
            self.worker.signal(signal.SIGKILL)
        elif not self.stopped_until:
            self._soak.stops += 1
            self.stopped_until = time.monotonic() + chance.uniform(*_STOP_S)
            self.worker.signal(signal.SIGSTOP)


class Soak:
    """The conductor: starts everybody, strikes at random, and compares in the end."""

    def __init__(self, folder: Path, kills: int, seed: int, nodes: int, console: Console) -> None:
        self.path = str(folder / "soak.pool")
        self.folder = folder
        self.wanted = kills
        self.chance = random.Random(seed)
        self.nodes = nodes
        self.console = console
        self.kills = self.stops = self.operations = self.checked = 0
        self.anomalies: list[str] = []
        self.ending = False
        self.clock = 0.0  # seconds in which we ran: if the machine stops for a minute, nobody is to blame
        self.started = time.monotonic()
        self.launcher = Launcher()
        with Pool.open(self.path, create=True, capacity=CAPACITY, nodes=nodes, maintenance=False) as pool:
            self.fixed = checks.fixed_memory(pool)
            pool.collection("own", DIMENSION)
            pool.collection("shared")
        module = "tests.crash.soak_workers"
        self.logs = [folder / f"writer{slot}.log" for slot in range(WRITERS)]
        self.places = [
            *(
                Place(self, f"writer {slot}", f"{module}:write", self.path, slot % nodes, slot, str(self.logs[slot]))
                for slot in range(WRITERS)
            ),
            *(Place(self, f"reader {n}", f"{module}:read", self.path, n % nodes, n) for n in range(READERS)),
            *(Place(self, f"maintainer {node}", f"{module}:maintain", self.path, node) for node in range(nodes)),
        ]

    def run(self) -> None:
        """Strike until there were enough kills, or something was wrong; then look at everything."""
        with self._shown() as show:
            next_strike = before = time.monotonic()
            enough = 0  # on a busy machine, who is struck before he gets anything done is no test of anything
            while self.kills < self.wanted and not self.anomalies:
                for place in self.places:
                    place.go_on()
                    place.listen()
                late_s = time.monotonic() - next_strike
                if late_s > _GRACE_S or (late_s >= 0 and self.operations >= enough):
                    self.chance.choice(self.places).strike()
                    next_strike = max(next_strike + _TICK_S, time.monotonic() - _TICK_S)
                    enough = self.operations + _BETWEEN
                show()
                time.sleep(0.002)
                self.clock += min(time.monotonic() - before, 1.0)
                before = time.monotonic()
        self._end()
        self._compare()

    @contextmanager
    def _shown(self) -> Iterator[Any]:
        live = Live(self.table(), console=self.console, refresh_per_second=4, transient=True)
        shown = [0.0]

        def show() -> None:
            if time.monotonic() - shown[0] > (_SHOW_S if self.console.is_terminal else 20.0):
                shown[0] = time.monotonic()
                if self.console.is_terminal:
                    live.update(self.table())
                else:
                    self.console.print(f"{self.kills:,} kills, {self.stops:,} stops, {self.operations:,} operations")

        if self.console.is_terminal:
            with live:
                yield show
        else:
            yield show

    def _end(self) -> None:
        """Let everybody finish what they are at, and leave."""
        self.ending = True
        deadline = time.monotonic() + _SILENT_S
        for place in self.places:
            if place.stopped_until:
                place.worker.signal(signal.SIGCONT)
        told: set[int] = set()
        while any(place.worker.exit_code != 0 for place in self.places) and not self.anomalies:
            for place in self.places:
                if place.worker.exit_code is None and place.worker.pid not in told:
                    told.add(place.worker.pid)
                    with suppress(BrokenPipeError):  # dead: `listen` will tell
                        place.worker.conn.send("stop")
                if place.worker.exit_code != 0:
                    place.listen()
            if time.monotonic() > deadline:
                waiting = [place.name for place in self.places if place.worker.exit_code is None]
                self.anomalies.append(f"BLOCKED: {waiting} did not stop")
            time.sleep(0.005)
        self.launcher.close()

    def _compare(self) -> None:
        """Logs against the pool; checksums; memory."""
        try:
            with Pool.open(self.path, maintenance=False) as pool:
                ledgers = [Ledger(log) for log in self.logs]
                for ledger in ledgers:
                    ledger.load()
                    check_own(pool.collection("own"), ledger)
                    self.checked += len(ledger.own)
                self._compare_all_own(pool, ledgers)
                self._compare_shared(pool, ledgers)
                checks.check_verifies(pool)
                self._settle(pool)
                checks.check_space(pool, self.fixed)
                checks.check_verifies(pool)
                for ledger in ledgers:
                    check_own(pool.collection("own"), ledger)
                for name in pool.collections():
                    pool.drop(name)
                self._settle(pool)
                checks.check_space(pool, self.fixed)
        except (Anomaly, AssertionError) as error:
            self.anomalies.append(f"in the end: {error}")

    def _settle(self, pool: Pool) -> None:
        """Maintain every node until nothing is left to do: what one round retires the next frees, once no pin sees it."""
        for _ in range(_ROUNDS_MAX):
            pool.move_pins_on()
            reports = []
            for node in range(self.nodes):
                with Pool.open(self.path, node=node, maintenance=False) as one:
                    reports.append(one.maintain())
            busy = any(one.segments_merged or one.segments_waiting or one.blocks_built for one in reports)
            if not busy and all(one.elected for one in reports):
                return
            time.sleep(0.01)

    def _compare_all_own(self, pool: Pool, ledgers: list[Ledger]) -> None:
        expected = {one: value for ledger in ledgers for one, value in ledger.own.items() if value is not None}
        found = {record.id: check_record(record) for record in pool.collection("own").find()}
        if len(pool.collection("own")) != len(found):
            raise Anomaly(f"len tells {len(pool.collection('own'))} of {len(found)} records")
        if found != expected:
            wrong = [one for one in {*found, *expected} if found.get(one) != expected.get(one)]
            raise Anomaly(f"LOST or back: {[(one, found.get(one), expected.get(one)) for one in wrong[:5]]}")

    def _compare_shared(self, pool: Pool, ledgers: list[Ledger]) -> None:
        """Of an id that many write, what is there was written by a write that no finished write came wholly after."""
        for number in range(1000):
            one = f"s-{number}"
            writes = [write for ledger in ledgers for write in ledger.shared.get(one, [])]
            record = pool.collection("shared").get([one])[0]
            found = None if record is None else check_record(record)
            last_begun = max((write["began"] for write in writes if write["certain"]), default=0)
            last = {write["value"] for write in writes if write["ended"] >= last_begun}
            if (writes or found is not None) and found not in last:
                raise Anomaly(f"LOST: {one} is {found}, the last writes were {writes}")
            self.checked += bool(writes)

    def table(self) -> Table:
        """Where it stands."""
        seconds = time.monotonic() - self.started
        table = Table(title=f"soak, {seconds:,.0f} s", show_header=False)
        table.add_row("kills", f"{self.kills:,} of {self.wanted:,}")
        table.add_row("stops", f"{self.stops:,}")
        table.add_row("operations", f"{self.operations:,}")
        table.add_row("ids compared in the end", f"{self.checked:,}")
        table.add_row("lost", f"{sum(' LOST' in f' {one}' for one in self.anomalies):,}")
        table.add_row("anomalies", f"{len(self.anomalies):,}")
        return table


def soak(kills: int, seed: int, nodes: int, console: Console) -> Soak:
    """One whole soak in a folder of its own on shared memory, which is removed again."""
    folder = Path(tempfile.mkdtemp(prefix="sharedrag-soak-", dir="/dev/shm"))
    try:
        done = Soak(folder, kills, seed, nodes, console)
        try:
            done.run()
        finally:
            done.launcher.kill()
        return done
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=10_000, help="how many processes to kill (default 10,000)")
    parser.add_argument("--seed", type=int, default=None, help="of the random choices (default: the time)")
    parser.add_argument("--nodes", type=int, default=1, help="lock domains that the processes are spread over")
    parser.add_argument("--quick", action="store_true", help="200 kills")
    parser.add_argument("--overwrite", action="store_true", help="the reclaim workload instead")
    parser.add_argument("--records", type=int, default=1_000_000, help="writes of the reclaim workload")
    chosen = parser.parse_args()
    console = Console()
    if chosen.overwrite:
        return overwrite(chosen.records, console)
    seed = chosen.seed if chosen.seed is not None else time.time_ns() % 1_000_000
    console.print(f"seed {seed}")
    done = soak(200 if chosen.quick else chosen.kills, seed, chosen.nodes, console)
    console.print(done.table())
    for anomaly in done.anomalies[:20]:
        console.print(anomaly, style="red", markup=False, highlight=False)
    return 1 if done.anomalies else 0


if __name__ == "__main__":
    sys.exit(main())
