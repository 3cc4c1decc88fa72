"""Qdrant Edge: Qdrant's engine in the process, one shard in a folder."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from typing import Any, ClassVar

from tests.peers.protocol import DIMENSION, ONE, Hit, Peer, Place, Rows, Vectors, identifier, number_of

edge: Any = importlib.import_module("qdrant_edge")

_OPTIMIZE_EVERY = 100_000  # records that a process wrote


class QdrantEdge(Peer):
    """One process: the shard is locked."""

    package: ClassVar[str] = "qdrant-edge-py"
    settings: ClassVar[str] = (
        "HNSW m 16, ef_construct 100, keyword index on the room, WAL on, optimize() after loading; knob: hnsw_ef"
    )
    knobs: ClassVar[tuple[int, ...]] = (10, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024)
    processes: ClassVar[str] = ONE
    why: ClassVar[str] = "a second process is refused"

    def __init__(self, place: Place) -> None:
        """Open the shard."""
        self._shard = edge.EdgeShard.load(str(place.folder / "shard"))
        self._ef = self.knobs[0]
        self._written = 0

    @classmethod
    def create(cls, place: Place) -> None:
        """An empty shard with an index on the room."""
        folder = place.folder / "shard"
        folder.mkdir()
        vectors = edge.EdgeVectorParams(size=DIMENSION, distance=edge.Distance.Cosine)
        index = edge.HnswIndexConfig(m=16, ef_construct=100, full_scan_threshold=10_000, max_indexing_threads=2)
        shard = edge.EdgeShard.create(str(folder), edge.EdgeConfig(vectors=vectors, hnsw_config=index))
        shard.update(edge.UpdateOperation.create_field_index("room", edge.PayloadSchemaType.Keyword))
        shard.close()

    def load(self, batches: Iterable[Rows]) -> None:
        """By upserts of a thousand, then `optimize`, which builds the index."""
        for rows in batches:
            self._insert(rows)
        self._shard.optimize()
        self._shard.flush()

    def _insert(self, rows: Rows) -> None:
        columns = zip(rows.numbers, rows.vectors.tolist(), rows.texts, rows.metadata, strict=True)
        points = [edge.Point(number, vector, {"text": text, **fields}) for number, vector, text, fields in columns]
        self._shard.update(edge.UpdateOperation.upsert_points(points))

    def write(self, rows: Rows) -> None:
        """One upsert, in its write-ahead log."""
        self._insert(rows)
        self._written += len(rows.ids)
        if self._written >= _OPTIMIZE_EVERY:
            self._shard.optimize()
            self._written = 0

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._ef = knob

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """With payloads."""
        wanted = None
        if room is not None:
            wanted = edge.Filter(must=[edge.FieldCondition(key="room", match=edge.MatchValue(room))])
        nearest = edge.Query.Nearest(query.tolist())
        parameters = edge.SearchParams(hnsw_ef=self._ef)
        asked = edge.QueryRequest(limit=k, query=nearest, filter=wanted, params=parameters, with_payload=True)
        return [Hit(identifier(point.id), point.payload["text"], point.payload) for point in self._shard.query(asked)]

    def have(self, ids: list[str]) -> set[str]:
        """By id."""
        found = self._shard.retrieve([number_of(one) for one in ids], False, False)
        return {identifier(point.id) for point in found}

    def close(self) -> None:
        """Give the shard back."""
        self._shard.close()
