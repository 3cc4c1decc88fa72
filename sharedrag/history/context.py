"""What is embedded: an exchange with its question's conversation, a question with the one before it.

An exchange's vector is the unit mean of two: of its question, and of its question and answer (with what was said just before
it in front, where the question is a follow-up). A question's vector is its own, and for a follow-up some of the previous
question's and answer's, which say what "it" is. Chosen by plain cosine on the labelled questions of `make eval` (hit@1 of
those that have an answer):

| embedded of an exchange, of a question | Hawaii chat | hotel chats |
| --- | --- | --- |
| its question; the question | .52 | .26 |
| question and answer; the question | .60 | .25 |
| the mean of both; the question | .65 | .27 |
| the mean of both, with what was said before it; the question with all that was said before it | .67 | .71 |

The last row is for always adding what was said before, which ruins questions that change the subject (Hawaii: .69 to .11).
So it is added to what looks like a follow-up alone, and those that only look so still suffer: `make eval` shows how much.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from sharedrag.embed import Embedder, Vectors

#: What of a previous question and answer is looked at: they say what the talk is about, mostly at once.
PREVIOUS_LENGTH_MAX = 300
_SHORT_WORDS = 4
_BEGINS = re.compile(
    r"(?:ok(?:ay)?|thanks|thank you|great|and|or|but|also|so|then|what about|how about|what else|anything else|any|why"
    r"|which ones?)\b",
    re.IGNORECASE,
)
_NAME = re.compile(r"(?<=\s)(?!I\b)[^\W\d_]*[A-Z]\w*|\d")
_THE = re.compile(r"\bthe\b", re.IGNORECASE)
_REFERS = re.compile(
    r"\b(?:it|its|they|them|theirs?|that|this|those|these|there|here|he|she|his|hers?|him|ones?|same|both|n?either|instead"
    r"|then|afterwards|otherwise|also|too|else|the other|such)\b",
    re.IGNORECASE,
)


class Previous(NamedTuple):
    """What was asked and answered just before a question in its conversation; empty texts for what there was not."""

    question: str = ""
    answer: str = ""


class Turn(NamedTuple):
    """An earlier message: whether it was an answer, and its text."""

    is_answer: bool
    text: str


def is_follow_up(question: str) -> bool:
    """Whether a question may lean on what was said before it.

    It is short, begins with "and", has an "it" in it, or speaks of "the view" and names nothing.
    """
    question = question.strip()
    if _BEGINS.match(question) or len(question.split(None, _SHORT_WORDS)) <= _SHORT_WORDS:
        return True
    return bool(_REFERS.search(question)) or bool(_THE.search(question) and not _NAME.search(question))


def previous(question: str, earlier: Iterable[Turn]) -> Previous | None:
    """What a question leans on among earlier turns, the newest first; None if it is no follow-up or nothing was said."""
    if not is_follow_up(question):
        return None
    asked = answered = ""
    for turn in earlier:
        if turn.is_answer:
            if asked:
                break
            answered = answered or turn.text
        elif not asked:
            asked = turn.text
        if asked and answered:
            break
    return Previous(asked[:PREVIOUS_LENGTH_MAX], answered[:PREVIOUS_LENGTH_MAX]) if asked or answered else None


def exchange_vectors(embedder: Embedder, exchanges: Sequence[tuple[str, str, Previous | None]]) -> Vectors:
    """The vectors of exchanges, each (question, answer, what its question leans on): (n, dimension) float32 unit rows."""
    texts = [question for question, _, _ in exchanges]
    texts += [_joined(*(before or ()), question, answer) for question, answer, before in exchanges]
    both = embedder.embed_texts(texts)
    return _unit(both[: len(exchanges)] + both[len(exchanges) :])


def question_vector(
    embedder: Embedder, question: str, before: Previous | None, question_share: float, answer_share: float
) -> Vectors:
    """The vector of a question, (dimension,) float32, unit. The shares weigh what it leans on; its own weight is 1."""
    vector = embedder.embed_query(question)
    if before is None:
        return vector
    shares = [
        (text, share) for text, share in ((before.question, question_share), (before.answer, answer_share)) if text and share
    ]
    if not shares:
        return vector
    leaned = embedder.embed_texts([text for text, _ in shares])
    weights = np.array([share for _, share in shares], np.float32)
    return _unit((vector + weights @ leaned)[None, :])[0]  # type: ignore[no-any-return]


def words_of(question: str, before: Previous | None) -> str:
    """What is compared by words: a follow-up with the answer that it leans on, which has the names."""
    return question if before is None or not before.answer else f"{question} {before.answer}"


def _joined(*texts: str) -> str:
    return "\n".join(text for text in texts if text)


def _unit(rows: Vectors) -> Vectors:
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    return (rows / np.where(lengths > 0, lengths, 1)).astype(np.float32)
