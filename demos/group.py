"""The group: four node processes from their start to their end, one of them killed midway and started again."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import TypeVar

from demos import history
from demos import node as node_process
from demos.events import (
    Answers,
    Ballast,
    BallastWritten,
    Begin,
    Command,
    Done,
    Event,
    Failed,
    Memory,
    Probe,
    ProbesFound,
    ProbesWritten,
    Ready,
    SearchBallast,
    Task,
    monotonic_ns,
)
from demos.memory import pool_bytes, private_copies, usage
from demos.outcome import KILLED, RESTARTING, Kill, Ledger, MemoryBill, Outcome, Tally
from demos.questions import Question, scores
from sharedrag import Pool
from sharedrag.chats import Exchange

NODES = 4
VICTIM = 2
KILL_WHEN_WRITTEN = 0.45
BALLAST = "ballast"
BALLAST_ROW_BYTES = 3_000
LOOK_EVERY_S = 0.1
SILENCE_MAX_S = 90.0
BEGIN_IN_S = 0.3
TIDY_EVERY_S, TIDY_ROUNDS_MAX = 0.3, 10

Expected = TypeVar("Expected", bound=Event)


class DemoFailed(RuntimeError):
    """A node's process died, or hangs, without the demo having meant it to."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be played, and how long. `down_s`: how long the killed node stays away; `probes`, `ballast`: how many."""

    exchanges: Sequence[Exchange]
    questions: Sequence[Question]
    people: Sequence[str]
    embedder: str
    replay_s: float
    down_s: float
    probes: int
    ballast: int


class Group:
    """The node processes and their pipes; `outcome` is what is known so far."""

    def __init__(self, plan: Plan, pool: Pool, title: str) -> None:
        self.plan, self.pool = plan, pool
        self._tasks = tasks(plan, pool.path)
        tallies = [Tally(task.node, len(task.share)) for task in self._tasks]
        self.outcome = Outcome(tallies, title, pool.path)
        self.ledger = Ledger(self.outcome)
        self._show: Callable[[], None] = lambda: None
        self._context = multiprocessing.get_context("spawn")
        self._processes: dict[int, SpawnProcess] = {}
        self._channels: dict[int, Connection] = {}
        homes = history.homes(plan.exchanges, plan.people, NODES)
        self.ledger.askers = [[name for name, home in homes.items() if home == node] for node in range(NODES)]

    # ------------------------------------------------------------------ the play

    def play(self, show: Callable[[], None]) -> None:
        """Everything, in order; `show` is called often, whenever the outcome may have changed.

        Raises `DemoFailed`; whatever happens, call `end` afterwards.
        """
        self._show = show
        for node in range(NODES):
            self._start(node)
        self._gather(Ready, range(NODES))
        self.outcome.began_ns = monotonic_ns() + int(BEGIN_IN_S * 1e9)
        self._phase("the chat is played again: all write, all ask")
        self._order(Begin(self.outcome.began_ns), range(NODES))
        self._replay()
        self._phase("checking that everything acknowledged is there")
        self._order_done("quiet")
        self._check_all()
        self._phase("asking the labelled questions")
        self._evaluate()
        self._phase("measuring how soon a write is found elsewhere")
        self._probe()
        self.outcome.usage = [usage(self.pool.path, self._pid(node)) for node in range(NODES)]
        self._phase(f"memory: {self.plan.ballast:,} made-up rows, for a size where it counts")
        self._weigh()
        self._phase("verifying the pool")
        self.outcome.problems = [f"{one.what} at {one.offset}" for one in self.pool.verify().problems]
        self._phase("done")

    def end(self) -> None:
        """Let all processes go: asked first, killed if they do not listen."""
        for channel in self._channels.values():
            with suppress(OSError, ValueError):
                channel.send("quit")
        patience_ends = time.monotonic() + 3.0
        for process in self._processes.values():
            process.join(max(0.0, patience_ends - time.monotonic()))
            if process.is_alive():
                process.kill()
                process.join()
        for channel in self._channels.values():
            channel.close()
        self._processes, self._channels = {}, {}

    def _phase(self, phase: str) -> None:
        self.outcome.phase = phase
        self._show()

    def _start(self, node: int) -> None:
        ours, theirs = self._context.Pipe()
        self._processes[node] = self._launched(node_process.run, (theirs, self._tasks[node]), f"node {node}")
        theirs.close()
        self._channels[node] = ours

    def _launched(self, work: Callable[..., None], args: tuple[object, ...], name: str) -> SpawnProcess:
        process = self._context.Process(target=work, args=args, name=name, daemon=True)
        # Ctrl-C reaches every process of the terminal. Ours decides what then becomes of the others, which inherit that
        # they ignore it, from their first instruction on.
        before = signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            process.start()
        finally:
            signal.signal(signal.SIGINT, before)
        return process

    def _pid(self, node: int) -> int:
        return self._processes[node].pid or 0

    # ------------------------------------------------------------------ talking to the nodes

    def _order(self, command: Command, nodes: Sequence[int]) -> None:
        for node in nodes:
            self._channels[node].send(command)

    def _order_done(self, command: Command) -> None:
        self._order(command, range(NODES))
        self._gather(Done, range(NODES))

    def _gather(self, kind: type[Expected], nodes: Sequence[int]) -> dict[int, Expected]:
        """One event of a kind from each node; others are entered meanwhile."""
        found: dict[int, Expected] = {}
        heard = time.monotonic()
        while len(found) < len(nodes):
            for node, event in self._events():
                heard = time.monotonic()
                if isinstance(event, kind):
                    found[node] = event
                if isinstance(event, Failed) and node in nodes and node not in found:
                    raise DemoFailed(f"node {node} could not {event.doing}: {event.error}")
            if time.monotonic() - heard > SILENCE_MAX_S:
                raise DemoFailed(f"no word from nodes {sorted(set(nodes) - set(found))} for {SILENCE_MAX_S:.0f} s")
            self._show()
        return found

    def _events(self) -> list[tuple[int, Event]]:
        """What has come within a moment, entered in the ledger already."""
        nodes = {channel: node for node, channel in self._channels.items()}
        found = []
        for channel in wait(list(nodes), LOOK_EVERY_S):
            node = nodes[channel]  # type: ignore[index]
            for event in self._drained(node):
                self.ledger.enter(node, event)
                found.append((node, event))
        return found

    def _drained(self, node: int) -> list[Event]:
        channel, events = self._channels[node], []
        try:
            while channel.poll():
                events.append(channel.recv())
        except (EOFError, OSError):
            if not events:
                said = "; ".join(self.outcome.tallies[node].errors)
                raise DemoFailed(f"the process of node {node} is gone. {said}") from None
        return events

    # ------------------------------------------------------------------ the replay, with the kill

    def _replay(self) -> None:
        heard = time.monotonic()
        while any(tally.finished_at is None for tally in self.outcome.tallies):
            if self._events():
                heard = time.monotonic()
            elif time.monotonic() - heard > SILENCE_MAX_S:
                raise DemoFailed(f"nothing was written for {SILENCE_MAX_S:.0f} s")
            kill = self.outcome.kill
            if kill is None and self.outcome.acknowledged >= KILL_WHEN_WRITTEN * self.outcome.total:
                self._kill()
            elif kill and kill.restarted_at is None and self._now() > kill.at + self.plan.down_s:
                self._restart(kill)
            self._show()

    def _now(self) -> float:
        return self.outcome.since_begin(monotonic_ns())

    def _kill(self) -> None:
        process, channel, tally = self._processes[VICTIM], self._channels[VICTIM], self.outcome.tallies[VICTIM]
        pid = process.pid or 0
        process.kill()
        at = self._now()
        process.join()
        # Acknowledgements that it sent before it died count: whoever got one relies on it.
        with suppress(DemoFailed):
            while True:
                for event in self._drained(VICTIM):
                    self.ledger.enter(VICTIM, event)
        channel.close()
        del self._channels[VICTIM]
        tally.state = KILLED
        tally.finished_at = None
        share = [exchange.id for exchange in self._tasks[VICTIM].share]
        there = self.pool.collection(history.COLLECTION).get(share)
        visible = {one for one, record in zip(share, there, strict=True) if record is not None}
        acknowledged = set(tally.acknowledged)
        self.outcome.kill = Kill(
            node=VICTIM,
            at=at,
            pid=pid,
            acknowledged=len(acknowledged),
            written_unacknowledged=len(visible - acknowledged),
            missing=len(acknowledged - visible),
        )

    def _restart(self, kill: Kill) -> None:
        self.outcome.tallies[VICTIM].state = RESTARTING
        kill.restarted_at = self._now()
        self._start(VICTIM)
        self._gather(Ready, [VICTIM])
        kill.back_at = self._now()
        tally = self.outcome.tallies[VICTIM]
        puts_before = len(tally.put_ms)
        self._order(Begin(self.outcome.began_ns), [VICTIM])
        while len(tally.put_ms) == puts_before and tally.finished_at is None:
            self._events()
            self._show()
        kill.first_put_ms = tally.put_ms[puts_before] if len(tally.put_ms) > puts_before else None

    # ------------------------------------------------------------------ afterwards

    def _check_all(self) -> None:
        """Every acknowledged record must be there with the text that was written."""
        wanted = {exchange.id: exchange.answer for exchange in self.plan.exchanges}
        acknowledged = [one for tally in self.outcome.tallies for one in tally.acknowledged]
        records = self.pool.collection(history.COLLECTION)
        found = dict(zip(acknowledged, records.get(acknowledged), strict=True))
        self.outcome.lost = [one for one, record in found.items() if record is None]
        self.outcome.changed = [one for one, record in found.items() if record and record.text != wanted[one]]
        self.outcome.rows_in_pool = len(records)

    def _evaluate(self) -> None:
        self._order("evaluate", range(NODES))
        found: dict[str, tuple[str, ...]] = {}
        for answers in self._gather(Answers, range(NODES)).values():
            found |= answers.found
        self.outcome.scores = scores(self.plan.questions, found) if self.plan.questions else []

    def _probe(self) -> None:
        """Node 0 writes, node 1 searches; the others are quiet."""
        writer, finder = 0, 1
        self._order(Probe("find", history.COLLECTION, self.plan.probes), [finder])
        self._order(Probe("write", history.COLLECTION, self.plan.probes), [writer])
        written: ProbesWritten | None = None
        found: ProbesFound | None = None
        while written is None or found is None:
            for _, event in self._events():
                written = event if isinstance(event, ProbesWritten) else written
                found = event if isinstance(event, ProbesFound) else found
                if isinstance(event, Failed):
                    raise DemoFailed(f"the probes failed: {event.doing}: {event.error}")
            self._show()
        pairs = list(zip(written.returned_ns, found.found_ns, strict=True))
        self.outcome.probes_ms = [max(0.0, (seen - returned) / 1e6) for returned, seen in pairs if seen]
        self.outcome.probes_missed = sum(not seen for _, seen in pairs)
        self.outcome.rows_in_pool = len(self.pool.collection(history.COLLECTION))

    def _weigh(self) -> None:
        free = os.statvfs(os.path.dirname(self.pool.path))
        rows = min(self.plan.ballast, free.f_bavail * free.f_frsize // 3 // BALLAST_ROW_BYTES) // NODES * NODES
        before = pool_bytes(self.pool.path)
        self._order(Ballast(BALLAST, rows // NODES), range(NODES))
        written = self._gather(BallastWritten, range(NODES))
        self.outcome.ballast_rate = rows / max(one.seconds for one in written.values())
        self._order(SearchBallast(BALLAST), range(NODES))
        memory = self._gather(Memory, range(NODES))
        grown = [max(0, memory[node].after.private - written[node].before.private) for node in range(NODES)]
        taken = pool_bytes(self.pool.path) - before
        of_chat, of_ballast = self._costs_of_copies()
        self.outcome.chat_bill = MemoryBill(self.outcome.rows_in_pool, before, [], of_chat)
        self.outcome.bill = MemoryBill(rows, taken, grown, of_ballast)
        self.pool.drop(BALLAST)
        self._tidy(before + taken // 2)

    def _tidy(self, enough: int) -> None:
        """Have the dropped rows' memory given back, which waits until no process looks at them any more."""
        for _ in range(TIDY_ROUNDS_MAX):
            time.sleep(TIDY_EVERY_S)
            self._order_done("tidy")
            self.outcome.pool_after = pool_bytes(self.pool.path)
            if self.outcome.pool_after < enough:
                return

    def _costs_of_copies(self) -> tuple[int, int]:
        """Bytes that a process with private copies of the chat and of the made-up rows needs for each."""
        ours, theirs = self._context.Pipe(duplex=False)
        args = (theirs, self.pool.path, (history.COLLECTION, BALLAST))
        process = self._launched(private_copies, args, "private copies")
        theirs.close()
        try:
            return int(ours.recv()), int(ours.recv())
        except EOFError:
            raise DemoFailed("the process with the private copies is gone") from None
        finally:
            process.kill()
            process.join()
            ours.close()


def tasks(plan: Plan, pool_path: str) -> list[Task]:
    """Each node's part: exchanges that its people answered, and every fourth question, asked elsewhere than answered."""
    homes = history.homes(plan.exchanges, plan.people, NODES)
    shares = history.shares(plan.exchanges, homes, NODES)
    written_by = {plan.exchanges[place].id: node for node, share in enumerate(shares) for place in share}
    asked: list[list[Question]] = [[] for _ in range(NODES)]
    for number, question in enumerate(plan.questions):
        answered_on = written_by.get(question.relevant[0]) if question.relevant else None
        elsewhere = [node for node in range(NODES) if node != answered_on]
        asked[elsewhere[number % len(elsewhere)]].append(question)
    count = max(1, len(plan.exchanges))
    return [
        Task(
            pool_path=pool_path,
            node=node,
            embedder=plan.embedder,
            share=tuple(plan.exchanges[place] for place in shares[node]),
            due=tuple(place / count for place in shares[node]),
            questions=tuple(asked[node]),
            replay_s=plan.replay_s,
        )
        for node in range(NODES)
    ]
