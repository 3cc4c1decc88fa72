"""Sessions and pins: what tells the reclaimer which generations somebody still looks at.

An attached handle holds one session slot by its kernel lock, and stores in it, for each node, the least generation that
any live view of this process came from. A `Pin` is that claim as an object: every Arrow buffer and every index handed out
keeps one as its base, so memory cannot be reused under a live view.

A slot's pins only ever rise while it is held, and from a value that was already pinned, so raising needs no fence. The
first pin does: store the pin, read the root again, repeat until it is the same (see `order`).
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Sequence

from sharedrag import faults
from sharedrag.arena import manifest
from sharedrag.arena.manifest import Manifest
from sharedrag.errors import PoolBusy
from sharedrag.memory import layout, order
from sharedrag.memory.layout import Geometry
from sharedrag.memory.locks import LockFile
from sharedrag.memory.region import Region

_COLLECT_ATTEMPTS = 16

Generations = tuple[int, ...]


def write_label(region: Region, offset: int, size: int, label: str) -> None:
    """Store a short text, cut to fit and zero-padded, for `info` to show."""
    data = label.encode("utf-8", "replace")[: size - 1]
    region.bytes[offset : offset + size] = data.ljust(size, b"\0")


def read_label(region: Region, offset: int, size: int) -> str:
    """The short text at `offset`."""
    return bytes(region.bytes[offset : offset + size]).split(b"\0", 1)[0].decode("utf-8", "replace")


class Session:
    """One slot held by one handle of one process."""

    def __init__(self, region: Region, geometry: Geometry, node: int, label: str) -> None:
        """Claim a free slot of the node; raises `PoolBusy` when all are taken."""
        self._region = region
        self._geometry = geometry
        self.node = node
        self.locks = LockFile(region.path, region.identity)
        self._guard = threading.RLock()
        self._pinned: dict[int, Generations] = {}  # by the pin's id
        self._handed_out: set[int] = set()
        self._closing = False
        self._dead = False
        try:
            self.slot = self._claim()
            self.offset = geometry.session_offset(node, self.slot)
            faults.passing("attach.locked")
            self._sign(label)
        except BaseException:
            self.locks.close()
            raise

    def _sign(self, label: str) -> None:
        words = self._region.words
        at = self.offset >> 3
        for index in range(layout.NODES_MAX):
            words[at + (layout.SESSION_PINS >> 3) + index] = 0
        words[at + (layout.SESSION_SINCE >> 3)] = time.time_ns() // 1000
        words[at + (layout.SESSION_PID >> 3)] = os.getpid()
        write_label(self._region, self.offset + layout.SESSION_LABEL, layout.SESSION_LABEL_SIZE, label)

    def _claim(self) -> int:
        for slot in range(layout.SESSIONS_PER_NODE):
            if self.locks.try_lock(self._geometry.session_offset(self.node, slot)):
                return slot
        raise PoolBusy(
            f"all {layout.SESSIONS_PER_NODE} sessions of node {self.node} are taken",
            operation="open",
            path=self._region.path,
            hint="Close handles that are not needed; `sharedrag info` lists the processes",
        )

    def pin_newest(self) -> Pin:
        """Pin the newest generation of every node (the first pin of a session)."""
        words = self._region.words
        roots = [manifest.root_index(self._geometry, node) for node in range(self._geometry.nodes)]
        while True:
            seen = [words[root] for root in roots]
            generations = tuple(word & order.VALUE_MASK for word in seen)
            with self._guard:
                self._store(generations)
            faults.passing("attach.pinned")
            if [words[root] for root in roots] == seen:
                return Pin(self, generations)

    def pin(self, manifests: Sequence[Manifest]) -> Pin:
        """Pin the generations of these manifests. REQUIRES: an older or equal pin of this session is alive."""
        return Pin(self, tuple(one.generation for one in manifests))

    def adopt(self, generations: Generations) -> None:
        """Store pins on behalf of a process that is about to be forked with views at these generations."""
        with self._guard:
            self._store(generations)

    def hold(self) -> None:
        """Keep every other thread out of the pins (around a fork)."""
        self._guard.acquire()

    def let_go(self) -> None:
        """The end of `hold`, in the process that called it."""
        self._guard.release()

    def oldest(self) -> Generations | None:
        """The least generation pinned for each node, or None when nothing is."""
        with self._guard:
            if not self._pinned:
                return None
            return tuple(min(column) for column in zip(*list(self._pinned.values()), strict=True))

    def _acquire(self, pin: Pin) -> None:
        with self._guard:
            self._pinned[id(pin)] = pin.generations

    def _hand_out(self, pin: Pin) -> None:
        with self._guard:
            self._handed_out.add(id(pin))

    def _release(self, pin: Pin) -> None:
        with self._guard:
            self._handed_out.discard(id(pin))
            if self._pinned.pop(id(pin), None) is None:
                return  # a view of a thread that a fork left behind
            self.settle()

    def settle(self) -> None:
        """Store what the pins that are alive come to; with none left on a closed handle, give the slot back."""
        oldest = self.oldest()
        if oldest is not None:
            self._store(oldest)
        elif self._closing:
            self._give_back()

    def _store(self, generations: Generations) -> None:
        if self._dead:
            return
        at = (self.offset + layout.SESSION_PINS) >> 3
        for node, generation in enumerate(generations):
            word = order.checked(generation)
            if self._region.words[at + node] != word:
                self._region.words[at + node] = word

    def close(self) -> None:
        """Give the slot back, now or when the last view that callers hold is gone."""
        with self._guard:
            self._closing = True
            if not self._pinned:
                self._give_back()

    def _give_back(self) -> None:
        if self._dead:
            return
        self._dead = True
        at = self.offset >> 3
        for index in range(layout.NODES_MAX):
            self._region.words[at + (layout.SESSION_PINS >> 3) + index] = 0
        self._region.words[at + (layout.SESSION_PID >> 3)] = 0
        self.locks.unlock(self.offset)
        self.locks.close()

    def move_to_child(self, claimed: Session | None) -> None:
        """In a forked child: leave the parent's slot alone and take the one that was claimed for us before the fork.

        With None the session is dead: it stores nothing. Of the pins that were inherited, only those count on that were
        handed out with views; threads that were reading are not here, and would never let go of theirs.
        """
        self._guard = threading.RLock()
        self.locks.close()
        self._pinned = {key: pinned for key, pinned in self._pinned.items() if key in self._handed_out}
        if claimed is None:
            self._dead = True
            return
        self.locks, self.slot, self.offset = claimed.locks, claimed.slot, claimed.offset
        self._region.words[(self.offset + layout.SESSION_PID) >> 3] = os.getpid()


class Pin:
    """While this lives, nothing that the manifests of these generations show is reused."""

    __slots__ = ("__weakref__", "_session", "generations", "region")

    def __init__(self, session: Session, generations: Generations) -> None:
        self._session = session
        self.generations = generations
        self.region = session._region  # keeps the mapping as well
        session._acquire(self)

    def hand_out(self) -> Pin:
        """The pin itself, from now on the base of a view that callers hold."""
        self._session._hand_out(self)
        return self

    def __del__(self) -> None:
        self._session._release(self)


def oldest_pins(region: Region, geometry: Geometry, locks: LockFile, own: Session) -> tuple[int | None, ...]:
    """For each node, the least generation that any live session pins; None where nobody pins one.

    REQUIRES: `order.fence_all_processes()` after the manifest that retires something was published. A view may change
    hands while the slots are read one by one (a fork pins it for the child, then the parent lets go): they are read until
    two passes agree, and if none do, nothing may be freed now. A pin that fails its check counts as the oldest there can
    be (generation 0): damage may keep memory, never free it.
    """
    pins = _collect_pins(region, geometry, locks, own)
    for _ in range(_COLLECT_ATTEMPTS):
        again = _collect_pins(region, geometry, locks, own)
        if again == pins:
            break
        pins = again
    else:
        return (0,) * geometry.nodes
    oldest: list[int | None] = [None] * geometry.nodes
    for words in pins.values():
        for node, word in enumerate(words):
            if word:
                pinned = word & order.VALUE_MASK if order.is_checked(word) else 0
                known = oldest[node]
                oldest[node] = pinned if known is None else min(known, pinned)
    return tuple(oldest)


def _collect_pins(region: Region, geometry: Geometry, locks: LockFile, own: Session) -> dict[int, tuple[int, ...]]:
    """The pin words of every live session, by its slot's offset."""
    words = region.words
    found: dict[int, tuple[int, ...]] = {}
    for node in range(geometry.nodes):
        for slot in range(layout.SESSIONS_PER_NODE):
            offset = geometry.session_offset(node, slot)
            pins_at = (offset + layout.SESSION_PINS) >> 3
            if words[(offset + layout.SESSION_PID) >> 3] == 0 and words[pins_at] == 0:
                continue
            mine = node == own.node and slot == own.slot
            if mine or locks.held_elsewhere(offset):  # else: its process is dead
                found[offset] = tuple(words[pins_at + other] for other in range(geometry.nodes))
    return found
