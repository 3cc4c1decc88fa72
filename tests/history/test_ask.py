from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedrag import Pool
from sharedrag.errors import InvalidRecord
from sharedrag.history import Answer, History, InvalidRequest, NewMessage, NotFound, Policy, Weights
from tests.history.helpers import RemoteHistory, WordsEmbedder, asked

FERRY = "Is there a ferry from Maui to Lanai?"
NO_FLOOR = Weights(floor=0.0)


def _tell(history: History, group: str, user: str, question: str, answer: str, created: datetime | None = None) -> str:
    """A new conversation with one exchange; returns the answer's id."""
    conversation = history.conversations.create(group, user).id
    messages = [
        NewMessage(text=question, created=created),
        NewMessage(role="assistant", text=answer, model="toy", created=created),
    ]
    return history.messages.append(group, user, conversation, messages)[1].id


def _ids(answers: list[Answer]) -> list[str]:
    return [one.answer_id for one in answers]


def _members(history: History, group: str, count: int) -> list[str]:
    users = [f"user {at}" for at in range(count)]
    for user in users:
        history.groups.add_member(group, user)
    return users


def test_bob_finds_what_ann_was_answered(history: History, group: str) -> None:
    """With its author, place and time, and every factor of the score where that is asked for."""
    answer = _tell(history, group, "ann", FERRY, "Yes, it sails from Maalaea five times a day.")
    _tell(history, group, "cid", "Which beach has turtles?", "Laniakea, on the north shore.")
    (found, *_) = history.ask(group, "Does a ferry go to Lanai from Maui?", user="bob", explain=True)
    assert (found.answer_id, found.author, found.role, found.model) == (answer, "ann", "assistant", "toy")
    assert (found.question, found.answer) == (FERRY, "Yes, it sails from Maalaea five times a day.")
    assert history.messages.get(group, "bob", found.conversation, found.question_id).text == FERRY
    explained = found.explain
    assert explained is not None and 0 < explained.words < 1 and 0 < explained.similarity <= 1
    product = explained.relevance**4 * (0.5 + explained.quality) * explained.freshness * explained.trust
    assert found.score == pytest.approx(product)
    assert history.ask(group, FERRY, user="bob")[0].explain is None


def test_nothing_is_said_where_nothing_fits(history: History, group: str) -> None:
    """Below the floor there is no answer, and none in an empty history."""
    assert history.ask(group, FERRY, user="bob") == []
    _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    assert history.ask(group, "Who won yesterday's chess championship?", user="bob") == []


def test_another_groups_answers_do_not_exist(history: History, group: str) -> None:
    """Scope is a filter before the search; for who is no member there is no such group."""
    _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    other = history.groups.create("Other", owner="eve").id
    assert history.ask(other, FERRY, user="eve") == []
    with pytest.raises(NotFound):
        history.ask(group, FERRY, user="eve")
    with pytest.raises(NotFound):
        history.ask("grp_none", FERRY)
    foreign = history.conversations.create(other, "eve").id
    with pytest.raises(NotFound):
        history.ask(group, FERRY, user="bob", conversation=foreign)


@pytest.mark.parametrize(("question", "k"), [("", 5), (" ", 5), ("x" * 70_000, 5), (FERRY, 0), (FERRY, 101), (FERRY, True)])
def test_what_means_nothing_is_refused(history: History, group: str, question: str, k: int) -> None:
    """With an error that says what would."""
    with pytest.raises(InvalidRequest):
        history.ask(group, question, k)


def test_a_vector_may_be_given(history: History, group: str) -> None:
    """It takes the place of the embedder's; one of another width is refused."""
    answer = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    vector = WordsEmbedder().embed_query(FERRY)
    assert _ids(history.ask(group, FERRY, vector=vector)) == [answer]
    assert _ids(history.ask(group, FERRY, vector=vector.tolist())) == [answer]
    assert history.ask(group, "unheard of", vector=-vector) == []
    with pytest.raises(InvalidRecord):
        history.ask(group, FERRY, vector=np.ones(3))


def test_without_an_embedder_words_decide(pool: Pool) -> None:
    """The history still answers, by BM25 alone, with a floor of its own."""
    history = History(pool, "plain")
    group = history.groups.create("g", owner="ann").id
    answer = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    _tell(history, group, "ann", "Which beach has turtles?", "Laniakea.")
    assert _ids(history.ask(group, "ferry Maui to Lanai", user="ann"))[0] == answer
    assert history.ask(group, "chess championship winner", user="ann") == []


def test_a_follow_up_is_searched_with_what_was_said_before(history: History, group: str) -> None:
    """Of two answers to "and in winter?" it finds that of its conversation's subject."""
    conversation = history.conversations.create(group, "ann").id
    history.messages.append(group, "ann", conversation, asked("Is snorkelling on Kauai good?", "In summer, at Tunnels."))
    right = history.messages.append(group, "ann", conversation, asked("and in winter?", "Then only at Poipu."))[1].id
    other = history.conversations.create(group, "cid").id
    history.messages.append(group, "cid", other, asked("Do you need chains on Mauna Kea roads?", "Not in summer."))
    history.messages.append(group, "cid", other, asked("and in winter?", "After snowfall the road is closed."))
    own = history.conversations.create(group, "bob").id
    history.messages.append(group, "bob", own, [NewMessage(text="How is snorkelling on Kauai?")])
    assert history.ask(group, "and in winter?", user="bob", conversation=own)[0].answer_id == right
    history.messages.append(group, "bob", own, [NewMessage(text="and in winter?")])
    assert history.ask(group, "and in winter?", user="bob", conversation=own)[0].answer_id == right


def test_votes_raise_and_lower(history: History, group: str) -> None:
    """Of two like answers the better judged comes first, from the next question on, in every process."""
    one = _tell(history, group, "ann", FERRY, "Yes, from Maalaea harbour.")
    two = _tell(history, group, "bob", FERRY, "Take the boat at Manele bay.")
    first, second = _ids(history.ask(group, FERRY, user="cid"))
    assert {first, second} == {one, two}
    history.marks.vote(group, "cid", second, 1)
    assert _ids(history.ask(group, FERRY, user="cid")) == [second, first]
    history.marks.vote(group, "cid", second, -1)
    assert _ids(history.ask(group, FERRY, user="cid")) == [first, second]


def test_a_confirmation_makes_an_old_answer_fresh_again(history: History, group: str) -> None:
    """A newer confirmation never lowers; one of today lifts an answer of years ago."""
    old = _tell(history, group, "ann", FERRY, "Yes, from Maalaea harbour.", datetime.now(UTC) - timedelta(days=4000))
    _tell(history, group, "bob", FERRY, "Take the boat at Manele bay.", datetime.now(UTC) - timedelta(days=1))
    before = {one.answer_id: one.score for one in history.ask(group, FERRY, user="cid")}
    history.marks.confirm(group, "cid", old)
    after = history.ask(group, FERRY, user="cid")
    assert after[0].answer_id == old and after[0].score > before[old]
    assert after[0].standing.confirmed is not None


def test_a_superseded_answer_is_below_its_successor(history: History, group: str) -> None:
    """Even where the votes are with the old one, and where no search would have found the new one; it can be taken back."""
    old = _tell(history, group, "ann", FERRY, "The Superferry takes your car.")
    for user in ("bob", "cid"):
        history.marks.vote(group, user, old, 1)
    new = _tell(history, group, "bob", "What sails where nowadays?", "Only the passenger boat to Lanai is left.")
    assert _ids(history.ask(group, FERRY, user="cid"))[0] == old
    history.marks.supersede(group, "ann", old, new)
    first, second = history.ask(group, FERRY, user="cid")
    assert (first.answer_id, second.answer_id) == (new, old)
    assert second.standing.superseded_by == new
    newest = _tell(history, group, "cid", "Boats?", "That has ended, too.")
    history.marks.supersede(group, "bob", new, newest)
    assert _ids(history.ask(group, FERRY, user="cid")) == [newest, new, old]
    history.marks.unsupersede(group, "bob", new)
    history.marks.unsupersede(group, "ann", old)
    assert _ids(history.ask(group, FERRY, user="cid"))[0] == old


def test_hidden_and_flagged_answers_are_never_shown(history: History, group: str) -> None:
    """By a moderator at once, by members' flags from the policy's number on; "visible" overrules flags."""
    answer = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    history.groups.update(group, policy=Policy(flags_to_hide=2))
    history.marks.flag(group, "bob", answer)
    assert _ids(history.ask(group, FERRY, user="bob")) == [answer]
    history.marks.flag(group, "cid", answer)
    assert history.ask(group, FERRY, user="bob") == []
    history.marks.moderate(group, "ann", answer, "visible")
    assert _ids(history.ask(group, FERRY, user="bob")) == [answer]
    history.marks.moderate(group, "ann", answer, "hidden")
    assert history.ask(group, FERRY, user="bob") == []


def test_a_hidden_question_is_not_shown_with_its_answer(history: History, group: str) -> None:
    """An answer repeats its question: where members must not see the one, the other is not offered either."""
    answer = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    (found,) = history.ask(group, FERRY, user="bob")
    history.marks.moderate(group, "ann", found.question_id, "hidden")
    assert history.ask(group, FERRY, user="bob") == []
    history.marks.moderate(group, "ann", found.question_id, "visible")
    assert _ids(history.ask(group, FERRY, user="bob")) == [answer]
    history.groups.update(group, policy=Policy(flags_to_hide=1))
    history.marks.moderate(group, "ann", found.question_id, "visible")
    history.marks.flag(group, "cid", found.question_id)
    assert _ids(history.ask(group, FERRY, user="bob")) == [answer], "a moderator has looked at it"


def test_deleted_messages_are_never_shown(history: History, group: str, remote: RemoteHistory) -> None:
    """Not with their exchange, and not by an exchange that a crash has left without one of its messages."""
    answer = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    (found,) = history.ask(group, FERRY, user="bob")
    history.store.records.delete([found.question_id])
    assert history.ask(group, FERRY, user="bob") == []
    other = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    (found,) = history.ask(group, FERRY, user="bob")
    assert found.answer_id == other != answer
    remote.call("messages.delete", group, "ann", found.conversation, other)
    assert history.ask(group, FERRY, user="bob") == []


def test_near_duplicates_are_one_answer(history: History, group: str) -> None:
    """The best stands for all; what differs in a number or a "not" is another answer."""
    users = _members(history, group, 5)
    text = "You can bring apples into the state when they are washed and dry, and declare all of it on the form"
    answers = [
        _tell(history, group, user, FERRY, said)
        for user, said in zip(
            users,
            (text, text + ".", text + " please.", text.replace("can", "cannot"), text + " 25."),
            strict=True,
        )
    ]
    history.marks.vote(group, "bob", answers[1], 1)
    found = history.ask(group, FERRY, user="cid")
    assert [(one.answer_id in answers[:3], one.similar) for one in found].count((True, 2)) == 1
    assert {one.answer_id for one in found} == {answers[1], answers[3], answers[4]}


def test_no_author_fills_the_list(history: History, group: str) -> None:
    """At most two of one author, however many fit, and others behind them are still found."""
    for at in range(40):
        _tell(history, group, "bob", FERRY, f"{at} is the number of my boat")
    other = _tell(history, group, "ann", "Is there a ferry from Maui to Lanai, or some boat?", "Yes, from Maalaea.")
    found = history.ask(group, FERRY, user="cid")
    assert [one.author for one in found].count("bob") == 2
    assert other in _ids(found)


def test_a_newcomer_is_on_probation(history: History, group: str) -> None:
    """Until others have approved some of the author's answers, like answers of a proven author come first."""
    for at in range(3):
        proven = _tell(history, group, "ann", f"Where is waterfall {at}?", f"Up the road, after mile {at}.")
        history.marks.vote(group, "cid", proven, 1)
    _tell(history, group, "bob", FERRY, "Take the boat at Manele bay.")
    known = _tell(history, group, "ann", FERRY, "Yes, from Maalaea harbour.")
    assert _ids(history.ask(group, FERRY, user="cid"))[0] == known


def test_what_another_process_wrote_is_found_at_once(history: History, group: str, remote: RemoteHistory) -> None:
    """Read your own and others' writes, in both directions."""
    answer = _tell(history, group, "ann", FERRY, "Yes, from Maalaea.")
    assert _ids(remote.call("ask", group, FERRY, user="bob")) == [answer]
    conversation = history.conversations.create(group, "ann").id
    more = remote.call("messages.append", group, "ann", conversation, asked("Are there turtles?", "At Laniakea."))
    assert _ids(history.ask(group, "Are there turtles?", user="bob")) == [more[1].id]


@given(
    votes=st.lists(st.tuples(st.integers(0, 3), st.sampled_from(["bob", "cid", "dan", "eve"]), st.sampled_from([1, -1]))),
    up=st.integers(0, 3),
)
@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_one_more_up_vote_never_lowers_an_answer(history: History, votes: list[tuple[int, str, int]], up: int) -> None:
    """Whatever was voted before, at the answers of four authors."""
    authors = ["a", "b", "c", "d"]
    group = history.groups.create("g", owner="root").id
    for user in (*authors, "bob", "cid", "dan", "eve", "new"):
        history.groups.add_member(group, user)
    answers = [_tell(history, group, user, FERRY, f"{user} says so{user}") for user in authors]
    for at, user, value in votes:
        history.marks.vote(group, user, answers[at], value)
    now = datetime.now(UTC) + timedelta(days=1)
    before = {one.answer_id: one.score for one in history.ask(group, FERRY, now=now)}
    history.marks.vote(group, "new", answers[up], 1)
    after = history.ask(group, FERRY, now=now)
    assert {one.answer_id: one.score for one in after}[answers[up]] >= before[answers[up]]
    order = sorted(before, key=lambda one: -before[one])
    assert _ids(after).index(answers[up]) <= order.index(answers[up])
