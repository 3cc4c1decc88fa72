from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest

from sharedrag import Pool
from sharedrag.history import Conflict, History, InvalidRequest, NewMessage, NotAllowed, NotFound
from sharedrag.history.pairing import is_question
from tests.history.helpers import DIMENSION, RemoteHistory, WordsEmbedder, asked


@pytest.fixture
def conversation(history: History, group: str) -> str:
    """A conversation that ann began."""
    return history.conversations.create(group, "ann").id


def exchanges(history: History) -> list[tuple[str, str, str, str]]:
    """All exchanges: question, answer, who asked, who answered."""
    found = []
    for one in history.store.exchanges.find():
        cut = one.metadata["cut"]
        text = one.text or ""
        found.append((text[:cut], text[cut + 2 :], one.metadata["asked_by"], one.metadata["author"]))
    return found


def say(history: History, group: str, conversation: str, *turns: tuple[str, str]) -> None:
    """Each turn an append of its own: "ann", or "model" for a model that ann asked; and what they say."""
    for who, text in turns:
        message = NewMessage(role="assistant" if who == "model" else "user", text=text)
        history.messages.append(group, "ann" if who == "model" else who, conversation, [message])


def test_what_was_written_is_read_everywhere(history: History, group: str, conversation: str, remote: RemoteHistory) -> None:
    """A message keeps all its fields, in every process."""
    created = datetime(2024, 5, 1, 12, tzinfo=UTC)
    parts: list[dict[str, Any]] = [{"type": "input_text", "text": "héllo"}, {"type": "input_image", "file_id": "f"}]
    new = [
        NewMessage(text="héllo", parts=parts, created=created),
        NewMessage(role="assistant", text="Hi 👋", model="toy-1"),
        NewMessage(role="system", text=""),
    ]
    written = history.messages.append(group, "ann", conversation, new)
    assert [(one.role, one.text, one.parts, one.model, one.user) for one in written] == [
        ("user", "héllo", parts, None, "ann"),
        ("assistant", "Hi 👋", None, "toy-1", "ann"),
        ("system", "", None, None, "ann"),
    ]
    assert written[0].created == created and written[1].answers == written[0].id
    assert remote.call("messages.list", group, "bob", conversation, 20, None, "asc") == (written, False)
    assert remote.call("messages.get", group, "bob", conversation, written[1].id) == written[1]
    assert remote.call("messages.get", group, "bob", None, written[1].id) == written[1]


# ---------------------------------------------------------------------- who answers what


def test_a_model_answers_the_newest_question_that_is_open(history: History, group: str, conversation: str) -> None:
    """In one append or over several; an answered question is not answered again by the next answer."""
    say(history, group, conversation, ("ann", "Hello there"), ("ann", "Where is the beach?"), ("model", "West."))
    assert exchanges(history) == [("Where is the beach?", "West.", "ann", "ann")]
    say(history, group, conversation, ("model", "And mind the waves."))
    assert len(exchanges(history)) == 1
    say(history, group, conversation, ("ann", "And in winter"), ("model", "South."))
    assert exchanges(history)[1:] == [("And in winter", "South.", "ann", "ann")]


def test_a_person_answers_the_question_of_another(history: History, group: str, conversation: str) -> None:
    """A reply that directly follows somebody else's question, and is none itself, is an answer with their name."""
    say(history, group, conversation, ("ann", "Where is the beach?"), ("bob", "Just behind the church."))
    assert exchanges(history) == [("Where is the beach?", "Just behind the church.", "ann", "bob")]
    say(history, group, conversation, ("cid", "Thanks, me too"))
    assert len(exchanges(history)) == 1
    say(history, group, conversation, ("ann", "How deep is it"), ("bob", "Do you mean at high tide?"), ("cid", "Two metres"))
    assert exchanges(history)[1:] == [("Do you mean at high tide?", "Two metres", "bob", "cid")]


def test_nobody_answers_themselves(history: History, group: str, conversation: str) -> None:
    """What the same person says after their question belongs to the question."""
    say(history, group, conversation, ("ann", "Where is the beach?"), ("ann", "I mean the western one."))
    assert exchanges(history) == []


def test_what_only_repeats_the_crowd_is_passed_over(history: History, group: str, conversation: str) -> None:
    """An answer marked crowd=False makes no exchange, and does not keep a person's reply from making one."""
    history.messages.append(
        group, "ann", conversation, asked("Where is the beach?", "Nobody has answered yet.", crowd=False)
    )
    assert exchanges(history) == []
    say(history, group, conversation, ("bob", "Behind the church."))
    assert exchanges(history) == [("Where is the beach?", "Behind the church.", "ann", "bob")]


def test_other_roles_and_empty_texts_are_passed_over(history: History, group: str, conversation: str) -> None:
    """Tool calls and system messages are neither questions nor answers, nor do they stand between."""
    new = [
        NewMessage(text="Where is the beach?"),
        NewMessage(role="assistant", text=""),
        NewMessage(role="tool", text='{"lat": 20.8}'),
        NewMessage(role="assistant", text="West."),
    ]
    history.messages.append(group, "ann", conversation, new)
    assert exchanges(history) == [("Where is the beach?", "West.", "ann", "ann")]


def test_an_answer_may_say_what_it_answers(history: History, group: str, conversation: str) -> None:
    """Named explicitly, an answer may come much later and from anybody; from another conversation it may not."""
    (question,) = history.messages.append(group, "ann", conversation, [NewMessage(text="Beach tips")])
    say(history, group, conversation, *[("bob", f"chatter {number}") for number in range(40)])
    (answer,) = history.messages.append(group, "cid", conversation, [NewMessage(text="West", answers=question.id)])
    assert answer.answers == question.id
    assert exchanges(history) == [("Beach tips", "West", "ann", "cid")]
    other = history.conversations.create(group, "bob").id
    for nothing in ("msg_none", conversation, ""):
        with pytest.raises(NotFound):
            history.messages.append(group, "cid", conversation, [NewMessage(text="x", answers=nothing)])
    with pytest.raises(NotFound):
        history.messages.append(group, "cid", other, [NewMessage(text="x", answers=question.id)])


def test_a_fork_answers_what_was_asked_before_it(history: History, group: str, conversation: str) -> None:
    """The question may lie in the conversation that was forked."""
    say(history, group, conversation, ("ann", "Where is the beach?"))
    fork = history.conversations.fork(group, "bob", conversation).id
    say(history, group, fork, ("bob", "Behind the church."))
    assert exchanges(history) == [("Where is the beach?", "Behind the church.", "ann", "bob")]


@pytest.mark.parametrize(
    ("text", "asks"),
    [
        ("Where is it?", True),
        ("where is it", True),
        ("It is there", False),
        ("Really?!", False),
        ("¿Dónde está?", True),
        ("ビーチはどこですか？", True),
        ('He said: "where?"', True),
        ("anyone been to Maui", True),
        ("What's open on Sunday", True),
        ("whatever you like", False),
        ("island hopping is fun", False),
        ("", False),
        ("  ?  ", True),
    ],
)
def test_what_asks_and_what_does_not(text: str, asks: bool) -> None:
    """A question ends in a question mark, or begins as questions do."""
    assert is_question(text) is asks


# ---------------------------------------------------------------------- vectors


def test_an_exchange_is_found_by_what_was_asked(history: History, group: str, conversation: str) -> None:
    """Its vector is near the question; a follow-up's is near what it leans on too."""
    history.messages.append(group, "ann", conversation, asked("Where is the best beach of Maui island?", "Kaanapali."))
    history.messages.append(group, "ann", conversation, asked("And in winter?", "Kihei, on the south shore."))
    other = history.conversations.create(group, "bob").id
    history.messages.append(group, "bob", other, asked("How do I file my tax return this year?", "By post."))
    query = WordsEmbedder().embed_query("best beach of Maui in winter")
    hits = history.store.exchanges.search(query, k=3)
    assert [hit.text.split("\n")[0] for hit in hits][2] == "How do I file my tax return this year?"
    alone = float(WordsEmbedder().embed_query("And in winter?") @ WordsEmbedder().embed_query("best beach of Maui"))
    follow_up = next(hit for hit in history.store.exchanges.find() if (hit.text or "").startswith("And in winter"))
    assert follow_up.vector is not None
    assert float(follow_up.vector @ WordsEmbedder().embed_query("best beach of Maui")) > alone + 0.1


def test_given_vectors_are_taken_as_they_are(history: History, group: str, conversation: str) -> None:
    """One for each exchange of the append; another number is refused before anything is written."""
    vector = np.zeros(DIMENSION, np.float32)
    vector[3] = 2
    history.messages.append(group, "ann", conversation, asked("a?", "b"), vectors=vector)
    assert np.array_equal(history.store.exchanges.find()[0].vector, vector)  # type: ignore[arg-type]
    two = asked("c?", "d") + asked("e?", "f")
    history.messages.append(group, "ann", conversation, two, vectors=[vector, vector])
    for wrong in (vector, [vector] * 3, np.zeros((2, 3))):
        with pytest.raises(ValueError, match="vectors"):
            history.messages.append(group, "ann", conversation, two, vectors=wrong)
    assert len(history.messages.recent(group, "ann")) == 6 and len(history.store.exchanges) == 3


def test_without_an_embedder_exchanges_have_no_vectors(pool: Pool) -> None:
    """A history can do with words alone."""
    history = History(pool)
    group = history.groups.create("x", owner="ann").id
    conversation = history.conversations.create(group, "ann").id
    history.messages.append(group, "ann", conversation, asked("Where?", "There."))
    assert exchanges(history) == [("Where?", "There.", "ann", "ann")]


# ---------------------------------------------------------------------- once


def test_a_retry_is_written_once(history: History, group: str, conversation: str, remote: RemoteHistory) -> None:
    """The same key and messages, from whichever process: what was written the first time is returned."""
    new = asked("Where is the beach?", "West.")
    first = history.messages.append(group, "ann", conversation, new, idempotency_key="k")
    assert remote.call("messages.append", group, "ann", conversation, new, None, "k") == first
    assert history.messages.append(group, "ann", conversation, new, idempotency_key="k") == first
    assert len(history.messages.recent(group, "ann")) == 2 and len(history.store.exchanges) == 1
    with pytest.raises(Conflict, match="idempotency"):
        history.messages.append(group, "ann", conversation, asked("Where?", "East."), idempotency_key="k")
    other = history.conversations.create(group, "ann").id
    assert history.messages.append(group, "ann", other, new, idempotency_key="k") != first
    assert history.messages.append(group, "bob", conversation, new, idempotency_key="k")[0].user == "bob"


def test_a_retry_does_not_bring_back_what_was_deleted(history: History, group: str, conversation: str) -> None:
    """A message that was deleted since stays deleted."""
    new = asked("Where is the beach?", "West.")
    first = history.messages.append(group, "ann", conversation, new, idempotency_key="k")
    history.messages.delete(group, "ann", conversation, first[1].id)
    assert history.messages.append(group, "ann", conversation, new, idempotency_key="k") == first[:1]
    assert [one.id for one in history.messages.recent(group, "ann")] == [first[0].id] and len(history.store.exchanges) == 0


def test_a_note_is_kept_for_its_user_for_a_day(history: History, group: str, remote: RemoteHistory) -> None:
    """What was remembered under a name is found in every process, by this user in this group."""
    history.once.remember(group, "ann", "transcript/1", {"conversation": "c", "n": [1, None]})
    assert remote.call("once.recall", group, "ann", "transcript/1") == {"conversation": "c", "n": [1, None]}
    assert history.once.recall(group, "bob", "transcript/1") is None
    assert history.once.recall(group, "ann", "transcript/2") is None
    history.once.remember(group, "ann", "transcript/1", {})
    assert remote.call("once.recall", group, "ann", "transcript/1") == {}
    history.tidy(datetime.now(UTC) + timedelta(days=1, minutes=1))
    assert history.once.recall(group, "ann", "transcript/1") is None


# ---------------------------------------------------------------------- deleting, searching


def test_a_deleted_message_takes_its_exchanges_and_marks_along(
    history: History, group: str, conversation: str, remote: RemoteHistory
) -> None:
    """Nothing leads to it any more: no exchange, by question or answer, no vote, comment or correction."""
    question, answer = history.messages.append(group, "ann", conversation, asked("Where is the beach?", "West."))
    (better,) = history.messages.append(group, "bob", conversation, [NewMessage(text="East", answers=question.id)])
    history.marks.vote(group, "bob", answer.id, -1)
    history.marks.comment(group, "cid", answer.id, "wrong")
    history.marks.supersede(group, "bob", answer.id, better.id)
    with pytest.raises(NotAllowed):
        remote.call("messages.delete", group, "bob", conversation, answer.id)
    remote.call("messages.delete", group, "ann", conversation, answer.id)
    assert exchanges(history) == [("Where is the beach?", "East", "ann", "bob")]
    assert history.store.records.find({"message": answer.id}) == []
    with pytest.raises(NotFound):
        history.messages.get(group, "ann", conversation, answer.id)
    with pytest.raises(NotFound):
        history.marks.vote(group, "bob", answer.id, 1)
    history.messages.delete(group, "ann", conversation, question.id)
    assert exchanges(history) == []
    assert [one.id for one in history.messages.recent(group, "ann")] == [better.id]


def test_a_moderator_may_delete_what_others_wrote(history: History, group: str, conversation: str) -> None:
    """And so may an administrator, who is nobody's member."""
    ids = [one.id for one in history.messages.append(group, "bob", conversation, asked("a?", "b"))]
    history.groups.add_member(group, "cid", "moderator")
    history.messages.delete(group, "cid", conversation, ids[0])
    history.messages.delete(group, None, conversation, ids[1])
    assert history.messages.recent(group, None) == []


def test_messages_are_found_by_words_and_by_time(history: History, group: str, conversation: str) -> None:
    """Search ranks by words within the group; recent gives the newest, since a moment."""
    old = NewMessage(text="The volcano sleeps", created=datetime(2020, 1, 1, tzinfo=UTC))
    history.messages.append(group, "ann", conversation, [old])
    history.messages.append(group, "ann", conversation, [NewMessage(text=f"Beach {number}") for number in range(5)])
    found = history.messages.search(group, "bob", "volcanoes sleeping", k=3)
    assert [one.text for one, _ in found] == ["The volcano sleeps"] and found[0][1] > 0
    assert [one.text for one in history.messages.recent(group, "bob", limit=2)] == ["Beach 4", "Beach 3"]
    since = datetime(2021, 1, 1, tzinfo=UTC)
    assert len(history.messages.recent(group, "bob", since)) == 5
    assert len(history.messages.recent(group, "bob")) == 6


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "text",
        ["text"],
        NewMessage(text="x"),
        [NewMessage(text="\ud800")],
        [NewMessage(text="x" * 1_000_001)],
        [NewMessage(text="x")] * 1001,
    ],
)
def test_messages_that_cannot_be_stored_are_refused(history: History, group: str, conversation: str, messages: Any) -> None:
    """With a hint, and before anything is written."""
    with pytest.raises(InvalidRequest):
        history.messages.append(group, "ann", conversation, messages)
    assert history.messages.recent(group, "ann") == []


def test_an_empty_idempotency_key_is_refused(history: History, group: str, conversation: str) -> None:
    """As is one that is no text, or too long."""
    for key in ("", " ", "x" * 513, 7):
        with pytest.raises(InvalidRequest, match="key"):
            history.messages.append(group, "ann", conversation, asked("a?", "b"), idempotency_key=key)  # type: ignore[arg-type]
