"""Writer processes beside a reader that asks without a pause: records a second, what is lost, the reader's latency.

First two writers at 1,000 records/s each, so that readers can be compared under one and the same load; then 1, 2 and 4 as
fast as they can, with single records and with batches of 32. All go on in one store, so the later ones find it larger. A
window ends after some seconds or some thousands of records. What was acknowledged must be there for a new process.
"""

from __future__ import annotations

import re
import signal
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from tests.bench.children import Child, ChildFailed, Pipe, ask
from tests.bench.figures import percentile
from tests.peers.corpus import K, cut
from tests.peers.job import Effort, Job, rounded, tell
from tests.peers.protocol import MANY, ONE_WRITER, identifier

_FIRST = 100_000  # of the numbers of fresh rows
_BATCH = 32
_PACE = 1_000.0  # records a second of each paced writer
_ERRORS_MAX = 20
_LEAD_S = 0.1  # between the order and the start
_IDS_AT_ONCE = 500


@dataclass(frozen=True)
class _Load:
    """What is written in one window."""

    name: str
    writers: int
    batch: int = 1
    pace: float = 0.0  # records a second of each writer; 0: as fast as it can

    def records(self, effort: Effort) -> int:
        """Of each writer, at most."""
        if self.pace:
            return int(self.pace * effort.window_s)
        return effort.singles if self.batch == 1 else effort.batches * self.batch


@dataclass(frozen=True)
class _Order:
    first: int
    records: int
    load: _Load
    seconds: float


@dataclass(frozen=True)
class _Written:
    numbers: list[int]  # acknowledged
    begun_ns: int
    ended_ns: int
    calls_ms: list[float]
    errors: int
    error: str


def run(job: Job) -> dict[str, Any]:
    """Figures by load, "singles x 4" for instance; a store for one process is written by that one, with no reader."""
    kind = job.kind
    loads = [
        _Load(f"{name} x {writers}", writers, batch)
        for name, batch in (("singles", 1), ("batches", _BATCH))
        for writers in (1, 2, 4)
    ]
    if kind.processes == MANY:
        loads.insert(0, _Load("1,000/s x 2", 2, 1, _PACE))
    else:
        loads = [load for load in loads if load.writers == 1]
    shared = kind.processes in (MANY, ONE_WRITER)
    found: dict[str, Any] = {}
    numbers: dict[str, list[int]] = {}
    with ExitStack() as stack:
        writers = [stack.enter_context(Child(_write, job)) for _ in range(max(load.writers for load in loads))]
        reader = stack.enter_context(Child(_read, job)) if shared else None
        for child in [*writers, *([reader] if reader else [])]:
            child.receive()
        first = _FIRST
        for load in loads:
            tell(f"writing {load.name}")
            try:
                found[load.name], numbers[load.name], first = _window(job, load, writers[: load.writers], reader, first)
            except ChildFailed as failure:  # one of them died: that is a result, and the end
                found[load.name] = {"crashed": how_it_died(failure)}
                break
        if shared:
            _count_lost(job, found, numbers)
        else:  # nobody else may look while the writer has it open
            _count_lost_by(writers[0], found, numbers)
        for child in [*writers, *([reader] if reader else [])]:
            with suppress(OSError):
                child.send(None)
            if any("crashed" in one for one in found.values()) and child.process.is_alive():
                child.kill()  # it may be in the middle of things
    if kind.processes != MANY:
        found["alone"] = kind.why
    return found


def _window(
    job: Job, load: _Load, writers: list[Child], reader: Child | None, first: int
) -> tuple[dict[str, Any], list[int], int]:
    records = load.records(job.effort)
    for writer in writers:
        writer.send(_Order(first, records, load, job.effort.window_s))
        first += records
    for writer in writers:
        writer.receive()
    start_ns = time.monotonic_ns() + int(_LEAD_S * 1e9)
    for child in [*writers, *([reader] if reader else [])]:
        child.send(start_ns)
    written: list[_Written] = [writer.receive() for writer in writers]
    ended_ns = max(one.ended_ns for one in written)
    count = sum(len(one.numbers) for one in written)
    seconds = (ended_ns - start_ns) / 1e9
    calls = [taken for one in written for taken in one.calls_ms]
    found: dict[str, Any] = {"records": count, "records_per_s": rounded(count / seconds), "seconds": rounded(seconds)}
    if calls:
        found |= {"write_p50_ms": rounded(percentile(calls, 0.5)), "write_p99_ms": rounded(percentile(calls, 0.99))}
    errors = sum(one.errors for one in written)
    if errors:
        found |= {"refused": errors, "refusal": next(one.error for one in written if one.error)}
    if reader is not None:
        reader.send("enough")
        times = [taken for begun_ns, taken in reader.receive() if begun_ns < ended_ns]
        if times:
            found |= {"reader_p50_ms": rounded(percentile(times, 0.5)), "reader_p99_ms": rounded(percentile(times, 0.99))}
    return found, [number for one in written for number in one.numbers], first


def _write(pipe: Pipe, job: Job) -> None:
    peer = job.open()
    pipe.send("ready")
    while (order := pipe.recv()) is not None:
        if isinstance(order, list):
            pipe.send(_there(peer.have, order))
            continue
        calls = cut(job.corpus.fresh(order.first, order.records), order.load.batch)
        pipe.send("ready")
        start_ns = pipe.recv()
        _sleep_until(start_ns)
        numbers: list[int] = []
        taken: list[float] = []
        errors, error = 0, ""
        until_ns = start_ns + int(order.seconds * 1e9)
        for index, call in enumerate(calls):
            if order.load.pace:
                _sleep_until(start_ns + int(index * 1e9 / order.load.pace))
            begun = time.monotonic_ns()
            if begun > until_ns or errors > _ERRORS_MAX:
                break
            try:
                peer.write(call)
            except Exception as refusal:  # noqa: BLE001 - whatever a peer's library raises
                errors, error = errors + 1, error or f"{type(refusal).__name__}: {refusal}"[:200]
                continue
            taken.append((time.monotonic_ns() - begun) / 1e6)
            numbers += call.numbers
        pipe.send(_Written(numbers, start_ns, time.monotonic_ns(), taken, errors, error))
    peer.close()


def _read(pipe: Pipe, job: Job) -> None:
    queries = job.corpus.queries
    peer = job.open()
    peer.search(queries[0], K)
    pipe.send("ready")
    while (start_ns := pipe.recv()) is not None:
        _sleep_until(start_ns)
        times: list[tuple[int, float]] = []
        while not pipe.poll():
            begun = time.monotonic_ns()
            peer.search(queries[len(times) % len(queries)], K)
            times.append((begun, (time.monotonic_ns() - begun) / 1e6))
        pipe.recv()
        pipe.send(times)
    peer.close()


def _sleep_until(moment_ns: int) -> None:
    while (left := moment_ns - time.monotonic_ns()) > 0:
        time.sleep(left / 1e9)


def _there(have: Callable[[list[str]], set[str]], numbers: list[int]) -> set[str]:
    ids = [identifier(number) for number in numbers]
    found: set[str] = set()
    for at in range(0, len(ids), _IDS_AT_ONCE):
        found |= have(ids[at : at + _IDS_AT_ONCE])
    return found


def _look(pipe: Pipe, job: Job, numbers: list[int]) -> None:
    peer = job.open()
    pipe.send(_there(peer.have, numbers))
    peer.close()


def present(job: Job, numbers: list[int]) -> set[str]:
    """The ids of these records that a new process finds."""
    found: set[str] = ask(_look, job, numbers)
    return found


def how_it_died(failure: ChildFailed) -> str:
    """In the words of the table."""
    last = str(failure).strip().splitlines()[-1]
    killed = re.search(r"ended with code -(\d+)$", last)
    return f"died of {signal.Signals(int(killed[1])).name}" if killed else f"failed: {last}"[:200]


def _count_lost(job: Job, found: dict[str, Any], numbers: dict[str, list[int]]) -> None:
    tell("looking for what was acknowledged")
    try:
        there = present(job, [number for some in numbers.values() for number in some])
    except ChildFailed as failure:
        last = next(reversed(found))
        found[last]["crashed"] = f"then a new reader {how_it_died(failure)}"
    else:
        _note_lost(found, numbers, there)


def _count_lost_by(writer: Child, found: dict[str, Any], numbers: dict[str, list[int]]) -> None:
    writer.send([number for some in numbers.values() for number in some])
    _note_lost(found, numbers, writer.receive())


def _note_lost(found: dict[str, Any], numbers: dict[str, list[int]], there: set[str]) -> None:
    for name, some in numbers.items():
        found[name]["lost"] = sum(identifier(number) not in there for number in some)
