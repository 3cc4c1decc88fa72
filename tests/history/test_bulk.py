"""Bulk loading: past messages of many people in many conversations; twice is once, whatever happens in between."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from sharedrag import Pool
from sharedrag.embed import Vectors
from sharedrag.history import Group, History, InvalidRequest, NewMessage, NotFound
from sharedrag.history.bulk import BATCH_MAX, Loaded, PastMessage
from sharedrag.history.context import Previous
from tests.history.helpers import WordsEmbedder

LONG_AGO = datetime(2005, 12, 4, 9, 1, tzinfo=UTC)


class CountingEmbedder(WordsEmbedder):
    """Remembers what it embedded."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def embed_texts(self, texts: Sequence[str]) -> Vectors:
        """See WordsEmbedder."""
        self.texts += texts
        return super().embed_texts(texts)


@pytest.fixture
def history(pool: Pool) -> History:
    """A history with an embedder that counts."""
    return History(pool, embedder=CountingEmbedder())


@pytest.fixture
def group(history: History) -> Group:
    """An empty group."""
    return history.groups.create("ubuntu")


def past(name: str, text: str, user: str = "ann", answers: str | None = None, **more: object) -> PastMessage:
    """A message of a room's log."""
    created = LONG_AGO + timedelta(minutes=len(name))
    return PastMessage(name, "room", user, "user", text, created, answers, **more)  # type: ignore[arg-type]


QUESTION = past("q", "Which package has the sensors?")
ANSWER = past("a", "lm-sensors", "bob", "q")


def counts(history: History) -> tuple[int, int]:
    """How many records and exchanges there are."""
    return len(history.store.records), len(history.store.exchanges)


def test_messages_exchanges_members_and_conversations(history: History, group: Group) -> None:
    """A batch brings its messages with their times, their exchange, its authors and its conversation."""
    loaded = history.bulk.load(group.id, "irc", [QUESTION, ANSWER])
    assert loaded == Loaded(messages=2, exchanges=1, already_there=0)
    (conversation,), _ = history.conversations.list(group.id, "bob")
    assert (conversation.user, conversation.metadata) == ("ann", {"source": "irc", "name": "room"})
    messages, _ = history.messages.list(group.id, "bob", conversation.id, order="asc")
    assert [(one.user, one.text, one.created) for one in messages] == [
        ("ann", QUESTION.text, QUESTION.created),
        ("bob", ANSWER.text, ANSWER.created),
    ]
    assert messages[1].answers == messages[0].id
    assert {one.user for one in history.groups.members(group.id)} == {"ann", "bob"}
    (exchange,) = history.store.exchanges.find()
    assert exchange.text == f"{QUESTION.text}\n\n{ANSWER.text}"
    assert exchange.created == ANSWER.created
    held = exchange.metadata
    assert (held["asked_by"], held["author"], held["role"]) == ("ann", "bob", "user")
    assert (held["question_id"], held["answer_id"]) == (messages[0].id, messages[1].id)


def test_an_append_leaves_what_a_load_leaves(history: History, group: Group) -> None:
    """The two ways to write a message write the same fields."""
    history.bulk.load(group.id, "irc", [QUESTION, past("a", "lm-sensors", "ann", "q", model="gpt")])
    history.groups.add_member(group.id, "ann")
    conversation = history.conversations.create(group.id, "ann").id
    new = [NewMessage(text=QUESTION.text), NewMessage(text="lm-sensors", role="assistant", model="gpt")]
    history.messages.append(group.id, "ann", conversation, new)
    for store in (history.store.records, history.store.exchanges):
        kinds = {"kind": "message"} if store is history.store.records else {}
        loaded, appended = store.find(kinds)[:2], store.find(kinds)[-2:]
        for one, other in zip(loaded, appended, strict=True):
            assert one.metadata.keys() == other.metadata.keys()


def test_twice_is_once(history: History, group: Group) -> None:
    """The second time nothing is written, and nothing is embedded."""
    history.bulk.load(group.id, "irc", [QUESTION, ANSWER])
    before, embedded = counts(history), len(history.store.embedder.texts)  # type: ignore[union-attr]
    version = history.store.records.version
    assert history.bulk.load(group.id, "irc", [QUESTION, ANSWER]) == Loaded(0, 0, 2)
    assert counts(history) == before
    assert history.store.records.version == version
    assert len(history.store.embedder.texts) == embedded  # type: ignore[union-attr]


def test_a_later_batch_answers_an_earlier_one(history: History, group: Group) -> None:
    """What is answered may have been loaded before; of a name that nobody knows there is no exchange."""
    history.bulk.load(group.id, "irc", [QUESTION])
    late = past("late", "sensors-applet", "cat", "q")
    assert history.bulk.load(group.id, "irc", [late, past("x", "What?", "cat", "gone")]) == Loaded(2, 1, 0)
    assert history.store.exchanges.find()[0].metadata["asked_by"] == "ann"


def test_a_draft_knows_the_one_before_it(history: History, group: Group) -> None:
    """While a batch is not written yet, the next is drafted: it may answer it, and repeats nothing of it."""
    first = history.bulk.draft(group.id, "irc", [QUESTION])
    second = history.bulk.draft(group.id, "irc", [QUESTION, ANSWER], after=first)
    assert [len(first.fresh), len(second.fresh), len(second.pairs), second.already_there] == [1, 1, 1, 1]
    for draft in (first, second):
        history.bulk.put(draft, history.bulk.embed(draft))
    assert history.bulk.load(group.id, "irc", [QUESTION, ANSWER]) == Loaded(0, 0, 2)


def test_what_somebody_else_loaded_meanwhile_is_left_alone(history: History, group: Group) -> None:
    """Of two that load the same at once, the second to write adds only what the first has not."""
    third = past("b", "No, sensord", "cat", "q")
    draft = history.bulk.draft(group.id, "irc", [QUESTION, ANSWER, third])
    vectors = history.bulk.embed(draft)
    history.bulk.load(group.id, "irc", [QUESTION, ANSWER])
    version = history.store.records.version
    assert history.bulk.put(draft, vectors) == Loaded(1, 1, 2)
    assert history.store.records.version == version + 2, "the message and its author"
    assert len(history.store.exchanges) == 2


def test_names_are_of_a_source_and_a_group(history: History, group: Group) -> None:
    """The same name elsewhere is another message."""
    other = history.groups.create("other")
    for target, source in ((group.id, "irc"), (group.id, "slack"), (other.id, "irc")):
        assert history.bulk.load(target, source, [QUESTION, ANSWER]).messages == 2
    assert len(history.store.find("message", group=group.id)) == 4
    assert len(history.store.find("message", group=other.id)) == 2


def test_members_stay_what_they_are(history: History, group: Group) -> None:
    """An author who is a moderator already remains one."""
    history.groups.add_member(group.id, "bob", "moderator")
    history.bulk.load(group.id, "irc", [QUESTION, ANSWER])
    assert history.groups.member(group.id, "bob").role == "moderator"


def test_what_a_question_leans_on_is_embedded(history: History, group: Group) -> None:
    """The vector is made as `context` says, with the turn before a follow-up in front."""
    leaning = past("a", "On line 3.", "bob", "q", leans_on=Previous("Any bus?", "Many."))
    history.bulk.load(group.id, "irc", [past("q", "And there?"), leaning])
    embedded = history.store.embedder.texts  # type: ignore[union-attr]
    assert embedded == ["And there?", "Any bus?\nMany.\nAnd there?\nOn line 3."]


def test_without_an_embedder(pool: Pool) -> None:
    """Exchanges are stored without vectors."""
    history = History(pool, embedder=None)
    group = history.groups.create("ubuntu")
    assert history.bulk.load(group.id, "irc", [QUESTION, ANSWER]).exchanges == 1
    assert history.store.exchanges.find()[0].vector is None


@pytest.mark.parametrize(
    ("wrong", "what"),
    [
        ([], "0 messages"),
        ([QUESTION] * (BATCH_MAX + 1), "messages"),
        ([past("q", "  ")], "is empty"),
        ([past("q", "Why?", "")], "no user id"),
        ([past("q", "Why?", "a\x1bb")], "no user id"),
        ([past("\ud800", "Why?")], "not valid Unicode"),
        ([past("q", "\ud800?")], "not valid Unicode"),
        ([PastMessage("q", "room", "ann", "user", "Why?", datetime(2005, 1, 1))], "without a zone"),  # noqa: DTZ001
    ],
)
def test_what_means_nothing_is_refused_before_anything_is_written(
    history: History, group: Group, wrong: list[PastMessage], what: str
) -> None:
    """One wrong message and nothing of its batch is there."""
    before = counts(history)
    with pytest.raises(InvalidRequest, match=what):
        history.bulk.load(group.id, "irc", wrong)
    assert counts(history) == before


def test_a_group_that_is_not_there(history: History) -> None:
    """Nothing is loaded into nowhere."""
    with pytest.raises(NotFound):
        history.bulk.load("grp_none", "irc", [QUESTION])


def test_a_group_that_goes_meanwhile(history: History, group: Group) -> None:
    """Deleted between drafting and writing, the group does not come back in pieces."""
    draft = history.bulk.draft(group.id, "irc", [QUESTION, ANSWER])
    vectors = history.bulk.embed(draft)
    history.groups.delete(group.id)
    with pytest.raises(NotFound):
        history.bulk.put(draft, vectors)
    assert not history.store.find("message", group=group.id)
    assert not history.store.find("member", group=group.id)


def test_killed_between_the_puts_nothing_is_seen_and_the_next_completes(history: History, group: Group) -> None:
    """Kill -9 after the exchanges, before the messages: no message is there; loading again brings everything once."""
    child = os.fork()
    if child == 0:  # pragma: no cover
        draft = history.bulk.draft(group.id, "irc", [QUESTION, ANSWER])
        vectors = history.bulk.embed(draft)
        history.store.records.put = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)  # type: ignore[method-assign]
        history.bulk.put(draft, vectors)
        os._exit(1)
    _, status = os.waitpid(child, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    assert len(history.store.exchanges) == 1
    assert not history.store.find("message", group=group.id)
    assert history.bulk.load(group.id, "irc", [QUESTION, ANSWER]) == Loaded(2, 1, 0)
    assert len(history.store.exchanges) == 1
    assert len(history.store.find("message", group=group.id)) == 2
