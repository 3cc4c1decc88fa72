"""Sessions and pins: what tells the reclaimer which generations somebody still looks at.

An attached handle holds one session slot by its kernel lock, and stores in it, for each node, the least generation that
any live view of this process came from. A `Pin` is that claim as an object: every Arrow buffer and every index handed out
keeps one as its base, so memory cannot be reused under a live view.

A slot's pins only ever rise while it is held, and from a value that was already pinned, so raising needs no fence. The
first pin does: store the pin, read the root again, repeat until it is the same (see `order`).

A forked child gets a slot of its own, claimed before the fork at its parent's oldest pin. That is so for every session
that is still needed, also where its handle was closed, or forgotten, and only a view is left.
"""

from __future__ import annotations

import itertools
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from sharedrag import faults
from sharedrag.arena import manifest
from sharedrag.arena.manifest import Manifest
from sharedrag.errors import PoolBusy, SharedRagError, pool_closed
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


def pid_namespace() -> int:
    """The inode of this process's pid namespace, 0 where the system does not tell: two containers may both have a pid 7."""
    try:
        return os.stat("/proc/self/ns/pid").st_ino
    except OSError:
        return 0


class _Slot:
    """A session slot that is held: its lock, on an open file of its own, and its words."""

    def __init__(self, region: Region, geometry: Geometry, node: int, label: str, pins: Generations = ()) -> None:
        """Claim the first free slot of the node, and sign it with these pins; raises `PoolBusy` when all are taken."""
        self._words = region.words
        self.locks = LockFile(region.path, region.identity)
        try:
            self.number = self._claim(geometry, node, region.path)
            self.offset = geometry.session_offset(node, self.number)
            faults.passing("attach.locked")
            self._sign(region, label, pins)
        except BaseException:
            self.locks.close()
            raise

    def _claim(self, geometry: Geometry, node: int, path: str) -> int:
        for slot in range(layout.SESSIONS_PER_NODE):
            if self.locks.try_lock(geometry.session_offset(node, slot)):
                return slot
        raise PoolBusy(
            f"all {layout.SESSIONS_PER_NODE} sessions of node {node} are taken",
            operation="open",
            path=path,
            hint="Close handles that are not needed; `sharedrag info` lists the processes",
        )

    def _sign(self, region: Region, label: str, pins: Generations) -> None:
        """Whose slot it is, since when last: who reads a new `since` finds the pins that came with it (`oldest_pins`)."""
        at = self.offset >> 3
        for index in range(layout.NODES_MAX):
            word = order.checked(pins[index]) if index < len(pins) else 0
            self._words[at + (layout.SESSION_PINS >> 3) + index] = word
        write_label(region, self.offset + layout.SESSION_LABEL, layout.SESSION_LABEL_SIZE, label)
        self.sign_pid()
        self._words[at + (layout.SESSION_SINCE >> 3)] = time.time_ns() // 1000

    def sign_pid(self) -> None:
        """This process has it."""
        self._words[(self.offset + layout.SESSION_PID_NAMESPACE) >> 3] = pid_namespace()
        self._words[(self.offset + layout.SESSION_PID) >> 3] = os.getpid()

    def store(self, generations: Generations) -> None:
        """Store these pins."""
        at = (self.offset + layout.SESSION_PINS) >> 3
        for node, generation in enumerate(generations):
            word = order.checked(generation)
            if self._words[at + node] != word:
                self._words[at + node] = word

    def pin_nothing(self) -> None:
        """Store no pins."""
        at = (self.offset + layout.SESSION_PINS) >> 3
        for index in range(layout.NODES_MAX):
            self._words[at + index] = 0

    def give_back(self) -> None:
        """Let the next one have the slot; all other locks on the same open file go as well. REQUIRES: no pins."""
        self._words[(self.offset + layout.SESSION_PID) >> 3] = 0
        self.locks.unlock(self.offset)
        self.locks.close()


class Session:
    """One handle's slot, and the pins that are alive in this process."""

    def __init__(self, region: Region, geometry: Geometry, node: int, label: str) -> None:
        """Claim a free slot of the node; raises `PoolBusy` when all are taken."""
        self._region = region
        self._geometry = geometry
        self._label = label
        self.node = node
        self.crosses = False  # in a fork: the child's handle goes on with this session
        self._guard = threading.RLock()  # of the slot's pins; only a fork waits for it
        self._settling = self._unsettled = False
        self._pinned: dict[int, Generations] = {}  # by the pin's number
        self._handed_out: set[int] = set()
        self._left_to_us: Generations | None = None
        self._closing = self._dead = False
        self._childs: _Slot | None = None
        self._held = _Slot(region, geometry, node, label)
        _sessions.add(self)

    @property
    def slot(self) -> int:
        """The slot's number in its node."""
        return self._held.number

    @property
    def offset(self) -> int:
        """The slot's offset in the file."""
        return self._held.offset

    @property
    def locks(self) -> LockFile:
        """The open file on which this handle takes all its locks."""
        return self._held.locks

    @property
    def dead(self) -> bool:
        """True once the slot was given back, and in a forked child for which there was none."""
        return self._dead

    # ------------------------------------------------------------------ pins

    def pin_newest(self) -> Pin:
        """Pin the newest generation of every node (the first pin of a session)."""
        words = self._region.words
        roots = [manifest.root_index(self._geometry, node) for node in range(self._geometry.nodes)]
        while True:
            seen = [words[root] for root in roots]
            generations = tuple(word & order.VALUE_MASK for word in seen)
            self._store(generations)
            faults.passing("attach.pinned")
            if [words[root] for root in roots] == seen:
                return Pin(self, generations)

    def pin(self, manifests: Sequence[Manifest]) -> Pin:
        """Pin the generations of these manifests. REQUIRES: an older or equal pin of this session is alive."""
        return Pin(self, tuple(one.generation for one in manifests))

    @contextmanager
    def stays(self) -> Iterator[None]:
        """Inside, the handle's locks and descriptors are kept, also if it is closed meanwhile. Raises `PoolClosed`."""
        stay = Pin(self, ())
        try:
            if self._closing:
                raise pool_closed(self._region.path)
            yield
        finally:
            stay.let_go()

    def oldest(self) -> Generations | None:
        """The least generation pinned for each node, or None when nothing is."""
        pinned = [generations for generations in list(self._pinned.values()) if generations]
        if self._left_to_us is not None:
            pinned.append(self._left_to_us)
        return tuple(map(min, zip(*pinned, strict=True))) if pinned else None

    def add(self, pin: Pin, *, handed_out: bool) -> None:
        """Count a pin. REQUIRES: an older or equal one is alive, or what it pins was just stored."""
        self._pinned[pin.number] = pin.generations
        if handed_out:
            self._handed_out.add(pin.number)

    def remove(self, pin: Pin) -> None:
        """A pin is gone. Waits for nothing: the last reference to a view may go anywhere, whatever its thread holds."""
        self._handed_out.discard(pin.number)
        if self._pinned.pop(pin.number, None) is not None:  # else: of a thread that a fork left behind
            self.settle()

    def settle(self) -> None:
        """Store what the pins that are alive come to; with none left on a closed handle, give the slot back.

        Who finds somebody at it (another thread, a fork, or the code that a signal handler interrupted) leaves it to them.
        """
        self._unsettled = True
        while self._unsettled and self._guard.acquire(blocking=False):
            try:
                if self._settling:
                    return
                self._settling, self._unsettled = True, False
                try:
                    self._settle()
                finally:
                    self._settling = False
            finally:
                self._guard.release()

    def _settle(self) -> None:
        oldest = self.oldest()
        if oldest is not None:
            self._store(oldest)
        elif self._closing and not self._dead:
            self._held.pin_nothing()
            if not self._pinned:
                self._dead = True
                self._region.close()
                self._held.give_back()

    def _store(self, generations: Generations) -> None:
        if not self._dead:
            self._held.store(generations)

    def close(self) -> None:
        """Give the slot back, now or when nobody needs it any more: views that callers hold, whoever `stays`."""
        self._closing = True
        self.settle()

    # ------------------------------------------------------------------ fork

    def before_fork(self) -> None:
        """Keep every other thread out of the pins, and claim the child's slot at our oldest one."""
        self._guard.acquire()
        self._settling = True
        oldest = self.oldest()
        if self._dead or oldest is None or not (self.crosses or self._handed_out):
            return
        try:
            self._childs = _Slot(self._region, self._geometry, self.node, self._label, oldest)
        except (OSError, SharedRagError):
            # The child's handle is closed then, and says so when used. What it inherits of views is left to our slot,
            # which keeps them for as long as this process lives: we do not know when the child lets go.
            if self._handed_out:
                self._left_to_us = oldest

    def after_fork_in_parent(self) -> None:
        """Drop our copy of the child's lock; the child's own copy keeps it."""
        if self._childs is not None:
            self._childs.locks.close()
            self._childs = None
        self.crosses = self._settling = False
        self._guard.release()
        if self._unsettled:
            self.settle()

    def after_fork_in_child(self) -> None:
        """Leave the parent's slot alone and take the one that was claimed for us; without one, the session is dead.

        Of the pins that were inherited, only those count on that were handed out with views; threads that were reading are
        not here, and would never let go of theirs.
        """
        self._guard = threading.RLock()
        self._settling = self._unsettled = False
        self._held.locks.close()
        self._pinned = {number: pinned for number, pinned in self._pinned.items() if number in self._handed_out}
        self._left_to_us = None
        if not self.crosses:
            self._closing = True
        self.crosses = False
        if self._childs is None:
            self._dead = True
            self._region.close()
            return
        self._held, self._childs = self._childs, None
        self._held.sign_pid()


class Pin:
    """While this lives, nothing that the manifests of these generations show is reused."""

    __slots__ = ("__weakref__", "_session", "generations", "number", "region")

    def __init__(self, session: Session, generations: Generations, *, handed_out: bool = False) -> None:
        self._session = session
        self.number = next(_numbers)
        self.generations = generations
        self.region = session._region  # keeps the mapping as well
        session.add(self, handed_out=handed_out)

    def hand_out(self) -> Pin:
        """Another pin of the same, as the base of views that callers hold."""
        return Pin(self._session, self.generations, handed_out=True)

    def let_go(self) -> None:
        """End it now."""
        self._session.remove(self)

    def __del__(self) -> None:
        self._session.remove(self)


_numbers = itertools.count()
_sessions: weakref.WeakSet[Session] = weakref.WeakSet()
_forking: list[Session] = []


def _before_fork() -> None:
    """After the pools' own: whoever holds a lock of a pool may have to let go of a pin before it lets go of the lock."""
    for session in list(_sessions):
        session.before_fork()
        _forking.append(session)


def _after_fork_in_parent() -> None:
    for session in _forking:
        session.after_fork_in_parent()
    _forking.clear()


def _after_fork_in_child() -> None:
    _forking.clear()
    for session in list(_sessions):
        session.after_fork_in_child()


# The pools' hooks are registered later: theirs come first before a fork, and last after it.
os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)


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
    for _, *words in pins.values():
        for node, word in enumerate(words):
            if word:
                pinned = word & order.VALUE_MASK if order.is_checked(word) else 0
                known = oldest[node]
                oldest[node] = pinned if known is None else min(known, pinned)
    return tuple(oldest)


def _collect_pins(region: Region, geometry: Geometry, locks: LockFile, own: Session) -> dict[int, tuple[int, ...]]:
    """Since when each slot ever used is held, and its pins if it still is, by its offset.

    A view changes hands only into a slot that is claimed anew. So a slot whose `since` is the same in two passes had its
    pins from before the first on, and two passes that agree have overlooked nobody; without `since`, a view that went from
    hand to hand might be in a slot not yet claimed in the first pass, and given back in the second.
    """
    words = region.words
    found: dict[int, tuple[int, ...]] = {}
    for node in range(geometry.nodes):
        for slot in range(layout.SESSIONS_PER_NODE):
            offset = geometry.session_offset(node, slot)
            pins_at = (offset + layout.SESSION_PINS) >> 3
            since = words[(offset + layout.SESSION_SINCE) >> 3]  # before the pins: they are stored before it
            held = words[(offset + layout.SESSION_PID) >> 3] != 0 or words[pins_at] != 0
            if not since and not held:
                continue
            mine = node == own.node and slot == own.slot
            if held and (mine or locks.held_elsewhere(offset)):  # else: free, or its process is dead
                found[offset] = (since, *(words[pins_at + other] for other in range(geometry.nodes)))
            else:
                found[offset] = (since,)
    return found
