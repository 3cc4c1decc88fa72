"""The log of chat messages under both chat stores: each message a record of its own, so no append can lose another.

| record | id | text | metadata |
| --- | --- | --- | --- |
| message | `m<length of key>:<key><unique>` | the message as JSON | `key`, `kind`, `status`; `before` if inserted |
| archive mark | `a` + the message's id after its `m` | - | `key`, `kind` |

A conversation is the fold of its key's records in the order they were written. A message is archived by a mark and not
by writing it anew, which would move it to the end, and could bring back what another process has deleted meanwhile.
Appends take no lock. What reads and then removes (set, delete, archive) is ordered by a kernel lock per conversation,
so that two processes never take the same oldest message, and of two sets one remains.
"""

from __future__ import annotations

import uuid
import zlib
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.storage.chat_store.base_db import MessageStatus

from sharedrag import Collection, Pool, Record
from sharedrag.filters import Where
from sharedrag.llama_index._json import dumps, loads

_LOCKS = 256
ACTIVE, ARCHIVED = MessageStatus.ACTIVE, MessageStatus.ARCHIVED


class Entry(NamedTuple):
    """A message as it stands in the log."""

    id: str
    message: ChatMessage
    status: MessageStatus


class ChatLog:
    """The conversations in one collection of a pool, each under its key."""

    def __init__(self, pool: Pool, collection: str) -> None:
        self.pool = pool
        self.name = f"{collection}.chat"

    def _records(self) -> Collection:
        return self.pool.collection(self.name)

    def _changing(self, key: str) -> AbstractContextManager[Any]:
        # One of a few locks for each key: a handle remembers every name that it has locked.
        return self.pool.exclusive(f"{self.name}/{zlib.crc32(key.encode()) % _LOCKS}")

    # ------------------------------------------------------------------ reading

    def entries(self, key: str, status: MessageStatus | None) -> list[Entry]:
        """The messages of a conversation in order, those with this status or, for None, all."""
        return [one for one in _fold(self._of(key)) if status is None or one.status == status]

    def keys(self) -> list[str]:
        """The keys that have messages, in the order of their first."""
        table = self._records().scan(Where("kind", "==", "message"), columns=["id", "key"]).sort_by("key")
        return list(dict.fromkeys(_key_of(one) for one in table.column("id").to_pylist()))

    def _of(self, key: str) -> list[Record]:
        return self._records().find(Where("key", "==", key))

    # ------------------------------------------------------------------ writing

    def append(self, key: str, messages: Sequence[ChatMessage], status: MessageStatus) -> None:
        """Add messages at the end, all in one step."""
        self._put(key, messages, status)

    def insert(self, key: str, message: ChatMessage, index: int) -> None:
        """Add a message before the one that is active at `index`, as `list.insert` would."""
        with self._changing(key):
            following = self.entries(key, ACTIVE)[index:]
            self._put(key, [message], ACTIVE, before=following[0].id if following else None)

    def replace(self, key: str, messages: Sequence[ChatMessage], status: MessageStatus) -> None:
        """Set a conversation to these messages, whatever it held, in one step."""
        with self._changing(key):
            self._put(key, messages, status, delete=[one.id for one in self._of(key)])

    def remove(self, key: str, status: MessageStatus | None, chosen: slice = slice(None)) -> list[ChatMessage]:
        """Delete the chosen ones of the messages with this status (None: of all); returns them."""
        with self._changing(key):
            entries = self.entries(key, status)[chosen]
            self._records().delete([name for one in entries for name in (one.id, _mark(one.id))])
        return [one.message for one in entries]

    def archive_oldest(self, key: str, count: int) -> list[ChatMessage]:
        """Archive the first `count` active messages; returns them."""
        with self._changing(key):
            entries = self.entries(key, ACTIVE)[:count]
            marks = [_mark(one.id) for one in entries]
            self._records().put(marks, metadata=[{"key": key, "kind": "archived"}] * len(marks))
        return [one.message for one in entries]

    def _put(
        self,
        key: str,
        messages: Sequence[ChatMessage],
        status: MessageStatus,
        before: str | None = None,
        delete: Sequence[str] = (),
    ) -> None:
        metadata = {"key": key, "kind": "message", "status": status.value}
        if before is not None:
            metadata["before"] = before
        self._records().put(
            [f"m{len(key)}:{key}{uuid.uuid4().hex}" for _ in messages],
            texts=[dumps(message.model_dump()) for message in messages],
            metadata=[metadata] * len(messages),
            delete=delete,
        )


def one(index: int) -> slice:
    """The slice that is the item at `index`, from the end if negative, and empty if there is none."""
    return slice(index, index + 1 or None)


def _mark(message_id: str) -> str:
    return "a" + message_id[1:]


def _key_of(message_id: str) -> str:
    length, rest = message_id[1:].split(":", 1)
    return rest[: int(length)]


def _fold(records: list[Record]) -> list[Entry]:
    marks = {one.id for one in records if one.metadata["kind"] == "archived"}
    entries: list[Entry] = []
    for record in records:
        if record.metadata["kind"] == "message":
            status = ARCHIVED if _mark(record.id) in marks else MessageStatus(record.metadata["status"])
            entry = Entry(record.id, ChatMessage.model_validate(loads(record.text or "{}")), status)
            before = record.metadata.get("before")
            places = (place for place, one in enumerate(entries) if one.id == before)
            entries.insert(len(entries) if before is None else next(places, len(entries)), entry)
    return entries
