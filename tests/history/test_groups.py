from __future__ import annotations

from typing import Any

import pytest

from sharedrag.history import History, InvalidRequest, NotFound, Policy
from tests.history.helpers import RemoteHistory, asked

USERS = [
    "ann",
    "ann@example.org",
    "Ærøskøbing",
    "山田 太郎",
    "a/b",
    "a b",
    "😀",
    "x" * 256,
    "__proto__",
    "null",
    "%00",
    "../..",
]


@pytest.mark.parametrize("user", USERS)
def test_any_printable_user_id_will_do(history: History, user: str) -> None:
    """Whatever an application calls its users, they join, write, vote and leave."""
    group = history.groups.create("Hawaii", owner=user)
    history.groups.add_member(group.id, "other")
    conversation = history.conversations.create(group.id, user)
    _, answer = history.messages.append(group.id, user, conversation.id, asked("Where?", "There."))
    assert history.messages.get(group.id, "other", conversation.id, answer.id).user == user
    mine = history.messages.append(group.id, "other", conversation.id, asked("And then?", "Home."))[1]
    history.marks.vote(group.id, user, mine.id, 1)
    assert history.marks.standing(group.id, "other", mine.id).up == 1
    assert [member.user for member in history.groups.members(group.id)] == [user, "other"]
    assert history.groups.list(user) == [group]
    assert history.users.erase(user)["votes"] == 1
    assert [member.user for member in history.groups.members(group.id)] == ["other"]


@pytest.mark.parametrize("user", ["", "x" * 257, "a\nb", "a\x00", "\x7f", "\ud800", None, 7, b"ann"])
def test_what_is_no_user_id_is_refused(history: History, group: str, user: Any) -> None:
    """Control characters, lone surrogates and other types are no user ids; the error says what is."""
    with pytest.raises(InvalidRequest, match="printable"):
        history.groups.add_member(group, user)
    if user is not None:
        with pytest.raises(InvalidRequest):
            history.keys.create(user, group)
        with pytest.raises(NotFound):
            history.conversations.create(group, user)


def test_two_pairs_of_group_and_user_are_never_one(history: History) -> None:
    """A slash in a user id does not lead into another group."""
    first, second = history.groups.create("one"), history.groups.create("two")
    history.groups.add_member(first.id, f"{second.id}/ann")
    with pytest.raises(NotFound):
        history.groups.member(second.id, "ann")


def test_adding_twice_is_adding_once(history: History, group: str) -> None:
    """A member is one record, whoever adds them; another role replaces the first, since when stays."""
    known = history.groups.member(group, "bob")
    assert history.groups.add_member(group, "bob") == known
    changed = history.groups.add_member(group, "bob", "moderator")
    assert changed.role == "moderator" and changed.since == known.since
    assert [member.user for member in history.groups.members(group)] == ["ann", "bob", "cid"]
    with pytest.raises(InvalidRequest, match="role"):
        history.groups.add_member(group, "dan", "king")  # type: ignore[arg-type]


def test_a_policy_is_kept(history: History, group: str, remote: RemoteHistory) -> None:
    """What a group decides, every process finds; what is not given stays."""
    policy = Policy(retention_days=30, flags_to_hide=2, direct_answer=True)
    assert history.groups.update(group, policy=policy).policy == policy
    assert history.groups.update(group, name="Maui").policy == policy
    assert remote.call("groups.get", group) == history.groups.get(group)
    assert history.groups.get(group).name == "Maui"


def test_who_leaves_sees_nothing_more(history: History, group: str, remote: RemoteHistory) -> None:
    """A removed member's keys are gone in every process at once; what they wrote stays."""
    key, _ = history.keys.create("bob", group)
    conversation = history.conversations.create(group, "bob")
    history.messages.append(group, "bob", conversation.id, asked("Where?", "There."))
    assert remote.call("keys.resolve", key).user == "bob"
    history.groups.remove_member(group, "bob")
    assert remote.call("keys.resolve", key) is None
    with pytest.raises(NotFound):
        remote.call("messages.list", group, "bob", conversation.id)
    assert len(history.messages.list(group, "ann", conversation.id)[0]) == 2
    with pytest.raises(NotFound):
        history.groups.remove_member(group, "bob")


def test_across_groups_everything_is_not_found(history: History, group: str) -> None:
    """Whoever is in another group is told of nothing: not even that it exists."""
    other = history.groups.create("Alps", owner="eve").id
    conversation = history.conversations.create(group, "ann").id
    question, answer = history.messages.append(group, "ann", conversation, asked("Where?", "There."))
    theirs = history.conversations.create(other, "eve").id
    comment = history.marks.comment(group, "ann", question.id, "Hm").id
    calls: list[tuple[Any, ...]] = [
        (history.conversations.get, conversation),
        (history.conversations.fork, conversation),
        (history.conversations.fork, theirs, question.id),
        (history.conversations.update, conversation, {}),
        (history.conversations.delete, conversation),
        (history.conversations.take, conversation),
        (history.conversations.lease, conversation),
        (history.conversations.create, None, conversation),
        (history.messages.append, conversation, asked("a?", "b")),
        (history.messages.list, conversation),
        (history.messages.list, theirs, 20, question.id),
        (history.messages.get, conversation, question.id),
        (history.messages.get, theirs, question.id),
        (history.messages.get, None, question.id),
        (history.messages.delete, conversation, question.id),
        (history.marks.vote, answer.id, 1),
        (history.marks.confirm, answer.id),
        (history.marks.comment, answer.id, "x"),
        (history.marks.comments, answer.id),
        (history.marks.delete_comment, comment),
        (history.marks.supersede, answer.id, question.id),
        (history.marks.flag, answer.id, "x"),
        (history.marks.moderate, answer.id, "hidden"),
        (history.marks.standing, answer.id),
    ]
    before = history.place()
    for scope in ((group, "eve"), (other, "eve")):
        for call, *args in calls:
            if call == history.messages.append and scope[0] == other:
                args = [conversation, asked("a?", "b")]
            with pytest.raises(NotFound):
                call(*scope, *args)
    for call in (history.messages.recent, history.conversations.list):
        with pytest.raises(NotFound):
            call(group, "eve")
    with pytest.raises(NotFound):
        history.messages.search(group, "eve", "there")
    assert history.messages.search(other, "eve", "there") == []
    assert history.messages.recent(other, "eve") == []
    assert history.events(None, before)[0] == [], "something was changed"


def test_a_group_is_deleted_whole(history: History, group: str, remote: RemoteHistory) -> None:
    """Nothing of it is found afterwards; another group's is untouched."""
    other = history.groups.create("Alps", owner="eve").id
    for where, user in ((group, "ann"), (other, "eve")):
        conversation = history.conversations.create(where, user).id
        history.messages.append(where, user, conversation, asked("Where is it?", "There."))
        history.keys.create(user, where)
    remote.call("groups.delete", group)
    assert [one.id for one in history.groups.list()] == [other]
    assert {one.metadata["group"] for one in history.store.exchanges.find()} == {other}
    left = [one for one in history.store.records.find({"group": group}) if one.metadata["kind"] != "gone"]
    assert left == []
    with pytest.raises(NotFound):
        history.groups.delete(group)
    assert len(history.messages.recent(other, "eve")) == 2


@pytest.mark.parametrize("name", ["", "  ", "x" * 257, "\ud800", None, 3])
def test_a_name_that_is_none_is_refused(history: History, name: Any) -> None:
    """A group has a name of some characters."""
    with pytest.raises(InvalidRequest):
        history.groups.create(name)
