"""The write side of one handle: its lane, its open segments, and what to do when there is no room."""

from __future__ import annotations

import threading
import time

from sharedrag.arena import catalog
from sharedrag.arena.attachment import Arena, Snapshot
from sharedrag.arena.manifest import CollectionEntry, Entry, Kind, Manifest, State, differs
from sharedrag.errors import CollectionDropped, PoolFull
from sharedrag.maintenance import purge
from sharedrag.maintenance.maintainer import Maintainer
from sharedrag.memory.layout import CLOCK_AHEAD_US_MAX, KEY_EPOCH_US, LANE_LAST, LANES_PER_NODE, clock_of
from sharedrag.segments.batch import Batch
from sharedrag.segments.lane import Appender, Lane, repair
from sharedrag.segments.roll import roll, sealed

_FULL_WAIT_S = 3.0  # how long a put waits for maintenance, here or elsewhere, to make room
_FULL_POLL_S = 0.02
_ROLLS_MAX = 10  # a roll may be in vain when others drop and make the collection meanwhile


class Writer:
    """Appends for all collections of one handle; its lock lets one thread append at a time."""

    def __init__(self, arena: Arena, maintainer: Maintainer) -> None:
        """Claim nothing yet: the lane comes with the first write."""
        self._arena = arena
        self._maintainer = maintainer
        self.lock = threading.Lock()
        self.lane: Lane | None = None
        self._closed = False
        self._adopted: tuple[Manifest, ...] = ()  # not the snapshot: an idle writer must not pin what it last saw
        self._appenders: dict[str, Appender] = {}
        self._looked_at: Manifest | None = None  # for segments to close
        self._declared: dict[str, CollectionEntry] = {}  # the callers' definitions that fit what the pool has

    def write(self, definition: CollectionEntry, batch: Batch) -> None:
        """Append a batch to a collection and publish it. Raises `PoolFull`, `PoolBusy`, `CollectionDropped`, ..."""
        name = definition.name
        with self.lock:
            snapshot = self._arena.refresh()
            if snapshot.manifests is not self._adopted:
                self._adopt(snapshot)
            appender = self._appenders.get(name)
            if appender is not None and self._declared[name] is definition and appender.append(batch):
                return
            del snapshot  # what we wait for below may be the memory that it pins
            if self._closed:
                raise self._arena.closed_error()
            with self._arena.session.stays():  # closed in the middle, the lane is ours to the end
                if self.lane is None:
                    self.lane = Lane(self._arena)
                self._append_somewhere(name, batch, definition)

    def _append_somewhere(self, name: str, batch: Batch, definition: CollectionEntry) -> None:
        """The rare path: take over a segment of our lane, or roll to a new one, until the batch is in."""
        assert self.lane is not None
        deadline = time.monotonic() + _FULL_WAIT_S
        rolled = 0
        while not self._append_pinned(name, batch, definition):
            assert rolled < _ROLLS_MAX, "a segment made for a batch has no room for it"
            previous = self._appenders.get(name)
            root = self._arena.refresh().roots[self._arena.node]
            try:
                roll(self._arena, self.lane, name, batch, previous.segment if previous else None)
                rolled += 1
            except PoolFull:
                if not self._room_was_made(root, deadline):
                    raise

    def _append_pinned(self, name: str, batch: Batch, definition: CollectionEntry) -> bool:
        """Append to our lane's open segment if there is one with room, under a pin of a manifest that shows it open.

        Without that pin the collection might be dropped, and the memory be somebody else's, before the batch is in.
        """
        self._declare(name, definition)
        snapshot = self._arena.refresh()
        if snapshot.manifests is not self._adopted:
            self._adopt(snapshot)
        if name not in self._appenders:  # as after a roll, which sealed the one we had
            self._take_over(name, snapshot)
            self._adopt(snapshot)
        appender = self._appenders.get(name)
        return appender is not None and appender.append(batch)

    def _declare(self, name: str, definition: CollectionEntry) -> None:
        """Enter the collection in our node's catalog, if only another node has it so far."""
        manifests = self._arena.refresh().manifests
        found = next((entry for one in manifests if (entry := one.collection(name))), None)
        same = found is not None and not differs(found, definition)
        own = manifests[self._arena.node].collection(name)
        if found is not None and same and (own is None or differs(own, found)):
            same = catalog.declare(self._arena, found)
        if not same:
            made_anew = " and made anew with another definition" if found else ""
            hint = "Get it again with pool.collection(...)"
            what = f"collection {name!r} was dropped{made_anew}"
            raise CollectionDropped(what, operation="put", path=self._arena.path, hint=hint)
        self._declared[name] = definition

    def _take_over(self, name: str, snapshot: Snapshot) -> None:
        """Go on in the open segment that we just made, or that the lane's last holder left."""
        assert self.lane is not None
        own = snapshot.manifests[self._arena.node]
        definition = own.collection(name)
        for entry in own.entries:
            if (
                definition is not None
                and entry.kind == Kind.SEGMENT
                and entry.state == State.OPEN
                and entry.lane == self.lane.global_number
                and entry.collection == definition.number
            ):
                segment = self._arena.segment(self._arena.node, entry)
                made_for_deletes = definition.dimension is not None and not segment.shape.dimension
                self._appenders[name] = Appender(self.lane, segment, only_deletes=made_for_deletes)

    def _adopt(self, snapshot: Snapshot) -> None:
        """Check our open segments against the newest manifests; learn the others' to order our keys after theirs."""
        own = snapshot.manifests[self._arena.node]
        for name, appender in list(self._appenders.items()):
            entry = own.by_uid.get(appender.segment.uid)
            definition = own.collection(name)
            if definition and entry and entry.state == State.OPEN and entry.collection == definition.number:
                self._learn_others(appender, name, snapshot)
                if purge.is_marked(entry):
                    appender.has_room = False  # the next put rolls
            else:
                del self._appenders[name]
        self._adopted = snapshot.manifests

    def _learn_others(self, appender: Appender, name: str, snapshot: Snapshot) -> None:
        """The newest keys of a collection: of sealed segments from the manifests, of open ones from their lanes."""
        trusted = time.time_ns() // 1000 - KEY_EPOCH_US + CLOCK_AHEAD_US_MAX
        others: set[int] = set()
        for one in snapshot.manifests:
            definition = one.collection(name)
            for entry in one.entries if definition else ():
                if definition is None or entry.collection != definition.number or entry.kind != Kind.SEGMENT:
                    continue
                if entry.state == State.SEALED:
                    clock = clock_of(entry.key_max)
                    appender.floor = max(appender.floor, clock if clock <= trusted else 0)
                elif entry.state == State.OPEN and entry.uid != appender.segment.uid:
                    slot = self._arena.geometry.lane_offset(one.node, entry.lane % LANES_PER_NODE)
                    others.add((slot + LANE_LAST) >> 3)
        appender.others = sorted(others)

    def _room_was_made(self, root: int, deadline: float) -> bool:
        """After a `PoolFull` under this root: maintain, or wait for whoever does; False when nothing more is to be had."""
        node = self._arena.node
        if time.monotonic() >= deadline:
            return False  # what was freed before did not help
        while True:
            if self._arena.refresh().roots[node] != root:
                return True  # somebody else was faster, and has left maintenance nothing to do
            report = self._maintainer.run()
            moved = self._arena.refresh().roots[node] != root
            if report.bytes_freed or report.segments_freed or (moved and not report.elected):
                return True
            states = {entry.state for entry in self._arena.current.manifests[node].entries}
            waiting = not states.isdisjoint((State.RETIRED, State.PUNCHING))
            hopeless = report.elected and not waiting and not report.segments_merged
            if hopeless or time.monotonic() >= deadline:
                return False
            time.sleep(_FULL_POLL_S)

    def close_marked(self) -> None:
        """Close the segments of our lane that are to be purged; who is writing does so with the next put.

        Raises `PoolBusy`, `PoolDamaged`.
        """
        if not self.lock.acquire(blocking=False):
            return
        try:
            own = self._arena.refresh().manifests[self._arena.node]
            if self.lane is None or self._closed or own is self._looked_at:
                return
            lane = self.lane.global_number
            if any(_is_to_close(entry, lane) for entry in own.entries):
                with self._arena.session.stays(), self._arena.node_locked("purge") as current:
                    assert current is not None
                    self._arena.publish(current.with_entries(self._closed_entries(current, self.lane)))
                self._adopt(self._arena.refresh())
            self._looked_at = own
        finally:
            self.lock.release()

    def _closed_entries(self, current: Manifest, lane: Lane) -> dict[int, Entry | None]:
        """The marked segments of our lane as they are once closed. REQUIRES: the node lock."""
        changed: dict[int, Entry | None] = {}
        for entry in current.entries:
            if _is_to_close(entry, lane.global_number):
                segment = self._arena.segment(self._arena.node, entry)
                repair(segment)
                closed = sealed(entry, segment)
                gone = closed._replace(state=State.RETIRED, retired_at=current.generation + 1)
                changed[entry.uid] = closed if closed.rows else gone
        return changed

    def release(self) -> None:
        """Give the lane back for good (closing), after the put that another thread is in.

        A signal handler may be closing in the middle of a put of its own thread. Then the lane goes with the session, which
        that put's pin keeps until it is through.
        """
        idle = self.lock.acquire(timeout=self._arena.lock_timeout_s)
        self._closed = True
        if idle:
            self._appenders.clear()
            if self.lane is not None:
                self.lane.release()
                self.lane = None
            self.lock.release()

    def after_fork_in_child(self) -> None:
        """The lane is the parent's; ours is claimed at our first write."""
        self.lock = threading.Lock()
        self.lane = None
        self._adopted = ()
        self._looked_at = None
        self._appenders = {}


def _is_to_close(entry: Entry, lane: int) -> bool:
    """Whether this is an open segment of that lane of the pool, to be purged."""
    return entry.state == State.OPEN and entry.lane == lane and purge.is_marked(entry)
