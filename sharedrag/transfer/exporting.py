"""Records of a pool as one Arrow IPC or Parquet file, which pyarrow, DuckDB, pandas and others open. See `layout`.

It is written while others go on writing: each collection as of the moment when its turn comes. A few thousand records are in
memory at a time, and 8 bytes for each record of a collection. The file appears under its name when it is complete.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel

from sharedrag.collection import Collection
from sharedrag.errors import CollectionNotFound, SharedRagError
from sharedrag.filters import Filter
from sharedrag.pool import Pool
from sharedrag.search import scan
from sharedrag.transfer import layout

BATCH_ROWS = 4096
BATCH_BYTES = 64 << 20
FORMATS = {".arrow": "arrow", ".feather": "arrow", ".ipc": "arrow", ".parquet": "parquet"}
_COLUMNS = ("id", "created", "text", "metadata", "vector")
Progress = Callable[[int, int], None]


class Exported(BaseModel):
    """What was written."""

    path: str
    rows: int
    collections: dict[str, int]
    size: int
    seconds: float


def export(
    pool: Pool,
    path: str | os.PathLike[str],
    collections: Sequence[str] | None = None,
    filter: Filter | None = None,
    *,
    vectors: bool = True,
    group: str | None = None,
    progress: Progress | None = None,
) -> Exported:
    """Write the records of these collections (default: all) that the filter admits to `path`; `group` is only noted.

    The suffix says what it becomes: .arrow, .feather or .ipc an Arrow IPC file, .parquet Parquet, compressed. Calls
    `progress(rows written, rows in all so far known)`. Raises ValueError for another suffix, `CollectionNotFound`,
    `PoolDamaged`, OSError.
    """
    target, started = Path(path), time.monotonic()
    kind = FORMATS.get(target.suffix.lower())
    if kind is None:
        raise ValueError(f"{target.name}: the name must end in one of {', '.join(FORMATS)}")
    # What belongs to a collection, NAME.x, comes before it.
    chosen = [_collection(pool, name) for name in sorted(collections or pool.collections(), reverse=True)]
    told = layout.Contents(vectors=vectors, group=group, collections=[_shape(one) for one in chosen])
    counts: dict[str, int] = {}
    with _written_whole(target) as partial, _writer(partial, kind, layout.schema(told)) as write:
        for collection in chosen:
            rows, done = _rows(collection, filter, vectors), sum(counts.values())
            counts[collection.name] = len(rows)
            for batch in rows.batches(BATCH_ROWS, BATCH_BYTES):
                write(_as_exported(batch, collection.name))
                done += batch.num_rows
                if progress is not None:
                    progress(done, sum(counts.values()))
    size = target.stat().st_size
    seconds = time.monotonic() - started
    return Exported(path=str(target), rows=sum(counts.values()), collections=counts, size=size, seconds=seconds)


def _collection(pool: Pool, name: str) -> Collection:
    if name not in pool.collections():  # to ask for it would make it
        known = ", ".join(pool.collections()) or "none yet"
        raise CollectionNotFound(f"no collection {name!r}", operation="export", path=pool.path, hint=f"There is: {known}")
    return pool.collection(name)


def _shape(collection: Collection) -> layout.Shape:
    return layout.Shape(
        name=collection.name,
        dimension=collection.dimension,
        metric=collection.metric,
        dtype=collection.dtype,
        embedding_model=collection.embedding_model,
        recall_target=collection.definition.recall_target,
    )


def _rows(collection: Collection, filter: Filter | None, vectors: bool) -> scan.InOrder:
    """The rows as of now; the pool's memory that they lie in stays until they are written."""
    columns = _COLUMNS if vectors else _COLUMNS[:-1]
    view = collection.live.acquire()
    try:
        masks = [part.alive[: part.rows] for part in view.parts]
        if filter is not None:
            masks = [alive & collection.masks.of(part, filter) for alive, part in zip(masks, view.parts, strict=True)]
        schema = scan.schema(collection.dimension, collection.dtype, columns)
        return scan.InOrder(view.parts, masks, view.pin.hand_out(), schema)
    finally:
        collection.live.release()


def _as_exported(batch: pa.RecordBatch, collection: str) -> pa.RecordBatch:
    count = batch.num_rows
    columns: list[pa.Array] = [pa.array([collection]).take(pa.nulls(count, pa.int32()).fill_null(0))]
    for field in list(layout.SCHEMA)[1:]:
        found = batch.schema.get_field_index(field.name)
        columns.append(pa.nulls(count, field.type) if found < 0 else batch.column(found).cast(field.type))
    return pa.RecordBatch.from_arrays(columns, schema=layout.SCHEMA)


@contextmanager
def _written_whole(target: Path) -> Iterator[Path]:
    """A file beside the target that takes its place when it is complete, and goes where it does not come to that."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    try:
        yield partial
        os.replace(partial, target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def _writer(path: Path, kind: str, schema: pa.Schema) -> Iterator[Callable[[pa.RecordBatch], None]]:
    """Writes batches to a file; what Arrow says of a full disk comes as OSError."""
    options: dict[str, Any] = {"compression": "zstd", "store_schema": True} if kind == "parquet" else {}
    make = pq.ParquetWriter if kind == "parquet" else pa.ipc.new_file
    try:
        with path.open("wb") as sink, make(sink, schema, **options) as writer:
            yield lambda batch: writer.write_batch(batch.replace_schema_metadata(schema.metadata))
    except pa.ArrowException as error:
        raise SharedRagError(f"the file could not be written: {error}", operation="export", path=str(path)) from None
