"""What the LlamaIndex stores have in common: they are asked through `VectorStoreIndex` and its retriever."""

from __future__ import annotations

import importlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tests.peers.protocol import DIMENSION, Hit, Peer, Place, Rows, Vectors

core: Any = importlib.import_module("llama_index.core")
schema: Any = importlib.import_module("llama_index.core.schema")
filters: Any = importlib.import_module("llama_index.core.vector_stores")

_ = core.Settings.transformations  # its tokenizer: loaded with the first index anyhow, and nobody's store

_BATCH = 10_000  # nodes in one insert: each writes the index's whole list of ids again


class Llama(Peer):
    """An index over a vector store; where that keeps no texts, they are in the index's document store."""

    def __init__(self, place: Place) -> None:
        """Open what was saved."""
        self.place = place
        self._retrievers: dict[str | None, Any] = {}
        self.model = core.MockEmbedding(embed_dim=DIMENSION)  # vectors are given, it is never asked
        self.index = self.open()

    def open(self) -> Any:
        """The index: empty, or as it was saved."""
        raise NotImplementedError

    def folder(self) -> Path:
        """Where it is persisted."""
        return self.place.folder / "index"

    def load(self, batches: Iterable[Rows]) -> None:
        """By inserts of many nodes."""
        waiting: list[Any] = []
        for rows in batches:
            waiting += _nodes(rows)
            if len(waiting) >= _BATCH:
                self.index.insert_nodes(waiting)
                waiting = []
        if waiting:
            self.index.insert_nodes(waiting)
        self.save()

    def save(self) -> None:
        """Persist everything."""
        self.index.storage_context.persist(str(self.folder()))

    def write(self, rows: Rows) -> None:
        """`insert_nodes`."""
        self.index.insert_nodes(_nodes(rows))

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """By a retriever, which is kept."""
        retriever = self._retrievers.get(room)
        if retriever is None:
            wanted = None
            if room is not None:
                wanted = filters.MetadataFilters(filters=[filters.MetadataFilter(key="room", value=room)])
            retriever = self.index.as_retriever(similarity_top_k=k, filters=wanted)
            self._retrievers[room] = retriever
        found = retriever.retrieve(schema.QueryBundle("", embedding=query.tolist()))
        return [Hit(one.node.node_id, one.node.text, one.node.metadata) for one in found]

    def have(self, ids: list[str]) -> set[str]:
        """In the document store."""
        return {one for one in ids if self.index.docstore.document_exists(one)}


def _nodes(rows: Rows) -> list[Any]:
    columns = zip(rows.ids, rows.texts, rows.metadata, rows.vectors.tolist(), strict=True)
    return [schema.TextNode(id_=one, text=text, metadata=fields, embedding=vector) for one, text, fields, vector in columns]
