"""What was done under a name, so that it is done once: an idempotency key, or the beginning of a transcript."""

from __future__ import annotations

from typing import Any

from sharedrag.history.records import Store, digest


class Once:
    """`history.once`: small JSON notes, each kept for a day (`tidy`)."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def recall(self, group: str, user: str, name: str) -> dict[str, Any] | None:
        """What was remembered under this name for this user of this group."""
        (found,) = self._store.get(once_id(group, user, name))
        return None if found is None else found.metadata["value"]

    def remember(self, group: str, user: str, name: str, value: dict[str, Any]) -> None:
        """Keep a JSON object under a name; the newest counts."""
        self._store.records.put([once_id(group, user, name)], metadata=[once_fields(group, user, value)])


def once_id(group: str, user: str, name: str) -> str:
    """The record of a name."""
    return "once/" + digest(group, user, name)


def once_fields(group: str, user: str, value: dict[str, Any]) -> dict[str, Any]:
    """What is in it."""
    return {"kind": "once", "group": group, "user": user, "value": value}
