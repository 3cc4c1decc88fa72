"""A writer is killed in the midst of its puts: how soon the next writer's first record is in."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from itertools import cycle

from sharedrag import Pool
from tests.bench import data
from tests.bench.children import Child, Pipe
from tests.bench.figures import Figure, Limit, percentile
from tests.bench.workshop import COLLECTION, Workshop

_BUSY_S = 0.3  # how long the writer writes before it is killed


def write_until_killed(pipe: Pipe, path: str) -> None:
    """Put single records for ever."""
    calls = data.records(2000, seed=7, prefix="victim").calls(1)
    with Pool.open(path, create=True, capacity="512 MiB") as pool:
        put = pool.collection(COLLECTION, dimension=data.DIMENSION).put
        pipe.send("writing")
        for call in cycle(calls):
            put(*call)


def put_one(pipe: Pipe, path: str, attached: bool) -> None:
    """One put when told to, from a handle that is open already or not; sends (ms it took, when it had returned in ns)."""
    [call] = data.records(1, seed=8, prefix="heir").calls(1)
    pool = None
    if attached:
        pool = Pool.open(path)
        collection = pool.collection(COLLECTION)
        collection.search(call[1][0], k=10)
    pipe.send("ready")
    pipe.recv()
    start = time.monotonic_ns()
    if pool is None:
        pool = Pool.open(path)
    pool.collection(COLLECTION).put(*call)
    end = time.monotonic_ns()
    pipe.send(((end - start) / 1e6, end))
    pool.close()


def _one_round(path: str, attached: bool, kill: Callable[[Child], None]) -> tuple[float, float]:
    """(ms of the next writer's first put, ms since the kill)."""
    with Child(write_until_killed, path) as victim:
        victim.receive()
        with Child(put_one, path, attached) as heir:
            heir.receive()
            time.sleep(_BUSY_S)
            since = time.monotonic_ns()
            kill(victim)
            heir.send("go")
            taken, end = heir.receive()
        if victim.process.is_alive():
            victim.kill()
    return taken, (end - since) / 1e6


def _sigkill(victim: Child) -> None:
    assert victim.process.pid is not None
    os.kill(victim.process.pid, signal.SIGKILL)  # and not waited for: the next writer comes at once


def _spare(victim: Child) -> None:
    assert victim.process.is_alive()


def succession(workshop: Workshop) -> list[Figure]:
    """The next writer is a process that must open the pool first, or one that has it open."""
    figures = []
    for attached, name, what in (
        (False, "heir, new", "after kill -9 of a writer: a new process opens and puts"),
        (True, "heir, attached", "the same, a process that has the pool open puts"),
    ):
        rounds: list[float] = []
        since_kill: list[float] = []
        undisturbed: list[float] = []
        for number in range(workshop.size.rounds):
            workshop.tell(f"{what}, round {number + 1}")
            for kill, found in ((_sigkill, rounds), (_spare, undisturbed)):
                path = workshop.fresh("succession")
                taken, since = _one_round(path, attached, kill)
                workshop.remove(path)
                found.append(taken)
                if kill is _sigkill:
                    since_kill.append(round(since, 2))
        limit = Limit("the same when nobody was killed", percentile(undisturbed, 0.5))
        figures.append(
            Figure(name, what, "ms", rounds, False, 5, limit, {"from the kill to the put's return, ms": since_kill})
        )
    return figures
