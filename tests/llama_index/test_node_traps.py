"""The traps of nodes, metadata and values on which LlamaIndex integrations fail, one by one."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from enum import Enum
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageDocument,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.kvstore.types import MutableMappingKVStore
from llama_index.core.vector_stores.types import (
    BasePydanticVectorStore,
    FilterOperator,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
)

from sharedrag import InvalidRecord, Pool
from sharedrag.llama_index import SharedChatStore, SharedDocumentStore, SharedKVStore, SharedVectorStore


def test_what_core_asks_a_vector_store(pool: Pool) -> None:
    """It stores text, takes lists in metadata, is a component, gives its client, and needs no persist."""
    store = SharedVectorStore(pool)
    assert isinstance(store, BasePydanticVectorStore)
    assert (store.stores_text, store.flat_metadata, store.is_embedding_query) == (True, False, True)
    assert SharedVectorStore.class_name() == "SharedVectorStore"
    assert store.client is pool
    store.persist("/nowhere/at/all", fs=None)


NODES: list[BaseNode] = [
    TextNode(text="t", metadata={"tags": ["a", {"b": [1]}], "n": None, "f": 1.5, "deep": {"x": {"y": 1}}}),
    TextNode(text="", start_char_idx=0, end_char_idx=0, excluded_embed_metadata_keys=["x"], text_template="{content}"),
    TextNode(text="t", metadata={"ref_doc_id": "own", "doc_id": "own", "_node": 1, "_node_type": "own"}),
    TextNode(text="t", metadata={"text": "own", "id_": "own", "embedding": "own", "_node_content": "own", "": "empty"}),
    Node(text_resource=MediaResource(text="t", mimetype="text/markdown"), audio_resource=MediaResource(path=Path("/a.wav"))),
    Node(image_resource=MediaResource(path=Path("/i.png"))),
    Document(text="document", metadata={"author": "ann"}),
    Document(text_resource=MediaResource(text="t", path=Path("/t.txt"))),
    ImageNode(text="beach", image="aGVsbG8=", image_path="/i.png"),
    ImageDocument(text="beach", image="aGVsbG8="),
    IndexNode(text="about", index_id="i"),
    IndexNode(text="about", index_id="i", obj=TextNode(text="inner")),
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.class_name())
@pytest.mark.parametrize("related", [False, True])
def test_a_node_keeps_its_type_and_all_its_fields(node: BaseNode, related: bool, pool: Pool) -> None:
    """Added and found, or got with its embedding, it is what it was."""
    node = node.model_copy(deep=True)
    node.id_ = "the node"
    node.embedding = [0.6, 0.8]
    if related:
        info = RelatedNodeInfo(node_id="doc", metadata={"room": "hawaii", "n": [1]}, hash="h", node_type="4")
        node.relationships = {
            NodeRelationship.SOURCE: info,
            NodeRelationship.NEXT: RelatedNodeInfo(node_id="next"),
            NodeRelationship.CHILD: [RelatedNodeInfo(node_id="c1"), RelatedNodeInfo(node_id="c2")],
        }
    store = SharedVectorStore(pool)
    store.add([node])
    (got,) = store.get_nodes(["the node"])
    assert type(got) is type(node)
    assert got.embedding == pytest.approx([0.6, 0.8])
    got.embedding = node.embedding
    assert got.to_dict() == node.to_dict()
    (found,) = store.query(VectorStoreQuery(query_embedding=[0.6, 0.8])).nodes or ()
    assert type(found) is type(node)
    assert found.to_dict() == {**node.to_dict(), "embedding": None}
    if not isinstance(node, ImageDocument):  # whose bytes core leaves out of every dump
        assert found.hash == node.hash


class OwnNode(TextNode):
    """A node class that core does not know."""

    stars: int = 0

    @classmethod
    def class_name(cls) -> str:
        """Its own name."""
        return "OwnNode"


def test_an_unknown_node_type_is_built_by_cores_helper(pool: Pool) -> None:
    """It comes back as the nearest type that core has, with its text and metadata."""
    store = SharedVectorStore(pool)
    node = OwnNode(id_="n", text="aloha", stars=5, embedding=[1.0, 0.0])
    node.metadata = {"room": "hawaii"}
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="doc")
    store.add([node])
    (got,) = store.get_nodes()
    assert type(got) is TextNode
    assert (got.node_id, got.text, got.metadata, got.ref_doc_id) == ("n", "aloha", {"room": "hawaii"}, "doc")
    filters = MetadataFilters(filters=[MetadataFilter(key="_node_type", value="OwnNode")])
    assert store.query(VectorStoreQuery(query_embedding=[1.0, 0.0], filters=filters)).ids == ["n"]


def test_a_nodes_own_doc_id_does_not_hide_its_source_document(pool: Pool) -> None:
    """Filters by `doc_id` mean the source document, as in core; the node's own value comes back untouched."""
    store = SharedVectorStore(pool)
    node = TextNode(id_="n", metadata={"doc_id": "own", "ref_doc_id": "own"}, embedding=[1.0, 0.0])
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="source")
    store.add([node])
    for key in ("doc_id", "ref_doc_id", "document_id"):
        for value, count in (("source", 1), ("own", 0)):
            filters = MetadataFilters(filters=[MetadataFilter(key=key, value=value)])
            assert len(store.get_nodes(filters=filters)) == count
    store.delete("own")
    assert store.get_nodes()[0].metadata == {"doc_id": "own", "ref_doc_id": "own"}


def test_a_node_without_source_document_is_not_of_the_document_none(pool: Pool) -> None:
    """Core writes "None" for it, so that deleting a document of that name would delete it."""
    store = SharedVectorStore(pool)
    store.add([TextNode(id_="n", embedding=[1.0, 0.0])])
    store.delete("None")
    assert len(store.get_nodes()) == 1


class Level(Enum):
    """A value that JSON spells as another."""

    HIGH = "high"


ODD_METADATA = {
    "when": datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC),
    "set": {7},
    "decimal": Decimal("1.5"),
    "path": Path("/x"),
    "level": Level.HIGH,
    "number": np.float32(0.5),
    "keys": {1: "one"},
}
PLAIN_METADATA = {
    "when": "2026-01-02T03:04:05+00:00",
    "set": [7],
    "decimal": "1.5",
    "path": "/x",
    "level": "high",
    "number": 0.5,
    "keys": {"1": "one"},
}


def test_metadata_that_json_has_no_word_for_is_spelt_as_pydantic_would(pool: Pool) -> None:
    """A datetime makes core's helper raise; here it becomes ISO-8601 text, by which filters find it."""
    node = TextNode(id_="n", text="t", metadata=ODD_METADATA, embedding=[1.0, 0.0])
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id="doc", metadata=ODD_METADATA)
    store = SharedVectorStore(pool)
    store.add([node])
    (got,) = store.get_nodes()
    assert got.metadata == PLAIN_METADATA
    assert got.source_node is not None
    assert got.source_node.metadata == PLAIN_METADATA
    since = MetadataFilter(key="when", value="2026-01-02", operator=FilterOperator.GTE)
    assert len(store.get_nodes(filters=MetadataFilters(filters=[since]))) == 1
    documents = SharedDocumentStore(pool)
    documents.add_documents([node])
    assert documents.docs["n"].metadata == PLAIN_METADATA
    assert documents.get_document_hash("n") == node.hash
    assert documents.get_all_ref_doc_info()["doc"].metadata == PLAIN_METADATA
    values = SharedKVStore(pool)
    values.put("k", ODD_METADATA)
    assert values.get("k") == PLAIN_METADATA


def test_what_json_would_change_is_kept_in_values_and_documents(pool: Pool) -> None:
    """Integers beyond 64 bits, lone surrogates of broken texts, NaN and infinity survive."""
    odd = {"big": 2**80, "broken": "a\ud800b", "inf": float("inf"), "list": [1.0, float("-inf")], "null": None}
    values = SharedKVStore(pool)
    values.put("k", odd)
    assert values.get("k") == odd
    values.put("nan", {"embedding": [0.1, float("nan")], "null": None})
    assert np.isnan(values.get_all()["nan"]["embedding"][1])
    documents = SharedDocumentStore(pool)
    documents.add_documents([TextNode(id_="n", text="a\ud800b", metadata=odd)])
    assert documents.docs["n"].get_content() == "a\ud800b"
    assert documents.docs["n"].metadata == odd


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": b"\xff"}, {"x": {(1, 2): 3}}], ids=["object", "bytes", "key"])
def test_what_json_cannot_say_at_all_is_refused(bad: dict[str, Any], pool: Pool) -> None:
    """With a typed error, and nothing is stored."""
    with pytest.raises(InvalidRecord):
        SharedKVStore(pool).put("k", bad)
    with pytest.raises(InvalidRecord):
        SharedVectorStore(pool).add([TextNode(metadata=bad, embedding=[1.0, 0.0])])
    assert SharedKVStore(pool).get_all() == {}
    assert SharedVectorStore(pool).get_nodes() == []


def test_records_put_without_llama_index_are_found(pool: Pool) -> None:
    """A vector store shows what anybody put into the collection, as text nodes."""
    pool.collection("history", dimension=2).put(
        ["m1"], [[1.0, 0.0]], ["Which ferry?"], [{"room": "hawaii", "ref_doc_id": "own"}]
    )
    store = SharedVectorStore(pool, "history")
    store.add([TextNode(id_="n", text="None", embedding=[0.0, 1.0])])
    result = store.query(VectorStoreQuery(query_embedding=[1.0, 0.0]))
    expected = TextNode(id_="m1", text="Which ferry?", metadata={"room": "hawaii", "ref_doc_id": "own"})
    assert result.nodes == [expected]
    assert pool.collection("history").search([0.0, 1.0], 1)[0].text == "None"


def test_the_collection_that_is_there_decides(pool: Pool) -> None:
    """Element type and dimension are those of the first; another embedding model is refused by name."""
    SharedVectorStore(pool, "c", dtype="float16", embedding_model="one").add([TextNode(embedding=[1.0, 0.0])])
    SharedVectorStore(pool, "c").add([TextNode(embedding=[0.0, 1.0])])
    assert pool.collection("c").dtype == "float16"
    for call in (
        lambda: SharedVectorStore(pool, "c", embedding_model="other").add([TextNode(embedding=[0.0, 1.0])]),
        lambda: SharedVectorStore(pool, "c", embedding_model="other").query(VectorStoreQuery(query_embedding=[1.0, 0.0])),
    ):
        with pytest.raises(ValueError, match="embedding_model='one'"):
            call()


def test_looking_before_anything_was_added_declares_nothing(pool: Pool) -> None:
    """A reader must not make a collection without vectors, into which nobody could add any."""
    store = SharedVectorStore(pool, "c")
    assert store.query(VectorStoreQuery(query_embedding=[1.0])).ids == []
    assert store.get_nodes() == []
    store.delete("x")
    store.clear()
    assert pool.collections() == []
    store.add([TextNode(id_="n", embedding=[1.0, 0.0, 0.0])])
    assert store.query(VectorStoreQuery(query_embedding=[1.0, 0.0, 0.0])).ids == ["n"]


def test_the_nodes_that_core_keeps_books_of_do_not_hide_the_others(pool: Pool) -> None:
    """A list of IndexNodes and ImageNodes only is core's book-keeping; any other list is a wish."""
    store = SharedVectorStore(pool)
    nodes = [TextNode(id_="text"), IndexNode(id_="index", index_id="i"), ImageNode(id_="image")]
    for node in nodes:
        node.embedding = [1.0, 0.0]
    store.add(nodes)

    def found(node_ids: list[str], **options: Any) -> set[str]:
        query = VectorStoreQuery(query_embedding=[1.0, 0.0], similarity_top_k=9, node_ids=node_ids, **options)
        return set(store.query(query).ids or ())

    everything = {"text", "index", "image"}
    for _ in range(2):
        assert found(["index"]) == found(["image", "index"]) == found(["index", "gone"]) == everything
        assert found(["text", "index"]) == {"text", "index"}
        assert found(["gone"]) == set()
    store.strict_node_ids = True
    assert found(["index"]) == {"index"}


def test_the_key_value_store_is_no_mutable_mapping(pool: Pool) -> None:
    """Core merges the caches of workers back into such stores, entry by entry; a shared one has them already."""
    assert not isinstance(SharedKVStore(pool), MutableMappingKVStore)


def test_a_conversation_read_in_a_loop_may_be_changed_in_it(pool: Pool) -> None:
    """`ChatSummaryMemoryBuffer` pops from the list that it was given."""
    store = SharedChatStore(pool)
    store.set_messages("k", [ChatMessage("a"), ChatMessage("b")])
    messages = store.get_messages("k")
    while messages:
        messages.pop()
    assert len(store.get_messages("k")) == 2
