"""The query modes of LlamaIndex's vector store beside DEFAULT and MMR, wherever the calls are executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core import VectorStoreIndex
from llama_index.core.embeddings import MockEmbedding
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import (
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from sharedrag import Pool
from sharedrag.errors import InvalidRecord
from sharedrag.llama_index import SharedVectorStore
from tests.llama_index.staging import Alternating

TEXT_SEARCH, SPARSE, HYBRID = (VectorStoreQueryMode(one) for one in ("text_search", "sparse", "hybrid"))
UNSUPPORTED = ("semantic_hybrid", "svm", "logistic_regression", "linear_regression")

pytestmark = pytest.mark.core_differs("it has other modes")


@pytest.fixture
def filled(stores: Callable[[str], Alternating]) -> Alternating:
    """A vector store with six nodes."""
    vectors = stores("SharedVectorStore")
    vectors.add(nodes())
    return vectors


def nodes() -> list[TextNode]:
    """The farther down, the less similar to (1, 0)."""
    some = [
        ("a", "Snorkelling with turtles", [1.0, 0.0]),
        ("b", "A hotel on the beach, the best of Hawaiʻi", [1.0, 0.2]),
        ("c", "Where to eat ramen", [1.0, 0.5]),
        ("d", "Beaches, beaches, beaches", [1.0, 1.0]),
        ("e", "", [1.0, 2.0]),
        ("f", "hotels for families", [0.0, 1.0]),
    ]
    rooms = {"a": "maui", "b": "oahu", "f": "maui"}
    return [
        TextNode(id_=one, text=text, embedding=embedding, metadata={"room": rooms[one]} if one in rooms else {})
        for one, text, embedding in some
    ]


def ask(mode: VectorStoreQueryMode, text: str | None, k: int = 10, **options: Any) -> VectorStoreQuery:
    """A query for this text, and where the mode wants one with an embedding like (1, 0)."""
    embedding = [1.0, 0.0] if mode == HYBRID else None
    return VectorStoreQuery(
        **{"query_embedding": embedding, "similarity_top_k": k, "mode": mode, "query_str": text} | options
    )


@pytest.mark.parametrize("mode", [TEXT_SEARCH, SPARSE])
def test_nodes_are_found_by_words(filled: Alternating, mode: VectorStoreQueryMode) -> None:
    """Best first by BM25, whatever their embeddings; nodes that share no word are not found."""
    result = filled.query(ask(mode, "a hotel by the beach"))
    assert result.ids[0] == "b"
    assert set(result.ids) == {"b", "d", "f"}
    assert [one.node_id for one in result.nodes] == result.ids
    assert result.nodes[0].text.startswith("A hotel")
    assert result.similarities == sorted(result.similarities, reverse=True)
    assert min(result.similarities) > 0
    assert filled.query(ask(mode, "turtle")).ids == ["a"]
    assert filled.query(ask(mode, "a hotel by the beach", 1)).ids == ["b"]
    assert filled.query(ask(mode, "hotel", 1, sparse_top_k=2)).ids == ["f", "b"]
    for nothing in ("volcano", "", "?"):
        assert filled.query(ask(mode, nothing)).ids == []


@pytest.mark.parametrize("mode", [TEXT_SEARCH, HYBRID])
def test_filters_and_ids_narrow_a_search_by_words(filled: Alternating, mode: VectorStoreQueryMode) -> None:
    """As they do any other."""
    maui = MetadataFilters(filters=[MetadataFilter(key="room", value="maui", operator=FilterOperator.EQ)])
    by_filter = filled.query(ask(mode, "hotel", filters=maui)).ids
    by_ids = filled.query(ask(mode, "hotel", node_ids=["f", "c"])).ids
    assert by_filter[0] == by_ids[0] == "f"
    assert set(by_filter) == ({"f"} if mode == TEXT_SEARCH else {"f", "a"})
    assert set(by_ids) == ({"f"} if mode == TEXT_SEARCH else {"f", "c"})
    assert filled.query(ask(mode, "hotel", doc_ids=["unknown"])).ids == []


def test_a_node_is_found_by_words_as_soon_as_it_is_added(filled: Alternating) -> None:
    """By the very next query, of whoever asks; replaced or deleted, it is found no more."""
    for number in range(5):
        filled.add([TextNode(id_="new", text=f"volcano{number}", embedding=[1.0, 1.0])])
        assert filled.query(ask(TEXT_SEARCH, f"volcano{number}")).ids == ["new"]
        assert filled.query(ask(TEXT_SEARCH, f"volcano{number - 1}")).ids == []
    filled.delete_nodes(["new"])
    assert filled.query(ask(TEXT_SEARCH, "volcano4")).ids == []


def test_hybrid_fuses_both_rankings(filled: Alternating) -> None:
    """By reciprocal rank: what is high in both comes first, and nothing of either is lost."""
    result = filled.query(ask(HYBRID, "hotel on a beach"))
    assert result.ids[0] == "b"
    assert set(result.ids) == set("abcdef")
    assert result.similarities[0] == pytest.approx(1 / 61 + 1 / 62)  # first by words, second by vector
    assert result.similarities == sorted(result.similarities, reverse=True)
    assert filled.query(ask(HYBRID, "hotel on a beach", 2)).ids == result.ids[:2]
    assert filled.query(ask(HYBRID, "hotel on a beach", 2, hybrid_top_k=3)).ids == result.ids[:3]
    assert filled.query(ask(HYBRID, "")).ids == list("abcdef")


def test_alpha_weighs_vectors_against_words(filled: Alternating) -> None:
    """1 is the vector alone, 0 the words alone, and in between the scores of both count."""
    words = filled.query(ask(TEXT_SEARCH, "hotel families")).ids
    assert filled.query(ask(HYBRID, "hotel families", alpha=1.0)).ids == list("abcdef")
    assert filled.query(ask(HYBRID, "hotel families", alpha=0.0)).ids == words == ["f", "b"]
    assert filled.query(ask(HYBRID, "hotel families", alpha=0.1)).ids[0] == "f"
    assert filled.query(ask(HYBRID, "hotel families", alpha=0.9)).ids[0] == "a"
    assert filled.query(ask(HYBRID, "hotel families", alpha=0.1, sparse_top_k=1)).ids[0] == "f"
    for bad in (-0.1, 1.1, float("nan")):
        with pytest.raises(ValueError, match="alpha"):
            filled.query(ask(HYBRID, "hotel", alpha=bad))


@pytest.mark.parametrize("mode", [TEXT_SEARCH, SPARSE, HYBRID])
def test_what_a_mode_searches_by_must_be_there(filled: Alternating, mode: VectorStoreQueryMode) -> None:
    """A text for all of them, and an embedding for HYBRID."""
    with pytest.raises(InvalidRecord, match="query_str"):
        filled.query(ask(mode, None))
    if mode == HYBRID:
        with pytest.raises(InvalidRecord, match="query_embedding"):
            filled.query(ask(mode, "hotel", query_embedding=None))


@pytest.mark.parametrize("mode", [TEXT_SEARCH, SPARSE, HYBRID])
def test_nothing_is_found_in_an_empty_store(stores: Callable[[str], Alternating], mode: VectorStoreQueryMode) -> None:
    """Before anybody has added, and where nothing is asked for."""
    vectors = stores("SharedVectorStore")
    assert vectors.query(ask(mode, "hotel")).ids == []
    vectors.add(nodes())
    assert vectors.query(ask(mode, "hotel", 0)).ids == []


@pytest.mark.parametrize("mode", UNSUPPORTED)
def test_other_modes_are_refused(filled: Alternating, mode: str) -> None:
    """With an error that names the mode and those there are, of both kinds that callers look for."""
    for kind in (ValueError, NotImplementedError):
        with pytest.raises(kind, match=f"'{mode}' is not supported.*text_search"):
            filled.query(ask(VectorStoreQueryMode(mode), "hotel", query_embedding=[1.0, 0.0]))


def test_a_retriever_searches_by_words_and_by_both(pool: Pool) -> None:
    """Core's own retriever passes the text on; by words alone it needs no embedding."""
    store = SharedVectorStore(pool, "notes")
    store.add(nodes())
    index = VectorStoreIndex.from_vector_store(store, embed_model=MockEmbedding(embed_dim=2))
    by_words = index.as_retriever(vector_store_query_mode="text_search", similarity_top_k=2)
    assert [one.node.node_id for one in by_words.retrieve("families")] == ["f"]
    by_both = index.as_retriever(vector_store_query_mode="hybrid", similarity_top_k=2, alpha=0.2, sparse_top_k=5)
    assert by_both.retrieve("families in a hotel")[0].node.node_id == "f"
