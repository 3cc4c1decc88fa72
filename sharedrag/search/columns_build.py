"""Making a columns block of decoded metadata: chunk by chunk, each value into the lane of its kind (`columns_layout`).

What decides over a key or over long texts decides for one chunk, so that a build needs no second look at any row, and
its memory is the block's own and one chunk of Python objects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from array import array
from collections import Counter
from collections.abc import Iterable
from itertools import chain
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from sharedrag.search.columns_layout import DIGEST_EMPTY, DIGEST_OTHER, KEYS_MAX, Writer, digest, key_digest

_KEY_SHARE = 512  # a new key needs one row in so many of a chunk, and two
_DENSE_SHARE = 4  # a lane with values in one row of so many has an item for every row
_TEXT_BYTES_FREE = 1 << 14  # of distinct texts of one key and chunk
_TEXT_BYTES_A_ROW = 64  # and so many more for each of its rows; beyond that only digests are kept
_EXACT_IN_FLOAT = 1 << 53

Rows = npt.NDArray[np.int64]
Object = dict[str, Any]


def encode(chunks: Iterable[list[Object]], created: tuple[int, int]) -> bytes:
    """The block of these records' metadata, given in row order; `created` is their least and greatest, us."""
    columns: dict[str, _Column] = {}
    rest = _Rest()
    base = 0
    for chunk in chunks:
        counts = Counter(chain.from_iterable(chunk))
        least = max(2, len(chunk) // _KEY_SHARE)
        rare: dict[str, int] = {}
        for key, count in counts.items():
            if key not in columns:
                if count < least or len(columns) == KEYS_MAX:
                    rare[key] = key_digest(key)
                    continue
                columns[key] = _Column(len(columns), rest)
            columns[key].add([one.get(key) for one in chunk], base)
        if rare:
            _add_rare(chunk, rare, rest, base)
        base += len(chunk)
    writer = Writer()
    placed = {key: column.place(writer, base) for key, column in columns.items()}
    return writer.finish({"columns": placed, "rest": rest.place(writer)}, base, created)


def _add_rare(chunk: list[Object], rare: dict[str, int], rest: _Rest, base: int) -> None:
    for row, one in enumerate(chunk, base):
        for key in one.keys() & rare.keys():
            if one[key] is not None:
                rest.add(rare[key], row, one[key])


class _Rest:
    """What no lane takes, one item for each key and row."""

    def __init__(self) -> None:
        self._keys, self._rows, self._digests = array("I"), array("I"), array("I")

    def add(self, key: int, row: int, value: Any) -> None:
        self._keys.append(key)
        self._rows.append(row)
        self._digests.append(_digest_of(value))

    def place(self, writer: Writer) -> dict[str, Any]:
        keys, rows, digests = (np.frombuffer(one, np.uint32) for one in (self._keys, self._rows, self._digests))
        order = np.lexsort((rows, keys))
        distinct, starts = np.unique(keys[order], return_index=True)
        arrays = {
            "keys": distinct,
            "starts": np.append(starts, len(keys)).astype(np.int32),
            "rows": rows[order],
            "digests": digests[order],
        }
        return {name: writer.place(one) for name, one in arrays.items()}


def _digest_of(value: Any) -> int:
    if isinstance(value, str):
        return digest(value)
    return DIGEST_EMPTY if value == [] else DIGEST_OTHER


class _Column:
    """The values of one key, or the items of its lists, sorted into lanes as they come."""

    def __init__(self, key: int, rest: _Rest | None) -> None:
        """`rest` takes what fits no lane, under this key; without it, everything must."""
        self._key = key
        self._rest = rest
        self._ints = _NumberLane(np.dtype(np.int64))
        self._floats = _NumberLane(np.dtype(np.float64))
        self._texts = _TextLane()
        self._lists: _ListLane | None = None

    def add(self, values: list[Any], base: int) -> None:
        """The values, None where there is none, of the rows from `base` on."""
        kinds = list(map(type, values))
        present = set(kinds)
        for kind in present - {type(None)}:
            if len(present) == 1:
                rows, chosen = np.arange(base, base + len(values)), values
            else:
                places = [place for place, one in enumerate(kinds) if one is kind]
                rows, chosen = np.array(places, np.int64) + base, [values[place] for place in places]
            self._add_kind(kind, rows, chosen)

    def _add_kind(self, kind: type, rows: Rows, values: list[Any]) -> None:
        if kind is bool or kind is int:
            self._add_ints(rows, values)
        elif kind is float:
            self._floats.add(rows, np.array(values, np.float64))
        elif kind is str:
            if not self._texts.add(rows, values, bounded=self._rest is not None):
                self._to_rest(rows, values)
        elif kind is list:
            self._add_lists(rows, values)
        else:
            self._to_rest(rows, values)

    def _add_ints(self, rows: Rows, values: list[int]) -> None:
        try:
            self._ints.add(rows, np.fromiter(values, np.int64, len(values)))
        except OverflowError:  # JSON's integers reach up to 2^64
            fits = [-(1 << 63) <= one < 1 << 63 for one in values]
            self._add_ints(rows[fits], [one for one, fit in zip(values, fits, strict=True) if fit])
            self._to_rest(rows[[not fit for fit in fits]], [one for one, fit in zip(values, fits, strict=True) if not fit])

    def _add_lists(self, rows: Rows, values: list[list[Any]]) -> None:
        self._lists = self._lists or _ListLane()
        try:
            taken = self._lists.add(rows, values)
        except TypeError:
            plain = [_is_plain(one) for one in values]
            self._to_rest(rows[[not one for one in plain]], [v for v, one in zip(values, plain, strict=True) if not one])
            rows, values = rows[plain], [value for value, one in zip(values, plain, strict=True) if one]
            taken = not values or self._lists.add(rows, values)
        if not taken:
            self._to_rest(rows, values)

    def _to_rest(self, rows: Rows, values: list[Any]) -> None:
        assert self._rest is not None
        for row, value in zip(rows.tolist(), values, strict=True):
            self._rest.add(self._key, row, value)

    def place(self, writer: Writer, rows: int) -> list[dict[str, Any]]:
        """The lanes' entries in the directory, their arrays placed."""
        self._floats.take_over(self._ints)
        lanes = [("ints", self._ints), ("floats", self._floats), ("texts", self._texts), ("lists", self._lists)]
        return [{"kind": kind, **lane.place(writer, rows)} for kind, lane in lanes if lane is not None and lane.count]


_PLAIN = frozenset({str, int, float, bool, type(None)})


def _is_plain(values: list[Any]) -> bool:
    return _PLAIN.issuperset(map(type, values)) and not _has_great(values)


def _has_great(values: list[Any]) -> bool:
    return any(type(one) is int and not -(1 << 63) <= one < 1 << 63 for one in values)


class _Lane(ABC):
    """Items and the rows they are of, in pieces."""

    def __init__(self) -> None:
        self._rows: list[Rows] = []
        self.count = 0

    def _add_rows(self, rows: Rows) -> None:
        self._rows.append(rows)
        self.count += len(rows)

    @abstractmethod
    def place(self, writer: Writer, rows: int) -> dict[str, Any]:
        """Write the lane; returns its entry in the directory."""

    def _is_dense(self, rows: int) -> bool:
        return self.count * _DENSE_SHARE >= rows

    def _all_rows(self) -> Rows:
        return np.concatenate(self._rows)

    def _place_codes(self, writer: Writer, rows: int, codes: npt.NDArray[Any], distinct: int) -> dict[str, Any]:
        narrow = codes.astype(np.min_scalar_type(distinct))
        if not self._is_dense(rows):
            return {"rows": writer.place(self._all_rows().astype(np.uint32)), "codes": writer.place(narrow)}
        return {"codes": writer.place(_spread(self._all_rows(), narrow, rows))}


def _spread(at: Rows, items: npt.NDArray[Any], rows: int) -> npt.NDArray[Any]:
    whole = np.zeros(rows, items.dtype)
    whole[at] = items
    return whole


class _NumberLane(_Lane):
    def __init__(self, dtype: np.dtype[Any]) -> None:
        super().__init__()
        self._dtype = dtype
        self._values: list[npt.NDArray[Any]] = []

    def add(self, rows: Rows, values: npt.NDArray[Any]) -> None:
        self._add_rows(rows)
        self._values.append(values)

    def take_over(self, ints: _NumberLane) -> None:
        """Move the integers here if there are both and a float says each of them exactly."""
        if self.count and ints.count:
            values = np.concatenate(ints._values)
            if values.min() >= -_EXACT_IN_FLOAT and values.max() <= _EXACT_IN_FLOAT:
                self.add(ints._all_rows(), values.astype(np.float64))
                ints.count = 0

    def place(self, writer: Writer, rows: int) -> dict[str, Any]:
        values, at = np.concatenate(self._values), self._all_rows()
        if self._dtype.kind == "i":
            values = values.astype(_narrowest(int(values.min()), int(values.max())))
        if not self._is_dense(rows):
            return {"rows": writer.place(at.astype(np.uint32)), "values": writer.place(values)}
        entry = {"values": writer.place(_spread(at, values, rows))}
        if self.count < rows:
            entry["present"] = writer.place(np.packbits(_spread(at, np.ones(len(at), np.bool_), rows), bitorder="little"))
        return entry


def _narrowest(low: int, high: int) -> type[np.signedinteger[Any]]:
    for kind in (np.int8, np.int16, np.int32):
        if np.iinfo(kind).min <= low and high <= np.iinfo(kind).max:
            return kind
    return np.int64


class _TextLane(_Lane):
    def __init__(self) -> None:
        super().__init__()
        self._pieces: list[pa.DictionaryArray] = []

    def add(self, rows: Rows, values: list[str], *, bounded: bool) -> bool:
        """False, and nothing is taken, if the distinct texts are too long to keep."""
        piece = pa.array(values, pa.binary()).dictionary_encode()
        if bounded and piece.dictionary.nbytes > _TEXT_BYTES_FREE + _TEXT_BYTES_A_ROW * len(values):
            return False
        self._add_rows(rows)
        self._pieces.append(piece)
        return True

    def place(self, writer: Writer, rows: int) -> dict[str, Any]:
        pieces = pa.chunked_array(self._pieces).unify_dictionaries()
        dictionary = pieces.chunk(0).dictionary
        order = pc.array_sort_indices(dictionary)
        rank = np.empty(len(dictionary), np.uint32)
        rank[order.to_numpy()] = np.arange(1, len(dictionary) + 1, dtype=np.uint32)
        codes = np.concatenate([rank[piece.indices.to_numpy()] for piece in pieces.chunks])
        ordered = dictionary.take(order)
        _, offsets, heap = ordered.buffers()
        offsets_array = np.frombuffer(offsets, np.int32)[: len(ordered) + 1]
        return {
            **self._place_codes(writer, rows, codes, len(ordered)),
            "offsets": writer.place(offsets_array),
            "heap": writer.place(np.frombuffer(heap, np.uint8)[: offsets_array[-1]] if heap else np.empty(0, np.uint8)),
        }


class _ListLane(_Lane):
    """Lists, kept once per chunk; their items are a column."""

    def __init__(self) -> None:
        super().__init__()
        self._codes: list[npt.NDArray[np.uint32]] = []
        self._lengths: list[int] = []
        self._items = _Column(0, None)
        self._items_count = 0

    def add(self, rows: Rows, values: list[list[Any]]) -> bool:
        """False, and nothing is taken, if the lists are too long to keep; TypeError if an item is no plain value."""
        tuples = list(map(tuple, values))
        table = dict.fromkeys(tuples, 0)  # TypeError: lists and dicts have no hash
        items = list(chain.from_iterable(table))
        kinds = set(map(type, items))
        if int in kinds and _has_great(items):
            raise TypeError("an integer beyond 64 bits")
        weight = 8 * len(items) + (sum(len(one) for one in items if type(one) is str) if str in kinds else 0)
        if weight > _TEXT_BYTES_FREE + _TEXT_BYTES_A_ROW * len(values):
            return False
        for code, one in enumerate(table, len(self._lengths) + 1):
            table[one] = code
        codes = np.fromiter(map(table.__getitem__, tuples), np.uint32, len(values))
        self._add_rows(rows)
        self._codes.append(codes)
        self._lengths += map(len, table)
        self._items.add(items, self._items_count)
        self._items_count += len(items)
        return True

    def place(self, writer: Writer, rows: int) -> dict[str, Any]:
        starts = np.cumsum([0, *self._lengths]).astype(np.int32)
        return {
            **self._place_codes(writer, rows, np.concatenate(self._codes), len(self._lengths)),
            "starts": writer.place(starts),
            "items": {"count": self._items_count, "lanes": self._items.place(writer, self._items_count)},
        }
