"""What a fold works on: a segment as this process knows it, and the rows of it that are new."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag import turns
from sharedrag.arena.manifest import Entry, State
from sharedrag.arena.row import hashes_in
from sharedrag.arena.segment import Segment
from sharedrag.segments import probe

if TYPE_CHECKING:
    from sharedrag.segments.live import Part

_SMALL, _FIRST, _LARGE = 480, 4000, 50_000  # rows in a piece: beside busy threads, to try it, and at most
_SMALL_AT_A_TIME = 16  # before the next look at what other threads do
_WORTH_A_LOOK = 1000  # rows


class Folded:
    """What this process knows of one segment."""

    __slots__ = ("alive", "blocks", "copied", "dead", "entry", "heads", "node", "part", "rows", "segment", "without_vector")

    def __init__(self, segment: Segment, node: int, entry: Entry) -> None:
        self.segment = segment
        self.node = node
        self.entry = entry
        self.rows = 0  # folded
        self.heads: dict[int, int] = {}  # of some buckets the newest row among these; their heads may be newer
        self.alive = np.ones(segment.shape.rows, np.bool_)
        self.dead = 0
        self.without_vector = 0
        self.copied = False
        self.blocks: dict[int, tuple[int, Entry]] = {}
        self.part: Part | None = None  # as the last view has it, while nothing changed

    def fold_to(self, rows: int) -> None:
        """From now on so many rows count as folded."""
        self.rows = rows
        self.heads = {}
        self.part = None

    def head_of(self, hashed: int) -> int:
        """The newest folded row in a hash's bucket, -1 for none. Raises `PoolDamaged`."""
        bucket = hashed & self.segment.bucket_mask
        found = self.heads.get(bucket)
        if found is None:
            found = self.heads[bucket] = self.segment.head_below(bucket, self.rows)
        return found

    @property
    def sealed(self) -> bool:
        """Whether it grows no more."""
        return self.entry.state == State.SEALED


Run = tuple[Folded, int, int]  # of a segment the rows from one to another


class Fresh(NamedTuple):
    """Rows that are to be compared with others, of several segments one after the other: (n,) arrays."""

    pieces: list[Run]  # whose rows those from one place to another are
    rows: npt.NDArray[np.int64]
    links: npt.NDArray[np.uint64]
    hashes: npt.NDArray[np.uint64]

    @classmethod
    def of(cls, runs: list[Run], repeated: npt.NDArray[np.uint64] | None) -> Fresh:
        """The rows of these runs; with `repeated`, those with one of these rising hashes."""
        pieces, rows, links = [], [np.empty(0, np.int64)], [np.empty(0, np.uint64)]
        at = 0
        for state, start, stop in runs:
            words = probe.checked_links(state.segment, start, stop)
            numbers = np.arange(start, stop)
            if repeated is not None:
                chosen = _are_among(hashes_in(words), repeated)
                words, numbers = words[chosen], numbers[chosen]
            pieces.append((state, at, at + len(numbers)))
            at += len(numbers)
            rows.append(numbers)
            links.append(words)
        all_links = np.concatenate(links)
        return cls(pieces, np.concatenate(rows), all_links, hashes_in(all_links))


def _are_among(hashes: npt.NDArray[np.uint64], rising: npt.NDArray[np.uint64]) -> npt.NDArray[np.bool_]:
    """Which of the hashes are among those others, (n,) bool."""
    if not len(rising):
        return np.zeros(len(hashes), np.bool_)
    at = np.minimum(rising.searchsorted(hashes), len(rising) - 1)
    there: npt.NDArray[np.bool_] = rising[at] == hashes
    return there


def in_pieces(runs: list[Run]) -> Iterator[tuple[list[Run], bool]]:
    """The same rows in pieces as large as other threads of this process let them be, and whether each is a large one.

    For arrays of more than 500 elements NumPy gives the interpreter's lock up, hundreds of times in a fold, and a thread
    that writes in plain Python then keeps it for 5 ms each time: a fold of 80 ms was seen to take 8 s. Beside busy threads
    the pieces are so small that this one keeps its share; that takes, at 5,000 rows, four times the processor time. Where
    a look does not show them, a piece that takes far longer than its work does; hence pieces begin small.
    """
    total = sum(stop - start for _, start, stop in runs)
    at, large = 0, _FIRST
    while at < total:
        small = total - at > _SMALL and (total < _WORTH_A_LOOK or turns.others_are_busy())
        size, count = (_SMALL, _SMALL_AT_A_TIME) if small else (large, 1)
        turn = turns.Turn() if total >= _WORTH_A_LOOK else None
        for _ in range(count):
            if at < total:
                yield _cut(runs, at, at + size), not small
                at += size
        if turn is not None:
            turn.end()
        large = _FIRST if small else min(4 * large, _LARGE)


def _cut(runs: list[Run], start: int, stop: int) -> list[Run]:
    piece = []
    for state, first, last in runs:
        if start < last - first and stop > 0:
            piece.append((state, first + max(start, 0), min(last, first + stop)))
        start, stop = start - (last - first), stop - (last - first)
    return piece
