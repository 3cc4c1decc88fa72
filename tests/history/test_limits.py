from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from sharedrag import Pool
from sharedrag.history import History, InvalidRequest, NewMessage
from tests.history.helpers import WordsEmbedder, asked


def test_who_only_looks_makes_no_collection_of_exchanges(pool: Pool) -> None:
    """Exporting, erasing, deleting or tidying without an embedder does not settle how wide vectors are."""
    bare = History(pool)
    group = bare.groups.create("x", owner="ann").id
    conversation = bare.conversations.create(group, "ann").id
    bare.messages.append(group, "ann", conversation, [NewMessage(text="hello")])
    bare.users.export("ann")
    bare.tidy()
    bare.conversations.delete(group, "ann", conversation)
    bare.users.erase("ann")
    bare.groups.delete(group)
    assert pool.collections() == ["history"]
    full = History(pool, embedder=WordsEmbedder())
    group = full.groups.create("x", owner="ann").id
    full.messages.append(group, "ann", full.conversations.create(group, "ann").id, asked("Where?", "There."))
    assert bare.store.exchanges.dimension == WordsEmbedder.dimension
    assert len(bare.users.export("ann")["exchanges"]) == 1


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (datetime(2024, 5, 1, 12), datetime(2024, 5, 1, 12, tzinfo=UTC)),  # noqa: DTZ001
        (datetime(2024, 5, 1, 12, tzinfo=timezone(timedelta(hours=2))), datetime(2024, 5, 1, 10, tzinfo=UTC)),
    ],
)
def test_times_are_in_utc(history: History, group: str, given: datetime, stored: datetime) -> None:
    """A time without a zone is UTC; what is returned is what will be read."""
    conversation = history.conversations.create(group, "ann").id
    (written,) = history.messages.append(group, "ann", conversation, [NewMessage(text="x", created=given)])
    assert written.created == stored and written.created.utcoffset() == timedelta(0)
    assert history.messages.get(group, "ann", conversation, written.id) == written


@pytest.mark.parametrize(
    "message",
    [
        NewMessage(text="x", model="\ud800"),
        NewMessage(text="x", parts=[{"a": {1, 2}}]),
        NewMessage(text="x", parts=[{"a": "\ud800"}]),
    ],
)
def test_what_is_not_json_is_refused_before_anything_is_written(history: History, group: str, message: NewMessage) -> None:
    """Also where an exchange would have been written first."""
    conversation = history.conversations.create(group, "ann").id
    with pytest.raises(InvalidRequest):
        history.messages.append(group, "ann", conversation, [*asked("Where?", "There."), message])
    assert len(history.store.exchanges) == 0 and history.messages.recent(group, "ann") == []


def test_a_label_is_printable(history: History, group: str) -> None:
    """It is shown in lists of keys."""
    for label in ("a\nb", "x" * 257, "\ud800"):
        with pytest.raises(InvalidRequest, match="label"):
            history.keys.create("bob", group, label=label)
