"""Labelled data: chats that are put into a history, and questions whose right and wrong answers are known."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import orjson

ROOT = Path(__file__).parents[2]
HAWAII = ROOT / "demos" / "data"
SHARED = ROOT.parent / "shared" / "data"
UNANSWERABLE = "unanswerable"


@dataclass(frozen=True, slots=True)
class Said:
    """A message; `replies_to` names the question that it answers, None for a question."""

    id: str
    author: str
    text: str
    replies_to: str | None
    time: datetime | None
    supersedes: str | None = None
    crowd: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked, after what was said before it, as (is it an answer, text); ids of right and of wrong answers."""

    id: str
    kind: str
    text: str
    before: tuple[tuple[bool, str], ...]
    relevant: frozenset[str]
    wrong: frozenset[str]

    @property
    def half(self) -> int:
        """0 or 1: settings are chosen on one half and judged on the other."""
        return part(self.id, 2)


@dataclass(frozen=True, slots=True)
class Case:
    """A data set."""

    name: str
    what: str
    conversations: list[list[Said]]
    questions: list[Question]
    now: datetime | None = None
    subjects: list[tuple[str, str]] = field(default_factory=list)  # (question, answer) to talk of something else before


def part(name: str, parts: int) -> int:
    """A stable split by name."""
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") % parts


def hawaii() -> Case:
    """The project's own corpus (demos/data/README.md). Who answered is told by the crowd's marks what superseded what."""
    rows = _lines(HAWAII / "hawaii_chat.jsonl")
    conversations: dict[str, list[Said]] = {}
    texts = {row["id"]: row["text"] for row in rows}
    for row in rows:
        answer = row["role"] == "answer"
        said = Said(
            row["id"],
            row["author"],
            row["text"],
            row["reply_to"] if answer else None,
            datetime.fromisoformat(row["time"]),
            row["supersedes"],
        )
        conversations.setdefault(row["conversation"], []).append(said)
    questions = [
        Question(
            row["id"],
            row["kind"],
            row["question"],
            tuple((False, text) for text in row["context"]),
            frozenset(row["relevant"]),
            frozenset(row["wrong"]),
        )
        for row in _lines(HAWAII / "hawaii_eval.jsonl")
    ]
    subjects = [(texts[row["reply_to"]], row["text"]) for row in rows if row["role"] == "answer"]
    last = max(datetime.fromisoformat(row["time"]) for row in rows)
    return Case("Hawaii", "the project's own group chat", list(conversations.values()), questions, last, subjects)


def hotels() -> Case | None:
    """DSTC11's hotel and restaurant chats (CDLA-Sharing-1.0): some are the history, of others the last question is asked.

    Right is an answer drawn from half of the same facts or more (Jaccard of gold keys), wrong one that shares none. A
    question none of whose facts any answer draws on is unanswerable. None where the data is absent.
    """
    path = SHARED / "travel_chats_dstc11.parquet"
    if not path.exists():
        return None
    import pyarrow.parquet as pq

    chats = [row for row in pq.read_table(path).to_pylist() if row["knowledge_seeking"]]
    told = [row for row in chats if part(row["id"], 10) < 6]
    golds = {row["id"]: set(row["gold"]) for row in told}
    questions = []
    for row in chats:
        if row["id"] in golds:
            continue
        gold = set(row["gold"])
        shares = {name: len(gold & other) / len(gold | other) for name, other in golds.items()}
        right = frozenset(name for name, share in shares.items() if share >= 0.5)
        wrong = frozenset(name for name, share in shares.items() if not share)
        if right or len(wrong) == len(golds):
            kind = "chat" if right else UNANSWERABLE
            questions.append(Question(row["id"], kind, row["texts"][-1], _before(row), right, wrong))
    return Case("Hotels", "DSTC11 hotel and restaurant chats", [_chat(row) for row in told], questions)


def _before(row: dict[str, Any]) -> tuple[tuple[bool, str], ...]:
    turns = list(zip(row["speakers"], row["texts"], strict=True))[:-1]
    return tuple((speaker == "S", text) for speaker, text in turns[-2:])


def _chat(row: dict[str, Any]) -> list[Said]:
    """The last question of a chat and its answer, after what was said just before."""
    name, guest = row["id"], f"guest {row['id']}"
    said = []
    for at, (answer, text) in enumerate(_before(row)):
        said.append(Said(f"{name}-{at}", guest, text, f"{name}-{at - 1}" if answer and at else None, None, crowd=False))
    question = Said(f"{name}-question", guest, row["texts"][-1], None, None)
    return [*said, question, Said(name, f"host {name}", row["response"], question.id, None)]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [orjson.loads(line) for line in path.read_bytes().splitlines()]


def cases() -> Iterable[tuple[str, Case | None]]:
    """Every data set, None where its data is absent."""
    yield "Hawaii", hawaii()
    yield "Hotels", hotels()
