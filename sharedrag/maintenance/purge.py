"""Having the bytes of deleted records leave the pool, where they would otherwise stay for as long as few rows are dead.

Whoever deleted them marks the segments that hold dead rows: an entry of a segment whose `of` is its own uid. Who fills such
a segment closes it (`Writer.close_marked`), at its next put or within a tick of its keeper; maintenance rewrites such
segments for a single dead row. What takes their place is not marked. Killed anywhere, the marks are still there.
"""

from __future__ import annotations

from collections.abc import Iterable

from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import UID_NODE_SHIFT, Entry, Kind


def mark(arena: Arena, uids: Iterable[int]) -> None:
    """Mark these segments, of whichever nodes. Raises `PoolBusy`."""
    by_node: dict[int, list[int]] = {}
    for uid in uids:
        by_node.setdefault(uid >> UID_NODE_SHIFT, []).append(uid)
    for node, wanted in by_node.items():
        with arena.node_locked("purge", node) as current:
            assert current is not None
            changed: dict[int, Entry | None] = {}
            for uid in wanted:
                entry = current.by_uid.get(uid)
                if entry is not None and entry.visible and not is_marked(entry):
                    changed[uid] = entry._replace(of=uid)
            if changed:
                arena.publish(current.with_entries(changed))


def is_marked(entry: Entry) -> bool:
    """Whether a segment is to be closed and rewritten."""
    return entry.kind == Kind.SEGMENT and entry.of == entry.uid
