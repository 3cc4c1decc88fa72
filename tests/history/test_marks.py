from __future__ import annotations

import signal
import threading
from typing import Any

import pytest

from sharedrag.history import Conflict, History, InvalidRequest, NotAllowed, NotFound, Policy, Standing
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory, asked


@pytest.fixture
def answers(history: History, group: str) -> list[str]:
    """Four answers: two that ann got, then bob's, then cid's."""
    found = []
    for user in ("ann", "ann", "bob", "cid"):
        conversation = history.conversations.create(group, user).id
        found.append(
            history.messages.append(group, user, conversation, asked("Where is the beach?", f"{user} says west"))[1].id
        )
    return found


def test_a_member_has_one_vote(history: History, group: str, answers: list[str], remote: RemoteHistory) -> None:
    """The newest counts, 0 takes it back, nobody votes on their own; every process sees the same."""
    history.marks.vote(group, "bob", answers[0], 1)
    remote.call("marks.vote", group, "bob", answers[0], 1)
    remote.call("marks.vote", group, "cid", answers[0], -1)
    assert history.marks.standing(group, "ann", answers[0]) == Standing(up=1, down=1)
    history.marks.vote(group, "cid", answers[0], 1)
    assert remote.call("marks.standing", group, "ann", answers[0]) == Standing(up=2)
    history.marks.vote(group, "bob", answers[0], 0)
    history.marks.vote(group, "bob", answers[0], 0)
    assert remote.call("marks.standing", group, "ann", answers[0]) == Standing(up=1)
    with pytest.raises(NotAllowed):
        history.marks.vote(group, "ann", answers[0], 1)
    for value in (2, 1.0, True, "1", None):
        with pytest.raises(InvalidRequest, match="vote"):
            history.marks.vote(group, "bob", answers[0], value)  # type: ignore[arg-type]


def test_votes_at_once_are_all_counted(history: History, group: str, answers: list[str], launcher: Launcher) -> None:
    """Sixty members vote from three processes and several threads at the same time: sixty votes."""
    users = [f"u{number}" for number in range(60)]
    for user in users:
        history.groups.add_member(group, user)
    remotes = [RemoteHistory(launcher, history.pool.path) for _ in range(2)]

    def vote_all(vote: Any, some: list[str]) -> None:
        for user in some:
            vote(group, user, answers[0], 1)

    work = [threading.Thread(target=vote_all, args=(history.marks.vote, users[at:30:2])) for at in range(2)]
    for number, one in enumerate(remotes):
        own = users[30 + 15 * number : 45 + 15 * number]
        work.append(threading.Thread(target=vote_all, args=(lambda *args, one=one: one.call("marks.vote", *args), own)))
    for thread in work:
        thread.start()
    for thread in work:
        thread.join()
    assert history.marks.standing(group, "ann", answers[0]) == Standing(up=60)


def test_still_true_and_not_any_more(history: History, group: str, answers: list[str]) -> None:
    """The newest confirmation counts; taking it back leaves those of others."""
    assert history.marks.standing(group, "ann", answers[0]).confirmed is None
    history.marks.confirm(group, "bob", answers[0])
    first = history.marks.standing(group, "ann", answers[0]).confirmed
    history.marks.confirm(group, "ann", answers[0])
    second = history.marks.standing(group, "ann", answers[0]).confirmed
    assert first is not None and second is not None and second > first
    history.marks.unconfirm(group, "ann", answers[0])
    history.marks.unconfirm(group, "cid", answers[0])
    assert history.marks.standing(group, "ann", answers[0]).confirmed == first


def test_remarks(history: History, group: str, answers: list[str], remote: RemoteHistory) -> None:
    """Remarks come in order; their author or a moderator takes them away."""
    first = history.marks.comment(group, "bob", answers[0], "Really?")
    second = remote.call("marks.comment", group, "cid", answers[0], "Yes.")
    assert history.marks.comments(group, "ann", answers[0]) == [first, second]
    assert (first.user, first.text, first.message) == ("bob", "Really?", answers[0])
    with pytest.raises(NotAllowed):
        history.marks.delete_comment(group, "cid", first.id)
    remote.call("marks.delete_comment", group, "bob", first.id)
    assert history.marks.standing(group, "ann", answers[0]).comments == 1
    with pytest.raises(NotFound):
        history.marks.delete_comment(group, "ann", second.id, answers[1])
    history.marks.delete_comment(group, "ann", second.id, answers[0])  # the group's owner
    assert remote.call("marks.comments", group, "ann", answers[0]) == []
    with pytest.raises(NotFound):
        history.marks.delete_comment(group, "bob", first.id)
    for text in ("", "  ", "x" * 32_769, "\ud800", None):
        with pytest.raises(InvalidRequest):
            history.marks.comment(group, "bob", answers[0], text)  # type: ignore[arg-type]


def test_a_correction_is_made_and_taken_back(history: History, group: str, answers: list[str]) -> None:
    """By the authors of either and by moderators; never in a circle."""
    _, mine, bobs, cids = answers
    history.marks.supersede(group, "bob", cids, bobs)
    assert history.marks.standing(group, "ann", cids).superseded_by == bobs
    with pytest.raises(Conflict):
        history.marks.supersede(group, "cid", bobs, cids)
    with pytest.raises(Conflict):
        history.marks.supersede(group, "bob", bobs, bobs)
    history.groups.add_member(group, "dan")
    for call, *args in ((history.marks.supersede, mine, bobs), (history.marks.unsupersede, cids)):
        with pytest.raises(NotAllowed):
            call(group, "dan", *args)
    history.marks.supersede(group, "ann", bobs, mine)
    with pytest.raises(Conflict):
        history.marks.supersede(group, "ann", mine, cids)
    history.marks.unsupersede(group, "cid", cids)
    history.marks.unsupersede(group, "cid", cids)
    assert history.marks.standing(group, "ann", cids).superseded_by is None
    history.marks.supersede(group, "ann", mine, cids)


def test_two_corrections_at_once_are_no_circle(history: History, group: str, answers: list[str], launcher: Launcher) -> None:
    """Each in a conversation of its own, the one stopped between looking and writing: the other is told that it is late."""
    first, second = (
        RemoteHistory(launcher, history.pool.path, fault="put.intent:stop"),
        RemoteHistory(launcher, history.pool.path),
    )
    first.begin("marks.supersede", group, "ann", answers[0], answers[2])
    first.worker.wait_stopped()
    second.begin("marks.supersede", group, "bob", answers[2], answers[0])
    assert not second.worker.conn.poll(0.5), "it waits for who was first"
    first.worker.signal(signal.SIGCONT)
    first.finish()
    with pytest.raises(Conflict):
        second.finish()
    assert history.marks.standing(group, "ann", answers[2]).superseded_by is None


def test_flagged_by_enough_it_is_hidden_until_a_moderator_looks(history: History, group: str, answers: list[str]) -> None:
    """The group says how many are enough; what a moderator decides stays, whatever more flags come."""
    history.groups.update(group, policy=Policy(flags_to_hide=2))
    history.marks.flag(group, "bob", answers[0], "spam")
    history.marks.flag(group, "bob", answers[0], "really spam")
    assert history.marks.standing(group, "ann", answers[0]) == Standing(flags=1)
    history.marks.flag(group, "cid", answers[0], "")
    assert history.marks.standing(group, "ann", answers[0]).moderation == "flagged"
    history.marks.unflag(group, "cid", answers[0])
    assert history.marks.standing(group, "ann", answers[0]).moderation == "visible"
    history.marks.flag(group, "cid", answers[0], "")
    with pytest.raises(NotAllowed):
        history.marks.moderate(group, "bob", answers[0], "hidden")
    history.marks.moderate(group, "ann", answers[0], "visible")
    assert history.marks.standing(group, "ann", answers[0]) == Standing(flags=2)
    history.marks.moderate(group, "ann", answers[0], "hidden")
    assert history.marks.standing(group, "bob", answers[0]).moderation == "hidden"
    with pytest.raises(InvalidRequest):
        history.marks.moderate(group, "ann", answers[0], "flagged")  # type: ignore[arg-type]


def test_what_is_no_message_cannot_be_marked(history: History, group: str) -> None:
    """Conversations, members and groups are no messages, whatever ids are sent."""
    conversation = history.conversations.create(group, "ann").id
    for nothing in (conversation, group, f"member/{group}/ann", "msg_none", "", "\ud800", "x" * 70_000):
        with pytest.raises(NotFound):
            history.marks.vote(group, "bob", nothing, 1)
        with pytest.raises(NotFound):
            history.marks.standing(group, "bob", nothing)
