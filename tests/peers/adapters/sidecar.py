"""Texts and metadata beside a bare vector index: SQLite in WAL mode, the usual companion; the label is the row's number."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from tests.peers.protocol import Hit, Rows

_ROWS = "CREATE TABLE rows (number INTEGER PRIMARY KEY, id TEXT UNIQUE, text TEXT, room TEXT, metadata TEXT)"


class Sidecar:
    """A process's connection."""

    def __init__(self, folder: Path) -> None:
        """Open, and make the table if it is not there."""
        self._connection = sqlite3.connect(folder / "rows.sqlite", isolation_level=None, timeout=10.0)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        if not self._connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'rows'").fetchone():
            self._connection.execute(_ROWS)
            self._connection.execute("CREATE INDEX by_room ON rows (room)")

    def add(self, rows: Rows) -> None:
        """In one transaction."""
        columns = zip(rows.numbers, rows.ids, rows.texts, rows.metadata, strict=True)
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany(
            "INSERT OR REPLACE INTO rows VALUES (?, ?, ?, ?, ?)",
            [(number, one, text, fields["room"], json.dumps(fields)) for number, one, text, fields in columns],
        )
        self._connection.execute("COMMIT")

    def hits(self, numbers: Sequence[int]) -> list[Hit]:
        """In this order."""
        marks = ", ".join("?" * len(numbers))
        found = self._connection.execute(f"SELECT number, id, text, metadata FROM rows WHERE number IN ({marks})", numbers)
        by_number = {number: Hit(one, text, json.loads(fields)) for number, one, text, fields in found}
        return [by_number[number] for number in numbers if number in by_number]

    def room(self, room: str) -> npt.NDArray[np.int64]:
        """The numbers of a room's rows."""
        found = self._connection.execute("SELECT number FROM rows WHERE room = ?", (room,))
        return np.array([number for (number,) in found], np.int64)

    def close(self) -> None:
        """Let go."""
        self._connection.close()
