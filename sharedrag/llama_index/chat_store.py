"""Chat stores: one history that any number of processes append to, behind both of LlamaIndex's interfaces.

`SharedChatStore` is for `ChatMemoryBuffer`, `ChatSummaryMemoryBuffer` and agents, `SharedAsyncChatStore` for `Memory`.
On one pool and collection both show the same conversations.
"""

from __future__ import annotations

import asyncio
from typing import Any

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import ConfigDict
from llama_index.core.storage.chat_store.base import BaseChatStore
from llama_index.core.storage.chat_store.base_db import AsyncDBChatStore, MessageStatus
from llama_index.core.storage.chat_store.loading import RECOGNIZED_CHAT_STORES

from sharedrag.llama_index._chat_log import ACTIVE, ChatLog, one
from sharedrag.llama_index._pools import FromParams, PoolField, PoolLike


class SharedChatStore(FromParams, BaseChatStore):
    """LlamaIndex's chat store on a pool: `SharedChatStore(pool_or_path, "team")`.

    Each call returns fresh lists. Messages that `Memory` has archived through `SharedAsyncChatStore` are not shown. A
    key that has no messages is unknown. Nothing needs `persist`: the pool is the storage, and `to_string` of a memory
    on this store names the pool.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    pool: PoolField
    collection: str = "default"

    def __init__(self, pool: PoolLike, collection: str = "default") -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        super().__init__(pool=pool, collection=collection)  # type: ignore[call-arg]

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex serialises this class."""
        return "SharedChatStore"

    @property
    def _log(self) -> ChatLog:
        return ChatLog(self.pool, self.collection)

    def set_messages(self, key: str, messages: list[ChatMessage]) -> None:
        """Replace the conversation by these messages, in one step."""
        self._log.replace(key, messages, ACTIVE)

    def get_messages(self, key: str) -> list[ChatMessage]:
        """The conversation's messages; none for an unknown key."""
        return [one.message for one in self._log.entries(key, ACTIVE)]

    def add_message(self, key: str, message: ChatMessage, idx: int | None = None) -> None:
        """Append a message, or insert it at `idx`."""
        if idx is None:
            self._log.append(key, [message], ACTIVE)
        else:
            self._log.insert(key, message, idx)

    def delete_messages(self, key: str) -> list[ChatMessage] | None:
        """Delete the conversation; returns it, or None for an unknown key."""
        return self._log.remove(key, None) or None

    def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the message at `idx` (negative: from the end); returns it, or None if there is none."""
        return next(iter(self._log.remove(key, ACTIVE, one(idx))), None)

    def delete_last_message(self, key: str) -> ChatMessage | None:
        """Delete the last message; returns it, or None if there is none."""
        return self.delete_message(key, -1)

    def get_keys(self) -> list[str]:
        """The keys of all conversations, in the order of their first messages."""
        return self._log.keys()

    def persist(self, persist_path: str = "", fs: Any = None) -> None:
        """Accepted, as `SimpleChatStore` has it, and nothing to do: what was added is in the pool."""

    async def async_add_message(self, key: str, message: ChatMessage, idx: int | None = None) -> None:
        """`add_message` in a thread; the interface's other asynchronous forms are inherited, and do the same."""
        await asyncio.to_thread(self.add_message, key, message, idx)


class SharedAsyncChatStore(FromParams, AsyncDBChatStore):
    """LlamaIndex's asynchronous chat store on a pool, for `Memory.from_defaults(chat_store=...)`.

    It does in a thread what it does, and keeps nothing that belongs to an event loop. Each call returns fresh lists.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)
    pool: PoolField
    collection: str = "default"

    def __init__(self, pool: PoolLike, collection: str = "default") -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        super().__init__(pool=pool, collection=collection)  # type: ignore[call-arg]

    @classmethod
    def class_name(cls) -> str:
        """Name under which LlamaIndex knows this class."""
        return "SharedAsyncChatStore"

    @property
    def _log(self) -> ChatLog:
        return ChatLog(self.pool, self.collection)

    async def get_messages(
        self,
        key: str,
        status: MessageStatus | None = ACTIVE,
        limit: int | None = None,
        offset: int | None = None,
    ) -> list[ChatMessage]:
        """The conversation's messages with this status (None: all), at most `limit` from `offset` on."""
        entries = (await asyncio.to_thread(self._log.entries, key, status))[offset or 0 :]
        return [one.message for one in entries[:limit]]

    async def count_messages(self, key: str, status: MessageStatus | None = ACTIVE) -> int:
        """How many messages `get_messages` would return."""
        return len(await asyncio.to_thread(self._log.entries, key, status))

    async def add_message(self, key: str, message: ChatMessage, status: MessageStatus = ACTIVE) -> None:
        """Append a message."""
        await self.add_messages(key, [message], status)

    async def add_messages(self, key: str, messages: list[ChatMessage], status: MessageStatus = ACTIVE) -> None:
        """Append messages, all in one step."""
        await asyncio.to_thread(self._log.append, key, messages, status)

    async def set_messages(self, key: str, messages: list[ChatMessage], status: MessageStatus = ACTIVE) -> None:
        """Replace the conversation, archived messages too, by these, in one step."""
        await asyncio.to_thread(self._log.replace, key, messages, status)

    async def delete_message(self, key: str, idx: int) -> ChatMessage | None:
        """Delete the active message at `idx` (negative: from the end); returns it, or None if there is none."""
        return next(iter(await asyncio.to_thread(self._log.remove, key, ACTIVE, one(idx))), None)

    async def delete_messages(self, key: str, status: MessageStatus | None = None) -> None:
        """Delete the conversation's messages with this status (None: all)."""
        await asyncio.to_thread(self._log.remove, key, status)

    async def delete_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Delete the first `n` active messages; returns them. No two callers are given the same message."""
        return await asyncio.to_thread(self._log.remove, key, ACTIVE, slice(max(n, 0)))

    async def archive_oldest_messages(self, key: str, n: int) -> list[ChatMessage]:
        """Archive the first `n` active messages; returns them. No two callers are given the same message."""
        return await asyncio.to_thread(self._log.archive_oldest, key, max(n, 0))

    async def get_keys(self) -> list[str]:
        """The keys of all conversations, in the order of their first messages."""
        return await asyncio.to_thread(self._log.keys)


# Core loads a memory's store by this table when it reads `ChatMemoryBuffer.to_string()`.
RECOGNIZED_CHAT_STORES[SharedChatStore.class_name()] = SharedChatStore  # type: ignore[assignment]
