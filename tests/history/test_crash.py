"""kill -9 within an append and within an erasure: what was acknowledged stays, nothing is half there, again completes it."""

from __future__ import annotations

import random
import signal
from typing import Any

import pytest

from sharedrag.history import History, Message
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory, asked

_NEW = asked("Where is the best beach?", "In the west.")
#: An append is two puts: the exchange's, one row, and the messages' with their note, three.
_POINTS = ["put.intent:{}", "put.row_written:{}", "put.linked:{}", "put.published:{}"]
_ERASING_PUTS = 8  # that the erasure below makes
_APPEND_FAULTS = [*(point.format(nth) for point in _POINTS for nth in (1, 2)), "put.row_written:4"]


def died(remote: RemoteHistory) -> bool:
    """Whether the process is gone, by kill -9, without an answer."""
    gone = remote.worker.receive() is None
    assert not gone or remote.worker.wait() == -signal.SIGKILL
    return gone


def check_whole(history: History, group: str, conversation: str) -> list[Message]:
    """No message without its fellows, none twice, exchanges that count only with both messages; returns the messages."""
    messages, _ = history.messages.list(group, "ann", conversation, 1000, order="asc")
    assert len(messages) % 2 == 0, "half an append is seen"
    for question, answer in zip(messages[::2], messages[1::2], strict=True):
        assert (question.role, answer.role, answer.answers) == ("user", "assistant", question.id)
    there = {one.id for one in messages}
    counting = [
        one
        for one in history.store.exchanges.find()
        if one.metadata["question_id"] in history.store.records and one.metadata["answer_id"] in history.store.records
    ]
    assert {one.metadata["answer_id"] for one in counting} == {one.id for one in messages[1::2]}
    assert {one.metadata["question_id"] for one in counting} <= there
    return messages


@pytest.mark.parametrize("fault", _APPEND_FAULTS)
def test_killed_in_an_append_all_of_it_is_there_or_nothing(
    history: History, group: str, launcher: Launcher, fault: str
) -> None:
    """At each step of both puts; trying again under the same key completes it, once, and nobody waits for the dead."""
    conversation = history.conversations.create(group, "ann").id
    before = history.messages.append(group, "ann", conversation, _NEW)
    point, nth = fault.split(":")
    victim = RemoteHistory(launcher, history.pool.path, fault=f"{point}:kill:{nth}")
    victim.begin("messages.append", group, "ann", conversation, _NEW, None, "once")
    assert died(victim)
    seen = check_whole(history, group, conversation)
    assert len(seen) == (4 if fault == "put.published:2" else 2), "the watermark of the second put is the commit"
    assert seen[:2] == before
    again = RemoteHistory(launcher, history.pool.path).call(
        "messages.append", group, "ann", conversation, _NEW, None, "once"
    )
    assert check_whole(history, group, conversation) == before + again
    assert len(history.store.exchanges) == 2, "the half-written exchange was completed, not doubled"


def test_killed_at_random_nothing_acknowledged_is_lost(history: History, group: str, launcher: Launcher) -> None:
    """Writers die at random moments, and others go on: every append that returned is there, none is there by half."""
    rng = random.Random(7)
    conversation = history.conversations.create(group, "ann").id
    acknowledged: list[str] = []
    for _ in range(25):
        fault = f"{rng.choice(_POINTS).format('kill')}:{rng.randint(1, 12)}"
        victim = RemoteHistory(launcher, history.pool.path, fault=fault)
        for number in range(20):
            try:
                victim.begin("messages.append", group, "ann", conversation, asked(f"Where {number}?", "There."))
            except (BrokenPipeError, ConnectionResetError):
                break
            answer = victim.worker.receive()
            if answer is None:
                break
            acknowledged += [one.id for one in answer[1]]
        victim.worker.end()
        assert set(acknowledged) <= {one.id for one in check_whole(history, group, conversation)}
    assert len(acknowledged) > 40


@pytest.mark.parametrize("nth", range(1, 10))
def test_killed_in_an_erasure_it_is_completed_by_calling_again(
    history: History, group: str, launcher: Launcher, nth: int
) -> None:
    """Before each of its puts in turn: no exchange counts whose messages are not both there, and again it is done."""
    conversations = [history.conversations.create(group, "bob").id for _ in range(2)]
    shared = history.conversations.create(group, "ann").id
    for conversation in conversations:
        history.messages.append(group, "bob", conversation, _NEW)
    _, target = history.messages.append(group, "ann", shared, _NEW)
    (reply,) = history.messages.append(group, "bob", shared, [_NEW[0].model_copy(update={"text": "West, I say."})])
    history.marks.vote(group, "bob", target.id, 1)
    history.marks.comment(group, "bob", target.id, "bob was here")
    history.marks.vote(group, "ann", reply.id, 1)
    history.keys.create("bob", group)
    victim = RemoteHistory(launcher, history.pool.path, fault=f"put.intent:kill:{nth}")
    victim.begin("users.erase", "bob")
    assert died(victim) == (nth <= _ERASING_PUTS)
    for one in history.store.exchanges.find():
        if one.metadata["question_id"] in history.store.records and one.metadata["answer_id"] in history.store.records:
            history.messages.get(group, "ann", None, one.metadata["answer_id"])
    history.users.erase("bob")
    left: list[Any] = [*history.store.records.find(), *history.store.exchanges.find()]
    assert "bob" not in str(left)
    assert len(history.messages.recent(group, "ann")) == 2 and len(history.store.exchanges) == 1
