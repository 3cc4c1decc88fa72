"""Segments as Arrow record batches: the pool's own buffers, no copies. Each buffer's base is the pin that keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharedrag.arena.row import HAS_METADATA, HAS_TEXT, HAS_VECTOR
from sharedrag.arena.segment import Segment
from sharedrag.arena.session import Pin
from sharedrag.errors import InvalidFilter
from sharedrag.segments.live import Part

COLUMNS = ("id", "created", "text", "metadata", "vector", "key")
_SLICES_MAX = 64  # with more runs of live rows than this, copying the live ones is cheaper to read


def schema(dimension: int | None, dtype: str, columns: tuple[str, ...]) -> pa.Schema:
    """The Arrow schema of a scan. Metadata is JSON text; under cosine, vectors are the stored unit vectors."""
    kinds: dict[str, pa.DataType] = {
        "id": pa.string(),
        "created": pa.timestamp("us", tz="UTC"),
        "text": pa.string(),
        "metadata": pa.string(),
        "key": pa.uint64(),
    }
    if dimension:
        kinds["vector"] = pa.list_(pa.float16() if dtype == "float16" else pa.float32(), dimension)
    return pa.schema([(name, kinds[name]) for name in columns if name in kinds])


def check_columns(columns: object) -> tuple[str, ...]:
    """The columns asked for, all by default; raises `InvalidFilter` for one there is not."""
    if columns is None:
        return COLUMNS
    wanted = tuple(columns) if isinstance(columns, (list, tuple)) else (columns,)
    for name in wanted:
        if name not in COLUMNS:
            raise InvalidFilter(f"no column {name!r}", operation="scan", hint=f"Columns are {', '.join(COLUMNS)}")
    return wanted


def batches(part: Part, wanted: npt.NDArray[np.bool_] | None, pin: Pin, schema: pa.Schema) -> list[pa.RecordBatch]:
    """The part's wanted rows: slices of the shared buffers, or, where they are scattered, a copy of just those rows."""
    whole = pa.RecordBatch.from_arrays([_array(part, field, pin) for field in schema], schema=schema)
    if wanted is None or wanted.all():
        return [whole]
    edges = np.flatnonzero(np.diff(np.concatenate(([False], wanted, [False])).view(np.int8)))
    runs = edges.reshape(-1, 2)
    if len(runs) > _SLICES_MAX:
        return [whole.filter(pa.array(wanted))]
    return [whole.slice(start, stop - start) for start, stop in runs.tolist()]


def _array(part: Part, field: pa.Field, pin: Pin) -> pa.Array:
    segment, rows = part.segment, part.rows
    if field.name in ("created", "key"):
        return pa.Array.from_buffers(field.type, rows, [None, _buffer(segment, field.name, pin)])
    if field.name == "vector":
        child = pa.Array.from_buffers(
            field.type.value_type, rows * segment.shape.dimension, [None, _buffer(segment, "vectors", pin)]
        )
        return pa.Array.from_buffers(field.type, rows, [_validity(part, HAS_VECTOR)], children=[child])
    segment.string_offsets(field.name, rows)
    has = {"id": 0, "text": HAS_TEXT, "metadata": HAS_METADATA}[field.name]
    buffers = [
        _validity(part, has),
        _buffer(segment, f"{field.name}_offsets", pin),
        _buffer(segment, f"{field.name}_heap", pin),
    ]
    return pa.Array.from_buffers(field.type, rows, buffers)


def _buffer(segment: Segment, column: str, pin: Pin) -> pa.Buffer:
    at, size = segment.columns[column]
    return pa.foreign_buffer(segment.region.address + segment.offset + at, size, base=pin)


def _validity(part: Part, flag: int) -> pa.Buffer | None:
    """A private validity bitmap where some row lacks the value (published bytes hold no bit-packed columns)."""
    if not flag:
        return None
    has = (part.segment.flags_array[: part.rows] & flag) != 0
    return None if has.all() else pa.py_buffer(np.packbits(has, bitorder="little"))


class InOrder:
    """The wanted rows of parts in the order of their keys, a batch at a time; for each row 8 bytes are held, no more.

    What `batches` gives is the pool's own memory, segment by segment; this copies, so that a file can be written in the
    order in which things happened, whoever wrote them, and read back in that order. Row checksums are verified.
    """

    def __init__(self, parts: Sequence[Part], masks: Sequence[npt.NDArray[np.bool_]], pin: Pin, schema: pa.Schema) -> None:
        """The masks are of each part's first `rows` rows. Pin and parts are kept until this is gone."""
        self._schema = schema
        self._segments = [part.segment for part in parts]
        self._wholes = [
            pa.RecordBatch.from_arrays([_array(part, field, pin) for field in schema], schema=schema) for part in parts
        ]
        rows = [np.flatnonzero(mask).astype(np.int32) for mask in masks]
        keys = [part.segment.key_array[some] for part, some in zip(parts, rows, strict=True)]
        by_key = np.argsort(np.concatenate([np.empty(0, np.uint64), *keys]))
        self._rows = np.concatenate([np.empty(0, np.int32), *rows])[by_key]
        self._parts = np.repeat(np.arange(len(rows), dtype=np.int32), [some.size for some in rows])[by_key]

    def __len__(self) -> int:
        """How many rows there are."""
        return len(self._rows)

    def batches(self, rows: int, size: int) -> Iterator[pa.RecordBatch]:
        """Batches of at most so many rows, and of about so many bytes of strings. Raises `PoolDamaged`."""
        start = 0
        while start < len(self._rows):
            stop, held = start, 0
            while stop < min(start + rows, len(self._rows)) and held < size:
                raw = self._segments[self._parts[stop]].read(int(self._rows[stop]))
                held += len(raw.text or b"") + len(raw.metadata or b"")
                stop += 1
            yield self._batch(self._parts[start:stop], self._rows[start:stop])
            start = stop

    def _batch(self, parts: npt.NDArray[np.int32], rows: npt.NDArray[np.int32]) -> pa.RecordBatch:
        by_part = np.argsort(parts, kind="stable")
        edges = np.flatnonzero(np.diff(parts[by_part], prepend=-1, append=-1))
        pieces = [
            self._wholes[parts[by_part[first]]].take(pa.array(rows[by_part[first:stop]])) for first, stop in pairwise(edges)
        ]
        back = np.empty(len(by_part), np.int64)
        back[by_part] = np.arange(len(by_part))
        table = pa.Table.from_batches(pieces, schema=self._schema)
        (batch,) = table.take(pa.array(back)).combine_chunks().to_batches()
        return batch
