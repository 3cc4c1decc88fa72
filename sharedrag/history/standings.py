"""What the members made of messages and of each other: a fold over all marks, caught up from the feed before each use.

A mark is one row of flat arrays, 46 bytes, whatever its text: ids are known by their 64-bit hashes (two of a million ids
share one in one of 37 million histories). The rows are sorted by message; what came since they were sorted lies in a small
dictionary and is merged when that has grown. The feed tells of every change, whichever process makes it.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, NamedTuple

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import xxhash

from sharedrag.collection import Collection, Record
from sharedrag.filters import Where
from sharedrag.history.ranking import NOBODY_JUDGED, Reputation, decay
from sharedrag.history.records import MARKS, microseconds

_VOTE, _CONFIRM, _SUPERSEDE, _FLAG, _MODERATION, _COMMENT = range(len(MARKS))
_KINDS = {kind: number for number, kind in enumerate(MARKS)}
_WANTED = Where("kind", "in", list(MARKS))
_FRESH_MIN = 1024
_BATCH = 8192
_KNOWN_MAX = 65_536  # authors whose reputation is remembered

_ROW = np.dtype(
    [
        ("message", "u8"),
        ("mark", "u8"),  # which record
        ("other", "u8"),  # whom the mark is about, in which group; of a supersede, the successor
        ("created", "i8"),  # us since 1970
        ("kind", "u1"),
        ("value", "i1"),  # of a vote: 1, -1, or 0 for one that does not count; of a moderation: 1 hidden, 0 visible
    ]
)
#: The same without the message, which has an array of its own to be searched in.
_REST = np.dtype([field for field in _ROW.descr if field[0] != "message"])
Rows = npt.NDArray[np.void]


class Mark(NamedTuple):
    """One row, as Python numbers."""

    message: int
    mark: int
    other: int
    created: int
    kind: int
    value: int


_Fields = tuple[int, int, int, int, int]  # of a mark without its message


class Tally(NamedTuple):
    """What one message has: counts, the sums of decayed votes, and times in us since 1970 (0: never)."""

    up: int = 0
    down: int = 0
    up_weight: float = 0.0
    down_weight: float = 0.0
    confirmed_us: int = 0
    comments: int = 0
    flags: int = 0
    superseded: bool = False
    hidden: bool | None = None  # None where no moderator has decided

    def is_hidden(self, flags_to_hide: int) -> bool:
        """By a moderator, or by flags that no moderator has looked at."""
        return self.flags >= flags_to_hide if self.hidden is None else self.hidden


NOTHING = Tally()


class Standings:
    """The fold over a history's marks. One object serves many threads, and goes on in a forked child."""

    _all: ClassVar[weakref.WeakSet[Standings]] = weakref.WeakSet()

    def __init__(self, records: Collection) -> None:
        """Nothing is read before the first use."""
        self._records = records
        self._lock = threading.Lock()
        self._start_over()
        self._all.add(self)

    def _start_over(self) -> None:
        self._place: str | None = None
        self._version = -1
        self._sort(np.empty(0, _ROW))
        self._reputations: dict[int, Reputation] = {}

    def after_fork_in_child(self) -> None:
        """A lock of our own; where another thread of the parent was in the middle of it, the fold is made anew."""
        if self._lock.locked():
            self._start_over()
        self._lock = threading.Lock()

    @property
    def nbytes(self) -> int:
        """Bytes that the sorted rows take in this process."""
        return self._messages.nbytes + self._rows.nbytes + self._authors.nbytes + self._by_author.nbytes

    # ------------------------------------------------------------------ asking

    def of(self, messages: Sequence[str], now_us: int, half_life_days: float) -> list[Tally]:
        """The tallies of these messages, as of now."""
        wanted = [_hash(one) for one in messages]
        with self._lock:
            self._catch_up()
            return [NOTHING if not marks else _tally(marks, now_us, half_life_days) for marks in self._marks_of(wanted)]

    def authors(self, group: str, users: Iterable[str]) -> dict[str, Reputation]:
        """What others made of these authors in a group."""
        found = {}
        with self._lock:
            self._catch_up()
            for user in users:
                about = _author(group, user)
                known = self._reputations.get(about)
                if known is None:
                    if len(self._reputations) >= _KNOWN_MAX:
                        self._reputations.clear()
                    known = self._reputations[about] = self._judged(about)
                found[user] = known
        return found

    def _marks_of(self, messages: list[int]) -> list[list[_Fields]]:
        """The marks on each message."""
        wanted = np.array(messages, np.uint64)
        begins, ends = (self._messages.searchsorted(wanted, side).tolist() for side in ("left", "right"))
        found: list[list[_Fields]] = []
        for message, begin, end in zip(messages, begins, ends, strict=True):
            marks: list[_Fields] = self._rows[begin:end].tolist() if begin < end else []
            if self._fresh and marks:
                marks = [one for one in marks if one[0] not in self._fresh]
            if message in self._fresh_of:
                fresh = (self._fresh[mark] for mark in self._fresh_of[message])
                marks += [one[1:] for one in fresh if one is not None]
            found.append(marks)
        return found

    def _judged(self, about: int) -> Reputation:
        begin, end = (int(self._authors.searchsorted(np.uint64(about), side)) for side in ("left", "right"))
        at = self._by_author[begin:end]
        if self._fresh and len(at):
            at = at[~np.isin(self._rows["mark"][at], np.fromiter(self._fresh, np.uint64, len(self._fresh)))]
        kinds, values = self._rows["kind"][at], self._rows["value"][at]
        approved = set(self._messages[at[((kinds == _VOTE) | (kinds == _CONFIRM)) & (values > 0)]].tolist())
        votes = values[kinds == _VOTE]
        up, down = int((votes > 0).sum()), int((votes < 0).sum())
        for one in self._fresh.values():
            if one is not None and one.other == about:
                if one.kind in (_VOTE, _CONFIRM) and one.value > 0:
                    approved.add(one.message)
                if one.kind == _VOTE:
                    up += one.value > 0
                    down += one.value < 0
        return Reputation(len(approved), up, down) if approved or up or down else NOBODY_JUDGED

    # ------------------------------------------------------------------ catching up

    def _catch_up(self) -> None:
        version = self._records.version
        if version == self._version:
            return
        if self._place is None:
            self._read_all()
        changes = self._records.changes(self._place, filter=_WANTED)
        for change in changes.changes:
            self._apply(change.id, change.record)
        self._place, self._version = changes.place, version
        if changes.live is not None and self._count != changes.live:  # a tombstone was cleared away before we saw it
            self._start_over()
            self._read_all()
        elif len(self._fresh) > max(_FRESH_MIN, len(self._rows) // 8):
            self._merge()

    def _read_all(self) -> None:
        """All marks as they lie. What comes meanwhile the feed tells once more, and taking it twice changes nothing."""
        self._place = self._records.place()
        table = self._records.scan(_WANTED, columns=["id", "metadata", "created"])
        pieces = [_rows_of(piece) for piece in table.to_batches(_BATCH)]
        self._sort(np.concatenate(pieces) if pieces else np.empty(0, _ROW))

    def _sort(self, rows: Rows) -> None:
        """Start from these rows, with nothing newer."""
        order = rows["message"].argsort(kind="stable")
        self._messages = rows["message"][order]
        self._rows = np.empty(len(rows), _REST)
        for name in _REST.names or ():
            self._rows[name] = rows[name][order]
        others = self._rows["other"]
        self._by_author = others.argsort(kind="stable").astype(np.uint32)
        self._authors = others[self._by_author]
        self._fresh: dict[int, Mark | None] = {}  # by mark, newer than the sorted rows; None for one that is gone
        self._fresh_of: dict[int, list[int]] = {}  # the same by message
        self._count = len(rows)

    def _apply(self, id: str, record: Record | None) -> None:
        mark = _hash(id)
        known = self._known(mark, id, record)
        if record is None:
            if known is None:
                return
            new = None
        else:
            new = _mark_of(mark, record.metadata, microseconds(record.created))
        self._fresh[mark] = new
        self._count += (new is not None) - (known is not None)
        for one in (known, new):
            if one is not None:
                self._reputations.pop(one.other, None)
        if new is not None:
            marks = self._fresh_of.setdefault(new.message, [])
            if mark not in marks:
                marks.append(mark)

    def _known(self, mark: int, id: str, record: Record | None) -> Mark | None:
        """The mark as it was so far; None if there was none."""
        if mark in self._fresh:
            return self._fresh[mark]
        if record is not None:
            message = record.metadata["message"]
        elif id.partition("/")[0] in _KINDS:
            message = id.split("/", 2)[1]
        elif id.startswith("cmt_"):  # does not say of which message
            return self._row(np.flatnonzero(self._rows["mark"] == np.uint64(mark)))
        else:
            return None
        wanted = np.uint64(_hash(message))
        begin, end = (int(self._messages.searchsorted(wanted, side)) for side in ("left", "right"))
        return self._row(begin + np.flatnonzero(self._rows["mark"][begin:end] == np.uint64(mark)))

    def _row(self, found: npt.NDArray[np.int64]) -> Mark | None:
        if not len(found):
            return None
        at = int(found[0])
        return Mark(int(self._messages[at]), *self._rows[at].item())

    def _merge(self) -> None:
        changed = np.fromiter(self._fresh, np.uint64, len(self._fresh))
        kept = np.flatnonzero(~np.isin(self._rows["mark"], changed))
        fresh = [one for one in self._fresh.values() if one is not None]
        rows = np.empty(len(kept) + len(fresh), _ROW)
        rows["message"][: len(kept)] = self._messages[kept]
        for name in _REST.names or ():
            rows[name][: len(kept)] = self._rows[name][kept]
        rows[len(kept) :] = np.array([tuple(one) for one in fresh], _ROW)
        self._sort(rows)


def _after_fork_in_child() -> None:
    for one in Standings._all:
        one.after_fork_in_child()


os.register_at_fork(after_in_child=_after_fork_in_child)


def _hash(text: str) -> int:
    return xxhash.xxh3_64_intdigest(text.encode())


def _author(group: str, user: str) -> int:
    return _hash(f"{group}\0{user}")


def _mark_of(mark: int, held: dict[str, Any], created_us: int) -> Mark:
    kind = _KINDS[held["kind"]]
    value, other = 0, 0
    if kind == _SUPERSEDE:
        other = _hash(held["by"])
    elif kind == _MODERATION:
        value = int(held["state"] == "hidden")
    elif "about" in held:
        other = _author(held["group"], held["about"])
        if held["about"] != held["user"]:  # one's own approval counts for nothing
            value = held["value"] if kind == _VOTE else 1
    return Mark(_hash(held["message"]), mark, other, created_us, kind, value)


def _rows_of(batch: pa.RecordBatch) -> Rows:
    created = batch.column("created").cast(pa.int64()).to_pylist()
    metadata = orjson.loads(b"[" + b",".join(map(str.encode, batch.column("metadata").to_pylist())) + b"]")
    ids = batch.column("id").to_pylist()
    return np.array([_mark_of(_hash(one), *rest) for one, *rest in zip(ids, metadata, created, strict=True)], _ROW)


def _tally(marks: list[_Fields], now_us: int, half_life_days: float) -> Tally:
    counts = [0] * len(MARKS)
    up = confirmed = 0
    votes = 0
    up_weight = down_weight = 0.0
    hidden: bool | None = None
    for _, _, created, kind, value in marks:
        counts[kind] += 1
        if kind == _VOTE and value:
            weight = decay(now_us - created, half_life_days)
            votes += 1
            if value > 0:
                up += 1
                up_weight += weight
            else:
                down_weight += weight
        elif kind == _CONFIRM:
            confirmed = max(confirmed, created)
        elif kind == _MODERATION:
            hidden = value > 0
    return Tally(
        up,
        votes - up,
        up_weight,
        down_weight,
        confirmed,
        counts[_COMMENT],
        counts[_FLAG],
        counts[_SUPERSEDE] > 0,
        hidden,
    )
