"""Two rankings as one: by rank, by score, and at the ends of alpha."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedrag import InvalidRecord, Pool
from sharedrag.search import fusion
from sharedrag.search.knn import Found

places = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5)), unique=True, max_size=12)
scores = st.floats(-1e6, 1e6)


@st.composite
def rankings(draw: st.DrawFn) -> Found:
    """Some rows with falling scores."""
    chosen = draw(places)
    falling = sorted(draw(st.lists(scores, min_size=len(chosen), max_size=len(chosen))), reverse=True)
    return Found(falling, [part for part, _ in chosen], [row for _, row in chosen])


def pairs(found: Found) -> list[tuple[int, int]]:
    """The rows, best first."""
    return list(zip(found.parts, found.rows, strict=True))


@given(rankings(), rankings(), st.integers(1, 30))
def test_reciprocal_ranks_are_added(by_vector: Found, by_words: Found, k: int) -> None:
    """The k best by 1 / (60 + rank) in each ranking, whatever the scores."""
    expected: dict[tuple[int, int], float] = {}
    for one in (by_vector, by_words):
        for rank, place in enumerate(pairs(one), 1):
            expected[place] = expected.get(place, 0) + 1 / (60 + rank)
    found = fusion.fused(by_vector, by_words, k)
    assert found.scores == pytest.approx(sorted(expected.values(), reverse=True)[:k])
    assert [expected[place] for place in pairs(found)] == pytest.approx(found.scores)


@given(rankings(), rankings(), st.floats(0, 1))
def test_weighted_scores_are_added(by_vector: Found, by_words: Found, alpha: float) -> None:
    """Each ranking's scores stretched to 0..1; both ends of alpha are one ranking alone, in its order."""
    found = fusion.fused(by_vector, by_words, 100, alpha)
    assert all(0 <= score <= 1 + 1e-9 for score in found.scores)
    assert found.scores == sorted(found.scores, reverse=True)
    expected = set(pairs(by_vector) if alpha else []) | set(pairs(by_words) if alpha < 1 else [])
    assert set(pairs(found)) == expected and len(pairs(found)) == len(expected)
    for one, end in ((by_vector, 1.0), (by_words, 0.0)):
        assert pairs(fusion.fused(by_vector, by_words, 100, end)) == pairs(one)


def test_weighted_by_hand() -> None:
    """Two rows in both, one in each."""
    by_vector = Found([0.9, 0.8, 0.7], [0, 0, 0], [1, 2, 3])
    by_words = Found([12.0, 6.0, 4.0], [0, 0, 0], [3, 1, 4])
    found = fusion.fused(by_vector, by_words, 3, 0.6)
    assert dict(zip(found.rows, found.scores, strict=True)) == pytest.approx({1: 0.6 + 0.1, 3: 0.4, 2: 0.3})
    assert found.rows == [1, 3, 2]


def test_ties_are_settled_alike() -> None:
    """The one that is higher in the vector's ranking is first."""
    assert pairs(fusion.fused(Found([1, 0.5], [0, 0], [7, 8]), Found([9, 3], [0, 0], [8, 7]), 2)) == [(0, 7), (0, 8)]
    assert pairs(fusion.fused(Found([1], [0], [7]), Found([9], [1], [2]), 2)) == [(0, 7), (1, 2)]


@pytest.mark.parametrize("bad", [-0.1, 1.1, float("nan"), "0.5", True, [1]])
def test_alpha_that_means_nothing_is_refused(bad: object) -> None:
    """With a hint at what it means."""
    with pytest.raises(InvalidRecord, match="from 0"):
        fusion.check_alpha(bad)


def test_a_collection_is_searched_by_both(pool: Pool) -> None:
    """One query or several; records without a vector or without words are found by what they have."""
    collection = pool.collection("notes", dimension=2)
    collection.put(["a", "b", "c"], [[1.0, 0.0], None, [0.0, 1.0]], ["one", "two words", None])
    both = collection.search([1.0, 0.0], text="two")
    assert [hit.id for hit in both] == ["a", "b", "c"]
    assert [hit.score for hit in both] == pytest.approx([1 / 61, 1 / 61, 1 / 62])
    assert [hit.id for hit in collection.search([1.0, 0.0], 1, text="two", alpha=0.2)] == ["b"]
    several = collection.search([[1.0, 0.0], [0.0, 1.0]], text=["two", "unknown"])
    assert [[hit.id for hit in hits] for hits in several] == [["a", "b", "c"], ["c", "a"]]
    assert several[0] == both
    assert [hit.id for hit in collection.search([1.0, 0.0], text="", ids=["c", "b"])] == ["c"]


def test_searches_that_mean_nothing_are_refused(pool: Pool) -> None:
    """Nothing to search by, texts that are none, and as many texts as there are no vectors."""
    collection = pool.collection("notes", dimension=2)
    with pytest.raises(InvalidRecord, match="Give vectors, text, or both"):
        collection.search()
    bad_texts: tuple[Any, ...] = (5, b"beach", [b"beach"], ["beach", None], {"beach": 1})
    for bad in bad_texts:
        with pytest.raises(InvalidRecord, match="as a string"):
            collection.search(text=bad)
    with pytest.raises(InvalidRecord, match="not valid Unicode"):
        collection.search(text="\ud800")
    for vectors, text in (([1.0, 0.0], ["beach"]), ([[1.0, 0.0]], "beach"), ([[1.0, 0.0]], ["a", "b"])):
        with pytest.raises(InvalidRecord, match="n for n"):
            collection.search(vectors, text=text)
    bad_counts: tuple[Any, ...] = (0, -1, 1.5)
    for bad_k in bad_counts:
        with pytest.raises(InvalidRecord, match="k is"):
            collection.search([1.0, 0.0], text="beach", text_k=bad_k)
    with pytest.raises(InvalidRecord, match="no vectors"):
        pool.collection("texts").search([1.0, 0.0], text="beach")
