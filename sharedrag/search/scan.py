"""Segments as Arrow record batches: the pool's own buffers, no copies. Each buffer's base is the pin that keeps it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from sharedrag.arena.segment import HAS_METADATA, HAS_TEXT, HAS_VECTOR, Segment
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
