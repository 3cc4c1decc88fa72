"""Milvus Lite by its local server (`milvus-lite server`): its way for more than one client."""

from __future__ import annotations

import importlib
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from tests.peers.protocol import DIMENSION, Hit, Peer, Place, Rows, Vectors

pymilvus: Any = importlib.import_module("pymilvus")

_PATIENCE_S = 60.0
_FIELDS = ["id", "text", "room", "author", "ts"]


class MilvusLite(Peer):
    """One server of Python and FAISS, over gRPC on this machine."""

    package: ClassVar[str] = "milvus-lite"
    settings: ClassVar[str] = "HNSW M 16, efConstruction 200, inverted index on the room, strong consistency; knob: ef"
    knobs: ClassVar[tuple[int, ...]] = (16, 24, 32, 48, 64, 96, 128, 256, 512)

    def __init__(self, place: Place) -> None:
        """Connect."""
        self._client = pymilvus.MilvusClient(uri=place.url)
        self._ef = self.knobs[0]

    @classmethod
    def serve(cls, place: Place) -> list[str]:
        """Its own command."""
        command = Path(sys.executable).with_name("milvus-lite")
        return [str(command), "server", "--data-dir", str(place.folder / "milvus"), "--port", str(place.port)]

    @classmethod
    def create(cls, place: Place) -> None:
        """An empty collection, once the server answers."""
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                client = pymilvus.MilvusClient(uri=place.url)
                break
            except pymilvus.exceptions.MilvusException:
                if time.monotonic() > give_up:
                    raise
        schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
        schema.add_field("id", pymilvus.DataType.VARCHAR, is_primary=True, max_length=64)
        schema.add_field("text", pymilvus.DataType.VARCHAR, max_length=4096)
        schema.add_field("room", pymilvus.DataType.VARCHAR, max_length=64)
        schema.add_field("author", pymilvus.DataType.VARCHAR, max_length=64)
        schema.add_field("ts", pymilvus.DataType.INT64)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=DIMENSION)
        indexes = client.prepare_index_params()
        parameters = {"M": 16, "efConstruction": 200}
        indexes.add_index("vector", index_type="HNSW", metric_type="COSINE", params=parameters)
        indexes.add_index("room", index_type="INVERTED")
        client.create_collection("rows", schema=schema, index_params=indexes, consistency_level="Strong")
        client.close()

    def load(self, batches: Iterable[Rows]) -> None:
        """By inserts of a thousand, then a flush and a load, which waits for the indexes; a loaded one gets them later."""
        self._client.release_collection("rows")
        for rows in batches:
            self.write(rows)
        self._client.flush("rows")
        self._client.load_collection("rows")

    def write(self, rows: Rows) -> None:
        """One insert."""
        columns = zip(rows.ids, rows.texts, rows.vectors, rows.metadata, strict=True)
        self._client.insert(
            "rows", [{"id": one, "text": text, "vector": vector, **fields} for one, text, vector, fields in columns]
        )

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._ef = knob

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """With all fields."""
        wanted = "" if room is None else f"room == '{room}'"
        parameters = {"metric_type": "COSINE", "params": {"ef": self._ef}}
        [found] = self._client.search(
            "rows", [query], filter=wanted, limit=k, output_fields=_FIELDS, search_params=parameters
        )
        return [Hit(hit["entity"]["id"], hit["entity"]["text"], hit["entity"]) for hit in found]

    def have(self, ids: list[str]) -> set[str]:
        """By id."""
        return {row["id"] for row in self._client.get("rows", ids, output_fields=["id"])}

    def close(self) -> None:
        """Disconnect."""
        self._client.close()
