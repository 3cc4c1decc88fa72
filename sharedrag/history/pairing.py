"""Which message answers which: the rule that makes exchanges of a conversation.

- A message that says what it `answers` does.
- A message of a model (role "assistant") answers the newest message of a user before it that nothing answers yet.
- A message of a user answers the question of **another** user that it directly follows, unless it is a question itself.

A question is what ends in a question mark or begins as questions do. What has no text, other roles, and what only repeats
the crowd (`crowd` false) is passed over: it neither answers nor stands between a question and its answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

QUESTION_MARKS = "?\uff1f\u061f\u037e"  # Latin, full-width, Arabic, Greek
_CLOSING = "\"')]}\u201d\u2019\u00bb*_ \t\r\n"
_BEGINS_AS_QUESTION = re.compile(
    r"\W*(?:who|whom|whose|what|which|when|where|why|how|is|are|am|was|were|do|does|did|can|could|should|shall|would|will|"
    r"has|have|had|may|might|any|anyone|anybody|anything)(?:['’]\w+)?\b",
    re.IGNORECASE,
)


class Turn(NamedTuple):
    """A message as far as pairing looks at it."""

    id: str
    conversation: str
    user: str
    role: str
    text: str
    answers: str | None
    crowd: bool

    @property
    def counts(self) -> bool:
        """Whether it can ask or answer at all."""
        return self.crowd and self.role in ("user", "assistant") and bool(self.text.strip())


class Pair(NamedTuple):
    """A question and its answer."""

    question: Turn
    answer: Turn


def is_question(text: str) -> bool:
    """Whether a text asks something."""
    stripped = text.rstrip(_CLOSING)
    return (stripped[-1:] in QUESTION_MARKS and bool(stripped)) or _BEGINS_AS_QUESTION.match(text) is not None


def needs_earlier(new: Sequence[Turn]) -> bool:
    """Whether what these messages answer may lie before them."""
    first = next((turn for turn in new if turn.counts), None)
    if first is None or first.answers is not None:
        return False
    return first.role == "assistant" or not is_question(first.text)


def pairs(earlier: Iterable[Turn], new: Sequence[Turn], named: dict[str, Turn]) -> list[Pair]:
    """The exchanges that `new` messages complete after `earlier` ones, both oldest first.

    `named` has the messages that some of `new` say they answer, by id.
    """
    earlier = list(earlier)
    answered = {turn.answers for turn in earlier if turn.answers}
    open_question: Turn | None = None
    previous: Turn | None = None
    for turn in earlier:
        if turn.counts:
            previous = turn
            if turn.role == "user" and turn.answers is None and turn.id not in answered:
                open_question = turn
            elif turn.role == "assistant":
                open_question = None
    found: list[Pair] = []
    for turn in new:
        if not turn.counts:
            continue
        question: Turn | None
        if turn.answers is not None:
            question = named.get(turn.answers)
        elif turn.role == "assistant":
            question = open_question
        else:
            question = previous if _replies(turn, previous) else None
        if question is not None:
            found.append(Pair(question, turn))
        if turn.role == "user" and question is None:
            open_question = turn
        elif question is open_question or turn.role == "assistant":
            open_question = None
        previous = turn
    return found


def _replies(turn: Turn, previous: Turn | None) -> bool:
    return (
        previous is not None
        and previous.role == "user"
        and previous.user != turn.user
        and is_question(previous.text)
        and not is_question(turn.text)
    )
