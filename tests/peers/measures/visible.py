"""From a write in one process to a query in another that finds the row.

The reader asks without a pause for the 10 best of the very vector that will be written. Counted from the call of `write`
(what a user waits for) and from its return; a row that no query found for some seconds is a miss.
"""

from __future__ import annotations

import random
import time
from typing import Any

from tests.bench.children import Child, Pipe
from tests.bench.figures import percentile
from tests.peers.corpus import K, cut
from tests.peers.job import Job, rounded, tell
from tests.peers.protocol import MANY, ONE_WRITER, Cannot

_GIVEN_UP_S = 3.0
_MISSES_MAX = 4
_PAUSE_S = (0.002, 0.012)  # so that the reader is met at any point of its query
_FIRST = 0  # of the numbers of fresh rows


def run(job: Job) -> dict[str, Any]:
    """Times in ms; `missed` rows of `samples`."""
    if job.kind.processes not in (MANY, ONE_WRITER):
        raise Cannot(job.kind.why)
    total: list[float] = []
    after: list[float] = []
    writing: list[float] = []
    missed, reopened = 0, None
    until = time.monotonic() + job.effort.samples_s
    with Child(_write, job) as writer, Child(_read, job) as reader:
        for child in (reader, writer):
            child.receive()
        for sample in range(job.effort.samples):
            if time.monotonic() > until or (missed >= _MISSES_MAX and missed > len(total)):
                break
            tell(f"write -> found, {sample + 1} of {job.effort.samples}")
            reader.send(sample)
            writer.send(sample)
            called, returned = writer.receive()
            found = reader.receive()
            writing.append((returned - called) / 1e6)
            if found is None:
                missed += 1
                if reopened is None:
                    reader.send("reopen")
                    reopened = reader.receive()
            else:
                total.append((found - called) / 1e6)
                after.append((found - returned) / 1e6)
        for child in (reader, writer):
            child.send(None)
            child.receive()
    if not total:
        what = "a reader that opens it anew finds it" if reopened else "nor does a reader that opens it anew"
        raise Cannot(f"a reader's query never finds it ({missed} of {missed}); {what}")
    result: dict[str, Any] = {"samples": len(total) + missed, "missed": missed}
    for name, values in (("", total), ("after_return_", after), ("write_", writing)):
        result[f"{name}p50_ms"] = rounded(percentile(values, 0.5))
        result[f"{name}p99_ms"] = rounded(percentile(values, 0.99))
    return result


def _write(pipe: Pipe, job: Job) -> None:
    calls = cut(job.corpus.fresh(_FIRST, job.effort.samples + 1), 1)
    choice = random.Random(5)
    peer = job.open()
    peer.write(calls.pop())  # whatever a first write sets up
    pipe.send("ready")
    while (sample := pipe.recv()) is not None:
        time.sleep(choice.uniform(*_PAUSE_S))
        called = time.monotonic_ns()
        peer.write(calls[sample])
        pipe.send((called, time.monotonic_ns()))
    peer.close()
    pipe.send("closed")


def _read(pipe: Pipe, job: Job) -> None:
    rows = job.corpus.fresh(_FIRST, job.effort.samples)
    peer = job.open()
    peer.search(rows.vectors[0], K)
    pipe.send("ready")
    latest = 0
    while (order := pipe.recv()) is not None:
        if order == "reopen":
            peer.close()
            peer = job.open()
            pipe.send(_finds(peer.search(rows.vectors[latest], K), rows.ids[latest]))
            continue
        latest = order
        give_up = time.monotonic() + _GIVEN_UP_S
        found = None
        while found is None and time.monotonic() < give_up:
            if _finds(peer.search(rows.vectors[latest], K), rows.ids[latest]):
                found = time.monotonic_ns()
        pipe.send(found)
    peer.close()
    pipe.send("closed")


def _finds(hits: list[Any], id: str) -> bool:
    return any(hit.id == id for hit in hits)
