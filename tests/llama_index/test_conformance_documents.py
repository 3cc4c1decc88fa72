"""What LlamaIndex's document store promises, wherever the calls are executed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from llama_index.core.schema import (
    BaseNode,
    Document,
    ImageNode,
    IndexNode,
    MediaResource,
    Node,
    NodeRelationship,
    RelatedNodeInfo,
    TextNode,
)
from llama_index.core.storage.docstore import SimpleDocumentStore
from llama_index.core.storage.docstore.types import RefDocInfo
from pydantic import AnyUrl

from tests.llama_index.staging import Alternating


@pytest.fixture
def documents(stores: Callable[[str], Alternating]) -> Alternating:
    """A document store."""
    return stores("SharedDocumentStore")


def chunk(node_id: str, ref: str | None = "doc", **metadata: Any) -> TextNode:
    """A node, of a source document unless that is None."""
    node = TextNode(id_=node_id, text=f"text of {node_id}", metadata=metadata)
    if ref is not None:
        node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=ref)
    return node


NODES = [
    chunk("text", room="hawaii", tags=["a", "b"]),
    TextNode(id_="long", text="z" * 10_000, start_char_idx=3, end_char_idx=10_003, excluded_llm_metadata_keys=["x"]),
    Document(id_="document", text="aloha", metadata={"n": 1}),
    Document(id_="empty document"),
    Node(
        id_="node",
        text_resource=MediaResource(text="aloha"),
        image_resource=MediaResource(url=AnyUrl("http://x.test/i.png")),
    ),
    ImageNode(id_="image", text="beach", image="aGVsbG8=", image_mimetype="image/png"),
    IndexNode(id_="index", text="about", index_id="the index"),
    IndexNode(id_="object", text="about", index_id="the index", obj=TextNode(id_="inner", text="inner")),
    TextNode(id_="embedded", text="with embedding", embedding=[0.5, 0.25]),
]


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.node_id)
def test_a_node_of_any_type_comes_back_as_it_was(documents: Alternating, node: BaseNode) -> None:
    """Type, content and all fields survive."""
    documents.add_documents([node])
    got = documents.get_document(node.node_id)
    assert type(got) is type(node)
    assert got.to_dict() == node.to_dict()
    assert got.hash == node.hash
    assert documents.document_exists(node.node_id) is True


def test_documents_are_listed(documents: Alternating) -> None:
    """`docs` has all documents by id; `get_nodes` has those asked for, in that order."""
    assert documents.docs() == {}
    documents.add_documents(NODES)
    assert set(documents.docs()) == {node.node_id for node in NODES}
    assert [node.node_id for node in documents.get_nodes(["long", "text", "long"])] == ["long", "text", "long"]
    assert [node.node_id for node in documents.get_nodes(["no", "text"], raise_error=False)] == ["text"]
    assert documents.get_node_dict({1: "text", 7: "index"})[7].node_id == "index"
    assert documents.get_node("text").text == "text of text"


def test_a_missing_document_raises_or_is_none(documents: Alternating) -> None:
    """`raise_error` decides; the message names the id."""
    for method in ("get_document", "get_node", "delete_document"):
        with pytest.raises(ValueError, match="doc_id gone not found"):
            getattr(documents, method)("gone")
        assert getattr(documents, method)("gone", raise_error=False) is None
    with pytest.raises(ValueError, match="doc_id gone not found"):
        documents.get_nodes(["gone"])
    assert documents.document_exists("gone") is False
    assert documents.get_document_hash("gone") is None


def test_an_update_replaces_unless_it_is_forbidden(documents: Alternating) -> None:
    """The last added node of an id counts; without `allow_update` a known id is refused, and nothing is added."""
    documents.add_documents([chunk("n", version=1)])
    documents.add_documents([chunk("n", version=2)])
    assert documents.get_document("n").metadata == {"version": 2}
    with pytest.raises(ValueError, match="node_id n already exists"):
        documents.add_documents([chunk("other"), chunk("n", version=3)], allow_update=False)
    assert documents.get_document("n").metadata == {"version": 2}
    assert documents.document_exists("other") is False
    documents.add_documents([chunk("other")], allow_update=False)
    assert documents.document_exists("other") is True


def test_without_store_text_all_but_the_document_is_known(documents: Alternating) -> None:
    """Hash and source document are kept without the node; what was stored of it before stays readable."""
    documents.add_documents([chunk("n", a=1)], store_text=False)
    assert documents.document_exists("n") is False
    assert documents.docs() == {}
    assert documents.get_document("n", raise_error=False) is None
    assert documents.get_document_hash("n") == chunk("n", a=1).hash
    assert documents.get_ref_doc_info("doc") == RefDocInfo(node_ids=["n"], metadata={"a": 1})
    documents.add_documents([chunk("n", a=1)])
    documents.add_documents([chunk("n", a=2)], store_text=False)
    assert documents.get_document("n").metadata == {"a": 1}
    assert documents.get_document_hash("n") == chunk("n", a=2).hash


@pytest.mark.core_differs("it has no batches")
def test_any_batch_size_is_taken(documents: Alternating) -> None:
    """A batch size, which other stores need, is no reason to fail."""
    documents.add_documents([chunk(f"n{number}") for number in range(5)], batch_size=2)
    assert len(documents.docs()) == 5


def test_hashes_are_set_and_found(documents: Alternating) -> None:
    """A hash may be set for documents that are stored and for others; adding the document sets it anew."""
    documents.set_document_hash("a", "hash a")
    documents.set_document_hashes({"b": "hash b", "c": "hash c", "d": ""})
    assert documents.get_document_hash("b") == "hash b"
    assert documents.get_document_hash("d") in ("", None)
    assert documents.get_all_document_hashes() == {"hash a": "a", "hash b": "b", "hash c": "c"}
    node = chunk("a")
    documents.add_documents([node])
    assert documents.get_document_hash("a") == node.hash
    documents.set_document_hash("a", "changed")
    assert documents.get_document_hash("a") == "changed"
    assert documents.get_all_document_hashes() == {"changed": "a", "hash b": "b", "hash c": "c"}
    assert documents.get_document("a").text == node.text
    documents.delete_document("a")
    assert documents.get_document_hash("a") is None


@pytest.mark.core_differs("this version does not have it")
def test_documents_that_share_a_hash_are_all_listed(documents: Alternating) -> None:
    """A dict by hash has one of them; the set of ids has both."""
    documents.add_documents([Document(text="same", id_="d1"), Document(text="same", id_="d2")])
    documents.set_document_hash("d3", "other")
    assert len(documents.get_all_document_hashes()) == 2
    assert documents.get_all_document_ids() == {"d1", "d2", "d3"}


def test_a_source_document_knows_its_nodes_in_order(documents: Alternating) -> None:
    """Its node ids stand in the order in which they were first added, updates included."""
    assert documents.get_ref_doc_info("doc") is None
    assert documents.ref_doc_exists("doc") is False
    assert documents.get_all_ref_doc_info() == {}
    documents.add_documents([chunk("c"), chunk("a"), chunk("x", ref="other"), chunk("free", ref=None)])
    documents.add_documents([chunk("b")])
    documents.add_documents([chunk("c"), chunk("d")])
    assert documents.get_ref_doc_info("doc").node_ids == ["c", "a", "b", "d"]
    assert documents.ref_doc_exists("doc") is True
    infos = documents.get_all_ref_doc_info()
    assert {ref: info.node_ids for ref, info in infos.items()} == {"doc": ["c", "a", "b", "d"], "other": ["x"]}


def test_a_source_documents_metadata_is_that_of_its_first_nodes(documents: Alternating) -> None:
    """The first call that brings any metadata decides; within it, the later node's value for a key."""
    documents.add_documents([chunk("n0"), chunk("n1")])
    assert documents.get_ref_doc_info("doc").metadata == {}
    documents.add_documents([chunk("n2", a=1, b=1), chunk("n3", b=2)])
    assert documents.get_ref_doc_info("doc").metadata == {"a": 1, "b": 2}
    documents.add_documents([chunk("n4", a=9, c=9)])
    assert documents.get_ref_doc_info("doc").metadata == {"a": 1, "b": 2}


@pytest.mark.core_differs("its adelete_document looks for the wrong id")
def test_a_deleted_node_leaves_its_source_document(documents: Alternating) -> None:
    """Node, hash and place in the list go together; the others stay."""
    documents.add_documents([chunk("a"), chunk("b")])
    documents.delete_document("a")
    assert documents.document_exists("a") is False
    assert documents.get_document_hash("a") is None
    assert documents.get_document_hash("b") == chunk("b").hash
    assert documents.get_ref_doc_info("doc").node_ids == ["b"]


@pytest.mark.core_differs("its adelete_document looks for the wrong id")
def test_the_last_node_takes_its_source_document_with_it(documents: Alternating) -> None:
    """When the last node of a source document goes, nothing is known of that document any more."""
    documents.add_documents([Document(id_="doc", text="all"), chunk("a"), chunk("b")])
    documents.delete_document("a")
    assert documents.document_exists("doc") is True
    documents.delete_document("b")
    assert documents.get_ref_doc_info("doc") is None
    assert documents.document_exists("doc") is False
    assert documents.get_document_hash("doc") is None
    assert documents.docs() == {}


@pytest.mark.parametrize("stored", [True, False])
def test_a_source_document_is_deleted_with_all_its_nodes(documents: Alternating, stored: bool) -> None:
    """All of it goes, whether the document itself is stored or not, and nothing of others."""
    documents.add_documents([chunk("a"), chunk("b"), chunk("x", ref="other"), chunk("free", ref=None)])
    if stored:
        documents.add_documents([Document(id_="doc", text="all")])
    documents.delete_ref_doc("doc")
    assert set(documents.docs()) == {"x", "free"}
    assert documents.get_ref_doc_info("doc") is None
    assert documents.get_document_hash("doc") is None
    assert documents.get_document_hash("a") is None
    assert documents.get_all_ref_doc_info() == {"other": RefDocInfo(node_ids=["x"], metadata={})}
    with pytest.raises(ValueError, match="ref_doc_id doc not found"):
        documents.delete_ref_doc("doc")
    assert documents.delete_ref_doc("doc", raise_error=False) is None


@pytest.mark.core_differs("it leaves the node in both lists")
def test_a_node_that_moves_belongs_to_its_new_source_document_only(documents: Alternating) -> None:
    """Added anew under another source document, or under none, a node leaves the first."""
    documents.add_documents([chunk("a", ref="one"), chunk("b", ref="one")])
    documents.add_documents([chunk("a", ref="two")])
    documents.add_documents([chunk("b", ref=None)])
    assert documents.get_all_ref_doc_info() == {"two": RefDocInfo(node_ids=["a"], metadata={})}
    documents.delete_document("b")
    assert set(documents.docs()) == {"a"}


@pytest.mark.parametrize("odd", ["", "d:", "ключ 🌺", "a\x00b", "i:x"])
def test_ids_may_be_any_unicode_strings(documents: Alternating, odd: str) -> None:
    """An id's characters mean nothing to the store."""
    documents.add_documents([chunk(odd, ref=f"{odd} doc"), chunk("x")])
    assert documents.get_document(odd).text == f"text of {odd}"
    assert documents.get_ref_doc_info(f"{odd} doc").node_ids == [odd]
    documents.delete_ref_doc(f"{odd} doc")
    assert set(documents.docs()) == {"x"}


def test_the_export_is_read_by_cores_own_store(documents: Alternating) -> None:
    """`to_dict` is what `SimpleDocumentStore.from_dict` takes, with all documents, hashes and source documents."""
    documents.add_documents([chunk("a", n=1), chunk("b"), Document(id_="doc", text="all")])
    documents.set_document_hash("elsewhere", "hash")
    copy = SimpleDocumentStore.from_dict(documents.to_dict())
    assert copy.docs == documents.docs()
    assert copy.get_all_ref_doc_info() == documents.get_all_ref_doc_info()
    assert copy.get_all_document_hashes() == documents.get_all_document_hashes()
    copy.delete_document("a")
    assert copy.get_ref_doc_info("doc") == RefDocInfo(node_ids=["b"], metadata={"n": 1})
