"""Collections by name: found in any node's manifest, declared in one's own, dropped in all."""

from __future__ import annotations

import random
import time
from dataclasses import replace

from sharedrag import faults
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import CollectionEntry, Entry, Manifest, State, check_catalog_room, differs
from sharedrag.errors import CollectionMismatch, CollectionNotFound, PoolBusy
from sharedrag.memory import order

METRICS = ("cosine", "ip", "l2")
DTYPES = ("float32", "float16")
DIMENSION_MAX = 65_536
NAME_BYTES_MAX = 255
_DECLARE_ATTEMPTS, _DECLARE_PAUSE_S = 20, 0.01


def definition(
    name: str,
    dimension: int | None,
    metric: str,
    dtype: str,
    embedding_model: str | None,
    recall_target: float,
) -> CollectionEntry:
    """The definition asked for, not yet numbered; raises ValueError for an impossible one."""
    if not _is_label(name):
        raise ValueError(f"collection name {name!r:.80}: want a str of 1 to {NAME_BYTES_MAX} bytes, all of it valid Unicode")
    if dimension is not None and (type(dimension) is not int or not 1 <= dimension <= DIMENSION_MAX):
        raise ValueError(f"dimension {dimension!r}: want an int from 1 to {DIMENSION_MAX:,}, or None for no vectors")
    if metric not in METRICS:
        raise ValueError(f"metric {metric!r}: want one of {', '.join(METRICS)}")
    if dtype not in DTYPES:
        raise ValueError(f"dtype {dtype!r}: want one of {', '.join(DTYPES)}")
    if embedding_model not in (None, "") and not _is_label(embedding_model):
        raise ValueError(f"embedding_model {embedding_model!r:.80}: want a str of up to {NAME_BYTES_MAX} bytes, or None")
    if not 0.5 <= recall_target <= 0.999:
        raise ValueError(f"recall_target {recall_target!r}: from 0.5 to 0.999; for all of them search with exact=True")
    now_us = time.time_ns() // 1000
    return CollectionEntry(
        0, name, dimension, metric, dtype, embedding_model, now_us, recall_target=round(float(recall_target), 6)
    )


def _is_label(given: object) -> bool:
    """True for a str that a manifest can hold: its slot is small, and JSON has no lone surrogates."""
    try:
        return isinstance(given, str) and 1 <= len(given.encode()) <= NAME_BYTES_MAX
    except UnicodeEncodeError:
        return False


def find(arena: Arena, name: str) -> CollectionEntry | None:
    """The collection's definition in the newest manifests (of the lowest node that has it), or None."""
    for one in arena.refresh().manifests:
        found = one.collection(name)
        if found is not None:
            return found
    return None


def check_same(found: CollectionEntry, wanted: CollectionEntry, path: str) -> None:
    """Raise `CollectionMismatch` unless what exists is what is wanted (without a dimension: whatever exists)."""
    models = {found.embedding_model, wanted.embedding_model} - {None}
    if len(models) < 2 and (wanted.dimension is None or not differs(found, wanted)):
        return
    raise CollectionMismatch(
        f"collection {found.name!r} has dimension={found.dimension}, metric={found.metric!r}, dtype={found.dtype!r}, "
        f"embedding_model={found.embedding_model!r}; asked for dimension={wanted.dimension}, metric={wanted.metric!r}, "
        f"dtype={wanted.dtype!r}, embedding_model={wanted.embedding_model!r}",
        operation="collection",
        path=path,
        hint="Use its definition, another name, or drop it first",
    )


def find_or_declare(arena: Arena, wanted: CollectionEntry) -> CollectionEntry:
    """The collection's entry, declared in this node's catalog if no node has it. Raises `CollectionMismatch`.

    One without vectors that nobody has written to gives way to one with vectors: a reader came first, who did not know them.
    """
    for _ in range(_DECLARE_ATTEMPTS):
        found = find(arena, wanted.name)
        if found is None or (wanted.dimension and not found.dimension and _withdrawn_unused(arena, wanted.name)):
            if not declare(arena, wanted):
                time.sleep(random.uniform(0, _DECLARE_PAUSE_S))  # whoever of the two comes first decides
                continue
            found = find(arena, wanted.name) or wanted
        check_same(found, wanted, arena.path)
        return found
    raise PoolBusy(
        f"others define collection {wanted.name!r} otherwise, again and again", operation="collection", path=arena.path
    )


def _withdrawn_unused(arena: Arena, name: str) -> bool:
    """Take a collection from all catalogs; False if a node has something in it, which then keeps its definition."""
    for node, one in enumerate(arena.refresh().manifests):
        if one.collection(name) is None:
            continue
        with arena.node_locked("collection", node) as current:
            assert current is not None
            found = current.collection(name)
            if found is None:
                continue
            if found.dimension or not _is_unused(current, name):
                return False
            arena.publish(_without_definition(current, name))
    return True


def _without_definition(current: Manifest, name: str) -> Manifest:
    return current.successor(collections=tuple(one for one in current.collections if one.name != name))


def drop(arena: Arena, name: str) -> None:
    """Retire a collection's entries in every node and take it from the catalogs. Raises `CollectionNotFound`, `PoolBusy`."""
    dropped = False
    for node in range(arena.geometry.nodes):
        if arena.refresh().manifests[node].collection(name) is None:
            continue
        with arena.node_locked("drop", node) as current:
            assert current is not None
            found = current.collection(name)
            if found is not None:
                arena.publish(_without(current, found))
                dropped = True
        faults.passing("drop.published")
    if not dropped:
        raise CollectionNotFound(
            f"no collection {name!r}", operation="drop", path=arena.path, hint="`sharedrag info` lists them"
        )
    arena.refresh()


def _without(current: Manifest, found: CollectionEntry) -> Manifest:
    at = current.generation + 1
    changed: dict[int, Entry | None] = {
        entry.uid: entry._replace(state=State.RETIRED, retired_at=at)
        for entry in current.entries
        if entry.collection == found.number and entry.visible
    }
    return current.with_entries(changed, collections=tuple(one for one in current.collections if one is not found))


def declare(arena: Arena, wanted: CollectionEntry) -> bool:
    """Put a collection into this node's catalog unless it is there; another definition gives way where nothing was written.

    False if it cannot, or if another node defined it otherwise at the same moment: then it is taken back. Raises `PoolBusy`,
    `PoolFull`.
    """
    with arena.node_locked("collection") as current:
        assert current is not None
        found = current.collection(wanted.name)
        if found is not None and (not differs(found, wanted) or not _is_unused(current, wanted.name)):
            return not differs(found, wanted)
        others = tuple(one for one in current.collections if one is not found)
        numbered = replace(wanted, number=current.next_collection, rows_retired=0)
        new = current.successor(collections=(*others, numbered), next_collection=current.next_collection + 1)
        check_catalog_room(arena.geometry, new, arena.path)
        arena.publish(new)
    order.fence_all_processes()  # of two nodes that declare at once, at least one now sees the other
    everywhere = [found for one in arena.refresh().manifests if (found := one.collection(wanted.name))]
    if not any(differs(one, wanted) for one in everywhere):
        return True
    with arena.node_locked("collection") as current:
        assert current is not None
        if _is_unused(current, wanted.name):
            arena.publish(_without_definition(current, wanted.name))
    return False


def _is_unused(current: Manifest, name: str) -> bool:
    found = current.collection(name)
    return found is not None and not any(entry.collection == found.number and entry.visible for entry in current.entries)
