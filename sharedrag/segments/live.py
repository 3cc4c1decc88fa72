"""Which rows are live: each process folds what is new into small private bitmaps, and cuts views from them.

Newest wins: of all rows with one id, the one with the greatest order key counts, and only if it is a put. Two rows with
one id are compared once, when the later-folded of them is folded; the older dies. Deletion vectors in the pool
(`deletions`) are where a new process starts, and what a merged segment is published with.

A view is one cut: the watermarks of all open segments, collected until two passes agree.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable
from contextlib import suppress
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.arena.attachment import Arena, Snapshot
from sharedrag.arena.manifest import CollectionEntry, Entry, Kind, differs
from sharedrag.arena.row import HAS_VECTOR, PUT, ROW_BITS, ROW_MASK, hashes_in, rows_in
from sharedrag.arena.segment import Segment
from sharedrag.arena.session import Pin
from sharedrag.errors import CollectionDropped, PoolClosed, PoolDamaged
from sharedrag.memory import order
from sharedrag.memory.layout import EXTENT_SIZE
from sharedrag.segments import deletions, probe
from sharedrag.segments.fresh import Folded, Fresh, Run, in_pieces

_CUT_ATTEMPTS = 16
_JOINED_FROM, _JOINED_SHARE = 20_000, 4  # new rows, and their part of all, from which all hashes are sorted instead
_TOGETHER_FROM = 100  # new rows from which they are compared with a segment all at once
_VECTORISED_FROM = 12  # rows from which NumPy beats the plain loop


class Part(NamedTuple):
    """One segment as of a view: its first `rows` rows, of which `alive` (rows-long prefix) counts."""

    segment: Segment
    node: int
    rows: int
    alive: npt.NDArray[np.bool_]
    dead: int
    without_vector: int
    sealed: bool
    blocks: dict[int, tuple[int, Entry]]  # what was derived from the segment: (node, entry) by kind


class View(NamedTuple):
    """One cut through a collection; what it shows stays as it is while `pin` lives."""

    parts: tuple[Part, ...]
    live: int
    version: int
    pin: Pin
    indexes: tuple[tuple[int, Entry], ...]  # (node, entry) of each index blob


def _part_of(state: Folded) -> Part:
    """The segment as of now; kept until it changes."""
    alive = state.alive[: state.rows]
    state.copied = False
    state.part = Part(
        state.segment, state.node, state.rows, alive, state.dead, state.without_vector, state.sealed, state.blocks
    )
    return state.part


class LiveRows:
    """The live rows of one collection, as this process knows them."""

    def __init__(self, arena: Arena, name: str, expected: CollectionEntry | None = None) -> None:
        """Start with nothing; the first `acquire` reads the manifests. Another definition than `expected` is refused."""
        self._arena = arena
        self._name = name
        self._expected = expected
        self.lock = threading.RLock()
        self._snapshot: Snapshot | None = None
        self._states: dict[int, Folded] = {}
        self._open: list[Folded] = []
        self._cut: list[int] = []
        self._live = 0
        self._version_base = 0
        self._begun = 0  # cuts
        self._readers = 0
        self._readers_lock = threading.Lock()  # its own: who has read does not wait for another thread's fold
        self._view: View | None = None
        self._indexes: tuple[tuple[int, Entry], ...] = ()
        self.definition: CollectionEntry | None = None

    def acquire(self) -> View:
        """The newest view; every `acquire` wants its `release`. Raises `PoolDamaged`, `CollectionDropped`."""
        begun = self._begun
        with self.lock:
            view = self._newest(begun)
            with self._readers_lock:
                self._readers += 1
            return view

    def release(self) -> None:
        """The view is no longer read; its bitmaps may change in place again."""
        with self._readers_lock:
            self._readers -= 1

    def counts(self) -> tuple[int, int]:
        """(live rows, version) of the newest view."""
        begun = self._begun
        with self.lock:
            view = self._newest(begun)
            return view.live, view.version

    def move_on(self) -> None:
        """Bring a view that is kept to the newest manifests, so that it pins nothing old; forget what cannot be read."""
        if self._view is None or self._snapshot is self._arena.current:
            return
        with self.lock, suppress(CollectionDropped, PoolClosed, PoolDamaged):  # who reads next will be told
            self._catch_up()

    def after_fork_in_child(self) -> None:
        """New lock; no reader of the parent's lives here."""
        self.lock = threading.RLock()
        self._readers_lock = threading.Lock()
        self._readers = 0

    # ------------------------------------------------------------------ catching up

    def _newest(self, begun: int) -> View:
        """A view of what was there when so many cuts had been begun, or later. REQUIRES: the lock.

        Where another thread began one while this one waited for the lock, that is new enough: else threads that wait would
        fold one after the other.
        """
        if self._begun == begun or self._view is None:
            self._catch_up()
        assert self._view is not None
        return self._view

    def _catch_up(self) -> None:
        self._begun += 1
        try:
            for _ in range(_CUT_ATTEMPTS):
                snapshot = self._arena.refresh()
                changed = snapshot is not self._snapshot
                if changed:
                    self._adopt(snapshot)
                cut = self._collect_cut()
                if self._arena.refresh() is snapshot:
                    break  # else a segment is new, which may have what rows of this cut answer
            if cut == self._cut and not changed:
                return
            self._fold_to(cut, everywhere=changed)
        except BaseException:
            self._forget()
            raise
        self._cut = cut
        self._view = self._cut_view(snapshot.pin)

    def _forget(self) -> None:
        """Start over next time: what failed half-way knows nothing for certain."""
        self._snapshot = None
        self._states, self._open, self._cut = {}, [], []
        self._live = 0
        self._view = None

    def _collect_cut(self) -> list[int]:
        words = self._arena.region.words
        indexes = [state.segment.watermark_index for state in self._open]
        cut = [words[index] for index in indexes]
        for _ in range(_CUT_ATTEMPTS):
            again = [words[index] for index in indexes]
            if again == cut:
                break
            cut = again
        return cut

    def _cut_view(self, pin: Pin) -> View:
        published = self._version_base
        parts = []
        for state in self._states.values():
            published += state.rows
            if state.rows:
                parts.append(state.part or _part_of(state))
        return View(tuple(parts), self._live, published, pin, self._indexes)

    def _adopt(self, snapshot: Snapshot) -> None:
        listed: dict[int, tuple[int, Entry]] = {}
        blocks: list[tuple[int, Entry]] = []
        indexes: list[tuple[int, Entry]] = []
        derived: dict[int, dict[int, tuple[int, Entry]]] = {}
        definition, retired, made = None, 0, 0
        for one in snapshot.manifests:
            found = one.collection(self._name)
            if found is None:
                continue
            definition = definition or found
            retired += found.rows_retired
            made = max(made, found.created_us)  # made anew with as many rows, it is another version nonetheless
            for entry in one.entries:
                if entry.collection == found.number and entry.visible:
                    if entry.kind == Kind.SEGMENT:
                        listed[entry.uid] = (one.node, entry)
                    elif entry.kind == Kind.DELETIONS:
                        blocks.append((one.node, entry))
                    elif entry.kind == Kind.INDEX:
                        indexes.append((one.node, entry))
                    else:
                        derived.setdefault(entry.of, {})[entry.kind] = (one.node, entry)
        if definition is None:
            raise CollectionDropped(
                f"collection {self._name!r} was dropped",
                operation="read",
                path=self._arena.path,
                hint="Call `pool.collection(...)` again to make it anew",
            )
        if self._expected is not None and differs(self._expected, definition):
            raise CollectionDropped(
                f"collection {self._name!r} was dropped and made anew with another definition",
                operation="read",
                path=self._arena.path,
                hint="Call `pool.collection(...)` again",
            )
        self.definition = definition
        self._replace_states(listed, blocks)
        for uid, state in self._states.items():
            state.blocks = derived.get(uid, {})
            state.part = None
        self._version_base = made + retired
        self._indexes = tuple(indexes)
        self._snapshot = snapshot

    def _replace_states(self, listed: dict[int, tuple[int, Entry]], blocks: list[tuple[int, Entry]]) -> None:
        for uid in [uid for uid in self._states if uid not in listed]:
            state = self._states.pop(uid)
            self._live -= state.rows - state.dead
        known = list(self._states.values())
        fresh: list[Folded] = []
        for uid, (node, entry) in listed.items():
            if uid not in self._states:
                self._states[uid] = Folded(self._arena.segment(node, entry), node, entry)
                fresh.append(self._states[uid])
            self._states[uid].entry = entry
        self._open = [state for state in self._states.values() if not state.sealed]
        if any(state.sealed for state in fresh):
            for node, entry in blocks:
                try:
                    covered = self._read_block(node, entry)
                except PoolDamaged:
                    continue  # only a head start is lost: the rows themselves tell which of them are dead
                known += self._start_from(covered, fresh, known)

    def _read_block(self, node: int, entry: Entry) -> dict[int, deletions.Covered]:
        offset = self._arena.geometry.extent_offset(node, entry.first_extent)
        return deletions.decode(self._arena.region, offset, entry.extents * EXTENT_SIZE)

    def _start_from(self, covered: dict[int, deletions.Covered], fresh: list[Folded], known: list[Folded]) -> list[Folded]:
        """Start segments new to us from a block; returns them. REQUIRES: each row of `known` was compared with the others.

        The block compared all rows below its cut with each other. What remains are the rows that we know beyond its cut.
        """
        started = []
        for state in fresh:
            one = covered.get(state.segment.uid)
            if one is not None and state.rows == 0 and 0 < one.rows <= state.segment.watermark():
                self._admit(state, 0, one.rows)
                state.fold_to(one.rows)
                started.append(state)
        for uid, one in covered.items():
            if uid in self._states:
                state = self._states[uid]
                rows = min(one.rows, state.rows)
                self._kill_all(state, np.flatnonzero(one.dead[:rows]))
        for other in known:
            since = covered[other.segment.uid].rows if other.segment.uid in covered else 0
            if since < other.rows:
                beyond = Fresh.of([(other, since, other.rows)], None)
                for state in started:
                    self._compare(beyond, state)
        return started

    # ------------------------------------------------------------------ folding

    def _fold_to(self, cut: list[int], *, everywhere: bool) -> None:
        """Count in what is new up to the cut: in open segments, or `everywhere` after a change of the manifests."""
        fresh = self._runs_to(cut, self._states.values() if everywhere else self._open)
        for runs, _ in in_pieces(fresh):
            for state, start, stop in runs:
                self._admit(state, start, stop)
        others = list(self._states.values())
        total = sum(stop - start for _, start, stop in fresh)
        if total < _TOGETHER_FROM:
            for state, start, stop in fresh:
                for row in range(start, stop):
                    self._compare_row(state, row, others)
            return
        repeated = self._repeated(total)
        for runs, large in in_pieces(fresh):
            piece = Fresh.of(runs, repeated if large else None)
            for other in others:
                self._compare(piece, other)

    def _runs_to(self, cut: list[int], states: Iterable[Folded]) -> list[Run]:
        """The rows of these segments up to the cut that are new; from now on they count as folded."""
        runs = []
        rows_now = {id(state): state.segment.rows_of(word) for state, word in zip(self._open, cut, strict=True)}
        for state in states:
            rows = rows_now.get(id(state), state.entry.rows)
            if rows > state.segment.shape.rows:
                raise state.segment.damaged("more rows than there is room for", "flags")
            if rows < state.rows:
                raise PoolDamaged(
                    f"the watermark of segment {state.segment.uid:#x} went back",
                    offset=state.segment.watermark_index << 3,
                    operation="read",
                    path=self._arena.path,
                )
            if rows > state.rows:
                runs.append((state, state.rows, rows))
                state.fold_to(rows)
        return runs

    def _repeated(self, fresh: int) -> npt.NDArray[np.uint64] | None:
        """The hashes that more than one row has, rising, if looking at them all costs less than each row in each segment."""
        total = sum(state.rows for state in self._states.values())
        if fresh < _JOINED_FROM or len(self._states) < 2 or fresh * _JOINED_SHARE < total:
            return None
        states = self._states.values()
        hashes = np.concatenate([hashes_in(probe.checked_links(state.segment, 0, state.rows)) for state in states])
        hashes.sort()
        again: npt.NDArray[np.uint64] = hashes[1:][hashes[1:] == hashes[:-1]]
        return again

    def _admit(self, state: Folded, start: int, stop: int) -> None:
        """Count the rows [start, stop) in, after a look at whether they can be what they claim."""
        segment = state.segment
        if stop - start < _VECTORISED_FROM:
            for row in range(start, stop):
                flags = segment.flags_at(row)
                if row and segment.key[row] <= segment.key[row - 1]:
                    raise segment.damaged("order keys do not increase", "key", row)
                segment.check_id(row)
                self._count_in(state, row, row + 1, int(not flags & PUT), int(not flags & HAS_VECTOR))
            return
        segment.check_flags(slice(start, stop))
        flags_array = segment.flags_array[start:stop]
        keys = segment.key_array[max(0, start - 1) : stop]
        if not (keys[1:] > keys[:-1]).all():
            raise segment.damaged("order keys do not increase", "key", start)
        deleted = (flags_array & PUT) == 0
        self._count_in(state, start, stop, int(deleted.sum()), int(((flags_array & HAS_VECTOR) == 0).sum()), deleted)

    def _count_in(
        self,
        state: Folded,
        start: int,
        stop: int,
        tombstones: int,
        without_vector: int,
        deleted: npt.NDArray[np.bool_] | None = None,
    ) -> None:
        state.without_vector += without_vector
        self._live += stop - start - tombstones
        if tombstones:
            state.dead += tombstones
            state.alive[start:stop] = False if deleted is None else ~deleted

    def _kill(self, state: Folded, row: int) -> None:
        if not state.alive[row]:
            return
        self._before_change(state)
        state.alive[row] = False
        state.dead += 1
        self._live -= 1

    def _kill_all(self, state: Folded, rows: npt.NDArray[np.int64]) -> None:
        rows = rows[state.alive[rows]]
        if rows.size:
            distinct = len(set(rows.tolist()))
            self._before_change(state)
            state.alive[rows] = False
            state.dead += distinct
            self._live -= distinct

    def _before_change(self, state: Folded) -> None:
        state.part = None
        if self._readers and not state.copied:
            state.alive = state.alive.copy()  # somebody is reading the old cut's
            state.copied = True

    def _compare(self, fresh: Fresh, other: Folded) -> None:
        """Of each id that both the rows of `fresh` and the rows of `other` have, kill the older."""
        if not other.rows or not len(fresh.rows):
            return
        firsts = np.empty(len(fresh.rows), np.int64)
        for state, start, stop in fresh.pieces:
            if state is other:  # the row before it in its own chain
                firsts[start:stop] = rows_in(fresh.links[start:stop])
            else:
                firsts[start:stop] = probe.heads_below(other.segment, fresh.hashes[start:stop], other.rows, other.heads)
        found, found_rows = probe.matches(other.segment, fresh.hashes, firsts)
        if not found.size:
            return
        unsure = np.zeros(len(fresh.rows), np.bool_)
        for state, start, stop in fresh.pieces:
            here = np.flatnonzero((found >= start) & (found < stop))
            if here.size:
                at, there = found[here], found_rows[here]
                rows = fresh.rows[at]
                same = probe.same_ids(state.segment, rows, other.segment, there)
                unsure[at[~same]] = True
                self._settle_all(state, rows[same], other, there[same])
            for index in (np.flatnonzero(unsure[start:stop]) + start).tolist():
                row = int(fresh.rows[index])
                state.segment.check_id(row)
                limit = row if other is state else other.rows
                found_row = other.segment.lookup(state.segment.id_at(row), int(fresh.hashes[index]), limit)
                self._settle(state, row, other, found_row)

    def _compare_row(self, state: Folded, row: int, others: list[Folded]) -> None:
        """Of the id of a row, and the same id in each of `others`, kill the older."""
        segment = state.segment
        link = segment.link[row]
        if not order.is_checked(link):
            raise segment.damaged("a link fails its check", "link", row)
        hashed = (link & order.VALUE_MASK) >> ROW_BITS
        encoded_id = segment.id_at(row)
        for other in others:
            if other is state:
                first = (link & ROW_MASK) - 1  # the row before it in its own chain
            elif other.segment.may_have(hashed, other.rows):
                first = other.head_of(hashed)
            else:
                continue
            self._settle(state, row, other, other.segment.lookup_from(first, encoded_id, hashed))

    def _settle(self, state: Folded, row: int, other: Folded, found: int) -> None:
        if found < 0:
            return
        other.segment.flags_at(found)  # its key decides now, and it may be long since that was looked at
        if other.segment.key[found] < state.segment.key[row]:
            self._kill(other, found)
        else:
            self._kill(state, row)

    def _settle_all(self, state: Folded, rows: npt.NDArray[np.int64], other: Folded, found: npt.NDArray[np.int64]) -> None:
        other.segment.check_flags(found)
        older = other.segment.key_array[found] < state.segment.key_array[rows]
        self._kill_all(other, found[older])
        self._kill_all(state, rows[~older])

    # ------------------------------------------------------------------ for the maintainer

    def acquire_covered(self) -> tuple[View, dict[int, deletions.Covered]]:
        """`acquire`, and what is known at that very cut, as a block of deletion vectors would carry it."""
        with self.lock:
            view = self.acquire()
            known = self._states.items()
            return view, {uid: deletions.Covered(one.rows, ~one.alive[: one.rows]) for uid, one in known if one.rows}
