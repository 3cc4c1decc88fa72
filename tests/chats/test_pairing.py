"""Which message answers which."""

from __future__ import annotations

from sharedrag.chats import Message, exchanges
from sharedrag.chats.messages import Newest


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


def test_only_the_newest_are_remembered() -> None:
    """What looks back at a stream keeps so many messages and no more; one that comes again is new again."""
    recent: Newest[str] = Newest(2)
    for name in ("a", "b", "a", "c"):
        recent[name] = name
    assert list(recent) == ["a", "c"]
