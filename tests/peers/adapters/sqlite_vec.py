"""sqlite-vec: a virtual table in SQLite. Its search is exact; bits with re-scoring are what its guide says for speed."""

from __future__ import annotations

import importlib
import json
from collections.abc import Iterable
from typing import Any, ClassVar

from tests.peers.protocol import Hit, Peer, Place, Rows, Vectors, number_of

sqlite: Any = importlib.import_module("sqlite3")
if not hasattr(sqlite.Connection, "enable_load_extension"):  # a Python that was built without
    sqlite = importlib.import_module("pysqlite3")
sqlite_vec: Any = importlib.import_module("sqlite_vec")

_TABLE = """CREATE VIRTUAL TABLE rows USING vec0(
    number INTEGER PRIMARY KEY, room TEXT PARTITION KEY, embedding float[384] distance_metric=cosine, bits bit[384],
    +text TEXT, +metadata TEXT)"""
_BY_BITS = """WITH near AS (
    SELECT number, embedding FROM rows WHERE bits MATCH vec_quantize_binary(:query) AND k = :near{room}
) SELECT number FROM near ORDER BY vec_distance_cosine(embedding, :query) LIMIT :k"""
_EXACT = "SELECT number FROM rows WHERE embedding MATCH :query AND k = :k{room}"
_TEXTS = "SELECT text, metadata FROM rows WHERE number = ?"
_LOAD_ROWS = 10_000  # in one transaction


class SqliteVec(Peer):
    """Any number of processes; SQLite lets them write one after the other."""

    package: ClassVar[str] = "sqlite-vec"
    settings: ClassVar[str] = (
        "vec0 partitioned by room, WAL, synchronous NORMAL, busy timeout 10 s; knob: candidates by bits to re-score with "
        "float32, or exact"
    )
    knobs: ClassVar[tuple[Any, ...]] = (30, 50, 80, 120, 200, "exact")

    def __init__(self, place: Place) -> None:
        """Open; the first to come makes the table."""
        self._connection = connection = sqlite.connect(place.folder / "rows.sqlite", isolation_level=None, timeout=10.0)
        connection.enable_load_extension(True)
        sqlite_vec.load(connection)
        connection.enable_load_extension(False)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = NORMAL")
        connection.execute("PRAGMA mmap_size = 8000000000")
        self._near: Any = "exact"

    @classmethod
    def create(cls, place: Place) -> None:
        """The table."""
        opened = cls(place)
        opened._connection.execute(_TABLE)
        opened.close()

    def _insert(self, rows: Rows) -> None:
        self._connection.executemany(
            "INSERT INTO rows VALUES (?, ?, ?, vec_quantize_binary(?), ?, ?)",
            [
                (number, fields["room"], vector, vector, text, json.dumps(fields))
                for number, vector, text, fields in zip(
                    rows.numbers, map(bytes, rows.vectors), rows.texts, rows.metadata, strict=True
                )
            ],
        )

    def load(self, batches: Iterable[Rows]) -> None:
        """In large transactions; there is no index to build."""
        self._connection.execute("BEGIN IMMEDIATE")
        written = 0
        for rows in batches:
            self._insert(rows)
            written += len(rows.ids)
            if written % _LOAD_ROWS == 0:
                self._connection.execute("COMMIT")
                self._connection.execute("BEGIN IMMEDIATE")
        self._connection.execute("COMMIT")

    def write(self, rows: Rows) -> None:
        """One transaction."""
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            self._insert(rows)
        except BaseException:
            self._connection.execute("ROLLBACK")
            raise
        self._connection.execute("COMMIT")

    def use(self, knob: Any) -> None:
        """How many candidates, or "exact"."""
        self._near = knob

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """The room is the partition key of the virtual table, which its search can be narrowed by."""
        statement = (_EXACT if self._near == "exact" else _BY_BITS).format(room="" if room is None else " AND room = :room")
        given = {"query": query.tobytes(), "k": k, "near": self._near, "room": room}
        numbers = [number for (number,) in self._connection.execute(statement, given)]
        hits = []
        for number in numbers:
            text, fields = self._connection.execute(_TEXTS, (number,)).fetchone()
            hits.append(Hit(f"m{number:09d}", text, json.loads(fields)))
        return hits

    def have(self, ids: list[str]) -> set[str]:
        """By primary key."""
        asked = [(one, number_of(one)) for one in ids]
        found = "SELECT 1 FROM rows WHERE number = ?"
        return {one for one, number in asked if self._connection.execute(found, (number,)).fetchone()}

    def close(self) -> None:
        """Let go."""
        self._connection.close()
