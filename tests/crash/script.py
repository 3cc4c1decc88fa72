"""What a worker does until it is killed, and what must be in the pool then: the same steps, for a pool and for a dict.

Its handle and the onlooker's have no background thread, whose pins would let something wait for the next round now and then:
every run passes each fault point as often.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

import numpy as np

from sharedrag import CollectionNotFound, Pool, faults
from tests.crash.helpers import alone

DIMENSIONS: dict[str, int | None] = {"history": 4, "settings": None, "indexed": 4}
FILLER = "The ferry between Maui and Molokai stopped in 2016. " * 30


class Stored(NamedTuple):
    """What a record must hold."""

    text: str
    metadata: dict[str, Any]
    vector: tuple[float, ...] | None


Records = dict[str, Stored]
State = dict[str, Records]  # by collection; a collection that does not exist is not in it


class Step(NamedTuple):
    """One operation; `ids` are written with `value`, `gone` are deleted in the same call."""

    kind: str  # attach, collection, put, delete, maintain, drop, close
    collection: str = ""
    ids: tuple[str, ...] = ()
    value: int = 0
    size: int = 0  # characters of filler in each text
    gone: tuple[str, ...] = ()


def stored(collection: str, one: str, value: int, size: int) -> Stored:
    """The record that a put of `value` under an id writes."""
    vector = None
    if DIMENSIONS[collection] is not None:
        seed = sum(one.encode()) * 7 + value
        vector = tuple(float(part) for part in (1 + seed % 5, seed % 7, value % 11, 1))
    return Stored(f"{one}={value} {FILLER[:size]}", {"id": one, "value": value}, vector)


def names(prefix: str, count: int, start: int = 0) -> tuple[str, ...]:
    """Ids."""
    return tuple(f"{prefix}{number}" for number in range(start, start + count))


def apply(state: State, step: Step) -> State:
    """The state after a step."""
    after = {name: dict(records) for name, records in state.items()}
    if step.kind == "collection":
        after.setdefault(step.collection, {})
    elif step.kind == "drop":
        after.pop(step.collection, None)
    elif step.kind in ("put", "delete"):
        records = after[step.collection]
        for one in step.gone:
            records.pop(one, None)
        for one in step.ids:
            records[one] = stored(step.collection, one, step.value, step.size)
    return after


def after_steps(steps: Iterable[Step], start: State | None = None) -> State:
    """The state after all of these steps."""
    state: State = start or {}
    for step in steps:
        state = apply(state, step)
    return state


def perform(step: Step, path: str, pool: Pool | None, node: int = 0) -> Pool | None:
    """Do a step for real; returns the handle to go on with."""
    if step.kind == "attach":
        return alone(Pool.open(path, maintenance=False, node=node, name="worker"))
    assert pool is not None
    if step.kind == "collection":
        pool.collection(step.collection, DIMENSIONS[step.collection])
    elif step.kind == "drop":
        pool.drop(step.collection)
    elif step.kind == "maintain":
        pool.maintain()
    elif step.kind == "delete":
        pool.collection(step.collection).delete(step.gone)
    elif step.kind == "put":
        records = [stored(step.collection, one, step.value, step.size) for one in step.ids]
        vectors = None
        if DIMENSIONS[step.collection] is not None:
            vectors = np.asarray([record.vector for record in records], np.float32)
        pool.collection(step.collection).put(
            step.ids,
            vectors,
            [record.text for record in records],
            [record.metadata for record in records],
            delete=step.gone,
        )
    else:
        assert step.kind == "close"
        pool.close()
        return None
    return pool


def work(conn: Connection, path: str, node: int, steps: list[Step]) -> None:
    """Say before and after each step which it is; after an interrupt, say so, and do the step again.

    Before maintenance it waits for a word from the test, whose own views must not be what keeps memory.
    """
    pool = None
    for number, step in enumerate(steps):
        conn.send(("begin", number))
        if step.kind == "maintain":
            conn.recv()
        try:
            pool = perform(step, path, pool, node)
        except KeyboardInterrupt:
            conn.send(("interrupted", number))
            conn.recv()
            try:
                pool = perform(step, path, pool, node)
            except CollectionNotFound:
                assert step.kind == "drop"  # the interrupt came after the drop
        conn.send(("done", number))


def count(conn: Connection, path: str, node: int, steps: list[Step]) -> None:
    """Do all steps; send how often each fault point was passed."""
    passed: Counter[str] = Counter()

    def counting(point: str) -> None:
        passed[point] += 1

    faults.hit = counting
    work(conn, path, node, steps)
    conn.send(("passed", dict(passed)))


def leave_half_linked(conn: Connection, path: str, node: int) -> None:
    """Die with a batch whose rows are linked and not published; what comes before it is in `STEPS_BEFORE`."""
    pool = None
    for step in STEPS_BEFORE:
        pool = perform(step, path, pool, node)
    faults.hit = faults._arm("put.linked:kill")
    perform(Step("put", "history", names("never", 40), 1, 20), path, pool)
    os._exit(1)


STEPS_BEFORE = [
    Step("attach"),
    Step("collection", "history"),
    Step("put", "history", names("m", 30), value=1, size=20),
]

# Every kind of change, with enough of it that segments roll, decay, merge and are reclaimed.
STEPS = [
    Step("attach"),
    Step("put", "history", ("m1",), value=2),
    Step("put", "history", names("m", 8, 20), value=3),
    Step("put", "history", names("n", 40), value=4, size=1000),
    Step("put", "history", names("n", 30, 20), value=5, size=1000, gone=names("m", 3, 2)),
    Step("delete", "history", gone=("m1", "n0", "nowhere")),
    Step("collection", "settings"),
    Step("put", "settings", ("colour",), value=1),
    *(Step("put", "history", names("n", 50), value=number, size=1400) for number in range(6, 12)),
    Step("maintain"),
    Step("put", "settings", names("s", 40), value=2, size=1400),
    Step("put", "history", ("n3", "n4"), value=12, gone=("n5", "n6")),
    Step("delete", "history", gone=names("n", 20, 10)),
    Step("maintain"),
    Step("drop", "settings"),
    Step("put", "history", ("last",), value=13),
    Step("maintain"),
    Step("collection", "indexed"),
    Step("put", "indexed", names("i", 2600), value=1),
    Step("maintain"),
    Step("put", "indexed", names("i", 1300), value=2),
    Step("maintain"),
    Step("close"),
]
