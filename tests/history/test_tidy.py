from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from pydantic import ValidationError

from sharedrag.history import History, NewMessage, NotFound, Policy
from sharedrag.history.models import RETENTION_DAYS_MAX
from tests.history.helpers import RemoteHistory, asked

NOW = datetime.now(UTC)


def days(count: float) -> timedelta:
    """A while."""
    return timedelta(days=count)


def test_what_a_group_keeps_no_longer_is_erased(history: History, group: str, remote: RemoteHistory) -> None:
    """Messages older than its retention go with their exchanges and marks, conversations when they are empty."""
    old = history.conversations.create(group, "ann").id
    aged = [one.model_copy(update={"created": NOW - days(40)}) for one in asked("Where was it?", "There.")]
    _, answer = history.messages.append(group, "ann", old, aged)
    history.marks.vote(group, "bob", answer.id, 1)
    mixed = history.conversations.create(group, "ann").id
    history.messages.append(group, "ann", mixed, [aged[0], NewMessage(text="Still here")])
    other = history.groups.create("Alps", owner="eve").id
    kept = history.conversations.create(other, "eve").id
    history.messages.append(other, "eve", kept, aged)
    assert history.tidy(NOW).get("messages", 0) == 0, "nobody asked for it"
    history.groups.update(group, policy=Policy(retention_days=30))
    counts = history.tidy(NOW)
    assert counts["messages"] == 3 and counts["exchanges"] == 1
    assert [one.text for one in history.messages.recent(group, "ann")] == ["Still here"]
    assert len(remote.call("messages.recent", other, "eve")) == 2
    assert history.store.records.find({"message": answer.id}) == []
    history.conversations.get(group, "ann", old)  # it was begun just now
    counts = history.tidy(NOW + days(31))
    assert counts["conversations"] == 2 and counts["messages"] == 1
    with pytest.raises(NotFound):
        history.conversations.get(group, "ann", old)


def test_the_longest_retention_can_be_reckoned_with(history: History, group: str) -> None:
    """What would lie before all time is refused, so that one group's wish never ends the tidying of all."""
    with pytest.raises(ValidationError):
        Policy(retention_days=1e9)
    history.groups.update(group, policy=Policy(retention_days=RETENTION_DAYS_MAX))
    assert set(history.tidy(NOW).values()) <= {0}


def test_notes_and_leases_last_a_day(history: History, group: str) -> None:
    """After that nobody comes back for them."""
    conversation = history.conversations.create(group, "ann").id
    history.messages.append(group, "ann", conversation, asked("a?", "b"), idempotency_key="k")
    history.conversations.take(group, "ann", conversation, 10)
    history.once.remember(group, "ann", "n", {})
    history.conversations.delete(group, "ann", history.conversations.create(group, "ann").id)
    assert set(history.tidy(NOW).values()) <= {0}
    assert history.tidy(NOW + days(1.1)) == {"notes": 3, "leases": 1, "exchanges": 0}


def test_one_process_at_a_time_tidies(history: History, group: str, remote: RemoteHistory) -> None:
    """Whoever comes while another is at it has nothing to do, and does not wait."""
    history.once.remember(group, "ann", "n", {})
    with history.pool.exclusive(f"{history.name}/tidy"):
        assert remote.call("tidy", NOW + days(2)) == {}
    assert remote.call("tidy", NOW + days(2))["notes"] == 1


def test_half_written_exchanges_are_swept_once_they_are_old(history: History, group: str) -> None:
    """What a killed append left behind goes after an hour; whole exchanges stay, also those of deleted days."""
    conversation = history.conversations.create(group, "ann").id
    history.messages.append(group, "ann", conversation, asked("Where?", "There."))
    fields = dict(history.store.exchanges.find()[0].metadata, question_id="msg_x", answer_id="msg_y")
    history.store.exchanges.put(["exg_y"], [[1.0] * 64], ["half\n\nwritten"], [fields])
    history.messages.append(group, "ann", conversation, asked("And?", "Here."))
    assert history.tidy(NOW)["exchanges"] == 0 and len(history.store.exchanges) == 3
    assert history.tidy(NOW + timedelta(hours=2))["exchanges"] == 1
    assert history.tidy(NOW + timedelta(hours=3))["exchanges"] == 0
    assert "exg_y" not in history.store.exchanges and len(history.store.exchanges) == 2
