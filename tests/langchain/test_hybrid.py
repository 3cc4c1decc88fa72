"""Searches of the LangChain store by words, and by words and vectors."""

from __future__ import annotations

import pytest

from sharedrag import InvalidRecord, Pool
from sharedrag.langchain import SharedRagVectorStore
from tests.langchain.test_vector_store import Compass

TEXTS = ("a quiet beach", "the hotel on the beach", "ramen")
PLACES = ([1.0, 0.0], [1.0, 1.0], [0.0, 1.0])


class Anywhere(Compass):
    """Every question is at (1, 0)."""

    def embed_query(self, text: str) -> list[float]:
        """(1, 0)."""
        return [1.0, 0.0]


@pytest.fixture
def store(pool: Pool) -> SharedRagVectorStore:
    """A store with three documents."""
    made = SharedRagVectorStore(pool, "notes", Anywhere())
    made.add_embeddings(TEXTS, PLACES, [{"n": number} for number in range(3)], ids=["beach", "hotel", "ramen"])
    return made


async def test_documents_are_found_by_words(store: SharedRagVectorStore) -> None:
    """In all forms, best first, only those that share a word, and without an embedding."""
    found = store.similarity_search_with_score("hotels by the beach", search_by="text")
    assert [one.id for one, _ in found] == ["hotel", "beach"]
    assert found[0][1] > found[1][1] > 0
    assert await store.asimilarity_search_with_score("hotels by the beach", search_by="text") == found
    assert [one.id for one in store.similarity_search("beach", 1, search_by="text", filter={"n": {">": 0}})] == ["hotel"]
    assert [one.id for one in await store.asimilarity_search("ramen", search_by="text")] == ["ramen"]
    without = SharedRagVectorStore(store.pool, "notes")
    assert [one.id for one in without.similarity_search("ramen", search_by="text")] == ["ramen"]
    assert SharedRagVectorStore(store.pool, "nowhere").similarity_search("ramen", search_by="text") == []


async def test_documents_are_found_by_both(store: SharedRagVectorStore) -> None:
    """By rank, or by scores that `alpha` weighs; also through a retriever."""
    by_rank = store.similarity_search_with_score("ramen", search_by="hybrid")
    assert [one.id for one, _ in by_rank] == ["ramen", "beach", "hotel"]
    assert by_rank[0][1] == pytest.approx(1 / 63 + 1 / 61)
    assert await store.asimilarity_search_with_score("ramen", search_by="hybrid") == by_rank
    for alpha, first in ((1.0, "beach"), (0.0, "ramen")):
        retriever = store.as_retriever(search_kwargs={"search_by": "hybrid", "alpha": alpha, "k": 1})
        assert [one.id for one in retriever.invoke("ramen")] == [first]
        assert [one.id for one in await retriever.ainvoke("ramen")] == [first]


def test_what_means_nothing_is_refused(store: SharedRagVectorStore) -> None:
    """Another way to search, and an alpha beyond its ends."""
    with pytest.raises(ValueError, match=r"search_by is 'sparse'.*hybrid"):
        store.similarity_search("ramen", search_by="sparse")
    with pytest.raises(InvalidRecord, match="alpha"):
        store.similarity_search("ramen", search_by="hybrid", alpha=2)
