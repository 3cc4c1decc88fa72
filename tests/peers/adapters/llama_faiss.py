"""LlamaIndex's FaissVectorStore: a FAISS index, and the nodes in a document store."""

from __future__ import annotations

import importlib
from typing import Any, ClassVar

from tests.peers.adapters.llama import Llama, core
from tests.peers.protocol import DIMENSION, PRIVATE

faiss: Any = importlib.import_module("faiss")
stores: Any = importlib.import_module("llama_index.vector_stores.faiss")


class LlamaFaiss(Llama):
    """FAISS in place of the list."""

    package: ClassVar[str] = "llama-index-vector-stores-faiss"
    settings: ClassVar[str] = "FaissVectorStore with HNSW32 (inner product), efConstruction 80; knob: efSearch"
    knobs: ClassVar[tuple[int, ...]] = (10, 16, 20, 24, 32, 40, 48, 64, 96, 128, 256)
    processes: ClassVar[str] = PRIVATE
    why: ClassVar[str] = "memory of one process; saved and loaded whole"
    cannot: ClassVar[dict[str, str]] = {"filter": "FaissVectorStore has no filters"}
    rows_max: ClassVar[int] = 100_000
    why_rows: ClassVar[str] = "nodes are kept as Python objects and saved as JSON"

    def open(self) -> Any:
        """Empty, or as it was saved."""
        if not self.folder().exists():
            index = faiss.IndexHNSWFlat(DIMENSION, 32, faiss.METRIC_INNER_PRODUCT)
            index.hnsw.efConstruction = 80
            context = core.StorageContext.from_defaults(vector_store=stores.FaissVectorStore(faiss_index=index))
            return core.VectorStoreIndex([], storage_context=context, embed_model=self.model)
        saved = stores.FaissVectorStore.from_persist_dir(str(self.folder()))
        context = core.StorageContext.from_defaults(vector_store=saved, persist_dir=str(self.folder()))
        return core.load_index_from_storage(context, embed_model=self.model)

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self.index.vector_store.client.hnsw.efSearch = knob
