"""Giving memory back: what nobody pins any more, and what killed processes left half-done.

Retired at generation g, free when every live session pins g or later. The manifest that retires is published first, then
all processes are fenced, and only then are the pins read (see `session`).
"""

from __future__ import annotations

import time

from sharedrag import faults
from sharedrag.arena import extents, manifest, session
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import Entry, Kind, Manifest, State
from sharedrag.info import MaintenanceReport
from sharedrag.memory import layout, order
from sharedrag.memory.layout import EXTENT_SIZE, KEY_EPOCH_US
from sharedrag.memory.locks import LockFile
from sharedrag.segments.roll import sealed


def newest(arena: Arena) -> Manifest:
    """The newest manifest of this process's node."""
    return arena.refresh().manifests[arena.node]


def finish_what_was_begun(arena: Arena, report: MaintenanceReport) -> None:
    """Undo half-built segments, finish punching, give back memory that stands behind free extents."""
    geometry = arena.geometry
    stale = {entry.uid: None for entry in newest(arena).entries if entry.state == State.BUILDING}
    if stale:
        with arena.node_locked("maintain") as current:
            assert current is not None
            arena.publish(current.with_entries(dict(stale)))
        report.builds_undone += len(stale)
    _punch(arena, report)
    with arena.node_locked("maintain") as current:
        assert current is not None
        before = arena.region.allocated()
        for gap in extents.gaps(current, geometry):  # each: SEEK_DATA does not see memory that was only reserved
            arena.region.punch(geometry.extent_offset(current.node, gap.first), gap.extents * EXTENT_SIZE)
        report.bytes_freed += max(0, before - arena.region.allocated())


def close_abandoned_segments(arena: Arena, report: MaintenanceReport) -> None:
    """Seal open segments of lanes that nobody holds, where they are empty or many; clear their intents."""
    abandoned: dict[int, list[Entry]] = {}
    for entry in newest(arena).entries:
        if entry.state == State.OPEN and entry.kind == Kind.SEGMENT:
            abandoned.setdefault(entry.lane % layout.LANES_PER_NODE, []).append(entry)
    with arena.guard:  # no fork meanwhile: a child would inherit, and keep, the lock of `other`
        other = LockFile(arena.path, arena.region.identity)  # not the session's: that one's own lane would seem free
        try:
            for lane in range(layout.LANES_PER_NODE):
                offset = arena.geometry.lane_offset(arena.node, lane)
                if (lane in abandoned or arena.region.words[offset >> 3]) and other.try_lock(offset):
                    arena.region.words[(offset + layout.LANE_INTENT) >> 3] = 0
                    _seal_all(arena, abandoned.get(lane, []), report)
                    other.unlock(offset)
        finally:
            other.close()


def _seal_all(arena: Arena, entries: list[Entry], report: MaintenanceReport) -> None:
    """Seal a lane's open segments. REQUIRES: that lane."""
    if not entries:
        return
    with arena.node_locked("maintain", wait=False) as current:  # another round will do, and a fork waits for us
        if current is None:
            return
        changed: dict[int, Entry | None] = {}
        for entry in entries:
            now = current.by_uid.get(entry.uid)
            if now is not None and now.state == State.OPEN:
                closed = sealed(now, arena.segment(arena.node, now))
                retired = closed._replace(state=State.RETIRED, retired_at=current.generation + 1)
                changed[entry.uid] = closed if closed.rows else retired
        if changed:
            arena.publish(current.with_entries(changed))
            report.segments_sealed += len(changed)


def tombstone_limit(arena: Arena) -> int:
    """The clock below which a tombstone may go, if its victims are gone: no put below it can still be published.

    The horizon is stored before the fence and the intents are read after it; a writer stores its intent before it
    reads the horizon. So either we see its intent, or it sees the horizon and chooses a later key.
    """
    geometry = arena.geometry
    words = arena.region.words
    horizon = time.time_ns() // 1000 - KEY_EPOCH_US
    words[(geometry.node_offset(arena.node) + layout.HORIZON_OFFSET) >> 3] = order.checked(horizon)
    faults.passing("horizon.stored")
    order.fence_all_processes()
    limit = horizon
    for node in range(geometry.nodes):
        for lane in range(layout.LANES_PER_NODE):
            intent = words[(geometry.lane_offset(node, lane) + layout.LANE_INTENT) >> 3]
            if intent:
                limit = min(limit, intent)
    return limit


def reclaim(arena: Arena, report: MaintenanceReport) -> None:
    """Free what was retired before every live session's pin."""
    before = newest(arena)
    if not any(entry.state == State.RETIRED for entry in before.entries):
        return
    order.fence_all_processes()
    faults.passing("reclaim.fenced")
    oldest = session.oldest_pins(arena.region, arena.geometry, arena.session.locks, arena.session)[arena.node]
    # What was retired since has had no fence: a pin that is older may still be on its way.
    limit = before.generation if oldest is None else min(oldest, before.generation)
    with arena.node_locked("reclaim") as current:
        assert current is not None
        free = {
            entry.uid: entry._replace(state=State.PUNCHING)
            for entry in current.entries
            if entry.state == State.RETIRED and entry.retired_at <= limit
        }
        if not free:
            return
        arena.publish(current.with_entries(dict(free)))
    arena.region.sync()  # on a disk: what replaced these segments, and the manifests that say so, before they go
    faults.passing("reclaim.punching")
    _punch(arena, report)


def _punch(arena: Arena, report: MaintenanceReport) -> None:
    """Give back the memory of everything in state punching, then say so in the manifest."""
    done: dict[int, Entry | None] = {}
    for entry in manifest.load(arena.region, arena.geometry, arena.node).entries:
        if entry.state == State.PUNCHING:
            if not extents.is_rescue(arena.geometry, entry.first_extent):
                offset = arena.geometry.extent_offset(arena.node, entry.first_extent)
                arena.region.punch(offset, entry.extents * EXTENT_SIZE)
                report.bytes_freed += entry.extents * EXTENT_SIZE
            done[entry.uid] = None
    if not done:
        return
    faults.passing("reclaim.punched")
    with arena.node_locked("reclaim") as current:
        assert current is not None
        arena.publish(current.with_entries(done))
    report.segments_freed += len(done)
