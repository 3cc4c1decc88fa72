"""sharedrag through LlamaIndex: `SharedVectorStore` on a pool."""

from __future__ import annotations

from typing import Any, ClassVar

from sharedrag.llama_index import SharedVectorStore
from tests.peers.adapters.llama import Llama, core
from tests.peers.adapters.shared import NAME, SharedRag
from tests.peers.protocol import Place


class LlamaShared(Llama):
    """sharedrag's store."""

    package: ClassVar[str] = "sharedrag"
    settings: ClassVar[str] = "SharedVectorStore, defaults; maintained until it settles before queries are timed"

    def open(self) -> Any:
        """Empty, or as it was saved."""
        self._own = SharedRag(self.place)
        return core.VectorStoreIndex.from_vector_store(SharedVectorStore(self._own.pool, NAME), embed_model=self.model)

    @classmethod
    def create(cls, place: Place) -> None:
        """A pool."""
        SharedRag.create(place)

    def save(self) -> None:
        """Nothing to save: merge and index."""
        self._own.settle()

    def have(self, ids: list[str]) -> set[str]:
        """In the pool."""
        found: set[str] = self._own.have(ids)
        return found

    def close(self) -> None:
        """Detach."""
        self._own.close()
