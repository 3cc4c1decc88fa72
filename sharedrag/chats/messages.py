"""Messages of any chat, and the exchanges in them: a question and the answer that followed it, what the crowd searches.

Who answered whom is told, in this order, by a message's `reply_to`; by roles, where an answer follows a question at once;
and in a conversation that has neither but names its authors, guessed: a message with a question mark, and the next one by
somebody else within `GUESS_WITHIN`. Where roles are unknown, a reply counts only if what it replies to has a question
mark: the rest of a group's chat is banter. An exchange is named by its answer's id, so an answer belongs to one only.
"""

from __future__ import annotations

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, Literal, TypeVar

Role = Literal["question", "answer"]
GUESS_WITHIN = timedelta(minutes=30)
PREVIOUS_MAX = 10_000  # conversations that may be interleaved in a stream
QUESTION_MARKS = "?\uff1f\u061f\u037e"  # Latin, full-width, Arabic, Greek


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation. `role` is None where the source does not say; `time` is as the source has it.

    `model` wrote it, if one did. `crowd` false: it only repeats what the crowd said, and is no answer of its own.
    """

    id: str
    conversation: str
    text: str
    author: str | None = None
    role: Role | None = None
    reply_to: str | None = None
    time: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)
    model: str | None = None
    crowd: bool = True


@dataclass(frozen=True, slots=True)
class Exchange:
    """A question and the answer that followed it. `opening` is the question that began the chat, if it is another one."""

    id: str
    conversation: str
    question_id: str
    question: str
    answer: str
    opening: str | None = None
    asker: str | None = None
    author: str | None = None
    time: str | None = None
    extra: dict[str, Any] = field(default_factory=dict)


Item = TypeVar("Item")


class Newest(dict[str, Item]):
    """The newest items by their names, at most `most` of them."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def __setitem__(self, name: str, item: Item) -> None:
        self.pop(name, None)  # so that it is the newest
        super().__setitem__(name, item)
        if len(self) > self._most:
            del self[next(iter(self))]


class Pairing:
    """Which message each one answers, in a stream of them; a conversation's come in the order of time.

    `linked` are the conversations in which some message says what it replies to: in these nothing is guessed. `known` is
    where a message that was replied to is looked up: all of a chat, or those that came lately.
    """

    def __init__(self, linked: Container[str], known: Mapping[str, Message]) -> None:
        self._linked = linked
        self._known = known
        self._previous: Newest[Message] = Newest(PREVIOUS_MAX)  # of each conversation the last message

    def question_of(self, message: Message) -> Message | None:
        """The message that this one, the next of the stream, answers; None if it answers none."""
        before = self._previous.get(message.conversation)
        self._previous[message.conversation] = message
        if message.role == "question":
            return None
        if message.reply_to:
            asked = self._known.get(message.reply_to)
            return asked if asked is not None and _answers(message, asked) else None
        if before is None or message.conversation in self._linked:
            return None
        if message.role == "answer":
            return before if before.role == "question" else None
        # Without names there is no telling whether somebody answered or asked the next thing.
        named = message.author is not None and before.author is not None
        return before if named and _answers(message, before) and _soon_after(before.time, message.time) else None


def linked(messages: Iterable[Message]) -> set[str]:
    """The conversations in which some message says what it replies to."""
    return {message.conversation for message in messages if message.reply_to}


def exchanges(messages: Sequence[Message]) -> list[Exchange]:
    """The exchanges in `messages`, in the order of their answers. Messages of a conversation come in the order of time."""
    by_id = {message.id: message for message in messages}
    pairing = Pairing(linked(messages), by_id)
    found = []
    openings: dict[str, Message] = {}
    for message in messages:
        question = pairing.question_of(message)
        if message.role != "answer":
            openings.setdefault(message.conversation, message)
        if question is not None:
            found.append(_exchange(question, message, _opening(question, by_id, openings)))
    return found


def _answers(message: Message, asked: Message) -> bool:
    if message.role is not None or asked.role is not None:
        return message.role != "question" and asked.role == "question"
    is_question = any(mark in asked.text for mark in QUESTION_MARKS)
    return is_question and (message.author is None or message.author != asked.author)


def _soon_after(earlier: str | None, later: str | None) -> bool:
    """True also where the times are missing or not dates: the order is then all there is to go by."""
    try:
        return datetime.fromisoformat(later or "") - datetime.fromisoformat(earlier or "") <= GUESS_WITHIN
    except (ValueError, TypeError):  # TypeError: one with a time zone, the other without
        return True


def _opening(question: Message, by_id: dict[str, Message], openings: dict[str, Message]) -> Message | None:
    """The question at the root of the replies that led to `question`; without replies, the conversation's first."""
    if question.reply_to is None:
        opening = openings.get(question.conversation)
        # In a room (IRC, a Slack channel) every message that replies to nothing begins something new.
        return opening if question.role is not None else None
    root, seen = question, {question.id}
    while root.reply_to is not None and root.reply_to in by_id and root.reply_to not in seen:
        root = by_id[root.reply_to]
        seen.add(root.id)
    return root


def _exchange(question: Message, answer: Message, opening: Message | None) -> Exchange:
    return Exchange(
        id=answer.id,
        conversation=answer.conversation,
        question_id=question.id,
        question=question.text,
        answer=answer.text,
        opening=opening.text if opening is not None and opening.id != question.id else None,
        asker=question.author,
        author=answer.author,
        time=answer.time,
        extra={**question.extra, **answer.extra},
    )


def names(found: Iterable[Exchange]) -> list[str]:
    """Everybody who asked or answered, those who answered most first."""
    answered: dict[str, int] = {}
    for exchange in found:
        if exchange.asker:
            answered.setdefault(exchange.asker, 0)
        if exchange.author:
            answered[exchange.author] = answered.get(exchange.author, 0) + 1
    return sorted(answered, key=lambda name: (-answered[name], name))
