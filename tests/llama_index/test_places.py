"""How stores are built, and how they travel to other processes."""

from __future__ import annotations

import copy
import json
import multiprocessing
import pickle
from pathlib import Path
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.storage.chat_store.loading import load_chat_store

from sharedrag import Pool
from sharedrag.llama_index import SharedAsyncChatStore, SharedChatStore, SharedKVStore, SharedVectorStore
from tests.llama_index.samples import CLASSES, every_class, holds, write


def in_child(store: Any, connection: Any) -> None:
    """In another process: is it there, and does what is written here arrive?"""
    seen = holds(store)
    if isinstance(store, SharedKVStore):
        store.put("from the child", {"n": 1})
    connection.send(seen)


@every_class
def test_a_store_is_built_from_a_handle_or_a_path(cls: type[Any], pool_path: str) -> None:
    """By position, by keyword, by `from_params`; a path makes the pool, and is opened once per process."""
    by_path = cls(pool_path, "here")
    try:
        write(by_path)
        others = [
            cls(by_path.pool, "here"),
            cls(Path(pool_path), "here"),
            cls(pool=pool_path, collection="here"),
            cls.from_params(pool_path, "here", create=False),
        ]
        for other in others:
            assert holds(other)
            assert other.pool is by_path.pool
        assert not holds(cls(pool_path)), "the default collection is another one"
        assert pool_path in repr(by_path) or cls in (SharedChatStore, SharedAsyncChatStore, SharedVectorStore)
    finally:
        by_path.pool.close()


@every_class
def test_from_params_says_how_the_pool_is_made(cls: type[Any], pool_path: str) -> None:
    """Capacity and nodes are `Pool.open`'s; without `create` a missing pool is an error."""
    with pytest.raises(FileNotFoundError):
        cls.from_params(pool_path, create=False)
    store = cls.from_params(pool_path, capacity="48 MiB", nodes=2, node=1)
    try:
        info = store.pool.info()
        assert len(info.nodes) == 2
        assert store.pool.node == 1
        assert info.capacity <= 48 << 20
        write(store)
        assert pickle.loads(pickle.dumps(store)).pool.node == 1
        if hasattr(store, "model_dump_json"):
            dumped = json.loads(store.model_dump_json())
            assert dumped["pool"] == {"path": pool_path, "node": 1}
            dumped.pop("class_name", None)
            assert cls(**dumped).pool is store.pool
    finally:
        store.pool.close()


@every_class
def test_a_store_opens_anew_after_its_pool_was_closed_or_replaced(cls: type[Any], pool_path: str) -> None:
    """A path names the pool that is there now, not one that was open before."""
    first = cls(pool_path)
    write(first)
    first.pool.close()
    second = cls(pool_path)
    assert holds(second)
    Path(pool_path).unlink()
    third = cls(pool_path)
    try:
        assert not holds(third)
        assert third.pool is not second.pool
    finally:
        second.pool.close()
        third.pool.close()


def test_stores_of_all_kinds_share_a_collection_name(pool: Pool) -> None:
    """Nobody needs to think of six names: what one class stores under a name, no other sees."""
    stores = [cls(pool, "main") for cls in CLASSES if cls is not SharedAsyncChatStore]
    for store in stores:
        write(store)
    for store in stores:
        assert holds(store)
    assert pool.collections() == ["main", "main.chat", "main.documents", "main.kv"]


@every_class
def test_a_store_is_pickled_as_its_place(cls: type[Any], pool: Pool) -> None:
    """`IngestionPipeline` pickles stores: what arrives is on the same pool, and nothing of the content travels."""
    store = cls(pool, "here")
    write(store)
    for travelled in (pickle.loads(pickle.dumps(store)), copy.deepcopy(store), copy.copy(store)):
        assert type(travelled) is cls
        assert travelled.collection == "here"
        assert holds(travelled)
    assert len(pickle.dumps(store)) < 2000
    Path(pool.path).unlink()
    with pytest.raises(FileNotFoundError):
        pickle.loads(pickle.dumps(store))


@every_class
@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_store_works_in_child_processes(cls: type[Any], method: str, pool: Pool) -> None:
    """Spawned children get it pickled, forked ones inherit it; both see what is there, and what they write is seen."""
    store = cls(pool, "here")
    write(store)
    context: Any = multiprocessing.get_context(method)
    ours, theirs = context.Pipe()
    child = context.Process(target=in_child, args=(store, theirs))
    child.start()
    theirs.close()
    assert ours.recv() is True
    child.join()
    assert child.exitcode == 0
    if isinstance(store, SharedKVStore):
        assert store.get("from the child") == {"n": 1}
    assert holds(store)
    write(store)


@pytest.mark.parametrize("cls", [SharedVectorStore, SharedChatStore, SharedAsyncChatStore], ids=lambda cls: cls.__name__)
def test_a_pydantic_store_is_dumped_as_its_place(cls: type[Any], pool: Pool) -> None:
    """The dump is JSON that names pool and collection, and a store can be made of it."""
    store = cls(pool, "here")
    write(store)
    dumped = json.loads(store.model_dump_json())
    assert dumped["pool"] == pool.path
    dumped.pop("class_name", None)
    again = cls(**dumped)
    try:
        assert holds(again)
        assert json.loads(json.dumps(store.model_dump())) == json.loads(store.model_dump_json())
        assert store.model_json_schema()["properties"]["pool"]["type"] == "string"
    finally:
        again.pool.close()


def test_a_store_is_restored_from_its_dict(pool: Pool) -> None:
    """`to_dict` and `from_dict`, as LlamaIndex serialises components."""
    store = SharedVectorStore(pool, "here", dtype="float16", strict_node_ids=True)
    write(store)
    again = SharedVectorStore.from_dict(store.to_dict())
    assert holds(again)
    assert (again.dtype, again.strict_node_ids) == ("float16", True)
    assert store.to_dict()["class_name"] == "SharedVectorStore"
    again.pool.close()


def test_a_memory_on_a_chat_store_is_restored_from_its_string(pool: Pool) -> None:
    """`to_string` and `from_string` work because core knows the class by its name."""
    memory = ChatMemoryBuffer.from_defaults(chat_store=SharedChatStore(pool, "here"), chat_store_key="ann")
    memory.put(ChatMessage("aloha"))
    again = ChatMemoryBuffer.from_string(memory.to_string())
    again.put(ChatMessage("mahalo"))
    assert [one.content for one in memory.get()] == ["aloha", "mahalo"]
    restored = load_chat_store({"class_name": "SharedChatStore", "pool": pool.path, "collection": "here"})
    assert isinstance(restored, SharedChatStore)
    assert len(restored.get_messages("ann")) == 2
    restored.pool.close()
