from __future__ import annotations

import random

import pytest

from sharedrag import InvalidRecord
from sharedrag.history import Event, History
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory, asked


def kinds(events: list[Event]) -> list[tuple[str, bool]]:
    """What happened, in short."""
    return [(one.kind, one.deleted) for one in events]


def test_all_that_members_do_is_told(history: History, group: str, remote: RemoteHistory) -> None:
    """From whichever process, in order, with what a live view needs; keys and notes are nobody's business."""
    place = history.place()
    conversation = remote.call("conversations.create", group, "ann", {"title": "x"}).id
    question, answer = remote.call("messages.append", group, "ann", conversation, asked("Where?", "There."), None, "once")
    history.marks.vote(group, "bob", answer.id, 1)
    remote.call("marks.confirm", group, "bob", answer.id)
    comment = history.marks.comment(group, "bob", answer.id, "Hm")
    history.marks.flag(group, "bob", answer.id, "old")
    history.marks.moderate(group, "ann", answer.id, "visible")
    history.marks.supersede(group, "ann", answer.id, question.id)
    history.conversations.take(group, "ann", conversation)
    history.keys.create("bob", group)
    history.once.remember(group, "bob", "x", {})
    history.groups.add_member(group, "dan")
    history.groups.update(group, name="Maui")
    events, after = history.events(group, place)
    assert kinds(events) == [
        (kind, False)
        for kind in (
            *("conversation", "message", "message", "vote", "confirm", "comment"),
            *("flag", "moderation", "supersede", "lease", "member", "group"),
        )
    ]
    message = events[2]
    assert (message.id, message.group, message.node) == (answer.id, group, answer.node)
    assert message.data["text"] == "There." and message.data["answers"] == question.id
    assert message.created == answer.created
    history.marks.vote(group, "bob", answer.id, 0)
    remote.call("marks.delete_comment", group, "bob", comment.id)
    history.marks.unflag(group, "bob", answer.id)
    history.messages.delete(group, "ann", conversation, answer.id)
    history.groups.remove_member(group, "dan")
    history.conversations.delete(group, "ann", conversation)
    gone, after = history.events(group, after)
    assert kinds(gone) == [(kind, True) for kind in ("vote", "comment", "flag", "message", "member", "conversation")]
    assert [gone[at].id for at in (1, 3, 5)] == [comment.id, answer.id, conversation]
    assert gone[0].data["message"] == answer.id and gone[4].data["user"] == "dan"
    assert history.events(group, after) == ([], after)


def test_a_group_hears_nothing_of_another(history: History, group: str) -> None:
    """Not even that something was deleted there; who listens to all hears all."""
    place = history.place()
    other = history.groups.create("Alps", owner="eve").id
    conversation = history.conversations.create(other, "eve").id
    _, answer = history.messages.append(other, "eve", conversation, asked("Where?", "There."))
    history.messages.delete(other, "eve", conversation, answer.id)
    history.users.erase("eve")
    assert history.events(group, place)[0] == []
    assert len(history.events(None, place)[0]) > 0


def test_each_events_place_is_one_to_go_on_from(history: History, group: str, remote: RemoteHistory) -> None:
    """Whoever resumes after the nth event, in whichever process and by pages of any size, gets the rest."""
    start = history.place()
    conversation = history.conversations.create(group, "ann").id
    for number in range(6):
        for call in (history.messages.append, lambda *args: remote.call("messages.append", *args)):
            call(group, "ann", conversation, asked(f"Where {number}?", "There."))
    whole, _ = history.events(group, start)
    assert len(whole) == 25
    for number in (0, 1, 7, 24):
        assert remote.call("events", group, whole[number].place)[0] == whole[number + 1 :]
    for limit in (1, 2, 7, 25, 100):
        place, found = start, list[Event]()
        while True:
            page, place = remote.call("events", group, place, limit)
            found += page
            if len(page) < limit:
                break
        assert found == whole
    assert history.events(group)[0][-25:] == whole


@pytest.mark.parametrize("place", ["nonsense", "", "AAAA"])
def test_a_place_that_is_none_is_refused(history: History, group: str, place: str) -> None:
    """Whatever a client sends as Last-Event-ID."""
    with pytest.raises(InvalidRecord):
        history.events(group, place)


def test_listeners_of_several_writers_miss_nothing(history: History, group: str, launcher: Launcher) -> None:
    """Three processes write at once; listeners in two others page through at random and end with every message, once."""
    rng = random.Random(5)
    conversation = history.conversations.create(group, "ann").id
    writers = [RemoteHistory(launcher, history.pool.path) for _ in range(3)]
    listeners = [RemoteHistory(launcher, history.pool.path) for _ in range(2)]
    place = dict.fromkeys(range(3), history.place())
    heard: dict[int, list[str]] = {number: [] for number in range(3)}
    written = []
    for turn in range(60):
        for number, writer in enumerate(writers):
            writer.begin("messages.append", group, "ann", conversation, asked(f"{turn}/{number}?", "a") * rng.randint(1, 3))
        for number in heard:
            events, place[number] = rng.choice(listeners).call("events", group, place[number], rng.choice([1, 5, None]))
            heard[number] += [one.id for one in events]
        for writer in writers:
            written += [one.id for one in writer.finish()]
        if turn % 20 == 10:
            history.pool.maintain()
    for number in heard:
        events, _ = rng.choice(listeners).call("events", group, place[number])
        heard[number] += [one.id for one in events]
        assert sorted(heard[number]) == sorted(written)
