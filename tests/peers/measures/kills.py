"""A writer is killed with SIGKILL again and again; what it had acknowledged must be there, and the next one must go on.

Each writer opens the store, writes single records as fast as it can, and notes each acknowledged number in a file of its
own with one `write` call, which outlives it. The next writer has done its imports before, but opens the store afterwards.
"""

from __future__ import annotations

import os
import random
import time
from array import array
from pathlib import Path
from typing import Any

from tests.bench.children import Child, ChildFailed, Pipe
from tests.bench.figures import percentile
from tests.peers.corpus import FRESH_FIRST, cut
from tests.peers.job import Job, milliseconds_since, rounded, tell
from tests.peers.measures.writers import how_it_died, present
from tests.peers.protocol import PRIVATE, Cannot, Rows, identifier

_FIRST = 10_000_000  # of the numbers of fresh rows
_EACH = 1_000_000  # numbers that a writer may use
_DISTINCT = 1_000
_LIVES_S = (0.02, 0.25)  # after its first record
_PATIENCE_S = 60.0
_FAILURES_MAX = 3  # when none has ever written


def run(job: Job) -> dict[str, Any]:
    """How many records were acknowledged and how many of them are lost; times to a new writer's first record in ms."""
    if job.kind.processes == PRIVATE:
        raise Cannot("what was not saved dies with its process")
    choice = random.Random(7)
    notes = Path(job.place.folder).parent / f"{job.peer}-acknowledged"
    notes.unlink(missing_ok=True)
    opened: list[float] = []
    failures: list[str] = []
    coming = Child(_write, job, notes, 0)
    try:
        for number in range(job.effort.kills):
            tell(f"kill {number + 1} of {job.effort.kills}")
            writer = coming
            writer.receive()
            coming = Child(_write, job, notes, number + 1)
            writer.send("go")
            try:
                opened.append(writer.receive(_PATIENCE_S))
                time.sleep(choice.uniform(*_LIVES_S))
            except ChildFailed as failure:
                failures.append(how_it_died(failure))
            _end(writer)
            if len(failures) >= _FAILURES_MAX and not opened:
                break
    finally:
        _end(coming)
    numbers = array("q", notes.read_bytes() if notes.exists() else b"").tolist()
    notes.unlink(missing_ok=True)
    tell("looking for what was acknowledged")
    there = present(job, numbers)
    found: dict[str, Any] = {"kills": job.effort.kills, "acknowledged": len(numbers), "lost": len(set(numbers)) - len(there)}
    if opened:
        found |= {"first_record_p50_ms": rounded(percentile(opened, 0.5)), "first_record_max_ms": rounded(max(opened))}
    if failures:
        found |= {"failed": len(failures), "failure": failures[0]}
    return found


def _end(writer: Child) -> None:
    """Kill it, unless it has ended by itself."""
    if writer.process.is_alive():
        writer.kill()
    writer.pipe.close()


def _write(pipe: Pipe, job: Job, notes: Path, incarnation: int) -> None:
    first = FRESH_FIRST + _FIRST + incarnation * _EACH
    calls = cut(job.corpus.fresh(0, _DISTINCT), 1)
    _ = job.kind
    pipe.send("imported")
    pipe.recv()
    file = os.open(notes, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    begun = time.perf_counter_ns()
    peer = job.open()
    for number in range(first, first + _EACH):
        call = calls[number % _DISTINCT]
        peer.write(Rows([number], [identifier(number)], call.vectors, call.texts, call.metadata))
        os.write(file, array("q", [number]).tobytes())
        if number == first:
            pipe.send(milliseconds_since(begun))
    pipe.recv()  # until it is killed
