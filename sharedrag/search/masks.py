"""Filters over rows: a mask per segment and filter, kept and extended as the segment grows.

A sealed segment's mask comes from its columns block (`columns`). Where there is none yet, its rows are decoded once
(`columns_tail`), unless a bytes search answers the first few questions for less. Times are compared anew for each
question: "the last hour" is another moment each time.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple, TypeAlias
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sharedrag.arena.segment import Segment
from sharedrag.filters import And, Created, Filter, Not, Or, is_timed
from sharedrag.search.columns import Columns
from sharedrag.search.columns_rows import Rows, decode
from sharedrag.search.columns_tail import Tail
from sharedrag.segments.live import Part

__all__ = ["Admitted", "Mask", "Masks", "decode"]

Mask: TypeAlias = npt.NDArray[np.bool_]
Blocks: TypeAlias = Callable[[Part], Columns | None]

_MASKS_MAX = 64  # kept per segment
_TAILS_BYTES = 256 << 20  # of private columns kept per collection
_COLD_ROWS = 2048  # undecoded rows from which a bytes search may be the cheaper answer
_SCANS_BEFORE = 4  # bytes searches that cost about as much as decoding


class _Kept(NamedTuple):
    """A mask and how much of it is known; the buffer has room for the segment, so that growing copies nothing."""

    buffer: Mask
    rows: int


class _Span(NamedTuple):
    """Least and greatest `created` of the first `rows` rows."""

    rows: int
    first_us: int
    last_us: int


class _Known:
    """What this process knows of one segment's metadata."""

    __slots__ = ("masks", "scanned", "span", "tail")

    def __init__(self) -> None:
        self.masks: OrderedDict[str, _Kept] = OrderedDict()
        self.tail = Tail()
        self.span: _Span | None = None
        self.scanned = 0  # rows, by bytes searches


class Masks:
    """Which rows of which segment a filter matches; what was decoded once is not decoded again."""

    def __init__(self, blocks: Blocks | None = None) -> None:
        """Start with nothing kept. `blocks` gives the open columns block of a sealed part, None where there is none."""
        self._blocks = blocks
        self._lock = threading.Lock()
        self._segments: WeakKeyDictionary[Segment, _Known] = WeakKeyDictionary()  # gone with the last view of it

    def of(self, part: Part, wanted: Filter) -> Mask:
        """The rows of a part that match, (rows,) bool, not to be written. Raises `PoolDamaged` for metadata not JSON."""
        if not is_timed(wanted):
            return self._of_metadata(part, wanted)
        verdict = self._verdict(part, wanted)
        return self._of_timed(part, wanted) if verdict is None else np.full(part.rows, verdict)

    def may_match(self, part: Part, wanted: Filter) -> bool:
        """False if a sealed part has no match for certain, by the times of its rows alone."""
        return not is_timed(wanted) or self._verdict(part, wanted) is not False

    def after_fork_in_child(self) -> None:
        """A lock of our own."""
        self._lock = threading.Lock()

    # ------------------------------------------------------------------ times

    def _verdict(self, part: Part, wanted: Filter) -> bool | None:
        """True or False if that is the answer for every row, by their times alone."""
        match wanted:
            case Created():
                span = self._span(part)
                return None if span is None else wanted.within(span.first_us, span.last_us)
            case Not(part=inner):
                verdict = self._verdict(part, inner)
                return None if verdict is None else not verdict
            case And() | Or():
                decisive = isinstance(wanted, Or)
                verdicts = {self._verdict(part, one) for one in wanted.parts}
                return decisive if decisive in verdicts else None if None in verdicts else not decisive
        return None

    def _span(self, part: Part) -> _Span | None:
        """None for an open segment, whose rows become more."""
        if not part.sealed:
            return None
        known = self._known(part.segment)
        span = known.span
        if span is None or span.rows != part.rows:
            created = Rows(part.segment, 0, part.rows).created()
            span = known.span = _Span(part.rows, int(created.min()), int(created.max()))
        return span

    def _of_timed(self, part: Part, wanted: Filter) -> Mask:
        match wanted:
            case Created():
                return wanted.among(Rows(part.segment, 0, part.rows).created())
            case Not(part=inner):
                return ~self.of(part, inner)
            case And(parts=parts):
                return np.logical_and.reduce([self.of(part, one) for one in parts])  # type: ignore[no-any-return]
            case Or(parts=parts):
                return np.logical_or.reduce([self.of(part, one) for one in parts])  # type: ignore[no-any-return]
        return self._of_metadata(part, wanted)

    # ------------------------------------------------------------------ metadata

    def _known(self, segment: Segment) -> _Known:
        with self._lock:
            known = self._segments.get(segment)
            if known is None:
                known = self._segments[segment] = _Known()
            return known

    def _of_metadata(self, part: Part, wanted: Filter) -> Mask:
        known, key = self._known(part.segment), wanted.key()
        with self._lock:
            kept = known.masks.get(key)
            if kept is not None:
                known.masks.move_to_end(key)
        start = 0 if kept is None else kept.rows
        if kept is not None and start >= part.rows:
            return kept.buffer[: part.rows]
        fresh = self._evaluate(part, known, start, wanted)
        if kept is None:
            buffer = np.empty(part.rows if part.sealed else part.segment.shape.rows, np.bool_)
        else:
            buffer = kept.buffer  # two threads that fill the same rows write the same
        buffer[start : part.rows] = fresh
        with self._lock:
            newest = known.masks.get(key)
            if newest is None or newest.rows < part.rows:
                known.masks[key] = _Kept(buffer, part.rows)
            while len(known.masks) > _MASKS_MAX:
                known.masks.popitem(last=False)
        return buffer[: part.rows]

    def _evaluate(self, part: Part, known: _Known, start: int, wanted: Filter) -> Mask:
        """The rows [start, rows), (rows - start,) bool."""
        segment, rows = part.segment, part.rows
        if part.sealed and self._blocks is not None:
            block = self._blocks(part)
            if block is not None and block.rows == rows:
                known.tail = Tail()
                return block.mask(wanted, Rows(segment, 0, rows))[start:]
        tail = known.tail
        undecoded = rows - tail.rows
        if undecoded >= _COLD_ROWS and known.scanned < _SCANS_BEFORE * undecoded and _has_sharp_needles(wanted):
            known.scanned += rows - start
            return Rows(segment, start, rows).look(np.arange(rows - start), wanted)
        grown = tail.grown(segment, rows, decode)
        if grown.rows > known.tail.rows:
            known.tail = grown
            if grown.pieces != tail.pieces:
                self._bound_tails(known)
        return grown.mask(wanted, segment, start, rows)

    def _bound_tails(self, newest: _Known) -> None:
        """Forget other segments' private columns, greatest first, where they are too many in all."""
        with self._lock:
            others = sorted((one for one in self._segments.values() if one is not newest), key=lambda one: one.tail.size)
            size = newest.tail.size + sum(one.tail.size for one in others)
            while size > _TAILS_BYTES and others:
                greatest = others.pop()
                size -= greatest.tail.size
                greatest.tail = Tail()


class Admitted:
    """One filter's masks of a view's parts (`knn.PerPart`), each looked for when it is first asked for.

    An index that remembers what the filter admits of its rows asks for none of them.
    """

    def __init__(self, masks: Masks, parts: tuple[Part, ...], wanted: Filter) -> None:
        self._masks = masks
        self._parts = parts
        self._wanted = wanted
        self._found: dict[int, Mask] = {}

    def __getitem__(self, part: int) -> Mask:
        """Of the part at this position. Raises `PoolDamaged`."""
        found = self._found.get(part)
        if found is None:
            found = self._found[part] = self._masks.of(self._parts[part], self._wanted)
        return found


def _has_sharp_needles(wanted: Filter) -> bool:
    """Whether a bytes search would leave few rows: names of keys are in most of them."""
    return not all(needle.endswith(b'":') for needle in wanted.needles())
