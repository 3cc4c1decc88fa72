"""Collections by name: found in any node's manifest, declared in one's own, dropped in all."""

from __future__ import annotations

import time

from sharedrag import faults
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import CollectionEntry, Entry, Manifest, State, check_catalog_room, differs
from sharedrag.errors import CollectionMismatch, CollectionNotFound
from sharedrag.memory import order

METRICS = ("cosine", "ip", "l2")
DTYPES = ("float32", "float16")
DIMENSION_MAX = 65_536
NAME_BYTES_MAX = 255


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
    """The collection's entry, declared in this node's catalog if no node has it. Raises `CollectionMismatch`."""
    found = find(arena, wanted.name)
    if found is None:
        declare(arena, wanted)
        order.fence_all_processes()  # of two nodes that declare at once, at least one now sees the other
        found = find(arena, wanted.name) or wanted
        try:
            check_same(found, wanted, arena.path)
        except CollectionMismatch:
            _withdraw(arena, wanted.name)
            raise
    check_same(found, wanted, arena.path)
    return found


def _withdraw(arena: Arena, name: str) -> None:
    with arena.node_locked("collection") as current:
        assert current is not None
        arena.publish(current.successor(collections=tuple(one for one in current.collections if one.name != name)))


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


def declare(arena: Arena, wanted: CollectionEntry) -> Manifest:
    """Put a collection into this node's catalog unless it is there; returns the node's manifest.

    Raises `PoolBusy`, `PoolFull`.
    """
    with arena.node_locked("collection") as current:
        assert current is not None
        if current.collection(wanted.name) is not None:
            return current
        numbered = CollectionEntry(
            current.next_collection,
            wanted.name,
            wanted.dimension,
            wanted.metric,
            wanted.dtype,
            wanted.embedding_model,
            wanted.created_us,
            recall_target=wanted.recall_target,
        )
        new = current.successor(collections=(*current.collections, numbered), next_collection=current.next_collection + 1)
        check_catalog_room(arena.geometry, new, arena.path)
        arena.publish(new)
        return new
