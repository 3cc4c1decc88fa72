"""Records in the order in which they were written, or the reverse: only the segments that can hold some of the first are
looked at, the nearest first.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from sharedrag.arena.segment import Segment
from sharedrag.segments.live import Part, View

_U64_MAX = (1 << 64) - 1
Mask = npt.NDArray[np.bool_]


def listed(
    view: View,
    mask_of: Callable[[Part], Mask | None],
    limit: int | None = None,
    newest_first: bool = False,
    after: int | None = None,
    until: int | None = None,
) -> list[tuple[Segment, int]]:
    """The segment and row of each live row that a filter admits, in key order or the reverse, at most `limit`.

    Only keys greater than `after` and not greater than `until` (None: any). `mask_of` gives a part's rows that the filter
    admits, (rows,) bool, or None for all; it is asked only for parts that may hold some of the first `limit`.
    """
    if limit == 0:
        return []
    found: list[tuple[Part, npt.NDArray[np.int64]]] = []
    count = 0
    keys = np.empty(0, np.uint64)  # of what was found, while there is a limit: its first `limit`, rising
    for part in sorted(view.parts, key=_last_key if newest_first else _first_key, reverse=newest_first):
        if limit is not None and count >= limit:
            if newest_first and keys[-limit] > _last_key(part):
                break
            if not newest_first and keys[limit - 1] < _first_key(part):
                break
        rows = _rows(part, mask_of, limit, newest_first, after, until)
        if len(rows):
            found.append((part, rows))
            count += len(rows)
            if limit is not None:
                keys = np.sort(np.concatenate((keys, part.segment.key_array[rows])))
                keys = keys[-limit:] if newest_first else keys[:limit]
    if not found:
        return []
    order = np.argsort(np.concatenate([part.segment.key_array[rows] for part, rows in found]))
    chosen = (order[::-1] if newest_first else order)[:limit]
    all_rows = np.concatenate([rows for _, rows in found])[chosen].tolist()
    owners = np.repeat(np.arange(len(found)), [len(rows) for _, rows in found])[chosen].tolist()
    return [(found[owner][0].segment, row) for owner, row in zip(owners, all_rows, strict=True)]


def _first_key(part: Part) -> int:
    return int(part.segment.key[0])


def _last_key(part: Part) -> int:
    return int(part.segment.key[part.rows - 1])


def _rows(
    part: Part,
    mask_of: Callable[[Part], Mask | None],
    limit: int | None,
    newest_first: bool,
    after: int | None,
    until: int | None,
) -> npt.NDArray[np.int64]:
    """Of one part the rows, rising: with a limit its first, or its last."""
    start, stop = 0, part.rows
    if after is not None or until is not None:  # keys rise with the rows of a segment
        keys = part.segment.key_array[: part.rows]
        start = int(keys.searchsorted(np.uint64(min(_U64_MAX, max(0, after or 0))), "right"))
        stop = int(keys.searchsorted(np.uint64(_U64_MAX if until is None else min(_U64_MAX, max(0, until))), "right"))
    if start >= stop:
        return np.empty(0, np.int64)
    mask = mask_of(part)
    wanted = part.alive[start:stop] if mask is None else part.alive[start:stop] & mask[start:stop]
    rows: npt.NDArray[np.int64] = np.flatnonzero(wanted)
    if limit is not None:
        rows = rows[-limit:] if newest_first else rows[:limit]
    return rows + start
