"""Any sequence of calls, alternating between two processes, answers as core's own store does in one.

Left out are only the calls that core's store gets wrong; the conformance tests name them.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import Document, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.chat_store.base_db import MessageStatus
from llama_index.core.vector_stores.types import (
    FilterCondition,
    MetadataFilter,
    MetadataFilters,
    VectorStoreQuery,
    VectorStoreQueryResult,
)

from sharedrag import Pool
from tests.llama_index.staging import CORE, Alternating, Local, Worker, fresh_core_store

Call = tuple[str, tuple[Any, ...], dict[str, Any]]

sequences = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
small = st.integers(0, 4)


def call(method: str, *args: st.SearchStrategy[Any], **kwargs: st.SearchStrategy[Any]) -> st.SearchStrategy[Call]:
    """A call with arguments drawn from these."""
    return st.tuples(st.just(method), st.tuples(*args), st.fixed_dictionaries(kwargs))


class Compared:
    """Core's store and ours, of which each example gets fresh ones."""

    def __init__(self, name: str, handle: Pool, worker: Worker) -> None:
        self.name = name
        self._handle = handle
        self._worker = worker

    def run(self, calls: list[Call], reads: list[Call]) -> None:
        """Each call answers alike, and so do these reads in between."""
        theirs = fresh_core_store(CORE[self.name])
        core = Alternating([theirs], "sync")
        sides = [Local(self.name, self._handle, "main"), self._worker.store(self.name, self._handle.path, "main")]
        ours = Alternating(sides, "sync")
        try:
            for method, args, kwargs in [one for each in calls for one in (each, *reads)]:
                expected = plain(getattr(core, method)(*args, **kwargs))
                assert plain(getattr(ours, method)(*args, **kwargs)) == expected, (method, args, kwargs)
        finally:
            theirs.close()
            for one in self._handle.collections():
                self._handle.drop(one)


def plain(answer: Any) -> Any:
    """An answer, without what core's store does not give or gives in another order."""
    if isinstance(answer, VectorStoreQueryResult):
        return list(zip(answer.ids or [], [round(one, 5) for one in answer.similarities or []], strict=True))
    return answer


@pytest.fixture
def handle(pool: Pool, worker: Worker) -> Iterator[Pool]:
    """A pool that the worker closes too."""
    yield pool
    worker.forget(pool.path)


names = st.sampled_from(["a", "ключ"])
collections = st.sampled_from(["data", "x"])
values = st.fixed_dictionaries({"n": small})


@sequences
@given(
    st.lists(
        st.one_of(
            call("put", names, values, collection=collections),
            call("put_all", st.lists(st.tuples(names, values), max_size=3)),
            call("get", names, collection=collections),
            call("get_all", collections),
            call("delete", names, collection=collections),
        ),
        min_size=5,
        max_size=20,
    )
)
def test_key_value_store(handle: Pool, worker: Worker, calls: list[Call]) -> None:
    """Puts, gets and deletes of few keys in two collections."""
    Compared("SharedKVStore", handle, worker).run(calls, [("get_all", (), {}), ("get_all", ("x",), {})])


def chunk(number: int, version: int) -> TextNode:
    """One of few nodes of two source documents; a version has its own text, hence hash."""
    ref = f"doc {number % 2}"
    node = TextNode(id_=f"chunk {number}", text=f"{number}.{version}", metadata={"ref": ref, "tags": [number % 2]})
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=ref, metadata={"n": 1})
    return node


def document(number: int, version: int) -> Document:
    """One of few documents, among them the two that the nodes come from."""
    return Document(id_=f"doc {number}", text=f"doc {number}.{version}", metadata={"version": version})


chunks = st.builds(chunk, small, small)
documents = st.builds(document, small, small)
refs = st.sampled_from(["doc 0", "doc 1", "doc 2"])
ids = st.one_of(refs, st.builds("chunk {}".format, small))
quietly = st.just(False)


@sequences
@given(
    st.lists(
        st.one_of(
            call("add_documents", st.lists(st.one_of(chunks, documents), max_size=4), store_text=st.booleans()),
            call("delete_document", ids, raise_error=quietly),
            call("delete_ref_doc", refs, raise_error=quietly),
            call("set_document_hashes", st.dictionaries(st.sampled_from(["doc 2", "doc 3", "new"]), names, max_size=2)),
            call("get_document", ids, raise_error=quietly),
            call("document_exists", ids),
            call("get_document_hash", ids),
            call("get_ref_doc_info", refs),
            call("get_all_ref_doc_info"),
            call("docs"),
        ),
        min_size=5,
        max_size=20,
    )
)
def test_document_store(handle: Pool, worker: Worker, calls: list[Call]) -> None:
    """Nodes and their source documents are added, updated and deleted, with and without their texts."""
    Compared("SharedDocumentStore", handle, worker).run(calls, [("docs", (), {}), ("get_all_ref_doc_info", (), {})])


messages = st.builds(lambda number: ChatMessage(role="user", content=f"message {number}"), small)


@sequences
@given(
    st.lists(
        st.one_of(
            call("add_message", names, messages),
            call("add_message", names, messages, idx=st.integers(-4, 4)),
            call("set_messages", names, st.lists(messages, min_size=1, max_size=4)),
            call("get_messages", names),
            call("delete_message", names, st.just(0)),
        ),
        min_size=5,
        max_size=20,
    )
)
def test_chat_store(handle: Pool, worker: Worker, calls: list[Call]) -> None:
    """Conversations are appended to, inserted into, set, and deleted from."""
    reads: list[Call] = [("get_messages", (key,), {}) for key in ("a", "ключ")]
    Compared("SharedChatStore", handle, worker).run(calls, reads)


@sequences
@given(
    st.lists(
        st.one_of(
            call("add_messages", names, st.lists(messages, min_size=1, max_size=3), st.sampled_from(MessageStatus)),
            call("set_messages", names, st.lists(messages, max_size=3)),
            call("get_messages", names, st.sampled_from([*MessageStatus, None]), small, small),
            call("count_messages", names, st.sampled_from([*MessageStatus, None])),
            call("archive_oldest_messages", names, small),
            call("delete_oldest_messages", names, small),
            call("delete_messages", names, st.sampled_from([*MessageStatus, None])),
        ),
        min_size=5,
        max_size=20,
    )
)
def test_asynchronous_chat_store(handle: Pool, worker: Worker, calls: list[Call]) -> None:
    """Conversations are appended to, set, archived, and deleted from."""
    reads: list[Call] = [("get_messages", (key, None), {}) for key in ("a", "ключ")]
    Compared("SharedAsyncChatStore", handle, worker).run(calls, reads)


def embedded(number: int, version: int) -> TextNode:
    """One of few nodes; a version has its own embedding and metadata."""
    node = chunk(number, version)
    node.embedding = np.random.default_rng(number * 10 + version).normal(size=8).tolist()
    node.metadata |= {"year": 2020 + version, "room": f"room {number}"} if version % 2 else {"note": None}
    return node


parts = st.one_of(
    st.builds(
        MetadataFilter,
        key=st.just("year"),
        value=st.integers(2020, 2024),
        operator=st.sampled_from(["==", ">", "<", "!=", ">=", "<="]),
    ),
    st.builds(
        MetadataFilter,
        key=st.just("room"),
        value=st.lists(st.sampled_from(["room 1", "room 2"])),
        operator=st.sampled_from(["in", "nin"]),
    ),
    st.builds(
        MetadataFilter,
        key=st.just("tags"),
        value=st.lists(st.sampled_from([0, 1])),
        operator=st.sampled_from(["any", "all"]),
    ),
    st.builds(MetadataFilter, key=st.just("tags"), value=small, operator=st.just("contains")),
    st.builds(
        MetadataFilter,
        key=st.just("room"),
        value=st.just("M 1"),
        operator=st.sampled_from(["text_match", "text_match_insensitive"]),
    ),
    st.builds(MetadataFilter, key=st.sampled_from(["note", "room", "tags"]), value=st.none(), operator=st.just("is_empty")),
)
filters = st.builds(
    MetadataFilters, filters=st.lists(parts, min_size=1, max_size=3), condition=st.sampled_from(FilterCondition)
)
node_ids = st.lists(st.builds("chunk {}".format, small), min_size=1, max_size=3)
queries = st.builds(
    VectorStoreQuery,
    query_embedding=st.builds(lambda seed: np.random.default_rng(99 + seed).normal(size=8).tolist(), small),
    similarity_top_k=st.integers(1, 5),
    filters=st.one_of(st.none(), filters),
    node_ids=st.one_of(st.none(), node_ids),
)


@sequences
@given(
    st.lists(
        st.one_of(
            call("add", st.lists(st.builds(embedded, small, small), max_size=4, unique_by=lambda node: node.node_id)),
            call("query", queries),
            call("query", queries),
            call("delete", refs),
            call("delete_nodes", node_ids, st.one_of(st.none(), filters)),
            call("delete_nodes", st.none(), filters),
            call("clear"),
        ),
        min_size=5,
        max_size=20,
    )
)
def test_vector_store(handle: Pool, worker: Worker, calls: list[Call]) -> None:
    """Nodes are added, updated, deleted and searched for, with all operators and conditions."""
    start: list[Call] = [("add", ([embedded(number, number) for number in range(5)],), {})]
    everything = VectorStoreQuery(query_embedding=[1.0] * 8, similarity_top_k=9)
    Compared("SharedVectorStore", handle, worker).run(start + calls, [("query", (everything,), {})])
