"""What LlamaIndex's vector store promises, wherever the calls are executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from llama_index.core.schema import NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.vector_stores import SimpleVectorStore
from llama_index.core.vector_stores.types import (
    FilterCondition,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryMode,
)

from tests.llama_index.staging import Alternating

MMR = VectorStoreQueryMode.MMR


@pytest.fixture
def vectors(stores: Callable[[str], Alternating]) -> Alternating:
    """A vector store."""
    return stores("SharedVectorStore")


@pytest.fixture
def filled(vectors: Alternating) -> Alternating:
    """A vector store with five nodes of three documents."""
    vectors.add(nodes())
    return vectors


def node(node_id: str, embedding: list[float], ref: str | None = None, **metadata: Any) -> TextNode:
    """A node, of a source document unless that is None."""
    made = TextNode(id_=node_id, text=f"text of {node_id}", embedding=embedding, metadata=metadata)
    if ref is not None:
        made.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=ref)
    return made


def nodes() -> list[TextNode]:
    """The farther down, the less similar to (1, 0)."""
    return [
        node("a", [1.0, 0.0], "doc 1", room="hawaii", year=2024, stars=4.5, tags=["beach", "food"], open=True),
        node("b", [2.0, 1.0], "doc 1", room="hawaii", year=2025, stars=3.0, tags=["food"], open=False),
        node("c", [1.0, 1.0], "doc 2", room="maui", year=2025, tags=[], note=""),
        node("d", [1.0, 2.0], "doc 3", room="Maui Nui", year=2026, stars=5.0, tags=["Beach"], note=None),
        node("e", [-1.0, 1.0], None, year=2024, tags="food"),
    ]


def where(key: str, operator: str, value: Any = None) -> MetadataFilter:
    """One filter."""
    return MetadataFilter(key=key, operator=FilterOperator(operator), value=value)


def filters(*parts: MetadataFilter | MetadataFilters, condition: str | None = "and") -> MetadataFilters:
    """Several filters."""
    return MetadataFilters(filters=list(parts), condition=None if condition is None else FilterCondition(condition))


def query(k: int = 10, **options: Any) -> VectorStoreQuery:
    """A query for what is similar to (1, 0)."""
    return VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=k, **options)


def test_the_most_similar_nodes_come_first(filled: Alternating) -> None:
    """Ids by falling cosine similarity, which does not look at lengths, and no more than were asked for."""
    result = filled.query(query())
    assert result.ids == ["a", "b", "c", "d", "e"]
    assert result.similarities == pytest.approx([1, 2 / 5**0.5, 0.5**0.5, 1 / 5**0.5, -(0.5**0.5)], abs=1e-6)
    assert filled.query(query(2)).ids == ["a", "b"]
    assert filled.query(query(1)).ids == ["a"]


def test_nothing_is_found_in_an_empty_store(vectors: Alternating) -> None:
    """Before anybody has added, every read is empty, and deletes do nothing."""
    result = vectors.query(query())
    assert (result.ids, list(result.nodes or []), result.similarities) == ([], [], [])
    assert vectors.query(query(mode=MMR)).ids == []
    vectors.delete("doc")
    vectors.delete_nodes(["a"])
    vectors.clear()
    assert vectors.query(query()).ids == []


@pytest.mark.core_differs("it keeps no nodes")
def test_nodes_come_with_ids_and_similarities(filled: Alternating) -> None:
    """Three lists of one length, the nodes with text, metadata and relationships, without their embeddings."""
    result = filled.query(query(2))
    assert [one.node_id for one in result.nodes] == result.ids
    assert len(result.similarities) == 2
    expected = nodes()[0]
    expected.embedding = None
    assert result.nodes[0] == expected


def test_added_again_a_node_is_replaced(filled: Alternating) -> None:
    """An id is in the store once, with its last embedding and metadata."""
    assert filled.add([node("a", [-1.0, 0.0], "doc 9", room="new"), node("f", [1.0, 0.1])]) == ["a", "f"]
    assert filled.query(query()).ids == ["f", "b", "c", "d", "e", "a"]
    assert filled.query(query(filters=filters(where("room", "==", "new")))).ids == ["a"]
    filled.delete("doc 1")
    assert filled.query(query()).ids == ["f", "c", "d", "e", "a"]
    assert filled.add([]) == []


def test_deleting_a_source_document_deletes_its_nodes(filled: Alternating) -> None:
    """All of its nodes and no others, once and for all."""
    filled.delete("doc 1")
    filled.delete("unknown")
    assert filled.query(query()).ids == ["c", "d", "e"]
    filled.add([nodes()[0]])
    assert filled.query(query()).ids == ["a", "c", "d", "e"]


def test_nodes_are_deleted_by_id_and_by_filter(filled: Alternating) -> None:
    """By ids, by filter, and by both together, which narrow each other."""
    filled.delete_nodes(["b", "unknown"])
    assert filled.query(query()).ids == ["a", "c", "d", "e"]
    filled.delete_nodes(["a", "c"], filters(where("room", "==", "maui")))
    assert filled.query(query()).ids == ["a", "d", "e"]
    filled.delete_nodes(filters=filters(where("year", ">", 2024)))
    assert filled.query(query()).ids == ["a", "e"]


@pytest.mark.core_differs("it deletes everything")
def test_deleting_nothing_in_particular_deletes_nothing(filled: Alternating) -> None:
    """No arguments, no ids, no filters: nobody meant everything."""
    filled.delete_nodes()
    filled.delete_nodes([])
    filled.delete_nodes(filters=filters())
    filled.delete_nodes([], filters())
    assert len(filled.query(query()).ids) == 5


def test_clear_deletes_everything(filled: Alternating) -> None:
    """And the store goes on as a new one."""
    filled.clear()
    assert filled.query(query()).ids == []
    filled.add([node("z", [0.0, 1.0])])
    assert filled.query(query()).ids == ["z"]


@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (where("room", "==", "hawaii"), "ab"),
        (where("year", "==", 2025), "bc"),
        (where("year", "==", 2025.0), "bc"),
        (where("open", "==", 1), "a"),
        (where("missing", "==", "x"), ""),
        (where("note", "==", ""), "c"),
        (where("room", "!=", "hawaii"), "cde"),
        (where("missing", "!=", "x"), "abcde"),
        (where("year", ">", 2024), "bcd"),
        (where("year", "<", 2025), "ae"),
        (where("stars", ">=", 4.5), "ad"),
        (where("stars", "<=", 4), "b"),
        (where("room", "in", ["maui", "hawaii"]), "abc"),
        (where("year", "in", [2024, 2026]), "ade"),
        (where("room", "in", []), ""),
        (where("room", "nin", ["maui", "hawaii"]), "de"),
        (where("missing", "nin", ["x"]), "abcde"),
        (where("tags", "any", ["beach", "food"]), "abe"),
        (where("tags", "all", ["beach", "food"]), "a"),
        (where("tags", "contains", "food"), "abe"),
        (where("room", "text_match", "aui"), "cd"),
        (where("room", "text_match", "maui"), "c"),
        (where("room", "text_match_insensitive", "MAUI"), "cd"),
        (where("room", "is_empty"), "e"),
        (where("note", "is_empty"), "abcde"),
        (where("tags", "is_empty"), "c"),
        (where("ref_doc_id", "==", "doc 1"), "ab"),
        (where("doc_id", "in", ["doc 2", "doc 3"]), "cd"),
        (where("document_id", "==", "doc 3"), "d"),
    ],
    ids=lambda value: f"{value.key} {value.operator.value} {value.value}" if isinstance(value, MetadataFilter) else None,
)
def test_each_operator_filters(filled: Alternating, part: MetadataFilter, expected: str) -> None:
    """What an operator passes, and in the order of similarity; its negation passes the others."""
    assert filled.query(query(filters=filters(part))).ids == list(expected)
    others = filled.query(query(filters=filters(part, condition="not"))).ids
    assert others == [one for one in "abcde" if one not in expected]


@pytest.mark.core_differs("it raises TypeError for the whole query")
@pytest.mark.parametrize(
    ("part", "expected"),
    [
        (where("room", ">", 3), ""),
        (where("year", "contains", "2"), ""),
        (where("year", "text_match", "20"), ""),
        (where("tags", "text_match_insensitive", "FOOD"), "e"),
        (where("tags", "any", [1, 2]), ""),
    ],
    ids=lambda value: f"{value.key} {value.operator.value} {value.value}" if isinstance(value, MetadataFilter) else None,
)
def test_a_value_of_another_type_does_not_match(filled: Alternating, part: MetadataFilter, expected: str) -> None:
    """One odd record must not fail everybody's query."""
    assert filled.query(query(filters=filters(part))).ids == list(expected)


@pytest.mark.parametrize(
    ("condition", "expected"), [("and", "b"), (None, "b"), ("or", "abc"), ("not", "de")], ids=["and", "none", "or", "not"]
)
def test_conditions_join_filters(filled: Alternating, condition: str | None, expected: str) -> None:
    """AND is also what no condition means; NOT passes what none of them passes."""
    both = filters(where("room", "==", "hawaii"), where("year", "==", 2025), condition=condition)
    assert filled.query(query(filters=both)).ids == list(expected)


@pytest.mark.core_differs("it refuses nested filters")
def test_filters_nest(filled: Alternating) -> None:
    """To any depth, with any conditions; empty filters inside filter nothing."""
    hawaii, y2025, y2026 = where("room", "==", "hawaii"), where("year", "==", 2025), where("year", "==", 2026)
    either = filters(y2025, y2026, condition="or")
    assert filled.query(query(filters=filters(hawaii, either))).ids == ["b"]
    assert filled.query(query(filters=filters(hawaii, either, condition="or"))).ids == ["a", "b", "c", "d"]
    assert filled.query(query(filters=filters(filters(either, condition="not")))).ids == ["a", "e"]
    assert filled.query(query(filters=filters(hawaii, filters(filters(), filters())))).ids == ["a", "b"]
    deep = filters(hawaii)
    for _ in range(30):
        deep = filters(deep, condition="not")
    assert filled.query(query(filters=deep)).ids == ["a", "b"]


def test_empty_filters_filter_nothing(filled: Alternating) -> None:
    """Under every condition."""
    for condition in ("and", "or", "not", None):
        assert len(filled.query(query(filters=filters(condition=condition))).ids) == 5


def test_filters_leave_the_best_k(filled: Alternating) -> None:
    """The k best of those that pass, however many better ones do not."""
    assert filled.query(query(1, filters=filters(where("year", "<", 2025)))).ids == ["a"]
    assert filled.query(query(1, filters=filters(where("room", "text_match", "Nui")))).ids == ["d"]


def test_node_ids_restrict_a_query(filled: Alternating) -> None:
    """Together with filters; unknown ids are nothing."""
    assert filled.query(query(node_ids=["d", "b", "unknown"])).ids == ["b", "d"]
    assert filled.query(query(node_ids=["unknown"])).ids == []
    assert filled.query(query(node_ids=["d", "b"], filters=filters(where("year", "==", 2026)))).ids == ["d"]
    assert filled.query(query(mode=MMR, node_ids=["d", "b"])).ids == ["b", "d"]


@pytest.mark.core_differs("it takes an empty list for a wish")
def test_no_node_ids_restrict_nothing(filled: Alternating) -> None:
    """Core sends an empty list when it means all."""
    assert len(filled.query(query(node_ids=[])).ids) == 5


@pytest.mark.core_differs("it does not look at doc_ids")
def test_doc_ids_restrict_a_query(filled: Alternating) -> None:
    """To nodes of these source documents, together with all else; of none, none."""
    assert filled.query(query(doc_ids=["doc 1", "doc 3"])).ids == ["a", "b", "d"]
    assert filled.query(query(doc_ids=["doc 1", "doc 3"], node_ids=["b", "c", "d"])).ids == ["b", "d"]
    assert filled.query(query(doc_ids=["doc 1"], filters=filters(where("year", "==", 2025)))).ids == ["b"]
    assert filled.query(query(doc_ids=["unknown"])).ids == []
    assert filled.query(query(doc_ids=[])).ids == []
    assert filled.query(query(mode=MMR, doc_ids=["doc 3"])).ids == ["d"]


@pytest.mark.core_differs("it needs an embedding")
def test_a_query_without_embedding_returns_what_passes(filled: Alternating) -> None:
    """The first k nodes that pass, as they were added, each as similar as can be."""
    result = filled.query(
        VectorStoreQuery(similarity_top_k=2, filters=filters(where("year", ">=", 2025), where("year", "<=", 2026)))
    )
    assert result.ids == ["b", "c"]
    assert result.similarities == [1.0, 1.0]
    assert [one.text for one in result.nodes] == ["text of b", "text of c"]
    assert filled.query(VectorStoreQuery(similarity_top_k=9)).ids == list("abcde")
    assert filled.query(VectorStoreQuery(similarity_top_k=9, node_ids=["e", "a"])).ids == ["e", "a"]
    assert filled.query(VectorStoreQuery(similarity_top_k=9, doc_ids=["doc 1"], mode=MMR)).ids == ["a", "b"]


@pytest.mark.parametrize("threshold", [0.01, 0.1, 0.5, 0.9, 1.0, None])
def test_mmr_chooses_as_core_does(vectors: Alternating, threshold: float | None) -> None:
    """Similarity against diversity as the threshold weighs them, with the scores of that choice."""
    random = np.random.default_rng(7)
    some = [node(f"n{number}", random.normal(size=2).tolist()) for number in range(40)]
    vectors.add(some)
    core = SimpleVectorStore()
    core.add(some)
    expected = core.query(query(10, mode=MMR), mmr_threshold=threshold)
    result = vectors.query(query(10, mode=MMR), mmr_threshold=threshold)
    assert result.ids == expected.ids
    assert result.similarities == pytest.approx(expected.similarities, abs=1e-5)


@pytest.mark.core_differs("it takes the keyword only")
def test_mmr_takes_the_threshold_of_the_query_too(filled: Alternating) -> None:
    """The keyword argument goes before the query's own."""
    diverse, similar = filled.query(query(3, mode=MMR, mmr_threshold=0.0)).ids, ["a", "b", "c"]
    assert diverse == ["a", "e", "b"]
    assert filled.query(query(3, mode=MMR, mmr_threshold=1.0)).ids == similar
    assert filled.query(query(3, mode=MMR, mmr_threshold=0.0), mmr_threshold=1.0).ids == similar
    assert filled.query(query(3, mode=MMR, mmr_threshold=1.0), mmr_threshold=0.0).ids == diverse


@pytest.mark.core_differs("it keeps no nodes")
def test_nodes_are_got_with_their_embeddings(filled: Alternating) -> None:
    """By ids in that order, by filter, by both, or all as they were added; unknown ids are left out."""
    for got, expected in zip(filled.get_nodes(), nodes(), strict=True):
        assert got.embedding == pytest.approx(expected.embedding, abs=1e-6)
        got.embedding = expected.embedding
        assert got == expected
    assert [one.node_id for one in filled.get_nodes(["d", "unknown", "a"])] == ["d", "a"]
    assert [one.node_id for one in filled.get_nodes([])] == list("abcde")
    assert [one.node_id for one in filled.get_nodes(filters=filters(where("year", "==", 2025)))] == ["b", "c"]
    assert [one.node_id for one in filled.get_nodes(["c", "a"], filters(where("year", "==", 2025)))] == ["c"]


@pytest.mark.core_differs("it takes any length")
def test_an_embedding_that_does_not_fit_is_refused(filled: Alternating) -> None:
    """Another dimension, none at all, no direction: an error, and nothing of the batch is stored."""
    for bad in (node("x", [1.0, 2.0, 3.0]), node("x", [0.0, 0.0]), node("x", [float("nan"), 1.0]), TextNode(id_="x")):
        with pytest.raises(ValueError):  # noqa: PT011 - core's own for a missing one, the pool's for the others
            filled.add([node("y", [1.0, 1.0]), bad])
    assert filled.query(query()).ids == list("abcde")
    with pytest.raises(ValueError, match="shape"):
        filled.query(VectorStoreQuery(query_embedding=[1.0, 2.0, 3.0]))
