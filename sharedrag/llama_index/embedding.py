"""A sharedrag embedder as a LlamaIndex embedding: a `VectorStoreIndex` on the light model, offline, without torch.

For example `VectorStoreIndex.from_vector_store(store, embed_model=SharedEmbedding())`.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.embeddings.base import BaseEmbedding
from llama_index.core.bridge.pydantic import Field

from sharedrag.embed import Embedder, load_embedder


class SharedEmbedding(BaseEmbedding):
    """A LlamaIndex embedding on any sharedrag embedder; by default the light all-MiniLM-L6-v2.

    `embedder` is not part of `to_dict()`: what is restored from one runs on the default embedder, and only the default
    model can be restored so (ValueError otherwise). Pickling keeps the embedder. The async methods run in a thread, so
    that the event loop goes on.
    """

    embedder: Any = Field(default_factory=load_embedder, exclude=True, description="The embedder that does the work.")
    embed_batch_size: int = Field(default=256, gt=0, le=2048, description="Texts handed to the embedder at once.")

    def model_post_init(self, context: Any, /) -> None:
        """The model's name is the embedder's, and a name given or restored must agree with it."""
        if self.model_name not in ("unknown", self.embedder.name):
            raise ValueError(f"The embedder's model is {self.embedder.name!r}, not {self.model_name!r}: pass that embedder")
        self.model_name = self.embedder.name

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises this class."""
        return "SharedEmbedding"

    def _get_query_embedding(self, query: str) -> list[float]:
        return list(self.embedder.embed_query(query).tolist())

    def _get_text_embedding(self, text: str) -> list[float]:
        return self._get_text_embeddings([text])[0]

    def _get_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return list(self.embedder.embed_texts(texts).tolist())

    async def _aget_query_embedding(self, query: str) -> list[float]:
        return await asyncio.to_thread(self._get_query_embedding, query)

    async def _aget_text_embedding(self, text: str) -> list[float]:
        return await asyncio.to_thread(self._get_text_embedding, text)

    async def _aget_text_embeddings(self, texts: list[str]) -> list[list[float]]:
        return await asyncio.to_thread(self._get_text_embeddings, texts)


def as_llama_index(embedder: str | Embedder | BaseEmbedding) -> BaseEmbedding:
    """`embedder` (whatever `load_embedder` takes) for `embed_model=`; a LlamaIndex embedding is returned as it is."""
    return embedder if isinstance(embedder, BaseEmbedding) else SharedEmbedding(embedder=load_embedder(embedder))
