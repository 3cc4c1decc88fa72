"""A user's data: taken along as JSON, or erased everywhere.

Erasing goes by what the records themselves say, step by step, and each step finds again what is left: killed anywhere, it
is completed by calling it again. Nobody's memory of it is asked, and nothing is marked as half-erased.

What goes: keys and memberships first, so that nothing new comes; then exchanges whose question or answer is theirs,
messages with all that others said of them, their own votes, comments, confirmations, flags and corrections, leases and
notes, conversations that are empty then. What stays without their name: conversations in which others wrote too, and a
moderator's decisions. What others quoted of them in their own words is the others'.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import orjson

from sharedrag.collection import Collection
from sharedrag.filters import And, Filter, Or, Where
from sharedrag.history.records import Store, check_text, lease_id, of_kind

ERASED_USER = "(erased)"
_BATCH = 2_000
_NAMES = {
    "vote": "votes",
    "comment": "comments",
    "confirm": "confirmations",
    "flag": "flags",
    "supersede": "corrections",
    "lease": "leases",
    "once": "notes",
    "gone": "notes",
}
_EXPORTED = ("member", "conversation", "message", "comment", "vote", "confirm", "supersede", "flag", "moderation", "key")


class Users:
    """`history.users`: for the user in question, or for an administrator; which of them calls is the caller's to check."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def export(self, user: str, group: str | None = None) -> dict[str, Any]:
        """Everything that the history holds of a user, in a group or in all: JSON values, by kind, the oldest first.

        Raises `InvalidRequest`.
        """
        wanted = _of_user(user, group)
        found: dict[str, Any] = {"user": user, "group": group, **{f"{kind}s": [] for kind in _EXPORTED}, "exchanges": []}
        for record in self._store.records.find(wanted):
            kind = record.metadata["kind"]
            if kind in _EXPORTED:
                fields = {key: value for key, value in record.metadata.items() if key not in ("kind", "stretches", "admin")}
                if "parts" in fields:
                    fields["parts"] = orjson.loads(fields["parts"])
                entry = {"id": record.id, "created": record.created.isoformat(), **fields}
                if record.text is not None:
                    entry["text"] = record.text
                found[f"{kind}s"].append(entry)
        exchanges = self._store.exchanges.find(_exchanges_of(user, group)) if self._store.has_exchanges else []
        for record in exchanges:
            cut = record.metadata["cut"]
            fields = {key: value for key, value in record.metadata.items() if key not in ("kind", "cut")}
            text = record.text or ""
            entry = {"id": record.id, "created": record.created.isoformat(), **fields}
            if fields["asked_by"] == user:
                entry["question"] = text[:cut]
            if fields["author"] == user:
                entry["answer"] = text[cut + 2 :]
            found["exchanges"].append(entry)
        return found

    def erase(self, user: str, group: str | None = None) -> dict[str, int]:
        """Erase a user, from a group or everywhere; returns how many records of each kind went. Raises `InvalidRequest`.

        When it returns, no process finds anything of theirs any more; the bytes leave the pool with the next maintenance.
        """
        wanted = _of_user(user, group)
        store = self._store
        counts: Counter[str] = Counter()
        for kind, name in (("key", "keys"), ("member", "memberships")):
            counts[name] = _delete(store.records, _ids(store.records, And(Where("kind", "==", kind), wanted)))
        store.wait_for_others()
        counts["keys"] += _delete(store.records, _ids(store.records, And(Where("kind", "==", "key"), wanted)))
        messages = self._erase_messages(wanted, counts)
        store.wait_for_others()  # whoever was about to answer, judge or remark on one of them has done so
        counts["votes"] += _delete(store.records, store.marks_on(messages))
        if store.has_exchanges:
            counts["exchanges"] += _delete(store.exchanges, _ids(store.exchanges, _exchanges_of(user, group)))
        self._erase_marks(user, group, wanted, counts)
        self._erase_conversations(wanted, counts)
        store.purge()
        return dict(counts)

    def _erase_messages(self, wanted: Filter, counts: Counter[str]) -> list[str]:
        """Returns the ids that these messages had."""
        by_group: dict[str, list[str]] = {}
        table = self._store.records.scan(And(Where("kind", "==", "message"), wanted), columns=["id", "metadata"])
        for one, metadata in zip(table["id"].to_pylist(), table["metadata"].to_pylist(), strict=True):
            by_group.setdefault(orjson.loads(metadata)["group"], []).append(one)
        for group, ids in by_group.items():
            for start in range(0, len(ids), _BATCH):
                some = ids[start : start + _BATCH]
                counts["exchanges"] += self._store.delete_messages(group, some)
                counts["messages"] += len(some)
        return [one for ids in by_group.values() for one in ids]

    def _erase_marks(self, user: str, group: str | None, wanted: Filter, counts: Counter[str]) -> None:
        records = self._store.records
        for kind, name in _NAMES.items():
            counts[name] += _delete(records, _ids(records, And(Where("kind", "==", kind), wanted)))
        about: Filter = And(Where("about", "==", user), Where("kind", "in", list(_NAMES)))
        if group is not None:
            about = And(about, Where("group", "==", group))
        counts["votes"] += _delete(records, _ids(records, about))  # on messages that went in an erasure that was cut short
        for one in records.find(And(Where("kind", "==", "moderation"), wanted)):
            records.put([one.id], metadata=[{**one.metadata, "user": ERASED_USER}], created=one.created)
            counts["decisions"] += 1

    def _erase_conversations(self, wanted: Filter, counts: Counter[str]) -> None:
        store = self._store
        for one in store.records.find(And(Where("kind", "==", "conversation"), wanted)):
            with store.changing(one.id):
                (still,) = store.get(one.id)
                if still is None:
                    continue
                if store.records.find(of_kind("message", conversation=one.id), limit=1):
                    fields = {**still.metadata, "user": ERASED_USER, "metadata": {}}
                    store.records.put([one.id], metadata=[fields], created=still.created)
                else:
                    store.vanish(still.metadata["group"], "conversation", [one.id], [lease_id(one.id)])
            counts["conversations"] += 1


def _of_user(user: str, group: str | None) -> Filter:
    check_text(user, "the user", 1024)
    mine = Where("user", "==", user)
    return mine if group is None else And(mine, Where("group", "==", group))


def _exchanges_of(user: str, group: str | None) -> Filter:
    mine = Or(Where("asked_by", "==", user), Where("author", "==", user))
    return mine if group is None else And(mine, Where("group", "==", group))


def _ids(collection: Collection, wanted: Filter) -> list[str]:
    return collection.scan(wanted, columns=["id"])["id"].to_pylist()  # type: ignore[no-any-return]


def _delete(collection: Collection, ids: Sequence[str]) -> int:
    return sum(collection.delete(ids[start : start + _BATCH]) for start in range(0, len(ids), _BATCH))
