"""LlamaIndex's SimpleVectorStore: a dictionary of lists, persisted as JSON."""

from __future__ import annotations

from typing import Any, ClassVar

from tests.peers.adapters.llama import Llama, core
from tests.peers.protocol import PRIVATE


class LlamaSimple(Llama):
    """Its default."""

    package: ClassVar[str] = "llama-index-core"
    settings: ClassVar[str] = "SimpleVectorStore, exact in Python; persisted as JSON"
    processes: ClassVar[str] = PRIVATE
    why: ClassVar[str] = "memory of one process; saved and loaded whole"
    rows_max: ClassVar[int] = 5_000
    why_rows: ClassVar[str] = "one query compares in Python, one vector after the other"

    def open(self) -> Any:
        """Empty, or as it was saved."""
        if not self.folder().exists():
            return core.VectorStoreIndex([], embed_model=self.model)
        context = core.StorageContext.from_defaults(persist_dir=str(self.folder()))
        return core.load_index_from_storage(context, embed_model=self.model)
