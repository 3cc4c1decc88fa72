"""A sharedrag embedder as a LangChain embedding: offline, without torch, the same vectors as everywhere else."""

from __future__ import annotations

from langchain_core.embeddings import Embeddings

from sharedrag.embed import Embedder, load_embedder


class SharedRagEmbeddings(Embeddings):
    """Any sharedrag embedder for LangChain; by default the light all-MiniLM-L6-v2, (384,) unit vectors.

    `name` is the model's, for `SharedRagVectorStore(embedding_model=)`: a collection refuses another one. Can be pickled.
    """

    def __init__(self, embedder: str | Embedder | None = None) -> None:
        """`embedder` is whatever `load_embedder` takes. Raises `EmbedderUnavailable`, which names the extra to install."""
        self.embedder = load_embedder() if embedder is None else load_embedder(embedder)
        self.name = self.embedder.name

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        """The vectors of texts, in their order."""
        return list(self.embedder.embed_texts(texts).tolist())

    def embed_query(self, text: str) -> list[float]:
        """The vector of one question."""
        return list(self.embedder.embed_query(text).tolist())
