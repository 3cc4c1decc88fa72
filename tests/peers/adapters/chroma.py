"""Chroma: embedded in each process (PersistentClient), or one server for all (`chroma run`)."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from tests.peers.protocol import Hit, Peer, Place, Rows, Vectors

chromadb: Any = importlib.import_module("chromadb")

_PATIENCE_S = 60.0
_INDEX = {"space": "cosine", "ef_construction": 200, "max_neighbors": 16}
_MANY_ROWS = 300_000


class ChromaEmbedded(Peer):
    """SQLite and an hnsw index in a folder."""

    package: ClassVar[str] = "chromadb"
    settings: ClassVar[str] = (
        "HNSW, max_neighbors 16, ef_construction 200; several processes in one folder, which its guides advise against; "
        "knob: ef_search"
    )
    knobs: ClassVar[tuple[int, ...]] = (20, 30, 40, 60, 80, 100, 150, 200, 400, 800)

    def __init__(self, place: Place) -> None:
        """Find the collection."""
        self._place = place
        self._open()

    def _open(self) -> None:
        self._client = self._connect(self._place)
        self._rows = self._client.get_collection("rows", embedding_function=None)
        self._most = self._client.get_max_batch_size()

    @classmethod
    def _connect(cls, place: Place) -> Any:
        return chromadb.PersistentClient(path=str(place.folder / "chroma"))

    @classmethod
    def create(cls, place: Place) -> None:
        """An empty collection."""
        index = _INDEX | {"ef_search": 100 if place.rows < _MANY_ROWS else 200}  # 100 is its default
        cls._connect(place).create_collection("rows", configuration={"hnsw": index}, embedding_function=None)

    def load(self, batches: Iterable[Rows]) -> None:
        """In batches of the size that it allows, less what does not fill a thousand."""
        waiting: list[Rows] = []
        for rows in batches:
            waiting.append(rows)
            if sum(len(one.ids) for one in waiting) + len(rows.ids) > self._most:
                self._add(waiting)
                waiting = []
        if waiting:
            self._add(waiting)

    def _add(self, parts: list[Rows]) -> None:
        self._rows.add(
            ids=[one for part in parts for one in part.ids],
            embeddings=[vector for part in parts for vector in part.vectors],
            documents=[text for part in parts for text in part.texts],
            metadatas=[fields for part in parts for fields in part.metadata],
        )

    def write(self, rows: Rows) -> None:
        """One `add`."""
        self._add([rows])

    def use(self, knob: Any) -> None:
        """A setting of the collection, which an index heeds when it is opened."""
        if self._rows.configuration["hnsw"].get("ef_search") != knob:
            self._rows.modify(configuration={"hnsw": {"ef_search": knob}})
            self.close()
            self._open()

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """With documents and metadata, which is its default."""
        found = self._rows.query(
            query_embeddings=[query],
            n_results=k,
            where=None if room is None else {"room": room},
            include=["documents", "metadatas"],
        )
        return [Hit(*one) for one in zip(found["ids"][0], found["documents"][0], found["metadatas"][0], strict=True)]

    def have(self, ids: list[str]) -> set[str]:
        """By id."""
        return set(self._rows.get(ids=ids, include=[])["ids"])

    def close(self) -> None:
        """A process shares one client for each folder until it is told to forget it."""
        self._client.clear_system_cache()


class ChromaServer(ChromaEmbedded):
    """Its server, over HTTP on this machine."""

    settings: ClassVar[str] = (
        f"HNSW, max_neighbors 16, ef_construction 200, ef_search 100 (200 from {_MANY_ROWS:,} rows on): "
        "a running server does not heed another"
    )
    knobs: ClassVar[tuple[Any, ...]] = (None,)

    @classmethod
    def _connect(cls, place: Place) -> Any:
        return chromadb.HttpClient(host="127.0.0.1", port=place.port)

    def use(self, knob: Any) -> None:
        """Nothing."""

    @classmethod
    def serve(cls, place: Place) -> list[str]:
        """`chroma run`."""
        command = Path(sys.executable).with_name("chroma")
        folder = str(place.folder / "chroma")
        return [str(command), "run", "--path", folder, "--host", "127.0.0.1", "--port", str(place.port)]

    @classmethod
    def create(cls, place: Place) -> None:
        """Once it answers."""
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return super().create(place)
            except Exception as error:  # its errors have no common class
                if time.monotonic() > give_up or "Could not connect" not in str(error):
                    raise
                time.sleep(0.2)
