"""What maintenance derives from segments so that questions need not look at all of them: columns, postings, indexes.

A block is built in three steps, and a process killed in between leaves nothing: its extents are taken and the manifest
says "building"; it is written, while nobody waits; the manifest shows it, and retires what it replaces.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag import faults
from sharedrag.arena import block, extents, manifest
from sharedrag.arena.attachment import Arena
from sharedrag.arena.block import Buffers
from sharedrag.arena.extents import Purpose
from sharedrag.arena.manifest import CollectionEntry, Entry, Kind, Manifest, State
from sharedrag.arena.row import HAS_METADATA, HAS_TEXT, HAS_VECTOR, PUT
from sharedrag.arena.segment import Segment
from sharedrag.errors import PoolDamaged, PoolFull
from sharedrag.info import MaintenanceReport
from sharedrag.maintenance.budget import Budget
from sharedrag.memory.layout import EXTENT_SIZE
from sharedrag.search import columns, coverage, ivf_build, terms
from sharedrag.search.coverage import Range
from sharedrag.search.ivf_layout import IndexInvalid, Settings, unpack
from sharedrag.search.ivf_rows import Rows
from sharedrag.segments.live import Part, View

_DERIVED_FROM = 1000  # rows of a sealed segment from which its blocks are worth an extent each
_FIRST_ROWS = 2500  # rows up to which looking at all of them is as fast as asking an index and reading what it names
_TAIL_ROWS = 300  # the same beside an index, where writers go on: as many more come while it is built
_TAIL_SHARE = 128  # or this part of an index that is written anew for them
_REWRITTEN_ROWS = 150_000  # rows up to which the main index takes new ones in itself: to write 72 B each anew takes 20 ms
_RECENT_GROWTH = 3.0  # lists of an index over recent rows are made for as many times the rows: it grows to four times
_MAIN_SHARE = 8  # part of a larger one up to which an index over recent rows grows before the main one takes them
_COLUMNS_US, _TERMS_US, _TRAIN_US, _ADD_US = 2.0, 10.0, 20.0, 15.0  # processor time a row, about: it only spaces the work
_MILLION = 1_000_000

Mask = npt.NDArray[np.bool_]


class Reserved(NamedTuple):
    """A block that is being built: its entry as the manifest has it."""

    entry: Entry
    size: int


class _Known(NamedTuple):
    """An index of this node, as its block tells."""

    entry: Entry
    ranges: list[Range]
    payload: block.Payload
    settings: Settings


class Deriver:
    """Builds blocks of this process's node. REQUIRES: the maintenance lock."""

    def __init__(self, arena: Arena) -> None:
        """For the node that the arena is attached as."""
        self._arena = arena

    # ------------------------------------------------------------------ for each segment

    def tend(self, name: str, view: View, budget: Budget | None, report: MaintenanceReport) -> None:
        """Build what is missing, or what of it the budget affords. Raises `PoolDamaged`, `PoolBusy`."""
        own = [part for part in view.parts if part.node == self._arena.node]
        if any(part.segment.shape.dimension for part in own):  # first: what has no index, every question looks at
            self._tend_index(name, view, own, budget, report)
        for part in own:
            if not part.sealed or part.rows < _DERIVED_FROM:
                continue
            for kind, flag, cost_us, build, opened in (
                (Kind.COLUMNS, HAS_METADATA, _COLUMNS_US, _columns, columns.Columns.open),
                (Kind.TERMS, HAS_TEXT, _TERMS_US, _terms, terms.Terms.open),
            ):
                if kind == Kind.TERMS and not part.segment.shape.dimension:
                    continue
                there = part.blocks.get(kind)
                if there is not None and self._is_sound(*there, opened):
                    continue
                if not _has(part, flag):
                    continue
                if not _affords(budget, part.rows * cost_us, report):
                    return
                report.blocks_built += self._derive(name, part, kind, build, [] if there is None else [there[1].uid])

    def _is_sound(self, node: int, entry: Entry, opened: Callable[[block.Payload], object]) -> bool:
        """Whether a block can be used; one that was damaged, or made by other rules, is made anew."""
        try:
            return opened(self._arena.block(node, entry)) is not None
        except (PoolDamaged, ValueError):
            return False

    def _derive(
        self, name: str, part: Part, kind: Kind, build: Callable[[Segment, int], Buffers], replaced: list[int]
    ) -> bool:
        """Whether there was room for it, and its segment is still there."""
        built = build(part.segment, part.rows)
        reserved = self.reserve(name, kind, built, rows=part.rows, of=part.segment.uid)
        return reserved is not None and self._publish(name, reserved, [part.segment.uid], replaced)

    # ------------------------------------------------------------------ blocks

    def reserve(self, name: str, kind: Kind, buffers: Buffers, **fields: int) -> Reserved | None:
        """Take extents, announce the block and write it; None when there is no room for it now."""
        arena = self._arena
        size = block.size_of(buffers)
        wanted = -(-size // EXTENT_SIZE)
        with arena.node_locked("maintain") as current:
            assert current is not None
            definition = current.collection(name)
            spare = extents.free_extents(current, arena.geometry) - 2 * arena.geometry.extents_kept_back
            if definition is None or wanted > spare:
                return None
            try:
                run = extents.take(arena.region, current, arena.geometry, wanted, wanted, Purpose.BLOCK)
            except PoolFull:
                return None
            uid = current.node << manifest.UID_NODE_SHIFT | current.next_number
            empty = Entry(uid, kind, State.BUILDING, 0, definition.number, run.first, run.extents, 0, 0, 0, 0, size)
            entry = empty._replace(**fields)
            arena.publish(current.with_entries({uid: entry}, next_number=current.next_number + 1))
        faults.passing("block.building")
        block.write(arena.region, arena.geometry.extent_offset(arena.node, run.first), kind, uid, buffers)
        faults.passing("block.written")
        return Reserved(entry, size)

    def _publish(self, name: str, reserved: Reserved, sources: list[int], replaced: list[int]) -> bool:
        """Show a block, and retire those it replaces, unless a source is gone meanwhile."""
        with self._arena.node_locked("maintain") as current:
            assert current is not None
            changed: dict[int, Entry | None] = {}
            if current.collection(name) is not None and _all_visible(current, [*sources, *replaced]):
                changed = self.shown(current, reserved, replaced)
            else:
                changed[reserved.entry.uid] = None
            self._arena.publish(current.with_entries(changed))
        faults.passing("block.published")
        return changed[reserved.entry.uid] is not None

    def _retire(self, uids: list[int]) -> None:
        """Retire blocks that nothing replaces."""
        with self._arena.node_locked("maintain") as current:
            assert current is not None
            still = [uid for uid in uids if _all_visible(current, [uid])]
            if still:
                self._arena.publish(current.with_entries(self.shown(current, None, still)))

    @staticmethod
    def shown(current: Manifest, reserved: Reserved | None, replaced: list[int]) -> dict[int, Entry | None]:
        """The entries that change when a block is shown and others go."""
        changed: dict[int, Entry | None] = {
            uid: current.by_uid[uid]._replace(state=State.RETIRED, retired_at=current.generation + 1) for uid in replaced
        }
        if reserved is not None:
            changed[reserved.entry.uid] = reserved.entry._replace(state=State.SEALED)
        return changed

    # ------------------------------------------------------------------ indexes

    def _indexes(self, name: str) -> tuple[list[_Known], list[int]]:
        """This node's indexes of a collection, the largest first; and the uids of damaged ones."""
        current = self._arena.refresh().manifests[self._arena.node]
        definition = current.collection(name)
        found, damaged = [], []
        for entry in current.entries:
            if definition and entry.kind == Kind.INDEX and entry.visible and entry.collection == definition.number:
                try:
                    ranges, payload = coverage.decode(self._arena.block(self._arena.node, entry))
                    found.append(_Known(entry, ranges, payload, unpack(payload)[0]))
                except (PoolDamaged, IndexInvalid, ValueError):
                    damaged.append(entry.uid)
        return sorted(found, key=lambda one: -one.settings.indexed), damaged

    def _tend_index(self, name: str, view: View, own: list[Part], budget: Budget | None, report: MaintenanceReport) -> None:
        """Keep one index, or two: a large main one, and one over what came since, which it takes in when that has grown."""
        parts = {part.segment.uid: part for part in own if part.segment.shape.dimension}
        definition = self._arena.refresh().manifests[self._arena.node].collection(name)
        if definition is None:
            return
        target = definition.recall_target
        sound, useless = self._indexes(name)
        known = [one for one in sound if all(_within(parts, piece) for piece in one.ranges)]
        useless += [one.entry.uid for one in sound if one not in known]
        fresh = _uncovered(parts, [piece for one in known for piece in one.ranges])
        pending = _live(parts, fresh)
        stale = [one for one in known if ivf_build.outgrown(one.settings, _live(parts, one.ranges))]
        stale = [one for one in stale if one.entry.target_millionths != round(target * _MILLION) or _resized(one, parts)]
        main = known[0] if known else None
        if pending < _worthwhile(main) and not stale and not useless:
            return
        recent = known[1:]
        rows_recent = sum(one.settings.rows for one in recent) + pending
        takes_in = main is not None and (
            main.settings.rows <= _REWRITTEN_ROWS or rows_recent > main.settings.rows // _MAIN_SHARE
        )
        base: _Known | None
        recent_only = False
        if main is None or stale or (takes_in and ivf_build.outgrown(main.settings, main.settings.rows + rows_recent)):
            base, ranges, replaced = None, coverage.joined([*_all(known), *fresh]), known
        elif takes_in:
            base, ranges, replaced = main, coverage.joined([*_all(recent), *fresh]), known
        else:
            recent_only = True
            grown = len(recent) == 1 and not ivf_build.outgrown(recent[0].settings, rows_recent)
            base = recent[0] if grown else None
            ranges = fresh if grown else coverage.joined([*_all(recent), *fresh])
            replaced = recent
        rows = sum(piece.rows for piece in ranges)
        if not _affords(budget, rows * (_TRAIN_US if base is None else _ADD_US), report):
            return
        report.blocks_built += self._build_index(
            definition,
            parts,
            base,
            ranges,
            [*(one.entry.uid for one in replaced), *useless],
            _RECENT_GROWTH if recent_only else 1.0,
            1 if budget else os.cpu_count() or 1,
        )

    def _build_index(
        self,
        definition: CollectionEntry,
        parts: dict[int, Part],
        base: _Known | None,
        ranges: list[Range],
        replaced: list[int],
        growth: float,
        threads: int,
    ) -> bool:
        """Whether there was enough to index, and room for it; else what it should replace is retired."""
        whole = [*base.ranges, *ranges] if base else ranges
        vectors = [parts[one.uid].segment.vectors_array[one.start : one.start + one.rows] for one in whole]
        rows = Rows(vectors, definition.metric)
        leave_out = np.concatenate([~_indexable(parts[one.uid])[one.start : one.start + one.rows] for one in whole])
        if base is not None:
            built = ivf_build.extended(base.payload, rows, leave_out=leave_out, threads=threads)
        else:
            made = ivf_build.build(
                rows, leave_out=leave_out, recall_target=definition.recall_target, growth=growth, threads=threads
            )
            if made is None:
                self._retire(replaced)
                return False
            built = made
        payload = coverage.encode(whole, built.payload)
        reserved = self.reserve(definition.name, Kind.INDEX, payload, **_fields(built.settings))
        return reserved is not None and self._publish(definition.name, reserved, [one.uid for one in whole], replaced)

    def follow_merge(
        self, name: str, group: list[Part], merged: Segment | None, kept: int
    ) -> list[tuple[int, Reserved | None]]:
        """For each index over segments of the group, (its uid, one to take its place when they are replaced, or None).

        That which covers most of the group covers the merged segment: rows keep their order keys, by which they are found
        again, and those that it did not have are added. The others lose the group's rows.
        """
        gone = {part.segment.uid: part for part in group}
        sound, damaged = self._indexes(name)
        following: list[tuple[int, Reserved | None]] = [(uid, None) for uid in damaged]
        touched = [one for one in sound if any(piece.uid in gone for piece in one.ranges)]
        heir = max(touched, key=lambda one: sum(piece.rows for piece in one.ranges if piece.uid in gone), default=None)
        for one in touched:
            ranges = [piece for piece in one.ranges if piece.uid not in gone]
            base = sum(piece.rows for piece in ranges)
            inherits = merged is not None and one is heir
            mapping = _renumbering(one, gone, merged if inherits else None, kept)
            more = None
            if merged is not None and inherits:
                ranges.append(Range(merged.uid, 0, kept))
                fresh = (merged.flags_array[:kept] & (PUT | HAS_VECTOR)) == PUT | HAS_VECTOR
                fresh[mapping[mapping >= base] - base] = False
                vectors = Rows([merged.vectors_array[:kept]], one.settings.metric)
                more = ivf_build.More(vectors, base, np.flatnonzero(fresh))
            reserved = None
            if ranges and (mapping >= 0).any():
                built = ivf_build.renumbered(one.payload, mapping, sum(piece.rows for piece in ranges), more)
                fields = _fields(built.settings)
                reserved = self.reserve(name, Kind.INDEX, coverage.encode(ranges, built.payload), **fields)
            following.append((one.entry.uid, reserved))
        return following


def _renumbering(one: _Known, gone: dict[int, Part], merged: Segment | None, kept: int) -> npt.NDArray[np.int64]:
    """For each internal id of an index the new one, -1 for none: first the ranges that stay, then the merged segment."""
    mapping = np.full(one.settings.rows, -1, np.int64)
    base = sum(piece.rows for piece in one.ranges if piece.uid not in gone)
    at, stays = 0, 0
    for piece in one.ranges:
        into = mapping[at : at + piece.rows]
        at += piece.rows
        if piece.uid not in gone:
            into[:] = np.arange(stays, stays + piece.rows)
            stays += piece.rows
        elif merged is not None:
            into[:] = _moved(gone[piece.uid].segment.key_array[piece.start : piece.start + piece.rows], merged, kept)
            into[into >= 0] += base
    return mapping


def _moved(keys: npt.NDArray[np.uint64], merged: Segment, kept: int) -> npt.NDArray[np.int64]:
    """The rows of a merged segment that have these order keys, -1 where it has none."""
    there = merged.key_array[:kept]
    rows = there.searchsorted(keys)
    np.minimum(rows, kept - 1, out=rows)
    found: npt.NDArray[np.int64] = np.where(there[rows] == keys, rows, -1)
    return found


def _columns(segment: Segment, rows: int) -> Buffers:
    return [columns.build(segment, rows)]


def _terms(segment: Segment, rows: int) -> Buffers:
    return [terms.build(segment, rows)]


def _has(part: Part, flag: int) -> bool:
    return bool((part.segment.flags_array[: part.rows] & flag).any())


def _indexable(part: Part) -> Mask:
    """Which rows of a part belong in an index, (rows,) bool."""
    found: Mask = part.alive
    if part.without_vector:
        found = found & ((part.segment.flags_array[: part.rows] & HAS_VECTOR) != 0)
    return found


def _affords(budget: Budget | None, cost_us: float, report: MaintenanceReport) -> bool:
    if budget is None or budget.affords(cost_us / _MILLION):
        return True
    report.postponed += 1
    return False


def _all_visible(current: Manifest, uids: list[int]) -> bool:
    return all((entry := current.by_uid.get(uid)) is not None and entry.visible for uid in uids)


def _within(parts: dict[int, Part], piece: Range) -> bool:
    return piece.uid in parts and piece.start + piece.rows <= parts[piece.uid].rows


def _worthwhile(main: _Known | None) -> int:
    """How many rows without an index are worth one."""
    if main is None:
        return _FIRST_ROWS
    rows = main.settings.rows
    return max(_TAIL_ROWS, rows // _TAIL_SHARE) if rows <= _REWRITTEN_ROWS else _TAIL_ROWS


def _all(known: list[_Known]) -> list[Range]:
    return [piece for one in known for piece in one.ranges]


def _uncovered(parts: dict[int, Part], ranges: list[Range]) -> list[Range]:
    """The rows of the parts that no range has, as ranges."""
    found = []
    for uid, part in parts.items():
        at = 0
        for piece in sorted(one for one in ranges if one.uid == uid):
            if piece.start > at:
                found.append(Range(uid, at, piece.start - at))
            at = max(at, piece.start + piece.rows)
        if at < part.rows:
            found.append(Range(uid, at, part.rows - at))
    return found


def _live(parts: dict[int, Part], ranges: list[Range]) -> int:
    return sum(int(_indexable(parts[one.uid])[one.start : one.start + one.rows].sum()) for one in ranges)


def _resized(one: _Known, parts: dict[int, Part]) -> bool:
    """Whether an index has far more or fewer live rows than it was made for."""
    live = _live(parts, one.ranges)
    return not one.settings.trained / ivf_build.GROWTH_MAX <= live <= one.settings.trained * ivf_build.GROWTH_MAX


def _fields(settings: Settings) -> dict[str, int]:
    """What the manifest says of an index."""
    return {
        "rows": settings.indexed,
        "nprobe": settings.nprobe,
        "candidates": settings.candidates,
        "recall_millionths": round(settings.recall * _MILLION),
        "target_millionths": round(settings.recall_target * _MILLION),
    }
