"""What a client's list of messages says: the question to search for, what to keep of it, and which chat it continues.

A chore is what a client asks for itself, under the user's name: a title, tags, follow-ups for its chat (Open WebUI's
prompts, which begin with "### Task:"; LibreChat's), or whatever it calls a task in a header. Chores are answered and never
stored.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Mapping
from functools import cached_property
from typing import Any

import orjson

_CHORE_STARTS = (
    "### Task:",
    "Your task is to reflect the speaker's likely facial expression through a fitting emoji",
    "You have been provided with a set of responses from various models to the latest user query",
    "Please generate a concise, 5-word-or-less title",
    "Provide a concise, 5-word-or-less title",
)
#: Open WebUI's own first messages: which tool to call; what to note down about the user, which is nobody else's business.
_CHORE_FIRST_STARTS = ("Available Tools: ", "You are Open WebUI's private memory reviewer")
#: A real question, to which Open WebUI has put what it found in files: the question follows the context.
_WITH_CONTEXT_START = "### Task:\nRespond to the user query using the provided context"
_CONTEXT_END = "</context>"
_QUERY_TAGS = re.compile(r"</?user_query>")
#: The JSON that a chore asks for, by the key that its instructions name.
_SHAPES: dict[str, Any] = {
    "title": None,
    "tags": [],
    "follow_ups": [],
    "queries": [],
    "operations": [],
    "prompt": "",
    "text": "",
}
_FIRST_SAID = re.compile(r"^\s*USER:\s*(\S.*)$", re.MULTILINE | re.IGNORECASE)
NO_MODEL = "There is no model here that could do this."
TITLE_WORDS_MAX = 6
TITLE_CHARACTERS_MAX = 60


def text_of(content: Any) -> str:
    """The plain text of a message's content: a string, or a list of content parts of which the texts are joined."""
    if isinstance(content, str):
        return content
    texts = [part.get("text") for part in content or () if isinstance(part, Mapping)]
    return "\n".join(text for text in texts if isinstance(text, str))


class Transcript:
    """A client's `messages`, as it sent them; never changed."""

    def __init__(self, messages: list[dict[str, Any]], task: bool = False) -> None:
        """`task`: the client says that this is a chore."""
        self.messages = messages
        self._task = task
        places = [place for place, one in enumerate(messages) if one.get("role") == "user"]
        self.place = places[-1] if places else None

    @cached_property
    def _content(self) -> Any:
        return None if self.place is None else self.messages[self.place].get("content")

    @cached_property
    def question(self) -> str:
        """The text of the last user message, without what a client has put around it; empty if there is none."""
        text = text_of(self._content)
        if text.startswith(_WITH_CONTEXT_START) and _CONTEXT_END in text:
            text = _QUERY_TAGS.sub("", text.rsplit(_CONTEXT_END, 1)[1])
        return text.strip()

    @cached_property
    def parts(self) -> list[dict[str, Any]] | None:
        """The last user message's content parts, if they are more than text."""
        content = self._content if isinstance(self._content, list) else []
        return content if any(part.get("type") not in ("text", "input_text") for part in content) else None

    @cached_property
    def is_chore(self) -> bool:
        """True for what a client asks for itself, not for its user."""
        if self._task:
            return True
        text = text_of(self._content).lstrip()
        if text.startswith(_WITH_CONTEXT_START):
            return False
        first = text_of(self.messages[0].get("content")) if self.messages else ""
        return text.startswith(_CHORE_STARTS) or first.startswith(_CHORE_FIRST_STARTS)

    def before(self) -> str | None:
        """A digest of what was said before the question; None if no answer was among it: this begins a chat."""
        said = self.messages[: self.place or 0]
        return _digest(said) if any(one.get("role") == "assistant" for one in said) else None

    def after(self, reply: str) -> str:
        """What `before` will be in the next request of the same chat, when the client has added this reply."""
        return _digest([*self.messages[: (self.place or 0) + 1], {"role": "assistant", "content": reply}])

    def with_data(self, data: str) -> list[dict[str, Any]]:
        """The messages with a text put before the question, in the user's own message.

        There and in no message of its own: many models' templates refuse two messages of the user in a row.
        """
        assert self.place is not None
        content = self._content
        joined = [{"type": "text", "text": data}, *content] if isinstance(content, list) else f"{data}\n\n{content or ''}"
        question = self.messages[self.place] | {"content": joined}
        return [*self.messages[: self.place], question, *self.messages[self.place + 1 :]]

    def chore_reply(self) -> str:
        """What can be said to a chore without a model: the JSON that was asked for, empty; a title from the chat's words."""
        instructions, _, chat = text_of(self._content).partition("<chat_history>")
        key = next((key for key in _SHAPES if f'"{key}":' in instructions), None)
        if key is None:
            return NO_MODEL
        said = _FIRST_SAID.search(chat)
        value = _short(said.group(1) if said else "Chat") if key == "title" else _SHAPES[key]
        return orjson.dumps({key: value}).decode()


def _short(text: str) -> str:
    words = text.strip(' "').split()
    title = " ".join(words[:TITLE_WORDS_MAX])
    cut = title[: TITLE_CHARACTERS_MAX - 1] if len(title) > TITLE_CHARACTERS_MAX else title
    return f"{cut}…" if len(words) > TITLE_WORDS_MAX or cut != title else title


def _digest(messages: Iterable[Mapping[str, Any]]) -> str:
    """Of what users and assistants said; system texts change with the time of day, and tools' with every call."""
    state = hashlib.sha256()
    for one in messages:
        text = text_of(one.get("content")).strip()
        if text and one.get("role") in ("user", "assistant"):
            state.update(f"{one['role']}\0{len(text)}\0{text}\0".encode("utf-8", "surrogatepass"))
    return state.hexdigest()
