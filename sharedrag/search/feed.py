"""What is new in a collection since a place.

A place is the newest order key that its holder has seen of each lane, for a lane may publish a key that is older than
another lane's which was seen long ago; within a lane, keys only rise. Merging copies keys unchanged, so a place stays good
for as long as its collection lives, in every process. As text (URL-safe base64, little-endian):

    version u8 | key u8, one for each lane, which is in its low 10 bits

`version` is the collection's (`Collection.version`) if the place covers all that it counts, else 0: then one comparison
tells that nothing is new. Rows that somebody has replaced or deleted since are passed over; so is a tombstone whose id
lives again.

Caveat: keys more than a day ahead of the clock (`layout.CLOCK_AHEAD_US_MAX`) are not followed by later writers of their
lane; a place beyond such a key passes over what the lane writes before the clock has caught up.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from typing import NamedTuple
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from sharedrag.arena.row import PUT
from sharedrag.arena.segment import Segment
from sharedrag.errors import InvalidRecord
from sharedrag.memory import layout
from sharedrag.segments.live import Part, View

_LANES = 1 << layout.KEY_LANE_BITS
_LANE_MASK = _LANES - 1
_U64_MAX = (1 << 64) - 1


class Place(NamedTuple):
    """How far somebody has read: the newest key of each lane, and the version if that is all there was."""

    version: int
    lanes: dict[int, int]

    def encoded(self) -> str:
        """As text."""
        words = np.array([self.version, *sorted(self.lanes.values())], np.dtype("<u8"))
        return base64.urlsafe_b64encode(words.tobytes()).decode().rstrip("=")

    def after(self, key: int) -> Place:
        """The place of who has also read the row of this key, and all that come before it in order."""
        return Place(0, {**self.lanes, key & _LANE_MASK: key})


START = Place(0, {})


def decoded(given: str | bytes | None) -> Place:
    """A place from its text, None for the start; raises `InvalidRecord` for a text that is none."""
    if given is None:
        return START
    try:
        text = given.decode("ascii") if isinstance(given, bytes) else given
        words = np.frombuffer(base64.b64decode(text + "=" * (-len(text) % 4), altchars="-_", validate=True), "<u8").tolist()
    except (AttributeError, TypeError, ValueError, UnicodeError, binascii.Error):
        words = []
    lanes = {key & _LANE_MASK: key for key in words[1:]}
    if not words or len(lanes) != len(words) - 1:
        raise InvalidRecord(
            f"{given!r:.80} is no place", operation="changes", hint="Give what an earlier call gave as `place`, or None"
        )
    return Place(words[0], lanes)


class Row(NamedTuple):
    """Something new: its key, and where it lies."""

    key: int
    part: int
    row: int
    deleted: bool


class Found(NamedTuple):
    """What is new in key order, and where that leads; `more` if a limit cut it."""

    rows: list[Row]
    place: Place
    more: bool


class Lanes:
    """The newest key of each lane in each segment, remembered for as long as somebody has the segment."""

    def __init__(self) -> None:
        """Start with nothing."""
        self._known: WeakKeyDictionary[Segment, tuple[int, dict[int, int]]] = WeakKeyDictionary()

    def of(self, part: Part) -> dict[int, int]:
        """The newest key of each lane among the rows of a part."""
        keys = part.segment.key_array
        if not part.sealed:  # one lane's
            key = int(keys[part.rows - 1])
            return {key & _LANE_MASK: key}
        rows, newest = self._known.get(part.segment, (0, {}))
        if rows != part.rows:
            all_keys = keys[: part.rows]
            lanes = (all_keys & np.uint64(_LANE_MASK)).astype(np.int64)
            last = np.full(_LANES, -1, np.int64)
            last[lanes] = np.arange(part.rows)  # of equal indices the last counts, and keys rise
            newest = {int(lane): int(all_keys[last[lane]]) for lane in np.flatnonzero(last >= 0)}
            self._known[part.segment] = (part.rows, newest)  # two threads that are at it write the same
        return newest


def place_of(view: View, lanes: Lanes) -> Place:
    """The place of who has read all of a view."""
    newest: dict[int, int] = {}
    for part in view.parts:
        for lane, key in lanes.of(part).items():
            newest[lane] = max(key, newest.get(lane, 0))
    return Place(view.version, newest)


def since(
    view: View,
    place: Place,
    limit: int | None,
    lanes: Lanes,
    mask_of: Callable[[Part], npt.NDArray[np.bool_] | None],
    lives: Callable[[Segment, int], bool],
) -> Found:
    """What a view has beyond a place, at most `limit`.

    `mask_of` says which rows of a part a filter admits (None: all), asked only of parts that have something new; `lives`
    whether the id of a tombstone has a live record.
    """
    newest = place_of(view, lanes)
    pieces = [
        piece
        for index, part in enumerate(view.parts)
        if (piece := _new_rows(index, part, place, lanes, mask_of)) is not None
    ]
    rows, cut = _first(pieces, None if limit is None else limit + 1)
    found: list[Row] = []
    passed = dict(place.lanes)
    for row in rows:
        if not (row.deleted and lives(view.parts[row.part].segment, row.row)):
            if limit is not None and len(found) == limit:
                return Found(found, Place(0, passed), True)
            found.append(row)
        passed[row.key & _LANE_MASK] = row.key
    if cut:
        return Found(found, Place(0, passed), True)
    covered = {lane: max(key, newest.lanes.get(lane, 0)) for lane, key in place.lanes.items()}
    return Found(found, Place(newest.version, {**newest.lanes, **covered}), False)


class _Piece(NamedTuple):
    """The new rows of one part, in order: (n,) arrays."""

    part: int
    keys: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.int64]
    deleted: npt.NDArray[np.bool_]


def _first(pieces: list[_Piece], count: int | None) -> tuple[list[Row], bool]:
    """The rows of all pieces in key order, at most `count`, and whether these are not all."""
    if not pieces:
        return [], False
    keys = np.concatenate([piece.keys[:count] for piece in pieces])
    rows = np.concatenate([piece.rows[:count] for piece in pieces]).tolist()
    parts = np.concatenate([np.full(len(piece.keys[:count]), piece.part) for piece in pieces]).tolist()
    deleted = np.concatenate([piece.deleted[:count] for piece in pieces]).tolist()
    order = np.argsort(keys)[:count].tolist()
    return [Row(int(keys[at]), parts[at], rows[at], deleted[at]) for at in order], len(order) < sum(
        len(piece.keys) for piece in pieces
    )


def _new_rows(
    index: int, part: Part, place: Place, lanes: Lanes, mask_of: Callable[[Part], npt.NDArray[np.bool_] | None]
) -> _Piece | None:
    newer = [lane for lane, key in lanes.of(part).items() if key > place.lanes.get(lane, 0)]
    if not newer:
        return None
    keys = part.segment.key_array[: part.rows]
    start = int(np.searchsorted(keys, np.uint64(min(place.lanes.get(lane, 0) for lane in newer)), "right"))
    keys = keys[start:]
    seen = np.full(_LANES, _U64_MAX, np.uint64)
    for lane in newer:
        seen[lane] = place.lanes.get(lane, 0)
    flags = part.segment.flags_array[start : part.rows]
    mask = mask_of(part)
    alive = part.alive[start : part.rows]
    wanted = alive if mask is None else alive & mask[start:]
    wanted = (wanted | ((flags & PUT) == 0)) & (keys > seen[(keys & np.uint64(_LANE_MASK)).astype(np.int64)])
    rows = np.flatnonzero(wanted)
    part.segment.check_flags(rows + start)
    return _Piece(index, keys[rows], rows + start, (flags[rows] & PUT) == 0)
