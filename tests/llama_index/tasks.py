"""What the worker processes of the tests do at the same time."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.schema import Document, NodeRelationship, RelatedNodeInfo, TextNode
from llama_index.core.storage.chat_store.base_db import MessageStatus

from sharedrag import Pool
from sharedrag.llama_index import (
    SharedAsyncChatStore,
    SharedChatStore,
    SharedDocumentStore,
    SharedKVStore,
    SharedVectorStore,
)

COLLECTION = "main"


def chunk(node_id: str, ref: str = "doc", **metadata: Any) -> TextNode:
    """A node of a source document."""
    node = TextNode(id_=node_id, text=node_id, metadata=metadata, embedding=[1.0, len(node_id)])
    node.relationships[NodeRelationship.SOURCE] = RelatedNodeInfo(node_id=ref)
    return node


def meet(pool: Pool, who: str, others: int) -> None:
    """Wait until all are here, so that what follows happens at the same time."""
    meeting = pool.collection("meeting")
    meeting.put([who])
    while len(meeting) < others:
        time.sleep(0)


def add_chunks(path: str, who: str, count: int) -> None:
    """Add nodes of one source document, one by one."""
    with Pool.open(path) as pool:
        store = SharedDocumentStore(pool, COLLECTION)
        meet(pool, who, 2)
        for number in range(count):
            store.add_documents([chunk(f"{who} {number}")])


def add_unless_known(path: str, who: str, count: int) -> list[int]:
    """Add documents that nobody has added before; returns which."""
    won = []
    with Pool.open(path) as pool:
        store = SharedDocumentStore(pool, COLLECTION)
        meet(pool, who, 2)
        for number in range(count):
            try:
                store.add_documents([Document(id_=str(number), text=who)], allow_update=False)
                won.append(number)
            except ValueError:
                continue
    return won


def replace_document(path: str, who: str, rounds: int, size: int, others: int = 2) -> None:
    """Delete and add a source document with all its nodes, again and again."""
    with Pool.open(path) as pool:
        store = SharedDocumentStore(pool, COLLECTION)
        meet(pool, who, others)
        for _ in range(rounds):
            store.add_documents([Document(id_="doc", text="doc"), *(chunk(f"c{number}") for number in range(size))])
            store.delete_ref_doc("doc")


def watch_document(path: str, who: str, looks: int) -> set[int]:
    """The numbers of nodes that the source document is ever seen with."""
    with Pool.open(path) as pool:
        store = SharedDocumentStore(pool, COLLECTION)
        meet(pool, who, 2)
        infos = [store.get_ref_doc_info("doc") for _ in range(looks)]
    return {0 if info is None else len(info.node_ids) for info in infos}


def delete_chunks(path: str, who: str, count: int) -> None:
    """Delete the nodes of a source document that are this process's, one by one."""
    with Pool.open(path) as pool:
        store = SharedDocumentStore(pool, COLLECTION)
        meet(pool, who, 2)
        for number in range(count):
            store.delete_document(f"{who} {number}")


def put_batches(path: str, who: str, rounds: int, size: int) -> None:
    """Write the same keys with the same number, again and again."""
    with Pool.open(path) as pool:
        store = SharedKVStore(pool, COLLECTION)
        meet(pool, who, 2)
        for number in range(rounds):
            store.put_all([(f"k{key}", {"n": number}) for key in range(size)])


def watch_batches(path: str, who: str, looks: int) -> list[list[int]]:
    """What `get_all` shows at each look: the different numbers, of how many keys."""
    seen = []
    with Pool.open(path) as pool:
        store = SharedKVStore(pool, COLLECTION)
        meet(pool, who, 2)
        for _ in range(looks):
            values = store.get_all().values()
            seen.append([len({value["n"] for value in values}), len(values)])
    return seen


def append_messages(path: str, who: str, count: int, how: str) -> None:
    """Append messages to one conversation, through either interface."""
    with Pool.open(path) as pool:
        chats, database = SharedChatStore(pool, COLLECTION), SharedAsyncChatStore(pool, COLLECTION)
        meet(pool, who, 2)
        for number in range(count):
            message = ChatMessage(role="user", content=f"{who} {number}")
            if how == "sync":
                chats.add_message("team", message)
            else:
                asyncio.run(database.add_message("team", message))


def take_messages(path: str, who: str, how: str) -> list[str | None]:
    """Take messages from one conversation until none is left; returns what was taken."""
    taken: list[ChatMessage] = []
    with Pool.open(path) as pool:
        chats, database = SharedChatStore(pool, COLLECTION), SharedAsyncChatStore(pool, COLLECTION)
        meet(pool, who, 2)
        while True:
            if how == "delete_last_message":
                last = chats.delete_last_message("team")
                some = [] if last is None else [last]
            else:
                some = asyncio.run(getattr(database, how)("team", 3))
            if not some:
                return [one.content for one in taken]
            taken += some


def set_conversation(path: str, who: str, rounds: int, size: int) -> set[int]:
    """Set one conversation to messages of this process, again and again; how many messages it is ever seen with."""
    lengths = set()
    with Pool.open(path) as pool:
        chats = SharedChatStore(pool, COLLECTION)
        meet(pool, who, 2)
        for _ in range(rounds):
            chats.set_messages("team", [ChatMessage(role="user", content=who)] * size)
            seen = chats.get_messages("team")
            lengths.add(len(seen) if len({one.content for one in seen}) == 1 else -len(seen))
    return lengths


def add_vectors(path: str, who: str, count: int) -> list[bool]:
    """Add nodes one by one; whether each is found by the next query."""
    found = []
    with Pool.open(path) as pool:
        store = SharedVectorStore(pool, COLLECTION)
        meet(pool, who, 2)
        for number in range(count):
            node = chunk(f"{who} {number}", ref=f"doc of {who}")
            store.add([node])
            found.append([one.node_id for one in store.get_nodes([node.node_id])] == [node.node_id])
    return found


def count_archived(path: str) -> int:
    """How many messages of the conversation are archived, as another process sees it."""
    with Pool.open(path) as pool:
        return asyncio.run(SharedAsyncChatStore(pool, COLLECTION).count_messages("team", MessageStatus.ARCHIVED))
