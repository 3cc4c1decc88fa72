"""The demo's corpus and its labelled questions: the shape, order and references that demo and evaluation rely on."""

from __future__ import annotations

import json
from collections import Counter
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

DATA = Path(__file__).resolve().parents[2] / "demos" / "data"

ISLANDS = {"oahu", "maui", "hawaii", "kauai", "molokai", "lanai", "niihau", "all"}
MESSAGE_KEYS = {
    "id": str,
    "conversation": str,
    "author": str,
    "role": str,
    "reply_to": str | None,
    "time": str,
    "text": str,
    "island": str,
    "topic": str,
    "supersedes": str | None,
    "near_duplicate_of": str | None,
}
EVAL_KEYS = {"id": str, "kind": str, "question": str, "context": list, "relevant": list, "wrong": list}
EVAL_AT_LEAST = {"paraphrase": 150, "follow_up": 40, "near_miss": 40, "opposite": 20, "unanswerable": 20}

Row = dict[str, Any]


def _rows(name: str) -> list[Row]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


@pytest.fixture(scope="module")
def messages() -> list[Row]:
    """All messages, in the file's order."""
    return _rows("hawaii_chat.jsonl")


@pytest.fixture(scope="module")
def by_id(messages: list[Row]) -> dict[str, Row]:
    """Messages by their id."""
    return {message["id"]: message for message in messages}


@pytest.fixture(scope="module")
def labelled() -> list[Row]:
    """All evaluation rows, in the file's order."""
    return _rows("hawaii_eval.jsonl")


def _check_shape(rows: list[Row], keys: dict[str, Any]) -> None:
    for row in rows:
        assert list(row) == list(keys), row["id"]
        wrong_types = [key for key, kind in keys.items() if not isinstance(row[key], kind)]
        assert not wrong_types, (row["id"], wrong_types)


def _normalised(text: str) -> str:
    return " ".join(text.casefold().split())


def test_every_message_has_the_documented_fields(messages: list[Row]) -> None:
    """Each line holds exactly the documented keys and types, a known island and role, and a text without padding."""
    _check_shape(messages, MESSAGE_KEYS)
    for message in messages:
        assert message["island"] in ISLANDS, message["id"]
        assert message["role"] in {"question", "answer"}, message["id"]
        assert message["topic"].isidentifier(), message["id"]
        assert message["author"].isalpha(), message["id"]
        assert message["author"].islower(), message["id"]
        assert message["text"], message["id"]
        assert message["text"] == message["text"].strip(), message["id"]


def test_files_are_compact_json_lines(messages: list[Row], labelled: list[Row]) -> None:
    """Writing the rows again gives the same bytes, so that a later edit shows as small a difference as it is."""
    for name, rows in (("hawaii_chat.jsonl", messages), ("hawaii_eval.jsonl", labelled)):
        written = "".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")) + "\n" for row in rows)
        assert (DATA / name).read_text(encoding="utf-8") == written, name


def test_there_is_as_much_chat_as_the_demo_promises(messages: list[Row]) -> None:
    """At least 400 answered questions and 800 messages, all eight island labels, over about a year."""
    answered = {message["reply_to"] for message in messages if message["role"] == "answer"}
    questions = {message["id"] for message in messages if message["role"] == "question"}
    assert questions == answered
    assert len(questions) >= 400
    assert len(messages) >= 800
    assert {message["island"] for message in messages} == ISLANDS
    span = datetime.fromisoformat(messages[-1]["time"]) - datetime.fromisoformat(messages[0]["time"])
    assert timedelta(days=350) < span < timedelta(days=400)


def test_at_least_thirty_authors_recur(messages: list[Row]) -> None:
    """Thirty or more people write, each of them several times, and none writes a fifth of everything."""
    counts = Counter(message["author"] for message in messages)
    assert len(counts) >= 30
    assert min(counts.values()) >= 5
    assert max(counts.values()) < len(messages) / 5


def test_ids_count_up_and_times_are_ordered(messages: list[Row]) -> None:
    """Message ids are m0001, m0002, ... in the order of time, and every time is Hawaii's (ten hours behind UTC)."""
    assert [message["id"] for message in messages] == [f"m{number:04d}" for number in range(1, len(messages) + 1)]
    times = [datetime.fromisoformat(message["time"]) for message in messages]
    assert times == sorted(times)
    assert {time.utcoffset() for time in times} == {timedelta(hours=-10)}


def test_conversations_start_with_a_question(messages: list[Row]) -> None:
    """Conversations are numbered as they begin; each opens with a question, and every other message in it replies."""
    first: dict[str, Row] = {}
    for message in messages:
        opener = first.setdefault(message["conversation"], message)
        assert (message["reply_to"] is None) == (message is opener), message["id"]
    assert list(first) == [f"c{number:03d}" for number in range(1, len(first) + 1)]
    assert all(message["role"] == "question" for message in first.values())


def test_every_reply_comes_after_what_it_replies_to(messages: list[Row], by_id: dict[str, Row]) -> None:
    """An answer replies to an earlier question, and a follow-up to an earlier message, of the same conversation."""
    for message in messages:
        if message["reply_to"] is None:
            continue
        target = by_id[message["reply_to"]]
        assert target["conversation"] == message["conversation"], message["id"]
        assert target["time"] < message["time"], message["id"]
        if message["role"] == "answer":
            assert target["role"] == "question", message["id"]


def test_superseding_answers_point_to_an_earlier_answer(messages: list[Row], by_id: dict[str, Row]) -> None:
    """Some answers correct an earlier one; each of those is an answer itself and is corrected once."""
    corrections = [message for message in messages if message["supersedes"] is not None]
    assert len(corrections) >= 15
    for message in corrections:
        target = by_id[message["supersedes"]]
        assert message["role"] == target["role"] == "answer", message["id"]
        assert target["time"] < message["time"], message["id"]
    assert max(Counter(message["supersedes"] for message in corrections).values()) == 1


def test_near_duplicates_are_labelled_and_texts_are_unique(messages: list[Row], by_id: dict[str, Row]) -> None:
    """No two messages have the same text; a question asked again in nearly the same words points to the earlier one."""
    repeated = [text for text, count in Counter(_normalised(m["text"]) for m in messages).items() if count > 1]
    assert not repeated
    again = [message for message in messages if message["near_duplicate_of"] is not None]
    assert 15 <= len(again) <= 30
    for message in again:
        target = by_id[message["near_duplicate_of"]]
        assert message["role"] == target["role"] == "question", message["id"]
        assert target["time"] < message["time"], message["id"]


def test_every_evaluation_row_has_the_documented_fields(labelled: list[Row]) -> None:
    """Each row holds exactly the documented keys, ids count up, and no question with its context is asked twice."""
    _check_shape(labelled, EVAL_KEYS)
    assert [row["id"] for row in labelled] == [f"e{number:03d}" for number in range(1, len(labelled) + 1)]
    asked = [(tuple(row["context"]), _normalised(row["question"])) for row in labelled]
    assert len(set(asked)) == len(asked)


def test_there_are_enough_labelled_questions_of_each_kind(labelled: list[Row]) -> None:
    """Paraphrases, follow-ups, near-misses, opposites and unanswerable questions are there in the promised numbers."""
    counts = Counter(row["kind"] for row in labelled)
    assert set(counts) == set(EVAL_AT_LEAST)
    assert all(counts[kind] >= number for kind, number in EVAL_AT_LEAST.items())


def test_evaluation_ids_are_answers(labelled: list[Row], by_id: dict[str, Row]) -> None:
    """Relevant and wrong ids name answers of the chat, without repeats, and no id is both."""
    for row in labelled:
        ids = row["relevant"] + row["wrong"]
        assert len(set(ids)) == len(ids), row["id"]
        assert all(by_id[message]["role"] == "answer" for message in ids), row["id"]


def test_no_superseded_answer_counts_as_relevant(messages: list[Row], labelled: list[Row]) -> None:
    """What somebody later corrected is never a right answer, and some rows name it among the wrong ones."""
    superseded = {message["supersedes"] for message in messages} - {None}
    assert not [row["id"] for row in labelled if superseded & set(row["relevant"])]
    assert sum(bool(superseded & set(row["wrong"])) for row in labelled) >= 15


def test_kinds_mean_what_the_readme_says(messages: list[Row], labelled: list[Row]) -> None:
    """Only follow-ups have a context, only unanswerable rows lack a right answer, and all name look-alikes."""
    asked = {message["text"] for message in messages if message["role"] == "question"}
    for row in labelled:
        assert bool(row["context"]) == (row["kind"] == "follow_up"), row["id"]
        assert set(row["context"]) <= asked, row["id"]
        assert bool(row["relevant"]) == (row["kind"] != "unanswerable"), row["id"]
        assert row["wrong"], row["id"]


def test_labelled_questions_are_not_copied_from_the_chat(messages: list[Row], labelled: list[Row]) -> None:
    """Every labelled question that stands alone is worded otherwise than any question of the chat."""
    asked = {_normalised(message["text"]) for message in messages}
    assert not [row["id"] for row in labelled if not row["context"] and _normalised(row["question"]) in asked]
