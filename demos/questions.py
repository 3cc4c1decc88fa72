"""What the group asks: labelled questions, and how well what was found fits their labels."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import orjson

from sharedrag.chats import Exchange, UnreadableData

AGAIN = "asked again"
OWN_QUESTIONS_MAX = 240


@dataclass(frozen=True, slots=True)
class Question:
    """A question, the ids of answers that are right (the best first; none if nothing answers it), and look-alikes."""

    id: str
    kind: str
    text: str
    relevant: tuple[str, ...]
    wrong: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Score:
    """Of `rows` questions of a kind: how many found a right answer first, among the first five, a look-alike first."""

    kind: str
    rows: int
    first: int
    among_five: int
    wrong_first: int


def labelled(path: Path) -> list[Question]:
    """Questions of a labelled file; a follow-up is asked with the questions before it. Raises `UnreadableData`."""
    found = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = orjson.loads(line)
            text = " ".join([*row["context"], row["question"]])
            found.append(Question(row["id"], row["kind"], text, tuple(row["relevant"]), tuple(row["wrong"])))
        except (orjson.JSONDecodeError, KeyError, TypeError) as error:
            hint = "Each line wants id, kind, question, context, relevant and wrong, as demos/data/README.md has them"
            raise UnreadableData(path, f"line {number}: {error!r}", hint) from None
    return found


def own_questions(exchanges: Sequence[Exchange]) -> list[Question]:
    """For data without labels: a sample of its own questions, asked again word for word. Easy, and said to be so."""
    answers: dict[str, list[str]] = {}
    for exchange in exchanges:
        answers.setdefault(exchange.question, []).append(exchange.id)
    texts = list(answers)
    chosen = random.Random(7).sample(texts, min(OWN_QUESTIONS_MAX, len(texts)))
    return [Question(f"own-{number}", AGAIN, text, tuple(answers[text])) for number, text in enumerate(chosen)]


def scores(questions: Sequence[Question], found: Mapping[str, Sequence[str]]) -> list[Score]:
    """A score per kind, and one for all kinds that have right answers; `found` has the ids found for a question's id."""
    kinds = list(dict.fromkeys(question.kind for question in questions))
    by_kind = [_score(kind, [one for one in questions if one.kind == kind], found) for kind in kinds]
    answerable = [one for one in questions if one.relevant]
    return [*by_kind, _score("all with an answer", answerable, found)] if len(kinds) > 1 else by_kind


def _score(kind: str, questions: Sequence[Question], found: Mapping[str, Sequence[str]]) -> Score:
    ranked = [(question, found.get(question.id, ())) for question in questions]
    return Score(
        kind=kind,
        rows=len(questions),
        first=sum(bool(ids) and ids[0] in question.relevant for question, ids in ranked),
        among_five=sum(any(one in question.relevant for one in ids[:5]) for question, ids in ranked),
        wrong_first=sum(bool(ids) and ids[0] in question.wrong for question, ids in ranked),
    )
