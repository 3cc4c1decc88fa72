"""LangChain's chat history on a pool: each message is a record of its own, so that no append can lose another.

In the collection `<collection>.messages`, a record has an id of its own, the message as JSON for its text (as LangChain's
`message_to_dict` has it), and the metadata `{"session": ...}`.

A history is its session's records in the order they were written. Appends take no lock.
"""

from __future__ import annotations

import os
import uuid
from collections.abc import Sequence

from langchain_core.chat_history import BaseChatMessageHistory
from langchain_core.messages import BaseMessage, message_to_dict, messages_from_dict

from sharedrag import Collection, Pool, Record, Where
from sharedrag.langchain._json import dumps, loads
from sharedrag.langchain._pools import as_pool


class SharedRagChatMessageHistory(BaseChatMessageHistory):
    """One session's messages: `SharedRagChatMessageHistory(pool_or_path, "team", "session-1")`.

    Any number of processes may append to a session and read it. The asynchronous forms are inherited, and run these in
    threads.
    """

    def __init__(
        self, pool: Pool | str | os.PathLike[str], collection: str = "default", session_id: str = "default"
    ) -> None:
        """`pool` is a `Pool`, or the path of one, which is created if it is not there."""
        self.pool = as_pool(pool)
        self.collection = collection
        self.session_id = session_id

    def __repr__(self) -> str:
        return f"SharedRagChatMessageHistory({self.pool.path!r}, {self.collection!r}, {self.session_id!r})"

    def _records(self) -> Collection:
        return self.pool.collection(f"{self.collection}.messages")

    def _of_session(self) -> list[Record]:
        return self._records().find(Where("session", "==", self.session_id))

    @property
    def messages(self) -> list[BaseMessage]:  # type: ignore[override]
        """The session's messages, oldest first: a fresh list each time."""
        return messages_from_dict([loads(one.text or "{}") for one in self._of_session()])

    def add_messages(self, messages: Sequence[BaseMessage]) -> None:
        """Append messages, all in one step. Raises what `Collection.put` raises."""
        self._records().put(
            [uuid.uuid4().hex for _ in messages],
            texts=[dumps(message_to_dict(one)) for one in messages],
            metadata=[{"session": self.session_id} for _ in messages],
        )

    def clear(self) -> None:
        """Delete the session's messages, in one step; what another process appends meanwhile stays."""
        self._records().delete([one.id for one in self._of_session()])
