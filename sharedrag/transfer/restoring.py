"""Records of an exported file back into a pool, as they were: the same ids, times and vectors, in the order of writing.

Records that are there already are left alone, so doing it twice is doing it once, and what was broken off is taken up.
"""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import orjson
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from pydantic import BaseModel

from sharedrag.collection import Collection
from sharedrag.errors import InvalidRecord
from sharedrag.pool import Pool
from sharedrag.transfer import layout

BATCH_ROWS = 4096


class Restored(BaseModel):
    """What became of a file's records."""

    put: dict[str, int]
    already_there: int
    seconds: float


def restore(pool: Pool, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> Restored:
    """Put the records of an exported file into collections of their names, made where there are none.

    Calls `progress(rows looked at, rows in all)`. Raises `UnreadableExport`, `CollectionMismatch` where a collection is of
    another shape, what `Collection.put` raises, OSError.
    """
    source, started = Path(path), time.monotonic()
    told = layout.contents(source)
    if told is None:
        raise _unreadable(source, "not a file that `sharedrag export` wrote", "To import a chat, say --group")
    if not told.vectors and any(one.dimension for one in told.collections):
        raise _unreadable(
            source, "exported without vectors", "Say --group to import its messages, or export it with vectors"
        )
    collections = {
        one.name: pool.collection(
            one.name,
            one.dimension,
            one.metric,
            one.dtype,
            embedding_model=one.embedding_model,
            recall_target=one.recall_target,
        )
        for one in told.collections
    }
    done, put, there = 0, Counter(dict.fromkeys(collections, 0)), 0
    for total, batch in batches(source):
        for name, rows in _by_collection(batch):
            if name not in collections:
                raise _unreadable(source, f"it does not say what collection {name!r} is", "Export it again")
            try:
                count = _put(collections[name], rows)
            except (orjson.JSONDecodeError, InvalidRecord) as error:
                raise _unreadable(source, f"a record near row {done:,} cannot be put: {error}", "Export it again") from None
            put[name] += count
            there += rows.num_rows - count
        done += batch.num_rows
        if progress is not None:
            progress(done, total)
    return Restored(put=dict(put), already_there=there, seconds=time.monotonic() - started)


def batches(path: Path) -> Iterator[tuple[int, pa.RecordBatch]]:
    """(rows in all, the next few thousand) of an exported file. Raises `UnreadableExport` where it is damaged."""
    try:
        if layout.is_arrow(path):
            with pa.memory_map(str(path)) as source:
                file = pa.ipc.open_file(source)
                total = sum(file.get_batch(index).num_rows for index in range(file.num_record_batches))
                for index in range(file.num_record_batches):
                    yield total, _checked(file.get_batch(index))
        else:
            with pq.ParquetFile(path) as file:
                for batch in file.iter_batches(BATCH_ROWS):
                    yield file.metadata.num_rows, _checked(batch)
    except (pa.ArrowException, OSError) as error:
        raise _unreadable(path, f"cannot be read: {error}", "Export it again, or copy it again") from None


def _checked(batch: pa.RecordBatch) -> pa.RecordBatch:
    batch.validate(full=True)
    return batch


def _by_collection(batch: pa.RecordBatch) -> Iterator[tuple[str, pa.RecordBatch]]:
    """The rows of each collection; those of one follow each other."""
    names = batch.column("collection").to_pylist()
    start = 0
    for at in range(1, len(names) + 1):
        if at == len(names) or names[at] != names[start]:
            yield names[start], batch.slice(start, at - start)
            start = at


def _put(collection: Collection, rows: pa.RecordBatch) -> int:
    """Put those that are not there yet; returns how many."""
    ids = rows.column("id").to_pylist()
    fresh = [row for row, one in enumerate(ids) if one not in collection]
    if not fresh:
        return 0
    rows = rows.take(pa.array(fresh))
    collection.put(
        rows.column("id").to_pylist(),
        _vectors(rows.column("vector"), collection.dimension),
        rows.column("text").to_pylist(),
        [None if one is None else orjson.loads(one) for one in rows.column("metadata").to_pylist()],
        created=rows.column("created").to_pylist(),
    )
    return len(fresh)


def _vectors(
    column: pa.ListArray, dimension: int | None
) -> npt.NDArray[np.float32] | list[npt.NDArray[np.float32] | None] | None:
    """As `Collection.put` takes them: (n, dimension) float32, or a list with None for rows without one."""
    if dimension is None:
        return None
    widths = column.value_lengths().drop_null()
    if len(widths) and (pc.min_max(widths).as_py() != {"min": dimension, "max": dimension}):
        raise InvalidRecord(f"vectors are not of {dimension} numbers each", operation="import", hint="Export it again")
    if column.null_count == 0:
        return np.asarray(column.flatten(), np.float32).reshape(-1, dimension)
    return [None if one is None else np.asarray(one, np.float32) for one in column.to_pylist()]


def _unreadable(path: Path, what: str, hint: str) -> layout.UnreadableExport:
    return layout.UnreadableExport(what, operation="import", path=str(path), hint=hint)
