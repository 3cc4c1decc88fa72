"""The one table of an exported file, Arrow IPC or Parquet.

| column | type | |
| --- | --- | --- |
| collection | string | where the record was |
| id | string | |
| created | timestamp, us, UTC | the record's own time |
| text | string | null if it has none |
| metadata | string | JSON, null if it has none |
| vector | list of float32 | as it is stored: of length 1 under cosine; null if it has none, or without vectors |

A collection's rows come in the order in which they were written; NAME.x comes before NAME, so that in a history an exchange
comes before its messages. The schema's metadata has, under `sharedrag`, JSON: {version, vectors, group, collections}, the
last as lists of what `Pool.collection` takes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import orjson
import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import BaseModel, Field, ValidationError

from sharedrag.errors import SharedRagError

VERSION = 1
KEY = b"sharedrag"
SCHEMA = pa.schema(
    [
        ("collection", pa.string()),
        ("id", pa.string()),
        ("created", pa.timestamp("us", tz="UTC")),
        ("text", pa.string()),
        ("metadata", pa.string()),
        ("vector", pa.list_(pa.float32())),
    ]
)


class Shape(BaseModel):
    """What `Pool.collection` takes."""

    name: str
    dimension: int | None
    metric: str
    dtype: str
    embedding_model: str | None
    recall_target: float


class Contents(BaseModel):
    """What a file says of itself."""

    version: int = VERSION
    vectors: bool = Field(description="whether records have their vectors with them")
    group: str | None = Field(default=None, description="the one group that it holds of a history; null: all that there was")
    collections: list[Shape]


class UnreadableExport(SharedRagError, ValueError):
    """A file that no `sharedrag export` wrote, or a newer one did; or it is damaged."""


def schema(contents: Contents) -> pa.Schema:
    """The table's schema, which carries the contents."""
    return SCHEMA.with_metadata({KEY: contents.model_dump_json()})


def contents(path: Path) -> Contents | None:
    """What an exported file says of itself; None if it is some other file. Raises `UnreadableExport`, OSError."""
    found = _schema_of(path)
    told: Any = None if found is None else (found.metadata or {}).get(KEY)
    if found is None or told is None:
        return None
    try:
        known = Contents.model_validate(orjson.loads(told))
    except (ValidationError, orjson.JSONDecodeError):
        known = None
    if known is None or known.version != VERSION or not found.remove_metadata().equals(SCHEMA):
        what = "exported by another version of sharedrag"
        raise UnreadableExport(what, operation="import", path=str(path), hint="Import it with the version that wrote it")
    return known


def is_arrow(path: Path) -> bool:
    """Whether a file is Arrow IPC."""
    with path.open("rb") as file:
        return file.read(6) == b"ARROW1"


def _schema_of(path: Path) -> pa.Schema | None:
    if path.is_dir():
        return None
    arrow = is_arrow(path)  # what the system refuses, it refuses here
    try:
        if arrow:
            with pa.memory_map(str(path)) as source:
                return pa.ipc.open_file(source).schema
        return pq.read_schema(path)
    except (pa.ArrowException, OSError):  # some other file, or a damaged one: whoever reads it on will say what is wrong
        return None
