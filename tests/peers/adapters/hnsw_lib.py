"""hnswlib: an index in memory, saved to a file and loaded whole by each process; texts and metadata in SQLite."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterable
from typing import Any, ClassVar

from tests.peers.adapters.sidecar import Sidecar
from tests.peers.protocol import DIMENSION, ONE_WRITER, Hit, Peer, Place, Rows, Vectors, number_of

hnswlib: Any = importlib.import_module("hnswlib")

_ROOM_TO_WRITE = 200_000


class HnswLib(Peer):
    """To be seen by others a write saves the whole index anew; a reader loads the file when it has changed."""

    package: ClassVar[str] = "hnswlib"
    settings: ClassVar[str] = "M 16, ef_construction 200; knob: ef; filter: its Python callback, over the room's labels"
    knobs: ClassVar[tuple[int, ...]] = (10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024)
    processes: ClassVar[str] = ONE_WRITER
    why: ClassVar[str] = "who saves last wins"

    def __init__(self, place: Place) -> None:
        """Load the file, if there is one."""
        self._file = place.folder / "index.hnsw"
        self._place = place
        self._rows = Sidecar(place.folder)
        self._ef = 64
        self._loaded = (0, 0)
        self._index: Any = None
        self._refresh()

    def _refresh(self) -> None:
        """Load the file again if it is another one."""
        try:
            status = self._file.stat()
        except FileNotFoundError:
            return
        if self._loaded == (status.st_ino, status.st_mtime_ns):
            return
        self._loaded = (status.st_ino, status.st_mtime_ns)
        self._index = hnswlib.Index(space="cosine", dim=DIMENSION)
        self._index.load_index(str(self._file), max_elements=self._place.rows + _ROOM_TO_WRITE)
        self._index.set_ef(self._ef)

    def _save(self) -> None:
        written = self._file.with_suffix(f".{os.getpid()}")
        self._index.save_index(str(written))
        written.replace(self._file)
        status = self._file.stat()
        self._loaded = (status.st_ino, status.st_mtime_ns)

    def load(self, batches: Iterable[Rows]) -> None:
        """With all cores."""
        self._index = hnswlib.Index(space="cosine", dim=DIMENSION)
        self._index.init_index(max_elements=self._place.rows, M=16, ef_construction=200)
        for rows in batches:
            self._index.add_items(rows.vectors, rows.numbers)
            self._rows.add(rows)
        self._save()

    def write(self, rows: Rows) -> None:
        """Add, and save everything."""
        self._rows.add(rows)
        self._index.add_items(rows.vectors, rows.numbers)
        self._save()

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._ef = knob
        if self._index is not None:
            self._index.set_ef(knob)

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """After a look whether the file has changed."""
        self._refresh()
        if room is None:
            labels, _ = self._index.knn_query(query, k=k)
        else:
            members = set(self._rows.room(room).tolist())
            labels, _ = self._index.knn_query(query, k=k, num_threads=1, filter=members.__contains__)
        return self._rows.hits(labels[0].tolist())

    def have(self, ids: list[str]) -> set[str]:
        """By label in the index."""
        known = set(self._index.get_ids_list())
        return {one for one in ids if number_of(one) in known}

    def close(self) -> None:
        """Let go of the index and of SQLite."""
        self._index = None
        self._loaded = (0, 0)
        self._rows.close()
