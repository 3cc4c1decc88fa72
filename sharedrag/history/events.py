"""Everything new in a group, from whichever node, in the order of its keys: what a live view listens to.

An event is a record that changed, or the note that a deleted one left (`Store.vanish`): a tombstone tells neither group nor
kind, and may be cleared away. Where a listener stands is a place of the collection's feed, good on every node.
"""

from __future__ import annotations

from typing import Any, get_args

from sharedrag.collection import Change, Record
from sharedrag.filters import And, Filter, Where
from sharedrag.history.models import Event, EventKind
from sharedrag.history.records import Store
from sharedrag.search import feed

_KINDS = [*get_args(EventKind), "gone"]
_HIDDEN = frozenset({"kind", "group", "node", "stretches", "token", "of", "id"})


def events(store: Store, group: str | None, place: str | None, limit: int | None) -> tuple[list[Event], str]:
    """At most `limit` events after a place, in a group or in all, and the place after them."""
    wanted: Filter = Where("kind", "in", _KINDS)
    if group is not None:
        wanted = And(Where("group", "==", group), wanted)
    found: list[Event] = []
    while True:
        fresh = store.records.changes(place, None if limit is None else limit - len(found), wanted)
        at = feed.decoded(place)
        for change in fresh.changes:
            at = at.after(change.key)
            if change.record is not None:
                found.append(_event(change, change.record, at))
        place = fresh.place
        if not fresh.more or (limit is not None and len(found) >= limit):
            return found, place


def _event(change: Change, record: Record, place: feed.Place) -> Event:
    held = record.metadata
    gone = held["kind"] == "gone"
    data: dict[str, Any] = {key: value for key, value in held.items() if key not in _HIDDEN}
    if record.text is not None:
        data["text"] = record.text
    return Event.model_construct(
        place=place.encoded(),
        kind=held["of"] if gone else held["kind"],
        id=held["id"] if gone else change.id,
        deleted=gone,
        group=held.get("group"),
        data=data,
        node=held.get("node"),
        created=record.created,
    )
