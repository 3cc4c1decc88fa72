from __future__ import annotations

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedrag.history import Conflict, Conversation, History, InvalidRequest, Message, NewMessage, NotAllowed, NotFound
from sharedrag.history.conversations import FORK_DEPTH_MAX
from tests.history.helpers import RemoteHistory, asked


def say(history: History, group: str, conversation: str, *texts: str, user: str = "ann") -> list[str]:
    """Append messages; returns their ids."""
    return [one.id for one in history.messages.append(group, user, conversation, [NewMessage(text=text) for text in texts])]


def shown(history: History, group: str, conversation: str) -> list[str]:
    """The texts that a conversation shows, the oldest first."""
    return [one.text for one in history.messages.list(group, "bob", conversation, 1000, order="asc")[0]]


def pages(history: History, group: str, conversation: str, limit: int, order: str) -> list[Message]:
    """All that a conversation shows, page by page."""
    found: list[Message] = []
    after = None
    while True:
        page, more = history.messages.list(group, "bob", conversation, limit, after, order)
        assert len(page) <= limit and (len(page) == limit or not more)
        found += page
        if not more:
            return found
        after = page[-1].id


def test_a_clients_own_name_is_one_conversation_for_each_group(history: History, group: str, remote: RemoteHistory) -> None:
    """The first call makes it, all others find it; another group's of that name is another one."""
    made = history.conversations.create(group, "ann", {"title": "trip"}, id="chat-7")
    assert remote.call("conversations.create", group, "bob", None, "chat-7") == made
    assert made.id == history.conversations.id_for(group, "chat-7")
    other = history.groups.create("Alps", owner="eve").id
    assert history.conversations.create(other, "eve", id="chat-7").id != made.id
    assert history.conversations.create(group, "bob", id=made.id) == made
    with pytest.raises(NotFound):
        history.conversations.create(group, "bob", id="conv_" + "0" * 24)


def test_conversations_are_listed_by_when_they_began(history: History, group: str) -> None:
    """Pages of any size in both orders are the whole; a change of metadata moves nothing."""
    made = [history.conversations.create(group, "ann", {"n": number}).id for number in range(7)]
    history.conversations.update(group, "bob", made[2], {"changed": True})
    for order, expected in (("asc", made), ("desc", made[::-1])):
        for limit in (1, 3, 7, 10):
            found: list[str] = []
            after = None
            while True:
                page, more = history.conversations.list(group, "bob", limit, after, order)
                found += [one.id for one in page]
                if not more:
                    break
                after = page[-1].id
            assert found == expected, (order, limit)
    with pytest.raises(NotFound):
        history.conversations.list(group, "bob", after="conv_none")


def test_an_edit_of_something_that_changed_meanwhile_is_a_conflict(
    history: History, group: str, remote: RemoteHistory
) -> None:
    """With the etag of what was read, nobody overwrites what they have not seen."""
    made = history.conversations.create(group, "ann", {"title": "a"})
    changed = remote.call("conversations.update", group, "bob", made.id, {"title": "b"}, made.etag)
    assert changed.metadata == {"title": "b"} and changed.etag != made.etag
    with pytest.raises(Conflict):
        history.conversations.update(group, "ann", made.id, {"title": "c"}, if_match=made.etag)
    assert history.conversations.get(group, "ann", made.id) == changed
    assert changed.created == made.created and changed.user == "ann"


@pytest.mark.parametrize("metadata", [[], "x", {"a": {1, 2}}, {1: 2}, {"a": "\ud800"}])
def test_metadata_that_is_no_json_object_is_refused(history: History, group: str, metadata: Any) -> None:
    """The error comes before anything is written."""
    with pytest.raises(InvalidRequest, match="metadata"):
        history.conversations.create(group, "ann", metadata)
    assert history.conversations.list(group, "ann") == ([], False)


# ---------------------------------------------------------------------- forks


def test_a_fork_shows_its_past_and_goes_its_own_way(history: History, group: str) -> None:
    """What comes later in the one is not in the other."""
    trunk = history.conversations.create(group, "ann").id
    ids = say(history, group, trunk, "1", "2", "3")
    fork = history.conversations.fork(group, "bob", trunk, ids[1])
    assert fork.fork is not None and (fork.fork.conversation, fork.fork.message) == (trunk, ids[1])
    say(history, group, trunk, "4")
    say(history, group, fork.id, "x", "y", user="bob")
    assert shown(history, group, trunk) == ["1", "2", "3", "4"]
    assert shown(history, group, fork.id) == ["1", "2", "x", "y"]
    assert history.messages.get(group, "bob", fork.id, ids[0]).text == "1"
    with pytest.raises(NotFound):
        history.messages.get(group, "bob", fork.id, ids[2])
    with pytest.raises(NotFound):
        history.messages.list(group, "bob", fork.id, after=ids[2])
    with pytest.raises(NotFound):
        history.conversations.fork(group, "bob", fork.id, ids[2])


def test_a_fork_of_all_of_it_and_of_nothing(history: History, group: str) -> None:
    """By default a fork shows all that there is; where there is nothing there is nothing to fork."""
    trunk = history.conversations.create(group, "ann").id
    with pytest.raises(InvalidRequest, match="no message"):
        history.conversations.fork(group, "ann", trunk)
    ids = say(history, group, trunk, "1", "2")
    fork = history.conversations.fork(group, "ann", trunk)
    again = history.conversations.fork(group, "ann", fork.id)
    assert again.fork is not None and again.fork.message == ids[1]
    assert shown(history, group, again.id) == ["1", "2"]


def test_what_is_deleted_is_gone_from_forks_too(history: History, group: str) -> None:
    """Forks show the gap and stay: also those of forks, when the conversation between was deleted."""
    trunk = history.conversations.create(group, "ann").id
    ids = say(history, group, trunk, "1", "2", "3")
    fork = history.conversations.fork(group, "ann", trunk, ids[2]).id
    own = say(history, group, fork, "4", "5")
    leaf = history.conversations.fork(group, "bob", fork, own[1]).id
    say(history, group, leaf, "6")
    history.messages.delete(group, "ann", trunk, ids[2])  # that from which the fork was made
    assert shown(history, group, leaf) == ["1", "2", "4", "5", "6"]
    history.conversations.delete(group, "ann", fork)
    assert shown(history, group, leaf) == ["1", "2", "6"]
    history.conversations.delete(group, "ann", trunk)
    assert shown(history, group, leaf) == ["6"]
    assert [one.text for one in pages(history, group, leaf, 1, "desc")] == ["6"]


def test_forks_are_only_so_deep(history: History, group: str) -> None:
    """There is an end to it, with a clear error; a fork in a shallow part of a deep one is shallow."""
    last = history.conversations.create(group, "ann").id
    first = say(history, group, last, "0")[0]
    for number in range(FORK_DEPTH_MAX):
        last = history.conversations.fork(group, "ann", last).id
        say(history, group, last, str(number + 1))
    assert shown(history, group, last) == [str(number) for number in range(FORK_DEPTH_MAX + 1)]
    with pytest.raises(InvalidRequest, match="fork"):
        history.conversations.fork(group, "ann", last)
    assert shown(history, group, history.conversations.fork(group, "ann", last, first).id) == ["0"]


def test_a_conversation_is_deleted_by_who_began_it_or_a_moderator(history: History, group: str) -> None:
    """Others may not; nothing of it is found afterwards."""
    made = history.conversations.create(group, "bob")
    history.messages.append(group, "bob", made.id, asked("Where is the beach?", "West."))
    with pytest.raises(NotAllowed):
        history.conversations.delete(group, "cid", made.id)
    history.groups.add_member(group, "cid", "moderator")
    history.conversations.delete(group, "cid", made.id)
    with pytest.raises(NotFound):
        history.conversations.get(group, "bob", made.id)
    assert history.messages.recent(group, "bob") == [] and len(history.store.exchanges) == 0


_STEPS = st.lists(
    st.tuples(st.sampled_from(["say", "say", "fork", "fork", "delete", "drop"]), st.integers(0, 99), st.integers(1, 4)),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS)
def test_any_forks_show_what_plain_lists_would(history: History, steps: list[Any]) -> None:
    """Whatever is said, forked and deleted, in each order and by pages of each size."""
    group = history.groups.create("any", owner="bob").id
    lists: dict[str, list[str]] = {history.conversations.create(group, "bob").id: []}
    alive: set[str] = set()
    owned: dict[str, str] = {}
    for what, which, size in steps:
        conversation = list(lists)[which % len(lists)]
        visible = [one for one in lists[conversation] if one in alive]
        if what == "say":
            new = say(history, group, conversation, *[f"{which}"] * size, user="bob")
            lists[conversation] += new
            alive |= set(new)
            owned |= dict.fromkeys(new, conversation)
        elif what == "fork" and visible:
            at = visible[which % len(visible)]
            fork = history.conversations.fork(group, "bob", conversation, at).id
            lists[fork] = lists[conversation][: lists[conversation].index(at) + 1]
        elif what == "delete" and visible:
            at = visible[which % len(visible)]
            history.messages.delete(group, "bob", conversation, at)
            alive.discard(at)
        elif what == "drop" and len(lists) > 1:
            history.conversations.delete(group, "bob", conversation)
            del lists[conversation]
            alive -= {one for one, home in owned.items() if home == conversation}
    for conversation, ids in lists.items():
        expected = [one for one in ids if one in alive]
        for order, wanted in (("asc", expected), ("desc", expected[::-1])):
            for limit in (1, 2, 5, 100):
                assert [one.id for one in pages(history, group, conversation, limit, order)] == wanted


def test_a_page_is_asked_for_properly(history: History, group: str) -> None:
    """Limits, orders and cursors that mean nothing are refused with a hint."""
    made: Conversation = history.conversations.create(group, "ann")
    for limit in (0, -1, 1001, True, "3", 2.0, None):
        with pytest.raises(InvalidRequest, match="limit"):
            history.messages.list(group, "ann", made.id, limit)  # type: ignore[arg-type]
    with pytest.raises(InvalidRequest, match="order"):
        history.messages.list(group, "ann", made.id, order="newest")
    for after in ("msg_none", "", made.id, "x" * 100_000):
        with pytest.raises(NotFound):
            history.messages.list(group, "ann", made.id, after=after)
