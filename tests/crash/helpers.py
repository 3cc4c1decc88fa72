"""What several test modules do with pools and processes."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from sharedrag import Collection, Pool
from sharedrag.arena.manifest import Entry, Kind, State
from sharedrag.arena.segment import Segment
from tests.crash.remote import Remote

_WAIT_S = 20.0


def until(holds: Callable[[], bool], what: str) -> None:
    """Wait, with patience for a busy machine, until something holds."""
    deadline = time.monotonic() + _WAIT_S
    while not holds():
        assert time.monotonic() < deadline, f"waited {_WAIT_S} s in vain: {what}"
        time.sleep(0.005)


def notes(prefix: str, count: int) -> tuple[list[str], list[str]]:
    """Ids and texts."""
    ids = [f"{prefix}{number}" for number in range(count)]
    return ids, [f"text of {one}" for one in ids]


def texts_of(collection: Collection) -> dict[str, str | None]:
    """Everything in a collection."""
    return {record.id: record.text for record in collection.find()}


def fill_and_decay(pool: Pool, name: str = "notes", rounds: int = 8) -> None:
    """Several sealed segments, most of whose rows are dead."""
    collection = pool.collection(name)
    for number in range(rounds):
        ids, texts = notes("n", 60)
        collection.put(ids, texts=[f"{text} {number} " + "x" * 1500 for text in texts])


def reclaimed(*pools: Pool) -> bool:
    """Maintain with each of these; True when nothing waits for somebody's view any more.

    What is wanted in the end, `until` it is so: the background thread of any handle may be moving its pins on just now, and
    has what it comes from for a moment more.
    """
    for pool in pools:
        for one in pools:
            one.move_pins_on()
        pool.maintain()
    entries = [entry for one in pool.arena.refresh().manifests for entry in one.entries]
    return not any(entry.state in (State.RETIRED, State.PUNCHING, State.BUILDING) for entry in entries)


def alone(pool: Pool) -> Pool:
    """The handle without its background thread, which moves pins on, and holds the one it comes from for a moment."""
    pool._keeper.stop()
    return pool


@contextmanager
def stopped(remote: Remote) -> Iterator[None]:
    """The process is stopped inside."""
    remote.worker.signal(signal.SIGSTOP)
    remote.worker.wait_stopped()
    try:
        yield
    finally:
        remote.worker.signal(signal.SIGCONT)


def segments_of(pool: Pool, name: str = "notes") -> list[tuple[Entry, Segment]]:
    """The visible segments of a collection with their entries."""
    return [
        (entry, pool.arena.segment(one.node, entry))
        for one in pool.arena.refresh().manifests
        if (definition := one.collection(name))
        for entry in one.entries
        if entry.collection == definition.number and entry.kind == Kind.SEGMENT and entry.visible
    ]


def keys_of(collection: Collection) -> dict[str, int]:
    """Each live record's order key."""
    table = collection.scan(columns=["id", "key"])
    return dict(zip(table["id"].to_pylist(), table["key"].to_pylist(), strict=True))


class Interrupting:
    """A region's words; right after a certain one is read for the first (or nth) time, something happens."""

    def __init__(self, words: Any, index: int, happens: Callable[[], object], nth: int = 1) -> None:
        self._words = words
        self._index = index
        self._happens = happens
        self._left = nth

    def __getitem__(self, index: int) -> int:
        value: int = self._words[index]
        if index == self._index:
            self._left -= 1
            if self._left == 0:
                self._happens()
        return value

    def __setitem__(self, index: int, value: int) -> None:
        self._words[index] = value
