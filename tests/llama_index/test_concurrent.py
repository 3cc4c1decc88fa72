"""Two processes at the same time: nothing is lost, nothing is seen in part, nothing is given out twice."""

from __future__ import annotations

import asyncio
import multiprocessing
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import Document
from llama_index.core.vector_stores.types import VectorStoreQuery

from sharedrag import Pool
from sharedrag.llama_index import (
    SharedAsyncChatStore,
    SharedChatStore,
    SharedDocumentStore,
    SharedVectorStore,
)
from tests.llama_index import tasks
from tests.llama_index.staging import Worker

Run = Callable[..., list[Any]]


@pytest.fixture(scope="session")
def other_worker() -> Iterator[Worker]:
    """A second worker process."""
    started = Worker()
    yield started
    started.stop()


@pytest.fixture
def together(worker: Worker, other_worker: Worker, pool: Pool) -> Run:
    """Runs (task, *arguments) pairs in the two workers at once; returns what they return."""

    def run(*each: tuple[Any, ...]) -> list[Any]:
        workers = (worker, other_worker)
        for number, (one, (task, *args)) in enumerate(zip(workers, each, strict=True)):
            one.begin(task, pool.path, f"p{number}", *args)
        return [one.answer() for one in workers]

    return run


def test_no_node_of_a_source_document_is_lost(together: Run, pool: Pool) -> None:
    """Two processes x 150 nodes of one source document: 300 ids (core's read-modify-write left 165)."""
    together((tasks.add_chunks, 150), (tasks.add_chunks, 150))
    store = SharedDocumentStore(pool, tasks.COLLECTION)
    info = store.get_ref_doc_info("doc")
    assert info is not None
    assert len(info.node_ids) == 300
    for who in ("p0", "p1"):
        assert [one for one in info.node_ids if one.startswith(who)] == [f"{who} {number}" for number in range(150)]
    assert len(store.docs) == 300
    store.delete_ref_doc("doc")
    assert store.docs == {}


def test_a_document_is_added_by_one_process_only(together: Run, pool: Pool) -> None:
    """Without `allow_update`, each id is won by exactly one of the two."""
    won, also_won = together((tasks.add_unless_known, 100), (tasks.add_unless_known, 100))
    assert sorted(won + also_won) == list(range(100))
    docs = SharedDocumentStore(pool, tasks.COLLECTION).docs
    assert {doc_id for doc_id, doc in docs.items() if doc.get_content() == "p0"} == {str(number) for number in won}


def test_a_source_document_is_seen_whole_or_not_at_all(together: Run) -> None:
    """Adding and deleting it with its 20 nodes is one step to others."""
    _, seen = together((tasks.replace_document, 60, 20), (tasks.watch_document, 300))
    assert seen <= {0, 20}


def test_the_last_of_two_deletes_takes_the_source_document(together: Run, pool: Pool) -> None:
    """However the deletes of its nodes fall, the document itself goes with the last, and not before."""
    store = SharedDocumentStore(pool, tasks.COLLECTION)
    nodes = [tasks.chunk(f"{who} {number}") for who in ("p0", "p1") for number in range(40)]
    store.add_documents([Document(id_="doc", text="doc"), *nodes, tasks.chunk("left")])
    together((tasks.delete_chunks, 40), (tasks.delete_chunks, 40))
    assert set(store.docs) == {"doc", "left"}
    store.delete_document("left")
    assert store.docs == {}
    assert store.get_all_document_hashes() == {}


def test_a_batch_of_values_is_seen_whole(together: Run) -> None:
    """`put_all` is one step: no reader ever sees two numbers, or some of the keys."""
    _, seen = together((tasks.put_batches, 200, 12), (tasks.watch_batches, 400))
    assert [one for one in seen if one not in ([1, 12], [0, 0])] == []


@pytest.mark.parametrize("how", ["sync", "async"])
def test_no_message_is_lost(together: Run, pool: Pool, how: str) -> None:
    """Two processes append to one conversation: all messages are there, each process's in its order."""
    together((tasks.append_messages, 150, how), (tasks.append_messages, 150, how))
    messages = [str(one.content) for one in SharedChatStore(pool, tasks.COLLECTION).get_messages("team")]
    assert len(messages) == 300
    for who in ("p0", "p1"):
        assert [one for one in messages if one.startswith(who)] == [f"{who} {number}" for number in range(150)]


@pytest.mark.parametrize("how", ["delete_oldest_messages", "archive_oldest_messages", "delete_last_message"])
def test_no_message_is_given_out_twice(together: Run, pool: Pool, worker: Worker, how: str) -> None:
    """Two processes take messages from one conversation: each is taken by exactly one."""
    store = SharedAsyncChatStore(pool, tasks.COLLECTION)
    asyncio.run(store.add_messages("team", [ChatMessage(role="user", content=str(number)) for number in range(120)]))
    one, other = together((tasks.take_messages, how), (tasks.take_messages, how))
    assert sorted(int(taken) for taken in one + other) == list(range(120))
    archived = 120 if how == "archive_oldest_messages" else 0
    worker.begin(tasks.count_archived, pool.path)
    assert worker.answer() == archived


def test_a_conversation_is_set_whole(together: Run, pool: Pool) -> None:
    """Of two processes that set one conversation, everybody sees the one's messages or the other's, never both."""
    lengths = together((tasks.set_conversation, 50, 7), (tasks.set_conversation, 50, 7))
    assert lengths == [{7}, {7}]
    assert len(SharedChatStore(pool, tasks.COLLECTION).get_messages("team")) == 7


def test_appends_survive_while_another_process_takes_messages(together: Run, pool: Pool) -> None:
    """What is appended while somebody archives is archived or still there: none is lost, none is doubled."""
    store = SharedAsyncChatStore(pool, tasks.COLLECTION)
    asyncio.run(store.add_messages("team", [ChatMessage(role="user", content=f"old {number}") for number in range(60)]))
    together((tasks.append_messages, 100, "sync"), (tasks.take_messages, "archive_oldest_messages"))
    everything = [one.content for one in asyncio.run(store.get_messages("team", status=None))]
    assert len(everything) == len(set(everything)) == 160


def test_threads_share_a_store(pool: Pool) -> None:
    """Eight threads on one handle: documents and messages of all are there."""
    documents, chats = SharedDocumentStore(pool, tasks.COLLECTION), SharedChatStore(pool, tasks.COLLECTION)

    def work(thread: int) -> None:
        for number in range(20):
            documents.add_documents([tasks.chunk(f"{thread} {number}")])
            chats.add_message("team", ChatMessage(role="user", content=f"{thread} {number}"))

    with ThreadPoolExecutor(8) as executor:
        list(executor.map(work, range(8)))
    expected = {f"{thread} {number}" for thread in range(8) for number in range(20)}
    assert set(documents.get_all_ref_doc_info()["doc"].node_ids) == expected
    assert {one.content for one in chats.get_messages("team")} == expected


def test_a_killed_writer_leaves_whole_documents_and_no_lock(pool: Pool) -> None:
    """Whenever it is killed, its document is there with all its nodes or not at all, and others write on at once."""
    store = SharedDocumentStore(pool, tasks.COLLECTION)
    for delay_s in (0.0, 0.01, 0.02, 0.03, 0.05):
        started = multiprocessing.get_context("fork").Process(
            target=tasks.replace_document, args=(pool.path, f"victim {delay_s}", 100_000, 20, 1)
        )
        started.start()
        while f"victim {delay_s}" not in pool.collection("meeting"):
            time.sleep(0.001)
        time.sleep(delay_s)
        started.kill()
        started.join()
        info = store.get_ref_doc_info("doc")
        assert info is None or len(info.node_ids) == 20
        store.add_documents([Document(id_="after", text="aloha")])
        store.delete_ref_doc("doc", raise_error=False)
        assert set(store.docs) == {"after"}


def test_vectors_are_found_whoever_added_them(together: Run, pool: Pool) -> None:
    """Each process finds its own at once, and after that everybody finds all."""
    found = together((tasks.add_vectors, 60), (tasks.add_vectors, 60))
    assert found == [[True] * 60, [True] * 60]
    store = SharedVectorStore(pool, tasks.COLLECTION)
    assert len(store.query(VectorStoreQuery(query_embedding=[1.0, 1.0], similarity_top_k=500)).ids or ()) == 120
    store.delete("doc of p0")
    assert len(store.get_nodes()) == 60
