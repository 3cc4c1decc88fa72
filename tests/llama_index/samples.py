"""What the tests of this folder have in common: all classes, and something to store in each."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.schema import TextNode

from sharedrag.llama_index import (
    SharedAsyncChatStore,
    SharedChatStore,
    SharedDocumentStore,
    SharedIndexStore,
    SharedKVStore,
    SharedVectorStore,
)

CLASSES: list[type[Any]] = [
    SharedVectorStore,
    SharedDocumentStore,
    SharedKVStore,
    SharedIndexStore,
    SharedChatStore,
    SharedAsyncChatStore,
]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)


def write(store: Any) -> None:
    """Store something, by whichever method the class has."""
    if isinstance(store, SharedVectorStore):
        store.add([TextNode(id_="n", text="aloha", embedding=[1.0, 0.0])])
    elif isinstance(store, SharedDocumentStore):
        store.add_documents([TextNode(id_="n", text="aloha")])
    elif isinstance(store, SharedKVStore):
        store.put("n", {"text": "aloha"})
    elif isinstance(store, SharedIndexStore):
        store.add_index_struct(IndexDict(index_id="n"))
    elif isinstance(store, SharedChatStore):
        store.add_message("n", ChatMessage("aloha"))
    else:
        asyncio.run(store.add_message("n", ChatMessage("aloha")))


def holds(store: Any) -> bool:
    """Whether what `write` stores is there."""
    if isinstance(store, SharedVectorStore):
        return [node.node_id for node in store.get_nodes()] == ["n"]
    if isinstance(store, SharedDocumentStore):
        return bool(store.document_exists("n"))
    if isinstance(store, SharedKVStore):
        return store.get("n") == {"text": "aloha"}
    if isinstance(store, SharedIndexStore):
        return store.get_index_struct("n") is not None
    if isinstance(store, SharedChatStore):
        return store.get_messages("n") == [ChatMessage("aloha")]
    return bool(asyncio.run(store.get_messages("n")) == [ChatMessage("aloha")])
