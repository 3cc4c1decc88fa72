"""The metadata of rows that no block covers, decoded once per process: small private columns that grow with a segment.

The newest rows are kept as they were decoded, and answer one by one. When there are enough of them they become columns;
when there are several columns of one size, these become one of all their rows. So a row is made into columns some three
times, a new filter asks few columns, and a filter that grows by a row decodes one row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from sharedrag.arena.row import HAS_METADATA
from sharedrag.arena.segment import Segment
from sharedrag.filters import Filter
from sharedrag.search.columns import Columns, build
from sharedrag.search.columns_lanes import Mask
from sharedrag.search.columns_rows import Object, Rows

_PENDING_MAX = 256  # rows kept decoded: some 100 kB
_FAN = 4  # as many columns of one size become one
_MERGED_MAX = 4096  # rows; a reader that meets a greater merge would wait too long (about 2 us a row)
_PENDING_SIZE = 512  # B, about, of a row that is kept decoded


class _Piece(NamedTuple):
    start: int
    columns: Columns


class Tail(NamedTuple):
    """The decoded rows [0, rows) of one segment. Immutable: threads that grow the same tail do not meet."""

    pieces: tuple[_Piece, ...] = ()
    pending: tuple[Object, ...] = ()

    @property
    def covered(self) -> int:
        """Rows in columns."""
        return self.pieces[-1].start + self.pieces[-1].columns.rows if self.pieces else 0

    @property
    def rows(self) -> int:
        """Rows decoded."""
        return self.covered + len(self.pending)

    @property
    def size(self) -> int:
        """Bytes, about."""
        return sum(one.columns.size for one in self.pieces) + _PENDING_SIZE * len(self.pending)

    def grown(self, segment: Segment, rows: int, decode: Callable[[Segment, int], Object]) -> Tail:
        """This tail with the rows up to `rows`; `decode` gives one row's metadata. Raises `PoolDamaged`."""
        if rows <= self.rows:
            return self
        if rows - self.covered <= _PENDING_MAX:
            flags = segment.flags
            fresh = [decode(segment, row) if flags[row] & HAS_METADATA else {} for row in range(self.rows, rows)]
            return Tail(self.pieces, (*self.pending, *fresh))
        kept, start = list(self.pieces), self.covered
        while True:
            alike = [one for one in kept[1 - _FAN :] if one.columns.rows < _FAN * (rows - start)]
            if len(alike) < _FAN - 1 or rows - alike[0].start > _MERGED_MAX:
                break
            start = alike[0].start
            del kept[1 - _FAN :]
        payload = np.frombuffer(build(segment, rows, start), np.uint8)
        return Tail((*kept, _Piece(start, Columns.open(payload))))

    def mask(self, wanted: Filter, segment: Segment, start: int, rows: int) -> Mask:
        """Which of the rows [start, rows) match, (rows - start,) bool. REQUIRES: they are decoded."""
        found = np.empty(rows - start, np.bool_)
        for first, columns in self.pieces:
            last = first + columns.rows
            if last > start and first < rows:
                one = columns.mask(wanted, Rows(segment, first, last))
                at, end = max(start, first), min(rows, last)
                found[at - start : end - start] = one[at - first : end - first]
        covered, created = self.covered, segment.created
        for row in range(max(start, covered), rows):
            found[row - start] = wanted.matches(self.pending[row - covered], created[row])
        return found
