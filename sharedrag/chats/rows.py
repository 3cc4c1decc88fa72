"""Rows with named fields (JSON lines, Parquet) as messages.

A row is, by the first of these that fits:

| a row with | is |
| --- | --- |
| `messages` or `turns`: a list of {role, content} | a conversation, as fine-tuning files have it |
| `texts`: a list of texts, and `speakers` | a conversation; `response` is the turn after its last |
| `question`, and `answer` (or `response`, `text`) | a question and its answer |
| `text` (or `content`, `message`, `body`) | one message |

Other fields go by the names below; whatever else is a string, number or truth value goes along as the exchange's metadata.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime
from typing import Any

from sharedrag.chats.messages import Message, Role
from sharedrag.chats.reading import iso_time

ID = ("id", "message_id", "uuid", "line", "key")
CONVERSATION = ("conversation", "conversation_id", "chat", "chat_id", "session_id", "thread", "room", "channel", "log")
AUTHOR = ("author", "user", "username", "name", "sender", "from")
ROLE = ("role", "speaker")
REPLY_TO = ("reply_to", "in_reply_to", "reply_to_id", "parent_id", "parent")
TIME = ("time", "created_at", "timestamp", "created", "date", "ts")
TEXT = ("text", "content", "message", "body")
ANSWER = ("answer", "response", "text")
TURNS = ("messages", "turns")
UNDERSTOOD = {
    *ID,
    *CONVERSATION,
    *AUTHOR,
    *ROLE,
    *REPLY_TO,
    *TIME,
    *TEXT,
    *ANSWER,
    *TURNS,
    "question",
    "texts",
    "speakers",
    "asker",
    "model",
}
ROLES: dict[str, Role] = {
    **dict.fromkeys(("question", "user", "u", "human", "customer", "asker"), "question"),
    **dict.fromkeys(("answer", "assistant", "system", "s", "a", "agent", "bot", "gpt", "answerer"), "answer"),
}
TIME_OF_DAY = re.compile(r"[0-2]\d:[0-5]\d(:[0-5]\d)?")
DAY = re.compile(r"\d{4}-[01]\d-[0-3]\d")
NO_TEXT = "without text"
NOT_SAID = "system or tool turns"


def messages(rows: Iterable[dict[str, Any]], skipped: Counter[str]) -> Iterator[Message]:
    """Messages of rows, in the rows' order; counts what it leaves out."""
    for number, row in enumerate(rows):
        turns = next((row[name] for name in TURNS if isinstance(row.get(name), list)), None)
        question = row.get("question")
        if turns is not None:
            spoken = [_role_and_text(turn) for turn in turns if isinstance(turn, dict)]
            yield from _turns(row, number, spoken, skipped)
        elif isinstance(row.get("texts"), list):
            yield from _turns(row, number, _spoken(row), skipped)
        elif isinstance(question, str) and question.strip():
            yield from _pair(row, number, question, skipped)
        else:
            yield from _message(row, number, skipped)


def _first(row: dict[str, Any], names: Sequence[str]) -> Any:
    for name in names:
        value = row.get(name)
        if value is not None and value != "" and value != []:
            return value
    return None


def _name(row: dict[str, Any], names: Sequence[str]) -> str | None:
    value = _first(row, names)
    return str(value) if isinstance(value, (str, int)) else None


def _extra(row: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.isoformat() if isinstance(value, datetime) else value
        for name, value in row.items()
        if name not in UNDERSTOOD and isinstance(value, (str, int, float, datetime)) and value != ""
    }


def _identity(row: dict[str, Any], number: int, conversation: str | None) -> str:
    """The row's id. A number (a line of a log) is unique in its conversation only."""
    value = _first(row, ID)
    if value is None:
        value = number
    return f"{conversation}:{value}" if conversation is not None and not isinstance(value, str) else str(value)


def _time(row: dict[str, Any], conversation: str | None) -> str | None:
    """The row's time. A time of day is of the day that the conversation's name begins with: a room's log."""
    time = iso_time(_first(row, TIME))
    if time and conversation and TIME_OF_DAY.fullmatch(time) and (day := DAY.match(conversation)):
        return f"{day[0]}T{time}"
    return time


def _model(row: dict[str, Any]) -> str | None:
    return _name(row, ("model",))


def _message(row: dict[str, Any], number: int, skipped: Counter[str]) -> Iterator[Message]:
    text = _first(row, TEXT)
    if not isinstance(text, str) or not text.strip():
        skipped[NO_TEXT] += 1
        return
    conversation = _name(row, CONVERSATION)
    replied = _first(row, REPLY_TO)
    if isinstance(replied, list):  # an answer to several at once is taken as one to the first of them
        replied = replied[0]
    if replied is not None:
        replied = _identity({"id": replied}, 0, conversation)
    role = _name(row, ROLE)
    yield Message(
        id=_identity(row, number, conversation),
        conversation=conversation if conversation is not None else "all",
        text=text,
        author=_name(row, AUTHOR),
        role=ROLES.get(role.lower()) if role else None,
        reply_to=replied,
        time=_time(row, conversation),
        extra=_extra(row),
        model=_model(row),
    )


def _pair(row: dict[str, Any], number: int, question: str, skipped: Counter[str]) -> Iterator[Message]:
    answer = _first(row, ANSWER)
    if not isinstance(answer, str) or not answer.strip():
        skipped["without answer"] += 1
        return
    identity = _identity(row, number, None)
    # A pair is a conversation of its own unless it names one: the next row's question does not follow from it.
    conversation = _name(row, CONVERSATION) or identity
    time = iso_time(_first(row, TIME))
    asker = row.get("asker")
    asked = Message(f"{identity}:q", conversation, question, str(asker) if asker else None, "question", time=time)
    yield asked
    author, extra = _name(row, AUTHOR), _extra(row)
    yield Message(identity, conversation, answer, author, "answer", asked.id, time, extra, _model(row))


def _role_and_text(turn: dict[str, Any]) -> tuple[str | None, str | None]:
    text = _first(turn, (*TEXT, "value"))
    if isinstance(text, list):  # OpenAI's content parts
        text = "\n".join(part["text"] for part in text if isinstance(part, dict) and isinstance(part.get("text"), str))
    return _name(turn, (*ROLE, "from")), text if isinstance(text, str) else None


def _spoken(row: dict[str, Any]) -> list[tuple[str | None, str | None]]:
    speakers = list(row.get("speakers") or [])
    turns = [(speakers[at] if at < len(speakers) else None, text) for at, text in enumerate(row["texts"])]
    response = row.get("response")
    return [*turns, ("assistant", response)] if isinstance(response, str) and response else turns


def _turns(
    row: dict[str, Any], number: int, turns: list[tuple[str | None, str | None]], skipped: Counter[str]
) -> Iterator[Message]:
    conversation = _identity(row, number, None)
    spoken_by_system = {role for role, _ in turns if role} >= {"system", "assistant"}
    for at, (role, text) in enumerate(turns):
        if text is None or not text.strip():
            skipped[NO_TEXT] += 1
        elif role in ("tool", "function", "developer") or (role == "system" and spoken_by_system):
            # "system" is the other speaker in task-oriented chats, and the prompt where an assistant speaks too.
            skipped[NOT_SAID] += 1
        else:
            kind = ROLES.get(role.lower()) if role else None
            time = iso_time(_first(row, TIME))
            # A chat between two has no names: an author would only be the role again.
            author = None if kind else role
            model = _model(row) if kind == "answer" else None
            yield Message(f"{conversation}:{at}", conversation, text, author, kind, None, time, _extra(row), model)
