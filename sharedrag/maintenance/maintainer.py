"""Keeping a node's space in order: merge, drop what is dead, retire, reclaim. Killed anywhere, the next one goes on.

One process at a time holds the node's maintenance lock; nobody waits for it. What it is doing stands in the manifest:

    killed while                      the manifest says      the next maintainer
    building a segment                building               frees its extents
    after publishing a merge          retired                reclaims when no pin sees the sources
    punching                          punching               punches again, then frees
    writing deletion vectors          nothing                punches stray memory in free extents
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharedrag import faults
from sharedrag.arena import extents, manifest
from sharedrag.arena.attachment import Arena
from sharedrag.arena.extents import Purpose
from sharedrag.arena.manifest import Entry, Kind, Manifest, State
from sharedrag.arena.row import PUT, hashes_in
from sharedrag.arena.segment import Segment, Shape
from sharedrag.errors import CollectionDropped, PoolDamaged, PoolFull
from sharedrag.info import MaintenanceReport
from sharedrag.maintenance import merge, purge, reclaim
from sharedrag.maintenance.budget import Budget
from sharedrag.maintenance.derive import Deriver, Reserved
from sharedrag.memory import layout, order
from sharedrag.memory.layout import EXTENT_SIZE, KEY_LANE_BITS
from sharedrag.segments import deletions, probe
from sharedrag.segments.live import LiveRows, Part, View

_DEAD_SHARE = 3  # rewrite a segment when a third of its rows are dead
_TIER_WIDTH = 4  # merge when this many segments are of a size
_MERGES_PER_ROUND = 8
_LOOK_S = 0.02  # how often who waits looks whether another process has ended its round
_MERGED_PER_S = 400 << 20  # bytes, about: it only spaces merges
_FOLDED_AGAIN_MAX = 20_000  # rows that a new process may have to fold by itself


def _cost_s(group: list[Part]) -> float:
    """Processor time that merging these will take, about."""
    return sum(merge.size_estimate(part) for part in group) / _MERGED_PER_S


LiveOf = Callable[[str], LiveRows]


class Maintainer:
    """Maintenance of one node by one process."""

    def __init__(self, arena: Arena, live_of: LiveOf) -> None:
        """`live_of` gives a collection's live rows."""
        self._arena = arena
        self._live_of = live_of
        self._deriver = Deriver(arena)
        self._guard = threading.Lock()

    def stop(self) -> None:
        """Wait for a round that another thread is in; there is none after that."""
        self._guard.acquire(timeout=self._arena.lock_timeout_s)

    def after_fork_in_child(self) -> None:
        """A round that runs in the parent is not ours."""
        self._guard = threading.Lock()

    @contextmanager
    def _elected(self) -> Iterator[bool]:
        """Hold the node's maintenance lock if it is free."""
        arena = self._arena
        area = arena.geometry.node_offset(arena.node)
        holder = (area + layout.MAINTENANCE_HOLDER_OFFSET) >> 3
        if not self._guard.acquire(blocking=False):
            yield False
            return
        try:
            if not arena.session.locks.try_lock(area + layout.HORIZON_OFFSET):
                yield False
                return
            try:
                arena.region.words[holder] = os.getpid()
                arena.region.words[holder + 1] = time.time_ns() // 1000
                yield True
            finally:
                arena.region.words[holder] = 0
                arena.session.locks.unlock(area + layout.HORIZON_OFFSET)
        finally:
            self._guard.release()

    def run(self, budget: Budget | None = None, wait_s: float = 0.0) -> MaintenanceReport:
        """One round, unless another process is at it for `wait_s`: all that is due, or what `budget` affords of it.

        Raises `PoolDamaged`, `PoolBusy`.
        """
        until = time.monotonic() + wait_s
        while not (report := self._run(budget)).elected and time.monotonic() < until:
            time.sleep(_LOOK_S)
        return report

    def _run(self, budget: Budget | None) -> MaintenanceReport:
        report = MaintenanceReport()
        with self._arena.session.stays(), self._elected() as elected:  # closed meanwhile, it keeps its lock to the end
            report.elected = elected
            if not elected:
                return report
            started = time.perf_counter()
            reclaim.finish_what_was_begun(self._arena, report)
            reclaim.reclaim(self._arena, report)  # first what earlier rounds retired: this one may be long, or be killed
            reclaim.close_abandoned_segments(self._arena, report)
            tombstones_below = reclaim.tombstone_limit(self._arena)
            names = [entry.name for entry in reclaim.newest(self._arena).collections]
            damaged = None
            for name in names:
                try:
                    self._tend(name, tombstones_below, report, budget)
                except CollectionDropped:
                    continue
                except PoolDamaged as error:
                    # The other collections, and reclaim, must not suffer; a traceback would keep views alive.
                    damaged = error.with_traceback(None)
            for name in names:
                self._live_of(name).move_on()  # our own views must not be what keeps the sources
            reclaim.reclaim(self._arena, report)
            report.segments_waiting = sum(entry.state == State.RETIRED for entry in reclaim.newest(self._arena).entries)
            report.seconds = time.perf_counter() - started
            if damaged is not None:
                raise damaged
        return report

    # ------------------------------------------------------------------ one collection

    def _tend(self, name: str, tombstones_below: int, report: MaintenanceReport, budget: Budget | None) -> None:
        for _ in range(_MERGES_PER_ROUND):
            live = self._live_of(name)
            view, covered = live.acquire_covered()
            try:
                groups = self._groups(view)
                if budget is not None:
                    affordable = [one for one in groups if budget.affords(_cost_s(one))]
                    report.postponed += len(groups) - len(affordable)
                    groups = affordable
                if not any(self._merge(name, view, covered, one, tombstones_below, report) for one in groups):
                    self._write_deletions(name, view, covered, report)
                    self._deriver.tend(name, view, budget, report)
                    return
            finally:
                live.release()

    def _groups(self, view: View) -> list[list[Part]]:
        """Sealed segments of this node worth rewriting together, the most useful group first."""
        own = [part for part in view.parts if part.node == self._arena.node and part.sealed]
        merged_max = self._arena.geometry.merged_size_max
        groups: list[list[Part]] = []
        gone = [part for part in own if part.dead == part.rows]
        if gone:
            groups.append(gone)
        marked = {entry.uid for entry in reclaim.newest(self._arena).entries if purge.is_marked(entry)}
        decayed = [
            part
            for part in own
            if part not in gone and (part.dead * _DEAD_SHARE >= part.rows or (part.dead and part.segment.uid in marked))
        ]
        groups += _packed(decayed, merged_max, least=1)
        tiers: dict[int, list[Part]] = {}
        for part in own:
            if part not in gone and part not in decayed:
                tier = max(0, (merge.size_estimate(part) // EXTENT_SIZE).bit_length() // 2)
                tiers.setdefault(tier, []).append(part)
        for _, parts in sorted(tiers.items()):
            if len(parts) >= _TIER_WIDTH:
                groups += _packed(parts, merged_max, least=2)
        return groups

    def _merge(
        self,
        name: str,
        view: View,
        covered: dict[int, deletions.Covered],
        group: list[Part],
        tombstones_below: int,
        report: MaintenanceReport,
    ) -> bool:
        sources = [merge.source_of(part, self._tombstones_to_keep(part, group, view, tombstones_below)) for part in group]
        kept = sum(source.rows.size for source in sources)
        if kept == sum(part.rows for part in group) and len(group) == 1:
            return False  # only tombstones that must stay: nothing to gain
        if not kept:
            return self._replace(name, group, None, covered, view, report, self._deriver.follow_merge(name, group, None, 0))
        shape = merge.shape_of(sources)
        if shape is None:
            return False
        frees = kept < sum(part.rows for part in group)
        built = self._build(name, group[0], shape, emergency=frees)
        if built is None:
            less = merge.with_less_to_keep(group, sources) if frees else []
            return bool(less) and self._merge(name, view, covered, less, tombstones_below, report)
        entry, target = built
        faults.passing("merge.building")
        try:
            merge.copy_rows(sources, target)
        except BaseException:
            self._drop_entry(entry)
            raise
        arena = self._arena
        arena.region.words[target.watermark_index] = order.checked(kept)
        faults.passing("merge.copied")
        keys = target.key
        done = entry._replace(state=State.SEALED, rows=kept, key_min=keys[0], key_max=keys[kept - 1])
        dead = (target.flags_array[:kept] & PUT) == 0
        after = {**covered, entry.uid: deletions.Covered(kept, dead)}
        following = self._deriver.follow_merge(name, group, target, kept)
        return self._replace(name, group, done, after, view, report, following)

    def _tombstones_to_keep(self, part: Part, group: list[Part], view: View, below: int) -> npt.NDArray[np.int64]:
        """Rows of the part's tombstones that still have a victim somewhere, or might get one."""
        segment = part.segment
        segment.check_flags(slice(0, part.rows))  # a tombstone that damage hides would bring its victims back
        rows = np.flatnonzero((segment.flags_array[: part.rows] & PUT) == 0)
        if not rows.size:
            return rows
        if not order.are_checked(segment.link_array[rows]).all():
            raise segment.damaged("a link fails its check", "link")
        young = (segment.key_array[rows] >> np.uint64(KEY_LANE_BITS)) >= np.uint64(max(0, below))
        hashes = pa.array(hashes_in(segment.link_array[rows])).dictionary_encode()  # an id may have been deleted often
        distinct, places = hashes.dictionary.to_numpy(), hashes.indices.to_numpy()
        has_victim = np.zeros(len(distinct), np.bool_)
        merged = {id(one.segment) for one in group}
        for other in view.parts:
            if id(other.segment) in merged:
                continue
            found, _ = probe.matches(other.segment, distinct, probe.heads_below(other.segment, distinct, other.rows, {}))
            has_victim[found] = True
        kept: npt.NDArray[np.int64] = rows[young | has_victim[places]]
        return kept

    def _build(self, name: str, model: Part, shape: Shape, *, emergency: bool) -> tuple[Entry, Segment] | None:
        """Reserve and announce the segment to build; None when there is no room for it now.

        Only an `emergency`, a merge that frees space, may take what is kept back; one that does not leaves that twice over.
        """
        arena = self._arena
        wanted = -(-shape.size // EXTENT_SIZE)
        with arena.node_locked("maintain") as current:
            assert current is not None
            definition = current.collection(name)
            spare = extents.free_extents(current, arena.geometry) - 2 * arena.geometry.extents_kept_back
            if definition is None or (wanted > spare and not emergency):
                return None
            try:
                run = extents.take(arena.region, current, arena.geometry, wanted, wanted, Purpose.MERGE)
            except PoolFull:
                return None
            uid = current.node << manifest.UID_NODE_SHIFT | current.next_number
            lane = model.segment.lane
            entry = Entry(
                uid,
                Kind.SEGMENT,
                State.BUILDING,
                lane,
                definition.number,
                run.first,
                run.extents,
                0,
                0,
                0,
                0,
                shape.size,
            )
            offset = arena.geometry.extent_offset(arena.node, run.first)
            target = Segment.create(arena.region, offset, uid, lane, shape, run.extents * EXTENT_SIZE)
            arena.publish(current.with_entries({uid: entry}, next_number=current.next_number + 1))
        return entry, target

    def _drop_entry(self, entry: Entry) -> None:
        with self._arena.node_locked("maintain") as current:
            assert current is not None
            self._arena.publish(current.with_entries({entry.uid: None}))

    def _replace(
        self,
        name: str,
        group: list[Part],
        merged: Entry | None,
        covered: dict[int, deletions.Covered],
        view: View,
        report: MaintenanceReport,
        following: list[tuple[int, Reserved | None]],
    ) -> bool:
        """In one manifest: the sources go with what was derived from them, the merged segment comes.

        With it come deletion vectors and indexes that know it: `following`.
        """
        arena = self._arena
        gone = {part.segment.uid for part in group}
        with arena.node_locked("maintain") as current:
            assert current is not None
            definition = current.collection(name)
            entries = [current.by_uid.get(uid) for uid in gone]
            if definition is None or any(entry is None or entry.state != State.SEALED for entry in entries):
                undone: dict[int, Entry | None] = {new.entry.uid: None for _, new in following if new}
                if merged is not None:
                    undone[merged.uid] = None
                if undone:
                    arena.publish(current.with_entries(undone))
                return False  # the collection was dropped meanwhile
            at = current.generation + 1
            changed: dict[int, Entry | None] = {
                entry.uid: entry._replace(state=State.RETIRED, retired_at=at) for entry in entries if entry is not None
            }
            for entry in current.entries:
                if entry.of in gone and entry.visible:
                    changed[entry.uid] = entry._replace(state=State.RETIRED, retired_at=at)
            for old, new in following:
                changed.update(Deriver.shown(current, new, [old] if old in current.by_uid else []))
            rows_gone = sum(part.rows for part in group)
            number = current.next_number
            if merged is not None:
                changed[merged.uid] = merged
                rows_gone -= merged.rows
                staying = {uid: one for uid, one in covered.items() if uid not in gone}
                number = self._take_block(current, definition.number, staying, changed, number)
            collections = tuple(
                one if one.name != name else manifest.with_rows_retired(one, rows_gone) for one in current.collections
            )
            relies_on = self._relies_on(current, view)
            arena.publish(current.with_entries(changed, next_number=number, collections=collections, relies_on=relies_on))
        faults.passing("merge.published")
        report.segments_merged += len(group)
        return True

    def _relies_on(self, current: Manifest, view: View) -> tuple[int, ...]:
        seen = view.pin.generations + (0,) * (layout.NODES_MAX - len(view.pin.generations))
        found = [max(before, generation) for before, generation in zip(current.relies_on, seen, strict=True)]
        found[current.node] = 0
        return tuple(found)

    def _write_deletions(
        self, name: str, view: View, covered: dict[int, deletions.Covered], report: MaintenanceReport
    ) -> None:
        """Write deletion vectors when a new process would have to fold much without them."""
        known = self._covered_rows(name)
        if known is not None:
            own = [part for part in view.parts if part.node == self._arena.node]
            missing = sum(part.rows for part in own if part.sealed and part.segment.uid not in known)
            if missing < _FOLDED_AGAIN_MAX:
                return
        with self._arena.node_locked("maintain") as current:
            assert current is not None
            definition = current.collection(name)
            if definition is None:
                return
            changed: dict[int, Entry | None] = {}
            number = self._take_block(current, definition.number, covered, changed, current.next_number)
            if changed:
                self._arena.publish(current.with_entries(changed, next_number=number))
                report.deletions_written += 1

    def _covered_rows(self, name: str) -> set[int] | None:
        """The segments that this node's deletion vectors cover; None if these are damaged."""
        newest = reclaim.newest(self._arena)
        definition = newest.collection(name)
        found: set[int] = set()
        for entry in newest.entries:
            if definition and entry.kind == Kind.DELETIONS and entry.visible and entry.collection == definition.number:
                offset = self._arena.geometry.extent_offset(newest.node, entry.first_extent)
                try:
                    found |= deletions.decode(self._arena.region, offset, entry.extents * EXTENT_SIZE).keys()
                except PoolDamaged:
                    return None
        return found

    def _take_block(
        self,
        current: Manifest,
        collection: int,
        covered: dict[int, deletions.Covered],
        changed: dict[int, Entry | None],
        number: int,
    ) -> int:
        """Write a block of deletion vectors and enter it in `changed`; returns the next number. REQUIRES: the node lock.

        Without room there is no block: readers then fold by themselves.
        """
        arena = self._arena
        data = deletions.encode(covered)
        wanted = -(-len(data) // EXTENT_SIZE)
        try:
            run = extents.take(arena.region, current, arena.geometry, wanted, wanted, Purpose.BLOCK)
        except PoolFull:
            return number
        offset = arena.geometry.extent_offset(current.node, run.first)
        arena.region.bytes[offset : offset + len(data)] = data
        faults.passing("deletions.reserved")
        for entry in current.entries:
            if entry.kind == Kind.DELETIONS and entry.visible and entry.collection == collection:
                changed[entry.uid] = entry._replace(state=State.RETIRED, retired_at=current.generation + 1)
        uid = current.node << manifest.UID_NODE_SHIFT | number
        changed[uid] = Entry(
            uid, Kind.DELETIONS, State.SEALED, 0, collection, run.first, run.extents, len(covered), 0, 0, 0, len(data)
        )
        return number + 1


def _packed(parts: list[Part], size_max: int, least: int) -> list[list[Part]]:
    """Groups whose live rows fit one merged segment each, of at least `least` parts."""
    groups: list[list[Part]] = []
    group: list[Part] = []
    size = 0
    for part in sorted(parts, key=merge.size_estimate):
        estimate = merge.size_estimate(part)
        if group and size + estimate > size_max:
            groups.append(group)
            group, size = [], 0
        group.append(part)
        size += estimate
    groups.append(group)
    return [one for one in groups if len(one) >= least]
