"""LanceDB: a table of Lance files; every write commits a new version, which readers look for at each query."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, ClassVar

import pyarrow as pa

from tests.peers.protocol import DIMENSION, Hit, Peer, Place, Rows, Vectors

lancedb: Any = importlib.import_module("lancedb")
indexes: Any = importlib.import_module("lancedb.index")

_SCHEMA = pa.schema(
    {
        "id": pa.string(),
        "text": pa.string(),
        "room": pa.string(),
        "author": pa.string(),
        "ts": pa.int64(),
        "vector": pa.list_(pa.float32(), DIMENSION),
    }
)
_COLUMNS = ["_distance", "id", "text", "room", "author", "ts"]  # without _distance it logs a warning for each query
_BATCHES_A_FILE = 50
_OPTIMIZE_EVERY = 100  # writes of a process; its guide asks for it after many small writes


class Lance(Peer):
    """Any number of processes."""

    package: ClassVar[str] = "lancedb"
    settings: ClassVar[str] = (
        "IVF_RQ (its advice where queries are filtered) with sqrt(rows) partitions, bitmap index on the room, strong "
        f"read consistency, optimize() after each {_OPTIMIZE_EVERY} writes; knobs: nprobes and refine_factor"
    )
    knobs: ClassVar[tuple[tuple[int, int], ...]] = (
        (8, 3), (16, 3), (16, 5), (24, 5), (24, 8), (32, 5), (32, 8), (40, 8), (48, 8), (64, 8), (64, 12), (96, 12),
        (128, 12), (160, 16), (320, 20),
    )  # fmt: skip

    def __init__(self, place: Place) -> None:
        """Open the table."""
        database = lancedb.connect(place.folder / "lance", read_consistency_interval=timedelta(0))
        self._rows = place.rows
        self._table = database.open_table("rows")
        self._probes, self._refine = self.knobs[0]
        self._writes = 0

    @classmethod
    def create(cls, place: Place) -> None:
        """An empty table."""
        lancedb.connect(place.folder / "lance").create_table("rows", schema=_SCHEMA)

    def load(self, batches: Iterable[Rows]) -> None:
        """In large appends, then the two indexes."""
        waiting: list[pa.Table] = []
        for rows in batches:
            waiting.append(_table(rows))
            if len(waiting) == _BATCHES_A_FILE:
                self._table.add(pa.concat_tables(waiting))
                waiting.clear()
        if waiting:
            self._table.add(pa.concat_tables(waiting))
        partitions = max(1, round(self._rows**0.5))
        self._table.create_index("vector", config=indexes.IvfRq(distance_type="cosine", num_partitions=partitions))
        self._table.create_index("room", config=indexes.Bitmap())
        self._table.create_index("id", config=indexes.BTree())

    def write(self, rows: Rows) -> None:
        """One commit."""
        self._table.add(_table(rows))
        self._writes += 1
        if self._writes % _OPTIMIZE_EVERY == 0:
            with suppress(RuntimeError):  # somebody else's optimize() was first
                self._table.optimize()

    def use(self, knob: Any) -> None:
        """(partitions to look into, how many times k to re-rank)."""
        self._probes, self._refine = knob

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """Filtered before the search, which is its default."""
        asked = self._table.search(query).distance_type("cosine").select(_COLUMNS).limit(k)
        asked = asked.nprobes(self._probes).refine_factor(self._refine)
        if room is not None:
            asked = asked.where(f"room = '{room}'")
        return [Hit(row.pop("id"), row.pop("text"), row) for row in asked.to_arrow().to_pylist()]

    def have(self, ids: list[str]) -> set[str]:
        """By the index on the ids."""
        quoted = ", ".join(f"'{one}'" for one in ids)
        found = self._table.search().where(f"id IN ({quoted})").select(["id"]).limit(len(ids)).to_arrow()
        return set(found.column("id").to_pylist())


def _table(rows: Rows) -> pa.Table:
    fields = [[fields[name] for fields in rows.metadata] for name in ("room", "author", "ts")]
    vectors = pa.FixedSizeListArray.from_arrays(pa.array(rows.vectors.ravel()), DIMENSION)
    return pa.table([rows.ids, rows.texts, *fields, vectors], schema=_SCHEMA)
