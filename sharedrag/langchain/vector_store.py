"""LangChain's vector store on a pool.

A document is one record: its id, `page_content` as the text, its metadata, and its vector. The collection bears the name
that the store was given; it is made when the first documents are added, because only then its dimension is known.
"""

from __future__ import annotations

import math
import os
import uuid
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Self, TypeAlias, get_args

import numpy as np
import numpy.typing as npt
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from langchain_core.runnables import run_in_executor
from langchain_core.vectorstores import VectorStore

from sharedrag import Collection, Filter, Hit, Pool, Record
from sharedrag.langchain._pools import as_pool

FilterLike: TypeAlias = "dict[str, Any] | Filter"
SearchBy: TypeAlias = Literal["vector", "text", "hybrid"]


class SharedRagVectorStore(VectorStore):
    """`SharedRagVectorStore(pool_or_path, "team", embedding)`: what one process adds, all find in their next search.

    Every search takes `filter`: a dict such as `{"room": "hawaii", "year": {">=": 2020}}` or a `sharedrag.filters` object.
    Scores are the collection's: a higher one is better (cosine, inner product, or minus the Euclidean distance).
    Metadata are JSON values: datetimes come back as ISO-8601 text, and what JSON has no word for raises `InvalidRecord`.
    """

    def __init__(
        self,
        pool: Pool | str | os.PathLike[str],
        collection: str = "default",
        embedding: Embeddings | None = None,
        *,
        metric: str = "cosine",
        dtype: str = "float32",
        embedding_model: str | None = None,
        relevance_score_fn: Callable[[float], float] | None = None,
    ) -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there.

        `metric`, `dtype` and `embedding_model` (a name; others must then use the same) define a collection that is not
        there yet. Without `embedding` the store searches by vector only. `relevance_score_fn` maps a score to 0..1.
        """
        self.pool = as_pool(pool)
        self.collection = collection
        self.embedding = embedding
        self.metric = metric
        self.dtype = dtype
        self.embedding_model = embedding_model
        self.relevance_score_fn = relevance_score_fn

    def __repr__(self) -> str:
        return f"SharedRagVectorStore({self.pool.path!r}, {self.collection!r})"

    @property
    def embeddings(self) -> Embeddings | None:
        """What embeds texts and questions."""
        return self.embedding

    def _embedding(self) -> Embeddings:
        if self.embedding is None:
            hint = "Give one, for example embedding=SharedRagEmbeddings()"
            raise ValueError(f"{self!r} was given no embedding: it takes and searches vectors only. {hint}")
        return self.embedding

    def _records(self) -> Collection | None:
        """The collection, if anybody has made it."""
        if self.collection not in self.pool.collections():
            return None
        return self.pool.collection(self.collection, embedding_model=self.embedding_model)

    # ------------------------------------------------------------------ writing

    def add_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """Embed texts and store them, all in one step; returns their ids. Where `ids` has none, one is made up.

        An id that is there already is replaced. Raises `InvalidRecord`, `CollectionMismatch`, `PoolFull`, `PoolBusy`.
        """
        texts = list(texts)
        vectors = self._embedding().embed_documents(texts) if texts else []
        return self.add_embeddings(texts, vectors, metadatas, ids=ids)

    async def aadd_texts(
        self,
        texts: Iterable[str],
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> list[str]:
        """`add_texts` with the embedding's own asynchronous form."""
        texts = list(texts)
        vectors = await self._embedding().aembed_documents(texts) if texts else []
        return await run_in_executor(None, self.add_embeddings, texts, vectors, metadatas, ids=ids)

    def add_embeddings(
        self,
        texts: Sequence[str],
        vectors: Sequence[Sequence[float]] | npt.NDArray[np.floating],
        metadatas: Sequence[dict[str, Any]] | None = None,
        *,
        ids: Sequence[str | None] | None = None,
    ) -> list[str]:
        """Store texts with vectors made elsewhere, (n, dimension), all in one step; returns their ids."""
        named = [one or str(uuid.uuid4()) for one in (ids or [None] * len(texts))]
        if named:
            array = np.asarray(vectors, np.float32)
            records = self._records()
            if records is None:
                model = self.embedding_model
                records = self.pool.collection(
                    self.collection, array.shape[-1], self.metric, self.dtype, embedding_model=model
                )
            records.put(named, array, texts, metadatas)
        return named

    def delete(self, ids: list[str] | None = None, **kwargs: Any) -> bool | None:
        """Delete these documents, or all for None, in one step; True also where some were not there."""
        records = self._records()
        if records is not None:
            records.delete(records.scan(columns=["id"]).column("id").to_pylist() if ids is None else ids)
        return True

    # ------------------------------------------------------------------ reading

    def get_by_ids(self, ids: Sequence[str], /) -> list[Document]:
        """The documents of these ids, in their order; those that are not there are left out."""
        records = self._records()
        found = [] if records is None else records.get(ids)
        return [_document(one) for one in found if one is not None]

    def similarity_search_with_score_by_vector(
        self, embedding: Sequence[float], k: int = 4, *, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[tuple[Document, float]]:
        """The k best documents for a vector, each with its score, best first."""
        return [(_document(one), one.score) for one in self._hits(embedding, k, filter)]

    def similarity_search_by_vector(
        self, embedding: list[float], k: int = 4, *, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k best documents for a vector, best first."""
        return [_document(one) for one in self._hits(embedding, k, filter)]

    def similarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        *,
        filter: FilterLike | None = None,
        search_by: SearchBy = "vector",
        alpha: float | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """The k best documents for a question, each with its score (higher is better), best first.

        `search_by` is "vector" (the question's embedding), "text" (its words, by BM25) or "hybrid": both, fused by
        reciprocal rank or, with `alpha`, by score (1: vector alone, 0: words alone). A retriever takes both in its
        `search_kwargs`.
        """
        vector = self._embedding().embed_query(query) if _needs_vector(search_by) else None
        return self._answers(vector, query, k, filter, search_by, alpha)

    async def asimilarity_search_with_score(
        self,
        query: str,
        k: int = 4,
        *,
        filter: FilterLike | None = None,
        search_by: SearchBy = "vector",
        alpha: float | None = None,
        **kwargs: Any,
    ) -> list[tuple[Document, float]]:
        """`similarity_search_with_score` with the embedding's own asynchronous form."""
        vector = await self._embedding().aembed_query(query) if _needs_vector(search_by) else None
        return await run_in_executor(None, self._answers, vector, query, k, filter, search_by, alpha)

    def similarity_search(
        self, query: str, k: int = 4, *, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[Document]:
        """The k best documents for a question, best first; `kwargs` are those of `similarity_search_with_score`."""
        return [one for one, _ in self.similarity_search_with_score(query, k, filter=filter, **kwargs)]

    async def asimilarity_search(
        self, query: str, k: int = 4, *, filter: FilterLike | None = None, **kwargs: Any
    ) -> list[Document]:
        """`similarity_search` with the embedding's own asynchronous form."""
        return [one for one, _ in await self.asimilarity_search_with_score(query, k, filter=filter, **kwargs)]

    def _answers(
        self,
        vector: list[float] | None,
        query: str,
        k: int,
        filter: FilterLike | None,
        search_by: SearchBy,
        alpha: float | None,
    ) -> list[tuple[Document, float]]:
        found = self._hits(vector, k, filter, None if search_by == "vector" else query, alpha)
        return [(_document(one), one.score) for one in found]

    def max_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """Of the `fetch_k` best documents, k that are relevant and unlike each other (`lambda_mult` 1: relevant only)."""
        records = self._records()
        if records is None:
            return []
        found = records.get([one.id for one in self._hits(embedding, max(k, fetch_k), filter)])
        candidates = [one for one in found if one is not None and one.vector is not None]  # deleted meanwhile, or emptied
        if not candidates:
            return []
        vectors = np.stack([one.vector for one in candidates if one.vector is not None])
        return [
            _document(candidates[index]) for index in _diverse(np.asarray(embedding, np.float32), vectors, k, lambda_mult)
        ]

    def max_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`max_marginal_relevance_search_by_vector` for a question."""
        vector = self._embedding().embed_query(query)
        return self.max_marginal_relevance_search_by_vector(vector, k, fetch_k, lambda_mult, filter=filter)

    async def amax_marginal_relevance_search(
        self,
        query: str,
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`max_marginal_relevance_search` with the embedding's own asynchronous form."""
        vector = await self._embedding().aembed_query(query)
        search = self.max_marginal_relevance_search_by_vector
        return await run_in_executor(None, search, vector, k, fetch_k, lambda_mult, filter=filter)

    async def amax_marginal_relevance_search_by_vector(
        self,
        embedding: list[float],
        k: int = 4,
        fetch_k: int = 20,
        lambda_mult: float = 0.5,
        *,
        filter: FilterLike | None = None,
        **kwargs: Any,
    ) -> list[Document]:
        """`max_marginal_relevance_search_by_vector` in a thread."""
        search = self.max_marginal_relevance_search_by_vector
        return await run_in_executor(None, search, embedding, k, fetch_k, lambda_mult, filter=filter)

    def _hits(
        self,
        embedding: Sequence[float] | None,
        k: int,
        filter: FilterLike | None,
        text: str | None = None,
        alpha: float | None = None,
    ) -> list[Hit]:
        records = self._records()
        if records is None:
            return []
        vector = None if embedding is None else np.asarray(embedding, np.float32)
        found: list[Hit] = records.search(vector, k, filter, text=text, alpha=alpha)
        return found

    def _select_relevance_score_fn(self) -> Callable[[float], float]:
        """Scores to 0..1: a cosine or inner product as it is, a distance d as 1 / (1 + d)."""
        if self.relevance_score_fn is not None:
            return self.relevance_score_fn
        records = self._records()
        metric = self.metric if records is None else records.metric
        return _nearness if metric == "l2" else _clamped

    # ------------------------------------------------------------------ made of texts

    @classmethod
    def from_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """A store to which these texts were added; `kwargs` are the constructor's: `pool`, `collection` and so on."""
        store = cls(embedding=embedding, **kwargs)
        store.add_texts(texts, metadatas, ids=ids)
        return store

    @classmethod
    async def afrom_texts(
        cls,
        texts: list[str],
        embedding: Embeddings,
        metadatas: list[dict[str, Any]] | None = None,
        *,
        ids: list[str] | None = None,
        **kwargs: Any,
    ) -> Self:
        """`from_texts` with the embedding's own asynchronous form."""
        store = await run_in_executor(None, lambda: cls(embedding=embedding, **kwargs))
        await store.aadd_texts(texts, metadatas, ids=ids)
        return store


def _document(of: Record | Hit) -> Document:
    return Document(of.text or "", metadata=of.metadata, id=of.id)


def _needs_vector(search_by: SearchBy) -> bool:
    """Whether a search embeds the question; raises ValueError for one that is not known."""
    if search_by not in get_args(SearchBy):
        raise ValueError(f"search_by is {search_by!r}: use one of {', '.join(get_args(SearchBy))}")
    return search_by != "text"


def _clamped(score: float) -> float:
    return min(1.0, max(0.0, score))


def _nearness(score: float) -> float:
    return 1.0 / (1.0 + max(0.0, -score))


def _diverse(query: npt.NDArray[np.float32], vectors: npt.NDArray[np.float32], k: int, lambda_mult: float) -> list[int]:
    """Maximal marginal relevance by cosine (Carbonell & Goldstein 1998): indexes of (n, dimension) vectors, best first."""
    units = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-30)
    relevance = units @ (query / max(float(np.linalg.norm(query)), 1e-30))
    redundancy = np.full(len(units), -math.inf)
    chosen: list[int] = []
    while len(chosen) < min(k, len(units)):
        worth = lambda_mult * relevance - (1 - lambda_mult) * (redundancy if chosen else 0)
        worth[chosen] = -math.inf
        best = int(np.argmax(worth))
        chosen.append(best)
        redundancy = np.maximum(redundancy, units @ units[best])
    return chosen
