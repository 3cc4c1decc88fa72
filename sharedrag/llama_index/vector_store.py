"""Vector store: nodes with their text, metadata and embeddings, found by any process as soon as one has added them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from llama_index.core.indices.query.embedding_utils import get_top_k_mmr_embeddings
from llama_index.core.schema import BaseNode
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
    VectorStoreQueryResult,
)
from pydantic import PrivateAttr

from sharedrag import Collection, Hit, Pool, Record
from sharedrag.errors import InvalidRecord, SharedRagError
from sharedrag.filters import And, Filter, Where
from sharedrag.llama_index._filters import to_filter
from sharedrag.llama_index._nodes import NODE_TYPE, OBJECT_TYPES, REF_DOC_ID, node_to_record, record_to_node
from sharedrag.llama_index._pools import FromParams, PoolField, PoolLike

_BY_WORDS = (VectorStoreQueryMode.TEXT_SEARCH, VectorStoreQueryMode.SPARSE)
_MODES = (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR, *_BY_WORDS, VectorStoreQueryMode.HYBRID)
_MMR_CANDIDATES_MIN = 256
_MMR_CANDIDATES_FACTOR = 10
_BOOKKEEPING_MAX = 16  # remembered lists of node ids


class UnsupportedQueryMode(SharedRagError, NotImplementedError, ValueError):
    """A query mode that this store does not have."""


class SharedVectorStore(FromParams, BasePydanticVectorStore):
    """LlamaIndex's vector store on a pool: `SharedVectorStore(pool_or_path, "hawaii")`.

    The nodes are records of the pool's collection of that name. The first embedding added makes it, with its dimension,
    cosine similarity (higher is better) and the `dtype` and `embedding_model` given here; one that is there already is
    used as it is, and records put there without LlamaIndex are found too.

    `node_ids` of a query restrict it, with one exception: a list in which every node that exists is an IndexNode or
    ImageNode restricts nothing. Core sends such a list with every query once an index has such nodes; it is that
    index's book-keeping, and a store that took it for a wish would find no text any more. `strict_node_ids=True` takes
    every list as it is, for callers who pass their own.
    """

    stores_text: bool = True
    flat_metadata: bool = False
    pool: PoolField
    collection: str = "default"
    dtype: Literal["float32", "float16"] = "float32"
    embedding_model: str | None = None
    strict_node_ids: bool = False

    _bookkeeping: dict[tuple[str, ...], bool] = PrivateAttr(default_factory=dict)

    def __init__(self, pool: PoolLike, collection: str = "default", **options: Any) -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        super().__init__(pool=pool, collection=collection, **options)  # type: ignore[call-arg]

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises this class."""
        return "SharedVectorStore"

    @property
    def client(self) -> Pool:
        """The pool."""
        return self.pool

    def _records(self) -> Collection | None:
        """The collection, or None before anybody has added to it: the first embedding decides its dimension."""
        if self.collection not in self.pool.collections():
            return None
        return self.pool.collection(self.collection, embedding_model=self.embedding_model)

    # ------------------------------------------------------------------ writing

    def add(self, nodes: Sequence[BaseNode], **add_kwargs: Any) -> list[str]:
        """Insert or replace nodes with embeddings, all in one batch; returns their ids.

        Raises ValueError for a node without embedding, `InvalidRecord` for one that the collection cannot take.
        """
        if not nodes:
            return []
        vectors = [node.get_embedding() for node in nodes]
        records = self._records() or self.pool.collection(
            self.collection, dimension=len(vectors[0]), dtype=self.dtype, embedding_model=self.embedding_model
        )
        texts, metadata = zip(*map(node_to_record, nodes), strict=True)
        ids = [node.node_id for node in nodes]
        records.put(ids, vectors, texts, metadata)
        return ids

    def delete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """Delete all nodes of a source document, in one batch."""
        self._delete_matching(Where(REF_DOC_ID, "==", ref_doc_id))

    def delete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """Delete the nodes that are named and match; without names all that match; without either none."""
        condition = to_filter(filters)
        records = self._records()
        if records is None:
            return
        if not node_ids:
            if condition is not None:
                self._delete_matching(condition)
        elif condition is None:
            records.delete(node_ids)
        else:
            found = records.get(node_ids)
            records.delete([one.id for one in found if one is not None and condition.matches(one.metadata)])

    def clear(self) -> None:
        """Delete all nodes; the collection and its dimension stay."""
        self._delete_matching(None)

    def _delete_matching(self, condition: Filter | None) -> None:
        records = self._records()
        if records is not None:
            records.delete(records.scan(condition, columns=["id"]).column("id").to_pylist())

    # ------------------------------------------------------------------ reading

    def get_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """The nodes, with their embeddings, that are named (in that order) and match; without names all that match."""
        condition = to_filter(filters)
        records = self._records()
        if records is None:
            return []
        if not node_ids:
            return [_node_with_embedding(one) for one in records.find(condition)]
        found = [one for one in records.get(node_ids) if one is not None]
        return [_node_with_embedding(one) for one in found if condition is None or condition.matches(one.metadata)]

    def query(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """The `similarity_top_k` best nodes, best first, with similarities and ids.

        `filters`, `doc_ids` and `node_ids` narrow the search together; without an embedding the first nodes that pass
        are returned, each with similarity 1. Modes:

        - DEFAULT, by embedding;
        - MMR with `mmr_threshold` (0: as diverse as can be, 1: as DEFAULT), which chooses among the `mmr_prefetch_k` best
          nodes (default: 10 * k, at least 256) and whose similarities are its own scores;
        - TEXT_SEARCH and SPARSE, by the words of `query_str` (BM25, whose scores are the similarities): `sparse_top_k`
          nodes if that is given;
        - HYBRID, by both: reciprocal rank fusion, or with `alpha` by the weighted scores (1: embedding alone, 0: words
          alone). It returns `hybrid_top_k` nodes if that is given; `sparse_top_k` bounds how many are found by words.

        Raises `UnsupportedQueryMode`, `InvalidFilter`, and `InvalidRecord` for an embedding or a text that is missing.
        """
        if query.mode not in _MODES:
            raise UnsupportedQueryMode(
                f"query mode {str(query.mode.value)!r} is not supported by SharedVectorStore",
                operation="query",
                path=self.pool.path,
                hint=f"Use one of {', '.join(mode.value for mode in _MODES)}",
            )
        condition = _condition(query)
        records = self._records()
        k = _count(query)
        if query.mode not in (VectorStoreQueryMode.DEFAULT, VectorStoreQueryMode.MMR):
            _check_question(query)
        if records is None or k < 1 or query.doc_ids == []:
            return VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
        ids = self._restriction(records, query.node_ids)
        if query.mode in _BY_WORDS:
            hits = records.search(None, k, condition, ids=ids, text=query.query_str)
            return _result([(hit.score, hit) for hit in hits])
        if query.query_embedding is None:
            return _result([(1.0, one) for one in _first(records, k, condition, ids)])
        vector = np.asarray(query.query_embedding, np.float32)
        if query.mode == VectorStoreQueryMode.MMR:
            return _result(_diverse(records, vector, query, condition, ids, kwargs))
        hybrid: dict[str, Any] = {}
        if query.mode == VectorStoreQueryMode.HYBRID:
            hybrid = {"text": query.query_str, "alpha": query.alpha, "text_k": query.sparse_top_k or None}
        hits = records.search(vector, k, condition, ids=ids, **hybrid)
        return _result([(hit.score, hit) for hit in hits])

    def _restriction(self, records: Collection, node_ids: Sequence[str] | None) -> Sequence[str] | None:
        """The ids that a query is restricted to, or None: see the class."""
        if not node_ids or self.strict_node_ids:
            return node_ids or None
        named = tuple(node_ids)
        known = self._bookkeeping.get(named)
        if known is None:
            types = [one.metadata.get(NODE_TYPE) for one in records.get(named) if one is not None]
            known = bool(types) and OBJECT_TYPES.issuperset(types)
            if types:
                if len(self._bookkeeping) >= _BOOKKEEPING_MAX:
                    self._bookkeeping.clear()
                self._bookkeeping[named] = known
        return None if known else named

    # ------------------------------------------------------------------ the same in a thread

    async def async_add(self, nodes: Sequence[BaseNode], **kwargs: Any) -> list[str]:
        """`add` in a thread."""
        return await asyncio.to_thread(self.add, nodes, **kwargs)

    async def adelete(self, ref_doc_id: str, **delete_kwargs: Any) -> None:
        """`delete` in a thread."""
        await asyncio.to_thread(self.delete, ref_doc_id, **delete_kwargs)

    async def adelete_nodes(
        self,
        node_ids: list[str] | None = None,
        filters: MetadataFilters | None = None,
        **delete_kwargs: Any,
    ) -> None:
        """`delete_nodes` in a thread."""
        await asyncio.to_thread(self.delete_nodes, node_ids, filters, **delete_kwargs)

    async def aclear(self) -> None:
        """`clear` in a thread."""
        await asyncio.to_thread(self.clear)

    async def aget_nodes(self, node_ids: list[str] | None = None, filters: MetadataFilters | None = None) -> list[BaseNode]:
        """`get_nodes` in a thread."""
        return await asyncio.to_thread(self.get_nodes, node_ids, filters)

    async def aquery(self, query: VectorStoreQuery, **kwargs: Any) -> VectorStoreQueryResult:
        """`query` in a thread."""
        return await asyncio.to_thread(self.query, query, **kwargs)


def _count(query: VectorStoreQuery) -> int:
    """How many nodes are asked for."""
    by_mode = None
    if query.mode in _BY_WORDS:
        by_mode = query.sparse_top_k
    elif query.mode == VectorStoreQueryMode.HYBRID:
        by_mode = query.hybrid_top_k
    return query.similarity_top_k if by_mode is None else by_mode


def _check_question(query: VectorStoreQuery) -> None:
    """Raise `InvalidRecord` where a mode lacks what it searches by."""
    if query.query_str is None:
        raise InvalidRecord(
            f"mode {query.mode.value!r} without query_str", operation="query", hint="Give the words to look for"
        )
    if query.mode == VectorStoreQueryMode.HYBRID and query.query_embedding is None:
        raise InvalidRecord(
            "mode 'hybrid' without query_embedding", operation="query", hint="Give one, or use 'text_search'"
        )


def _condition(query: VectorStoreQuery) -> Filter | None:
    condition = to_filter(query.filters)
    if query.doc_ids is None:
        return condition
    of_documents = Where(REF_DOC_ID, "in", query.doc_ids)
    return of_documents if condition is None else And(of_documents, condition)


def _first(records: Collection, count: int, condition: Filter | None, ids: Sequence[str] | None) -> list[Record]:
    """The first records that pass, in the order of `ids`, or as they were written."""
    if ids is None:
        return records.find(condition, count)
    found = [one for one in records.get(ids) if one is not None]
    return [one for one in found if condition is None or condition.matches(one.metadata)][:count]


def _diverse(
    records: Collection,
    vector: npt.NDArray[np.float32],
    query: VectorStoreQuery,
    condition: Filter | None,
    ids: Sequence[str] | None,
    kwargs: dict[str, Any],
) -> list[tuple[float, Hit]]:
    """(score, hit) by maximal marginal relevance, chosen by core's own function among the most similar nodes."""
    k = query.similarity_top_k
    candidates = kwargs.get("mmr_prefetch_k") or max(_MMR_CANDIDATES_MIN, _MMR_CANDIDATES_FACTOR * k)
    hits = {hit.id: hit for hit in records.search(vector, max(k, candidates), condition, ids=ids)}
    vectors = {one.id: _unit(one.vector) for one in records.get(list(hits)) if one is not None and one.vector is not None}
    scores, chosen = get_top_k_mmr_embeddings(
        _unit(vector),  # type: ignore[arg-type]
        list(vectors.values()),  # type: ignore[arg-type]
        similarity_fn=_dot,
        similarity_top_k=k,
        embedding_ids=list(vectors),
        mmr_threshold=kwargs.get("mmr_threshold", query.mmr_threshold),
    )
    return [(score, hits[one]) for score, one in zip(scores, chosen, strict=True)]


def _unit(vector: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    return vector / np.float32(np.linalg.norm(vector) or 1)


def _dot(one: npt.NDArray[np.float32], other: npt.NDArray[np.float32]) -> float:
    return float(one.dot(other))


def _result(found: Iterable[tuple[float, Hit | Record]]) -> VectorStoreQueryResult:
    result = VectorStoreQueryResult(nodes=[], similarities=[], ids=[])
    nodes, similarities, ids = [], [], []
    for score, one in found:
        nodes.append(record_to_node(one.id, one.text, one.metadata))
        similarities.append(score)
        ids.append(one.id)
    result.nodes, result.similarities, result.ids = nodes, similarities, ids
    return result


def _node_with_embedding(record: Record) -> BaseNode:
    embedding = None if record.vector is None else record.vector.tolist()
    return record_to_node(record.id, record.text, record.metadata, embedding)
