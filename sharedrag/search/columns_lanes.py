"""One kind of values under one key, and which of them an operator matches: whole arrays at a time, answers as in `filters`.

A lane answers for its own values; of rows that it has none for it says no. `Where.matches` says the same of each value
alone, and is what these are tested against. `!=`, `nin` and `is_empty` are not asked here: see `columns`.
"""

from __future__ import annotations

import bisect
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from functools import cached_property
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharedrag.search.columns_layout import Reader

Mask: TypeAlias = npt.NDArray[np.bool_]
Entry: TypeAlias = dict[str, Any]

_FEW_TEXTS = 256  # so many are kept as Python strings, and are faster so
_FEW_RUNS = (
    6  # so many runs of codes or numbers are compared one by one; a look-up of each row's code costs as much as eight
)


def _any_of(masks: Iterable[Mask | None]) -> Mask | None:
    """Where at least one of them says so; None is a mask of nothing. The first is written to."""
    whole: Mask | None = None
    for one in masks:
        if one is not None:
            whole = one if whole is None else np.logical_or(whole, one, out=whole)
    return whole


class _Lane(ABC):
    """`_answer`, `_present` and `_filled` speak of the lane's own items; this maps them onto rows."""

    def __init__(self, reader: Reader, entry: Entry, rows: int) -> None:
        self._rows = rows
        self._at = reader.array(entry["rows"]) if "rows" in entry else None
        self._items = rows if self._at is None else len(self._at)

    def answer(self, op: str, value: Any) -> Mask | None:
        """The rows that match, (rows,) bool; None for none of them."""
        if op == "all" and not value:
            return self.present()
        return self._spread(self._answer(op, value))

    def present(self) -> Mask:
        """The rows that have a value here."""
        return self._spread(self._present())  # type: ignore[return-value]

    def filled(self) -> Mask:
        """The rows that have a value here other than "" and []."""
        return self._spread(self._filled())  # type: ignore[return-value]

    def _spread(self, items: Mask | None) -> Mask | None:
        if items is None or self._at is None:
            return items
        rows = np.zeros(self._rows, np.bool_)
        rows[self._at[items]] = True
        return rows

    @abstractmethod
    def _answer(self, op: str, value: Any) -> Mask | None: ...

    @abstractmethod
    def _present(self) -> Mask: ...

    def _filled(self) -> Mask:
        return self._present()


class _Numbers(_Lane):
    def __init__(self, reader: Reader, entry: Entry, rows: int) -> None:
        super().__init__(reader, entry, rows)
        self._values = reader.array(entry["values"])
        self._bits: npt.NDArray[np.uint8] | None = reader.array(entry["present"]) if "present" in entry else None

    def _present(self) -> Mask:
        if self._bits is None:
            return np.ones(self._items, np.bool_)
        return np.unpackbits(self._bits, count=self._items, bitorder="little").view(np.bool_)

    def _answer(self, op: str, value: Any) -> Mask | None:
        if op == "in":
            found = self._is_in([one for one in value if isinstance(one, (int, float))])
        elif op in ("==", ">", "<", ">=", "<=") and isinstance(value, (int, float)) and value == value:  # NaN is not
            found = self._compare(op, value)
        else:
            found = None
        if found is not None and self._bits is not None:
            found &= self._present()
        return found

    @abstractmethod
    def _compare(self, op: str, value: float) -> Mask | None: ...

    @abstractmethod
    def _is_in(self, wanted: list[float]) -> Mask | None: ...


class Ints(_Numbers):
    """Whole numbers, compared as integers throughout: no float between, so none is rounded."""

    def _compare(self, op: str, value: float) -> Mask | None:
        return self._between(*_whole_bounds(op, value))

    def _between(self, low: int, high: int) -> Mask | None:
        span = np.iinfo(self._values.dtype)
        low, high = max(low, int(span.min)), min(high, int(span.max))
        if low > high:
            return None
        if low == high:
            return self._values == low  # type: ignore[no-any-return]
        if low == span.min:
            return self._values <= high
        if high == span.max:
            return self._values >= low
        return (self._values >= low) & (self._values <= high)

    def _is_in(self, wanted: list[float]) -> Mask | None:
        span = np.iinfo(self._values.dtype)
        whole = {int(one) for one in wanted if isinstance(one, int) or one.is_integer()}
        sought = np.array(sorted(one for one in whole if span.min <= one <= span.max), self._values.dtype)
        if not len(sought):
            return None
        edges = np.flatnonzero(sought[1:] - 1 != sought[:-1])  # between runs of neighbouring numbers
        if len(edges) >= _FEW_RUNS:
            return np.isin(self._values, sought)
        starts, ends = sought[[0, *(edges + 1)]].tolist(), sought[[*edges, -1]].tolist()
        return _any_of(self._between(low, high) for low, high in zip(starts, ends, strict=True))


_ENDLESS = 1 << 64


def _whole_bounds(op: str, value: int | float) -> tuple[int, int]:
    """The least and greatest integer that match; the least above the greatest if none does."""
    if isinstance(value, float) and math.isinf(value):
        low = high = _ENDLESS if value > 0 else -_ENDLESS
    else:
        low, high = math.floor(value), math.ceil(value)  # the integers next to it, on either side
    return {
        "==": (high, low),
        ">": (low + 1, _ENDLESS),
        ">=": (high, _ENDLESS),
        "<": (-_ENDLESS, high - 1),
        "<=": (-_ENDLESS, low),
    }[op]


class Floats(_Numbers):
    """Floats. An integer that no float equals lies between two of them, which decide."""

    def _compare(self, op: str, value: float) -> Mask | None:
        low, high = _float_neighbours(value)
        match op:
            case "==":
                return self._values == low if low == high else None
            case ">":
                return self._values > low
            case ">=":
                return self._values >= high
            case "<":
                return self._values < high
        return self._values <= low

    def _is_in(self, wanted: list[float]) -> Mask | None:
        sought = [low for low, high in map(_float_neighbours, wanted) if low == high]
        if len(sought) > _FEW_RUNS:
            return np.isin(self._values, sought)
        return _any_of(self._values == one for one in sought)


def _float_neighbours(value: float) -> tuple[float, float]:
    """The greatest float not above and the least not below; both are the value if it is one."""
    try:
        near = float(value)
    except OverflowError:
        near = math.inf if value > 0 else -math.inf
    if near > value:
        return math.nextafter(near, -math.inf), near
    return near, (near if near == value else math.nextafter(near, math.inf))


class _Coded(_Lane):
    """Codes into a dictionary of distinct values: 0 for none, otherwise 1 + position."""

    def __init__(self, reader: Reader, entry: Entry, rows: int) -> None:
        super().__init__(reader, entry, rows)
        self._codes = reader.array(entry["codes"])
        self._distinct = 0

    def _present(self) -> Mask:
        return self._codes != 0  # type: ignore[no-any-return]

    def _span(self, start: int, stop: int) -> Mask | None:
        """The items whose position in the dictionary is in [start, stop)."""
        if start >= stop:
            return None
        if start + 1 == stop:
            return self._codes == stop  # type: ignore[no-any-return]
        if stop == self._distinct:
            return self._codes > start
        from_start = self._codes - self._codes.dtype.type(start + 1)  # unsigned: what is below becomes very large
        return from_start < stop - start  # type: ignore[no-any-return]

    def _pick(self, table: Mask) -> Mask | None:
        """The items whose value is marked in `table`, (distinct,) bool."""
        edges = np.flatnonzero(np.diff(table, prepend=False, append=False))
        if len(edges) > 2 * _FEW_RUNS:
            return np.concatenate(([False], table)).take(self._codes)
        return _any_of(self._span(start, stop) for start, stop in edges.reshape(-1, 2).tolist())


class Texts(_Coded):
    """Strings by their rank in a sorted dictionary: equality and order compare codes, the rest asks each distinct text."""

    def __init__(self, reader: Reader, entry: Entry, rows: int) -> None:
        super().__init__(reader, entry, rows)
        self._offsets = reader.array(entry["offsets"])
        self._heap = reader.array(entry["heap"])
        self._distinct = len(self._offsets) - 1

    def _filled(self) -> Mask:
        return self._codes > int(self._offsets[1] == 0)  # "" is the first there is

    def _answer(self, op: str, value: Any) -> Mask | None:
        if op == "in":
            return self._is_in({_encoded(one) for one in value if isinstance(one, str)})
        if op in ("any", "all"):
            return self._each(op, value)
        if not isinstance(value, str):
            return None
        if op in ("contains", "text_match"):
            return self._pick(self._with_part(value))
        if op == "text_match_insensitive":
            return self._pick(self._with_part_of_any_case(value.lower()))
        start = bisect.bisect_left(range(self._distinct), _encoded(value), key=self._bytes_of)
        past = start + int(start < self._distinct and self._bytes_of(start) == _encoded(value))
        return self._span(
            *{
                "==": (start, past),
                ">": (past, self._distinct),
                ">=": (start, self._distinct),
                "<": (0, start),
                "<=": (0, past),
            }[op]
        )

    def _is_in(self, wanted: set[bytes]) -> Mask | None:
        if len(wanted) <= 1:
            return self._answer("==", next(iter(wanted)).decode("utf-8", "surrogatepass")) if wanted else None
        return self._pick(_to_mask(pc.is_in(self._dictionary, pa.array(wanted, pa.binary()))))

    def _each(self, op: str, values: tuple[Any, ...]) -> Mask | None:
        """`any` and `all` look for each value as a part of the text."""
        texts = [one for one in values if isinstance(one, str)]
        if not texts or (op == "all" and len(texts) < len(values)):
            return None
        join = np.logical_or if op == "any" else np.logical_and
        return self._pick(join.reduce([self._with_part(one) for one in texts]))

    def _bytes_of(self, position: int) -> bytes:
        return self._heap[self._offsets[position] : self._offsets[position + 1]].tobytes()

    @cached_property
    def _dictionary(self) -> pa.BinaryArray:
        return self._over(self._heap)

    def _over(self, heap: Any) -> pa.BinaryArray:
        buffers = [None, pa.py_buffer(self._offsets), pa.py_buffer(heap)]
        return pa.BinaryArray.from_buffers(pa.binary(), self._distinct, buffers)

    @cached_property
    def _few(self) -> list[str] | None:
        if self._distinct > _FEW_TEXTS:
            return None
        return [self._bytes_of(position).decode() for position in range(self._distinct)]

    def _with_part(self, part: str) -> Mask:
        """Which distinct texts hold `part`."""
        if self._few is not None:
            return np.array([part in one for one in self._few], np.bool_)
        return _to_mask(pc.match_substring(self._dictionary, _encoded(part)))

    def _with_part_of_any_case(self, lowered: str) -> Mask:
        """Which distinct texts, in Python's lower case, hold `lowered`."""
        if self._few is not None:
            return np.array([lowered in one.lower() for one in self._few], np.bool_)
        # bytes.lower is right for ASCII; a text with any other character is asked by itself.
        table = _to_mask(pc.match_substring(self._over(self._heap.tobytes().lower()), _encoded(lowered))).copy()
        for position in self._beyond_ascii.tolist():
            table[position] = lowered in self._bytes_of(position).decode().lower()
        return table

    @cached_property
    def _beyond_ascii(self) -> npt.NDArray[np.int64]:
        wide = np.flatnonzero(self._heap >= 0x80)
        return np.unique(np.searchsorted(self._offsets, wide, side="right") - 1)


def _encoded(text: str) -> bytes:
    """UTF-8; a lone surrogate gets the bytes that no record holds, which sort where it belongs."""
    return text.encode("utf-8", "surrogatepass")


def _to_mask(found: pa.BooleanArray) -> Mask:
    return found.to_numpy(zero_copy_only=False)  # type: ignore[no-any-return]


class Lists(_Coded):
    """Lists of plain values: their items are a column of their own, and each list matches by what is found there."""

    def __init__(self, reader: Reader, entry: Entry, rows: int) -> None:
        super().__init__(reader, entry, rows)
        self._starts = reader.array(entry["starts"])
        self._distinct = len(self._starts) - 1
        self._values = Column(reader, entry["items"]["lanes"], entry["items"]["count"])

    @cached_property
    def _lengths(self) -> npt.NDArray[np.int32]:
        lengths: npt.NDArray[np.int32] = np.diff(self._starts)
        return lengths

    @cached_property
    def _owners(self) -> npt.NDArray[np.int32]:
        """Which list an item is of."""
        return np.repeat(np.arange(self._distinct, dtype=np.int32), self._lengths)

    def _filled(self) -> Mask:
        found = self._pick(self._lengths > 0)
        return np.zeros(self._items, np.bool_) if found is None else found

    def _answer(self, op: str, value: Any) -> Mask | None:
        match op:
            case "contains":
                return self._pick(self._having((value,)))
            case "any":
                return self._pick(self._having(value))
            case "all":
                return self._pick(np.logical_and.reduce([self._having((one,)) for one in value]))
            case "==" if isinstance(value, tuple):
                return self._pick(self._equal(value))
            case "in" if any(isinstance(one, tuple) for one in value):
                tables = [self._equal(one) for one in value if isinstance(one, tuple)]
                return self._pick(np.logical_or.reduce(tables))
        return None

    def _having(self, values: tuple[Any, ...]) -> Mask:
        """Which lists have an item that equals one of the values."""
        table = np.zeros(self._distinct, np.bool_)
        table[self._owners[np.flatnonzero(self._values.equal(values))]] = True
        return table

    def _equal(self, wanted: tuple[Any, ...]) -> Mask:
        table: Mask = self._lengths == len(wanted)
        for position, value in enumerate(wanted):
            candidates = np.flatnonzero(table)
            if not len(candidates):
                break
            table[candidates] = self._values.equal((value,))[self._starts[candidates] + position]
        return table


_KINDS: dict[str, type[_Lane]] = {"ints": Ints, "floats": Floats, "texts": Texts, "lists": Lists}


class Column:
    """All lanes of one key."""

    def __init__(self, reader: Reader, entries: list[Entry], rows: int) -> None:
        """View them in the block; (rows,) is the shape of every answer."""
        self._rows = rows
        self._lanes = [_KINDS[one["kind"]](reader, one, rows) for one in entries]

    def answer(self, op: str, value: Any) -> Mask:
        """The rows with a value that matches."""
        return self._any(lane.answer(op, value) for lane in self._lanes)

    def filled(self) -> Mask:
        """The rows with a value other than "" and []."""
        return self._any(lane.filled() for lane in self._lanes)

    def equal(self, values: tuple[Any, ...]) -> Mask:
        """The rows that equal one of these values; no value equals None."""
        found = self.answer("in", values)
        if None in values:
            found |= ~self._any(lane.present() for lane in self._lanes)
        return found

    def _any(self, found: Iterable[Mask | None]) -> Mask:
        whole = _any_of(found)
        return np.zeros(self._rows, np.bool_) if whole is None else whole
