"""Typed columns of metadata: made once of a segment's rows, they answer any filter a column at a time.

`build` makes the block that `columns_layout` describes; the maintainer keeps it in the pool for a sealed segment, a reader
makes one for rows that none covers yet (`columns_tail`). `Columns` is the reader: it copies nothing of the block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag.arena.segment import Segment
from sharedrag.filters import And, Created, Filter, Not, Or, Where
from sharedrag.search.columns_build import encode
from sharedrag.search.columns_lanes import Column, Mask
from sharedrag.search.columns_layout import DIGEST_EMPTY, DIGEST_OTHER, Reader, digest, key_digest
from sharedrag.search.columns_rows import Rows, chunks

_POSITIVE = {"!=": "==", "nin": "in"}


def build(segment: Segment, rows: int, start: int = 0) -> bytes:
    """The columns block of the rows [start, rows). Raises `PoolDamaged` for metadata that is not a JSON object."""
    created = Rows(segment, start, rows).created()
    span = (int(created.min()), int(created.max())) if len(created) else (0, -1)
    return encode(chunks(segment, start, rows), span)


class Columns:
    """A columns block that is open; `rows` of it, created within `created` (least, greatest; us since 1970)."""

    def __init__(self, reader: Reader) -> None:
        """Use `open`."""
        self._reader = reader
        self.rows = reader.rows
        self.created = reader.created
        self.size = len(reader.payload)
        self._named = reader.directory["columns"]
        self._ordinals = {name: ordinal for ordinal, name in enumerate(self._named)}
        self._columns: dict[str, Column] = {}
        rest = reader.directory["rest"]
        self._rest_keys, self._rest_starts, self._rest_rows, self._rest_digests = (
            reader.array(rest[name]) for name in ("keys", "starts", "rows", "digests")
        )

    @classmethod
    def open(cls, payload: npt.NDArray[np.uint8]) -> Columns:
        """A block as it lies, (size,) uint8, 8-byte aligned, its bytes verified. Raises `ValueError` if it is none."""
        return cls(Reader(payload))

    def mask(self, wanted: Filter, rows: Rows) -> Mask:
        """Which of the block's rows match, (rows,) bool. `rows` are the same rows in their segment.

        Raises `PoolDamaged` where a row has to be looked at and its metadata is not a JSON object.
        """
        assert rows.stop - rows.start == self.rows
        return self._mask(wanted, rows, None)

    def _mask(self, wanted: Filter, rows: Rows, within: Mask | None) -> Mask:
        """The rows that match; where `within` says False, nobody cares, and no row is looked at."""
        match wanted:
            case Where():
                return self._where(wanted, rows, within)
            case Created():
                return wanted.among(rows.created())
            case Not(part=part):
                return ~self._mask(part, rows, within)
        return self._joined(wanted, rows, within)

    def _joined(self, wanted: And | Or, rows: Rows, within: Mask | None) -> Mask:
        """Parts that columns answer come first, so that as few rows as can be are looked at for the others."""
        either = isinstance(wanted, Or)
        found: Mask | None = None
        for part in sorted(wanted.parts, key=self._looks):
            open_rows = within
            if found is not None and self._looks(part):
                undecided = ~found if either else found
                open_rows = undecided if within is None else within & undecided
            one = self._mask(part, rows, open_rows)
            if found is None:
                found = one
            else:
                (np.logical_or if either else np.logical_and)(found, one, out=found)
        return np.full(self.rows, not either) if found is None else found

    def _looks(self, wanted: Filter) -> bool:
        """Whether rows may have to be looked at."""
        match wanted:
            case Where():
                return any(stop > start for start, stop in self._rest_spans(wanted.name))
            case And() | Or():
                return any(map(self._looks, wanted.parts))
            case Not():
                return self._looks(wanted.part)
        return False

    def _where(self, wanted: Where, rows: Rows, within: Mask | None) -> Mask:
        op = _POSITIVE.get(wanted.op, wanted.op)
        column = self._column(wanted.name)
        if column is None:
            found = np.zeros(self.rows, np.bool_)
        else:
            found = column.filled() if op == "is_empty" else column.answer(op, wanted.value)
        if len(self._rest_keys):
            self._add_rest(wanted, op, rows, within, found)
        return ~found if op != wanted.op or op == "is_empty" else found

    def _add_rest(self, wanted: Where, op: str, rows: Rows, within: Mask | None, found: Mask) -> None:
        """Put into `found` what the rows in `rest` answer to the positive form of the operator."""
        certain, uncertain = self._rest_spans(wanted.name)
        positive = wanted if op == wanted.op else Where(wanted.name, op, wanted.value)
        if op == "is_empty":
            found[self._rest_rows[slice(*certain)]] = self._rest_digests[slice(*certain)] != DIGEST_EMPTY
            candidates = self._rest_rows[slice(*uncertain)]
            positive = Not(positive)  # type: ignore[assignment]
        else:
            digests = _digests_sought(op, wanted.value)
            candidates = np.concatenate([self._candidates(span, digests) for span in (certain, uncertain)])
        if within is not None:
            candidates = candidates[within[candidates]]
        if len(candidates):
            found[candidates] = rows.look(candidates.astype(np.int64), positive)

    def _candidates(self, span: tuple[int, int], digests: list[int] | None) -> npt.NDArray[np.uint32]:
        rows: npt.NDArray[np.uint32] = self._rest_rows[slice(*span)]
        if digests is None or not len(rows):
            return rows
        held = self._rest_digests[slice(*span)]
        return rows[np.isin(held, np.array(digests, np.uint32))]

    def _rest_spans(self, name: str) -> tuple[tuple[int, int], tuple[int, int]]:
        """Where in `rest` this key's rows are; and where those are of any key whose name has the same digest."""
        ordinal = self._ordinals.get(name)
        return (0, 0) if ordinal is None else self._rest_span(ordinal), self._rest_span(key_digest(name))

    def _rest_span(self, key: int) -> tuple[int, int]:
        at = int(self._rest_keys.searchsorted(key))
        if at == len(self._rest_keys) or self._rest_keys[at] != key:
            return 0, 0
        return int(self._rest_starts[at]), int(self._rest_starts[at + 1])

    def _column(self, name: str) -> Column | None:
        column = self._columns.get(name)
        if column is None and name in self._named:
            column = self._columns[name] = Column(self._reader, self._named[name], self.rows)
        return column


def _digests_sought(op: str, value: Any) -> list[int] | None:
    """The digests that a value may have which matches; None for any."""
    if op == "==":
        values = (value,)
    elif op == "in":
        values = value
    else:
        return None
    return list({digest(one) if isinstance(one, str) else DIGEST_EMPTY if one == () else DIGEST_OTHER for one in values})
