"""usearch: an index file that readers map (a view); texts and metadata in SQLite."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from tests.peers.adapters.sidecar import Sidecar
from tests.peers.protocol import DIMENSION, ONE_WRITER, Hit, Peer, Place, Rows, Vectors, number_of

usearch: Any = importlib.import_module("usearch.index")


class USearch(Peer):
    """A writer keeps the index in its memory and saves it anew after each write; a reader views the file as it lies."""

    package: ClassVar[str] = "usearch"
    settings: ClassVar[str] = (
        "connectivity 16, expansion_add 128, bf16, mapped; knob: expansion_search; filter: exact in the room"
    )
    knobs: ClassVar[tuple[int, ...]] = (10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024)
    processes: ClassVar[str] = ONE_WRITER
    why: ClassVar[str] = "who saves last wins"

    def __init__(self, place: Place) -> None:
        """View the file, if there is one."""
        self._file = place.folder / "index.usearch"
        self._rows = Sidecar(place.folder)
        self._expansion = 64
        self._seen = (0, 0)
        self._view: Any = None  # what is searched
        self._own: Any = None  # what is written, once something is
        self._refresh()

    def _refresh(self) -> None:
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return
        if self._seen != (status.st_ino, status.st_mtime_ns):
            self._seen = (status.st_ino, status.st_mtime_ns)
            self._view = usearch.Index.restore(str(self._file), view=True)
            self._view.expansion_search = self._expansion

    def _save(self) -> None:
        written = self._file.with_suffix(f".{os.getpid()}")
        self._own.save(str(written))
        written.replace(self._file)

    def load(self, batches: Iterable[Rows]) -> None:
        """With all cores."""
        self._own = usearch.Index(ndim=DIMENSION, metric="cos", dtype="bf16", connectivity=16, expansion_add=128)
        for rows in batches:
            self._own.add(np.array(rows.numbers), rows.vectors)
            self._rows.add(rows)
        self._save()

    def write(self, rows: Rows) -> None:
        """Add, and save everything."""
        if self._own is None:
            self._own = usearch.Index.restore(str(self._file))
        self._rows.add(rows)
        self._own.add(np.array(rows.numbers), rows.vectors)
        self._save()

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._expansion = knob
        if self._view is not None:
            self._view.expansion_search = knob

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """Its Python interface has no filter: within a room the vectors are taken out and compared exactly."""
        self._refresh()
        if room is None:
            return self._rows.hits(self._view.search(query, k).keys.tolist())
        numbers = self._rows.room(room)
        scores = self._view.get(numbers, dtype=np.float32) @ query
        return self._rows.hits(numbers[np.argsort(-scores)[:k]].tolist())

    def have(self, ids: list[str]) -> set[str]:
        """By key in the file."""
        self._refresh()
        there = self._view.contains(np.array([number_of(one) for one in ids]))
        return {one for one, present in zip(ids, there.tolist(), strict=True) if present}

    def close(self) -> None:
        """Let go of the view and of SQLite."""
        self._view = self._own = None
        self._seen = (0, 0)
        self._rows.close()
