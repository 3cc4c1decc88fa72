"""Which message answers which, and who sits at which node."""

from __future__ import annotations

from collections import Counter

import pytest

from demos.hawaii import CHAT, LABELS
from demos.history import homes, shares, to_node
from demos.loading import load
from demos.messages import Exchange, Message, exchanges, names
from demos.questions import Question, labelled, own_questions, scores


def _group_chat(*said: tuple[str, str, str]) -> list[Message]:
    """(author, time, text) as messages of one room, without roles and replies."""
    return [Message(str(number), "room", text, author, time=time) for number, (author, time, text) in enumerate(said)]


def test_without_roles_the_next_message_by_another_is_the_answer() -> None:
    """A question mark, and soon after a message by somebody else; one's own next message is no answer."""
    said = _group_chat(
        ("ann", "2025-06-02T08:00:00", "Any ferry?"),
        ("ann", "2025-06-02T08:01:00", "Or a boat?"),
        ("tess", "2025-06-02T08:02:00", "No."),
        ("bob", "2025-06-02T08:03:00", "Thanks"),
    )
    assert [(one.question, one.answer) for one in exchanges(said)] == [("Or a boat?", "No.")]


def test_a_message_hours_later_is_no_answer() -> None:
    """What somebody writes much later is not taken for an answer where nothing says that it is one."""
    said = _group_chat(("ann", "2025-06-02T08:00:00", "Any ferry?"), ("tess", "2025-06-02T14:00:00", "Morning"))
    assert exchanges(said) == []


def test_in_a_room_with_replies_nothing_is_guessed() -> None:
    """Where some messages say what they reply to, the others reply to nothing."""
    said = [
        Message("1", "room", "Any ferry?", "ann"),
        Message("2", "room", "Nice day", "bob"),
        Message("3", "room", "No.", "tess", reply_to="1"),
    ]
    assert [one.answer for one in exchanges(said)] == ["No."]


def test_lists_of_questions_have_no_exchanges() -> None:
    """Questions without authors, one after the other, do not answer each other."""
    assert exchanges([Message(str(number), "all", f"Question {number}?") for number in range(5)]) == []


def test_a_reply_to_banter_is_banter() -> None:
    """Without roles, a reply to what is no question is no exchange, nor is a reply to a message that is not there."""
    said = [
        Message("1", "room", "Aloha", "ann"),
        Message("2", "room", "Aloha!", "bob", reply_to="1"),
        Message("3", "room", "Sure", "bob", reply_to="gone"),
    ]
    assert exchanges(said) == []


def test_replies_in_a_circle_end() -> None:
    """Messages that reply to each other in a circle, as only damaged data has them, do not hang the search for the root."""
    said = [
        Message("1", "room", "Why?", "ann", reply_to="2"),
        Message("2", "room", "Why not?", "bob", reply_to="1"),
    ]
    assert {one.id for one in exchanges(said)} == {"1", "2"}


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
