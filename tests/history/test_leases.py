from __future__ import annotations

import signal
import threading
import time
import zlib
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from sharedrag import PoolBusy
from sharedrag.history import Conflict, History, InvalidRequest, LeaseHeld, LeaseLost, NewMessage, NotFound
from sharedrag.history.records import LOCKS
from tests.crash.launcher import Launcher
from tests.history.helpers import RemoteHistory


@pytest.fixture
def conversation(history: History, group: str) -> str:
    """A conversation that ann began."""
    return history.conversations.create(group, "ann").id


def word(text: str = "x") -> list[NewMessage]:
    """One message."""
    return [NewMessage(text=text)]


def test_who_has_the_wheel_drives_alone(history: History, group: str, conversation: str, remote: RemoteHistory) -> None:
    """Others can neither take it nor write, in any process, until it is let go; the holder must give the token."""
    lease = history.conversations.take(group, "bob", conversation, 60)
    assert lease.holder == "bob" and timedelta(seconds=55) < lease.until - datetime.now(UTC) <= timedelta(seconds=60)
    assert remote.call("conversations.lease", group, "ann", conversation) == lease
    with pytest.raises(LeaseHeld, match="bob has the wheel until"):
        remote.call("conversations.take", group, "ann", conversation)
    with pytest.raises(LeaseHeld):
        remote.call("messages.append", group, "ann", conversation, word())
    with pytest.raises(LeaseHeld, match="token"):
        remote.call("messages.append", group, "bob", conversation, word())
    with pytest.raises(LeaseLost):
        remote.call("messages.append", group, "ann", conversation, word(), lease.token)
    assert len(remote.call("messages.append", group, "bob", conversation, word(), lease.token)) == 1
    with pytest.raises(LeaseLost):
        remote.call("conversations.release", group, "ann", conversation, lease.token)
    remote.call("conversations.release", group, "bob", conversation, lease.token)
    assert history.conversations.lease(group, "ann", conversation) is None
    assert len(history.messages.append(group, "ann", conversation, word())) == 1


def test_a_lease_is_renewed_and_handed_on(history: History, group: str, conversation: str) -> None:
    """With its token it is longer; taken again without, the old token counts no more; each holder's token is greater."""
    first = history.conversations.take(group, "bob", conversation, 5)
    longer = history.conversations.take(group, "bob", conversation, 60, first.token)
    assert longer.token == first.token and longer.until > first.until
    second = history.conversations.take(group, "bob", conversation)
    assert second.token > first.token
    with pytest.raises(LeaseLost):
        history.messages.append(group, "bob", conversation, word(), first.token)
    with pytest.raises(LeaseLost):
        history.conversations.take(group, "bob", conversation, 60, first.token)
    history.conversations.release(group, "bob", conversation, second.token)
    third = history.conversations.take(group, "ann", conversation)
    assert third.token > second.token
    with pytest.raises(LeaseLost):
        history.messages.append(group, "bob", conversation, word(), second.token)


def test_a_lease_ends_by_itself(history: History, group: str, conversation: str) -> None:
    """Whoever does not renew in time is overtaken, and told so; until somebody takes the wheel, the token still counts."""
    lease = history.conversations.take(group, "bob", conversation, 0.05)
    time.sleep(0.06)
    assert history.conversations.lease(group, "ann", conversation) is None
    assert len(history.messages.append(group, "bob", conversation, word(), lease.token)) == 1
    other = history.conversations.take(group, "ann", conversation)
    with pytest.raises(LeaseLost):
        history.messages.append(group, "bob", conversation, word(), lease.token)
    assert other.token > lease.token


def test_a_forgotten_leases_token_never_counts_again(history: History, group: str, conversation: str) -> None:
    """Tidying forgets dead leases; a later holder's token is another one nonetheless."""
    old = history.conversations.take(group, "bob", conversation, 1)
    assert history.tidy(datetime.now(UTC) + timedelta(days=2))["leases"] == 1
    with pytest.raises(LeaseLost):
        history.messages.append(group, "bob", conversation, word(), old.token)
    assert history.conversations.take(group, "bob", conversation).token > old.token


@pytest.mark.parametrize("seconds", [0, -1, 3601, "60", None, True, float("nan"), float("inf")])
def test_a_time_that_means_nothing_is_refused(history: History, group: str, conversation: str, seconds: Any) -> None:
    """A lease lasts more than nothing and at most an hour."""
    with pytest.raises(InvalidRequest, match="seconds"):
        history.conversations.take(group, "ann", conversation, seconds)


def test_a_deleted_conversation_has_no_wheel(history: History, group: str, conversation: str) -> None:
    """Its lease goes with it."""
    lease = history.conversations.take(group, "ann", conversation)
    history.conversations.delete(group, "ann", conversation)
    for call, *args in (
        (history.conversations.lease,),
        (history.conversations.take,),
        (history.conversations.release, lease.token),
        (history.messages.append, word(), lease.token),
    ):
        with pytest.raises(NotFound):
            call(group, "ann", conversation, *args)


def drive(remote: RemoteHistory, group: str, user: str, conversation: str, turns: int) -> None:
    """Take the wheel again and again; with it, write a few messages one by one."""
    done = 0
    while done < turns:
        try:
            lease = remote.call("conversations.take", group, user, conversation, 30)
        except LeaseHeld:
            continue
        for number in range(4):
            remote.call("messages.append", group, user, conversation, word(f"{lease.token}:{number}"), lease.token)
        remote.call("conversations.release", group, user, conversation, lease.token)
        done += 1


def test_drivers_of_several_processes_never_interleave(
    history: History, group: str, conversation: str, launcher: Launcher
) -> None:
    """Three drivers fight for the wheel: what each writes while having it is in one piece."""
    users = ("ann", "bob", "cid")
    remotes = [RemoteHistory(launcher, history.pool.path) for _ in users]
    threads = [
        threading.Thread(target=drive, args=(remote, group, user, conversation, 12))
        for remote, user in zip(remotes, users, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [one.text for one in history.messages.list(group, "ann", conversation, 1000, order="asc")[0]]
    tokens = [int(text.split(":")[0]) for text in said]
    assert [text.split(":")[1] for text in said] == ["0", "1", "2", "3"] * 36
    assert tokens == sorted(tokens) and len(set(tokens)) == 36


def test_a_driver_who_was_stopped_comes_too_late(
    history: History, group: str, conversation: str, launcher: Launcher
) -> None:
    """A process that is stopped inside its append holds the conversation; once it goes on, what was allowed is written.

    One that is stopped before it, until its lease has ended and another has the wheel, is refused.
    """
    lease = history.conversations.take(group, "bob", conversation, 30)
    slow = RemoteHistory(launcher, history.pool.path, fault="put.linked:stop")
    slow.begin("messages.append", group, "bob", conversation, word("late"), lease.token)
    slow.worker.wait_stopped()
    with pytest.raises(PoolBusy), history.pool.exclusive(lock_of(history, conversation), timeout_s=0.05):
        pass  # the lock, which would be waited for
    slow.worker.signal(signal.SIGCONT)
    assert [one.text for one in slow.finish()] == ["late"]
    history.conversations.release(group, "bob", conversation, lease.token)
    history.conversations.take(group, "ann", conversation)
    slow.begin("messages.append", group, "bob", conversation, word("too late"), lease.token)
    with pytest.raises(LeaseLost):
        slow.finish()
    assert [one.text for one in history.messages.recent(group, "ann")] == ["late"]
    assert isinstance(LeaseLost("x"), Conflict)


def lock_of(history: History, key: str) -> str:
    """The name of the lock that changes of `key` take."""
    return f"{history.name}/{zlib.crc32(key.encode()) % LOCKS}"
