"""The asynchronous forms: our own, and out of the event loop's way."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.data_structs.data_structs import IndexDict
from llama_index.core.schema import TextNode
from llama_index.core.vector_stores.types import VectorStoreQuery

from sharedrag import Pool
from sharedrag.llama_index import SharedAsyncChatStore, SharedVectorStore
from tests.llama_index.samples import CLASSES, every_class, write

ASYNC_ARGUMENTS: dict[str, tuple[Any, ...]] = {
    "add": ([TextNode(id_="n", embedding=[1.0, 0.0])],),
    "query": (VectorStoreQuery(query_embedding=[1.0, 0.0]),),
    "delete": ("n",),
    "delete_nodes": (["n"],),
    "put": ("k", {}),
    "put_all": ([("k", {})],),
    "get": ("k",),
    "add_documents": ([TextNode(id_="n")],),
    "get_nodes": (["n"],),
    "get_node_dict": ({0: "n"},),
    "add_index_struct": (IndexDict(index_id="n"),),
    "set_document_hash": ("n", "h"),
    "set_document_hashes": ({"n": "h"},),
    "add_message": ("n", ChatMessage("a")),
    "add_messages": ("n", [ChatMessage("a")]),
    "set_messages": ("n", [ChatMessage("a")]),
    "delete_message": ("n", 0),
    "delete_oldest_messages": ("n", 1),
    "archive_oldest_messages": ("n", 1),
    **dict.fromkeys(["clear", "get_all", "get_keys", "index_structs", "get_all_document_hashes"], ()),
    **dict.fromkeys(["get_all_document_ids", "get_all_ref_doc_info"], ()),
}


def async_methods(cls: type[Any]) -> Iterator[tuple[str, str]]:
    """(name, the synchronous form's name) of each coroutine method."""
    for name, _ in inspect.getmembers(cls, inspect.iscoroutinefunction):
        if not name.startswith("_"):
            plain = name.removeprefix("async_")
            yield name, plain if plain != name or cls is SharedAsyncChatStore else name[1:]


@pytest.mark.parametrize(
    ("cls", "name", "plain"),
    [(cls, *names) for cls in CLASSES for names in async_methods(cls)],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_asynchronous_forms_do_not_block_the_event_loop(
    cls: type[Any], name: str, plain: str, pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """While a method is at work in the pool, the loop goes on: the work ends only when the loop has let it."""
    store = cls(pool)
    write(store)
    go_on = threading.Event()
    entered = threading.Event()
    original = Pool.collection

    def slow(self: Pool, *args: Any, **kwargs: Any) -> Any:
        entered.set()
        assert go_on.wait(20), "the event loop was blocked"
        return original(self, *args, **kwargs)

    async def loop_goes_on() -> None:
        task = asyncio.create_task(getattr(store, name)(*ASYNC_ARGUMENTS.get(plain, ("n",))))
        came = await asyncio.to_thread(entered.wait, 20)
        go_on.set()
        await asyncio.gather(task, return_exceptions=True)
        assert came, "the method never came to the pool"

    monkeypatch.setattr(Pool, "collection", slow)
    asyncio.run(loop_goes_on())


@every_class
def test_every_asynchronous_form_is_our_own(cls: type[Any]) -> None:
    """What core inherits would block the loop, or drop arguments: none of it is left, but what itself runs in a thread."""
    for name, _ in async_methods(cls):
        owner = next(base for base in cls.__mro__ if name in base.__dict__)
        inherited = not owner.__module__.startswith("sharedrag.")
        runs_in_a_thread = inherited and "to_thread" in inspect.getsource(getattr(owner, name))
        calls_ours = inherited and "await self." in inspect.getsource(getattr(owner, name))
        assert not inherited or runs_in_a_thread or calls_ours, f"{owner.__name__}.{name}"


def test_adelete_nodes_passes_its_keyword_arguments(pool: Pool) -> None:
    """Core's own form drops them."""
    seen: list[dict[str, Any]] = []

    class Recording(SharedVectorStore):
        def delete_nodes(self, node_ids: Any = None, filters: Any = None, **delete_kwargs: Any) -> None:
            seen.append(delete_kwargs)

    asyncio.run(Recording(pool=pool).adelete_nodes(["n"], None, anything=1))
    assert seen == [{"anything": 1}]


@every_class
def test_a_store_serves_one_event_loop_after_another(cls: type[Any], pool: Pool) -> None:
    """Nothing is bound to a loop: core's synchronous `Memory` starts a new one for each call."""
    store = cls(pool)
    name = next(name for name, _ in async_methods(cls) if "get" in name or "query" in name)
    plain = dict(async_methods(cls))[name]
    for _ in range(3):
        asyncio.run(getattr(store, name)(*ASYNC_ARGUMENTS.get(plain, ("n",))))
    write(store)
