"""What nobody needs any more: messages beyond a group's retention, day-old notes, dead leases, half-written exchanges."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime, timedelta

import orjson

from sharedrag.errors import PoolBusy
from sharedrag.filters import And, Created, Where
from sharedrag.history.models import Group
from sharedrag.history.records import Store, group_of, lease_id, microseconds, of_kind
from sharedrag.memory.layout import KEY_EPOCH_US, clock_of
from sharedrag.search import feed

NOTES_LAST = timedelta(days=1)
_APPEND_LASTS = timedelta(hours=1)  # no append is still between its two puts after that
_BATCH = 2_000


def tidy(store: Store, now: datetime | None = None) -> dict[str, int]:
    """One round; returns how many records of each kind went, none if another process is at it."""
    moment = now or datetime.now(UTC)
    counts: Counter[str] = Counter()
    try:
        with store.pool.exclusive(f"{store.name}/tidy", timeout_s=0.0):
            for record in store.find("group"):
                _retain(store, group_of(record), moment, counts)
            if counts["messages"]:
                store.purge()
            _forget_notes(store, moment, counts)
            _forget_leases(store, moment, counts)
            if store.has_exchanges:
                _sweep_exchanges(store, moment, counts)
    except PoolBusy:
        return {}
    return dict(counts)


def _retain(store: Store, group: Group, now: datetime, counts: Counter[str]) -> None:
    """Erase what is older than the group keeps; conversations that are empty then."""
    if group.policy.retention_days is None:
        return
    until = Created("<", now - timedelta(days=group.policy.retention_days))
    ids = store.records.scan(And(of_kind("message", group=group.id), until), columns=["id"])["id"].to_pylist()
    for start in range(0, len(ids), _BATCH):
        some = ids[start : start + _BATCH]
        counts["exchanges"] += store.delete_messages(group.id, some, notes=False)
        counts["messages"] += len(some)
    old = store.records.scan(And(of_kind("conversation", group=group.id), until), columns=["id"])["id"].to_pylist()
    if old:
        written = store.records.scan(of_kind("message", group=group.id), columns=["metadata"])["metadata"].to_pylist()
        alive = {orjson.loads(one)["conversation"] for one in written}
        for one in old:
            if one not in alive:
                with store.changing(one):
                    if not store.records.find(of_kind("message", conversation=one), limit=1):
                        store.vanish(group.id, "conversation", [one], [lease_id(one)])
                        counts["conversations"] += 1


def _forget_notes(store: Store, now: datetime, counts: Counter[str]) -> None:
    old = And(Where("kind", "in", ["once", "gone"]), Created("<", now - NOTES_LAST))
    ids = store.records.scan(old, columns=["id"])["id"].to_pylist()
    for start in range(0, len(ids), _BATCH):
        counts["notes"] += store.records.delete(ids[start : start + _BATCH])


def _forget_leases(store: Store, now: datetime, counts: Counter[str]) -> None:
    ended_us = microseconds(now - NOTES_LAST)
    for one in store.find("lease"):
        with store.changing(one.metadata["conversation"]):
            (still,) = store.get(one.id)
            if still is not None and still.metadata["until_us"] < ended_us:
                counts["leases"] += store.records.delete([one.id])


def _sweep_exchanges(store: Store, now: datetime, counts: Counter[str]) -> None:
    """Delete exchanges of which a message is missing: an append was killed before its messages were written.

    Looks at each exchange once, when it is an hour old; the record `tidy/exchanges` says how far that went.
    """
    (note,) = store.get("tidy/exchanges")
    place: str | None = None if note is None else note.metadata["place"]
    young_us = microseconds(now - _APPEND_LASTS)
    while True:
        fresh = store.exchanges.changes(place, _BATCH)
        at = feed.decoded(place)
        orphans = []
        young = False
        for change in fresh.changes:
            young = clock_of(change.key) + KEY_EPOCH_US >= young_us
            if young:
                break
            at = at.after(change.key)
            record = change.record
            if record is not None and not all(record.metadata[key] in store.records for key in ("question_id", "answer_id")):
                orphans.append(change.id)
        counts["exchanges"] += store.exchanges.delete(orphans)
        reached = at.encoded()
        if reached != place and at.lanes:
            store.records.put(["tidy/exchanges"], metadata=[{"kind": "tidy", "place": reached}])
            place = reached
        if young or not fresh.more:
            return
