"""Qdrant's local mode: its Python client alone, on a folder; exact search in NumPy."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Iterable
from typing import Any, ClassVar

from tests.peers.protocol import DIMENSION, ONE, Hit, Peer, Place, Rows, Vectors, identifier, number_of

qdrant: Any = importlib.import_module("qdrant_client")
models: Any = importlib.import_module("qdrant_client.models")

warnings.filterwarnings("ignore", module="qdrant_client")  # that local mode is not meant for many rows, at each query


class QdrantLocal(Peer):
    """One process: the folder is locked."""

    package: ClassVar[str] = "qdrant-client"
    settings: ClassVar[str] = "local mode, exact: it has no index"
    rows_max: ClassVar[int] = 20_000
    why_rows: ClassVar[str] = "more it does not recommend itself"
    processes: ClassVar[str] = ONE
    why: ClassVar[str] = "a second process is refused"

    def __init__(self, place: Place) -> None:
        """Take the lock, read everything."""
        self._client = qdrant.QdrantClient(path=str(place.folder / "qdrant"))

    @classmethod
    def create(cls, place: Place) -> None:
        """An empty collection."""
        client = qdrant.QdrantClient(path=str(place.folder / "qdrant"))
        vectors = models.VectorParams(size=DIMENSION, distance=models.Distance.COSINE)
        client.create_collection("rows", vectors_config=vectors)
        client.close()

    def load(self, batches: Iterable[Rows]) -> None:
        """By upserts of a thousand."""
        for rows in batches:
            self.write(rows)

    def write(self, rows: Rows) -> None:
        """One upsert."""
        payloads = [{"text": text, **fields} for text, fields in zip(rows.texts, rows.metadata, strict=True)]
        self._client.upsert("rows", models.Batch(ids=rows.numbers, vectors=rows.vectors.tolist(), payloads=payloads))

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """With payloads."""
        wanted = None
        if room is not None:
            wanted = models.Filter(must=[models.FieldCondition(key="room", match=models.MatchValue(value=room))])
        found = self._client.query_points("rows", query=query, query_filter=wanted, limit=k, with_payload=True)
        return [Hit(identifier(point.id), point.payload["text"], point.payload) for point in found.points]

    def have(self, ids: list[str]) -> set[str]:
        """By id."""
        found = self._client.retrieve("rows", [number_of(one) for one in ids], with_payload=False)
        return {identifier(point.id) for point in found}

    def close(self) -> None:
        """Give the lock back."""
        self._client.close()
