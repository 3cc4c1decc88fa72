"""Postings of the rows that no block of the arena covers yet, made once in each process and extended as a segment grows.

The newest rows (at most 512) are in a plain dictionary, which takes a row in some microseconds. What is older is in
`Postings`, frozen: small ones are joined to larger ones, so that there are few and each row is copied about three times.
Those of 32,768 rows or more stay as they are.
"""

from __future__ import annotations

import threading

import numpy as np
import numpy.typing as npt

from sharedrag.arena.segment import Segment
from sharedrag.search import words
from sharedrag.search.postings import ROWS_MAX, Postings, from_counts, joined, of_rows, text_bytes, tokens_of

_YOUNG_MAX = 512  # rows
_FEW = 128  # new rows up to which they join the young ones, unless their texts are longer than:
_FEW_BYTES = 1 << 20
_SMALL_MAX = 8  # so many runs of fewer than _MEDIUM_ROWS are joined
_MEDIUM_ROWS = 4096
_LARGE_ROWS = 32768


class Tail:
    """The postings of a segment's rows from `first` on."""

    def __init__(self, segment: Segment, first: int) -> None:
        """Start with no row."""
        self.first = first
        self._segment = segment
        self._lock = threading.Lock()
        self._frozen: tuple[Postings, ...] = ()
        self._young = _Young(first)

    def of(self, rows: int, wanted: npt.NDArray[np.uint64]) -> tuple[Postings, ...]:
        """Postings that cover the segment's rows from `first` to `rows`, and maybe more; of the newest only those `wanted`.

        `wanted` are hashes, each once. Raises `PoolDamaged`.
        """
        with self._lock:
            known = self._young.first + self._young.rows
            if known < rows:
                try:
                    self._extend(known, rows)
                except BaseException:
                    self._frozen, self._young = (), _Young(self.first)  # half-way in means nothing: start over next time
                    raise
            young = self._young
            return (*self._frozen, young.narrowed(wanted)) if young.rows else self._frozen

    def after_fork_in_child(self) -> None:
        """A lock of our own; what another thread of the parent was in the middle of is done anew."""
        if self._lock.locked():
            self._frozen, self._young = (), _Young(self.first)
        self._lock = threading.Lock()

    def _extend(self, start: int, stop: int) -> None:
        few = stop - start <= _FEW and text_bytes(self._segment, start, stop) <= _FEW_BYTES
        if self._young.rows and (not few or self._young.rows + stop - start > _YOUNG_MAX):
            self._frozen = _tidied((*self._frozen, self._young.freeze()))
            self._young = _Young(start)
        if few:
            self._young.add(stop - start, tokens_of(self._segment, start, stop))
        else:
            self._frozen = _tidied((*self._frozen, *of_rows(self._segment, start, stop)))
            self._young = _Young(stop)


def _tidied(runs: tuple[Postings, ...]) -> tuple[Postings, ...]:
    """The same, with small neighbours at the end joined."""
    small = _trailing(runs, _MEDIUM_ROWS)
    if len(runs) - small >= _SMALL_MAX or sum(run.rows for run in runs[small:]) >= _MEDIUM_ROWS:
        runs = (*runs[:small], joined(runs[small:]))
    medium = _trailing(runs, _LARGE_ROWS)
    if sum(run.rows for run in runs[medium:]) >= _LARGE_ROWS:
        while sum(run.rows for run in runs[medium:]) > ROWS_MAX:
            medium += 1
        runs = (*runs[:medium], joined(runs[medium:]))
    return runs


def _trailing(runs: tuple[Postings, ...], rows: int) -> int:
    """Where the runs of fewer than `rows` rows begin that end the list."""
    at = len(runs)
    while at and runs[at - 1].rows < rows:
        at -= 1
    return at


class _Young:
    """Rows one by one: for each term the rows that hold it, and how often."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.rows = 0
        self._places: dict[int, list[int]] = {}
        self._counts: dict[int, list[int]] = {}
        self._lengths = np.zeros(_YOUNG_MAX, np.uint32)

    def add(self, rows: int, found: words.Tokens) -> None:
        """Take in the next rows, tokenised."""
        places, counts = self._places, self._counts
        hashes = found.hashes.tolist()
        for text, term in zip(found.texts.tolist(), found.terms.tolist(), strict=True):
            place, hashed = self.rows + text, hashes[term]
            held = places.get(hashed)
            if held is None:
                places[hashed], counts[hashed] = [place], [1]
            elif held[-1] == place:
                counts[hashed][-1] += 1
            else:
                held.append(place)
                counts[hashed].append(1)
        self._lengths[self.rows : self.rows + rows] = np.bincount(found.texts, minlength=rows)
        self.rows += rows

    def narrowed(self, wanted: npt.NDArray[np.uint64]) -> Postings:
        """The postings of these terms alone; lengths and totals are of all."""
        return self._of(sorted(one for one in wanted.tolist() if one in self._places))

    def freeze(self) -> Postings:
        """The postings of all terms."""
        return self._of(sorted(self._places))

    def _of(self, hashes: list[int]) -> Postings:
        places = [self._places[one] for one in hashes]
        counts = [self._counts[one] for one in hashes]
        return from_counts(
            self.first,
            self._lengths[: self.rows],  # a prefix never changes
            np.array(hashes, np.uint64),
            np.cumsum([0, *map(len, places)]),
            np.array([one for each in places for one in each], np.int64),
            np.array([one for each in counts for one in each], np.int64),
        )
