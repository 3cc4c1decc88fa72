"""The demo's exchanges, and who sits at which node."""

from __future__ import annotations

from collections import Counter

import pytest

from demos.hawaii import CHAT, LABELS
from demos.history import homes, shares, to_node
from demos.questions import Question, labelled, own_questions, scores
from sharedrag.chats import Exchange, exchanges, load, names


@pytest.fixture(scope="module")
def hawaii() -> list[Exchange]:
    """The corpus's exchanges."""
    return exchanges(load(CHAT).messages)


def test_hawaii_exchanges(hawaii: list[Exchange]) -> None:
    """Every answer of the corpus is an exchange, and follow-ups know the question that opened their chat."""
    by_id = {one.id: one for one in hawaii}
    assert len(by_id) == 439
    assert by_id["m0004"].question == "and the kids? They are 9 and 12"
    assert (by_id["m0004"].opening or "").startswith("We land in Honolulu")
    assert by_id["m0002"].opening is None


def test_shares_are_even_and_whole(hawaii: list[Exchange]) -> None:
    """Every exchange is in one share, all shares are of about one size, and a person writes at one node."""
    people = names(hawaii)
    found = homes(hawaii, people, 4)
    parts = shares(hawaii, found, 4)
    assert sorted(place for part in parts for place in part) == list(range(len(hawaii)))
    assert max(map(len, parts)) - min(map(len, parts)) <= 8
    assert all(found[hawaii[place].author or ""] == node for node, part in enumerate(parts) for place in part)
    assert min(Counter(found.values()).values()) >= 5


def test_without_names_conversations_go_round() -> None:
    """Where nobody is named, all of a conversation is one node's, and the conversations are dealt in turn."""
    chats = [Exchange(f"{chat}-{turn}", str(chat), "q", "Why?", "So.") for chat in range(8) for turn in range(3)]
    parts = shares(chats, homes(chats, names(chats), 4), 4)
    assert [len(part) for part in parts] == [6, 6, 6, 6]
    assert [sorted({chats[place].conversation for place in part}) for part in parts] == [
        [str(n), str(n + 4)] for n in range(4)
    ]


def test_record_layout(hawaii: list[Exchange]) -> None:
    """The record's text is the answer; opening, question and answer are embedded, and nothing else."""
    exchange = next(one for one in hawaii if one.id == "m0004")
    node = to_node(exchange, 3)
    assert (node.node_id, node.text) == (exchange.id, exchange.answer)
    assert node.metadata["node"] == 3
    assert node.metadata["island"] == "oahu"
    embedded = node.get_content("embed").split("\n")  # type: ignore[arg-type]
    assert [line for line in embedded if line] == [exchange.opening, exchange.question, exchange.answer]


def test_labelled_questions_name_answers_of_the_corpus(hawaii: list[Exchange]) -> None:
    """Each label is an exchange's id, and a follow-up is asked with its context."""
    questions = labelled(LABELS)
    known = {one.id for one in hawaii}
    assert all(known.issuperset(question.relevant) for question in questions)
    follow_up = next(question for question in questions if question.kind == "follow_up")
    assert follow_up.text.startswith("We land in Honolulu on the 14th")


def test_own_questions_know_every_answer_to_them() -> None:
    """A question asked twice is sampled once, and both its answers are right."""
    chats = [Exchange("a1", "c", "q1", "Ferry?", "No."), Exchange("a2", "c", "q2", "Ferry?", "None.")]
    (question,) = own_questions(chats)
    assert question.relevant == ("a1", "a2")


def test_scores_count_first_among_five_and_look_alikes() -> None:
    """hit@1, hit@5 and look-alikes first, for each kind and for all that can be answered."""
    questions = [
        Question("1", "near", "?", ("a",), ("b",)),
        Question("2", "near", "?", ("a",), ("b",)),
        Question("3", "none", "?", ()),
    ]
    found = {"1": ("a", "b"), "2": ("b", "c", "d", "e", "a"), "3": ("c",)}
    near, none, total = scores(questions, found)
    assert (near.rows, near.first, near.among_five, near.wrong_first) == (2, 1, 2, 1)
    assert (none.rows, none.first) == (1, 0)
    assert (total.rows, total.first) == (2, 1)
