"""A node's manifest: the one truth about its extents, segments and collections. Two slots, no log, no recovery step.

A manifest of generation g is written whole into slot g & 1, then the root word is stored. A process killed in between
leaves the old root and its untouched slot. A reader whose slot is overwritten while it copies sees a wrong checksum and
a newer root, and reads again.

Manifest slot (offset, size, field; writer: the holder of the node lock):

       0   4  magic "SRMF"              32   8  segment counter (the next segment's number)
       4   4  entries                   40   8  published, us since 1970
       8   8  generation                48 128  relies on: least generation of each node's manifest, 16 x u64
      16   8  body length, B           176   8  xxh3-64 of bytes 0..175
      24   8  xxh3-64 of the body      184      body: the entries, then the catalog as JSON

Entry (104 B): an allocated run of extents; every extent that no entry names is free.

       0   8  uid: node << 48 | number       24   8  extents                           56   8  greatest order key
       8   1  kind                           32   8  rows (0 while open)               64   8  size used, B
       9   1  state                          40   8  retired at (first generation      72   8  of: uid of the segment that
      10   2  lane                                   that does not show it)                    columns or terms belong to
      12   4  collection (the node's own)    48   8  least order key                   80   4  an index's nprobe
      16   8  first extent                                                             84   4  its candidates
                                                                                       88   4  its recall, millionths
                                                                                       92   4  the recall aimed at, the same
                                                                                       96   8  (zero)

A segment whose `of` is its own uid is to be rewritten without its dead rows (`maintenance/purge`).
"""

from __future__ import annotations

import enum
import struct
import time
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

import orjson
import xxhash

from sharedrag import faults
from sharedrag.errors import PoolDamaged, PoolFull
from sharedrag.memory import layout, order
from sharedrag.memory.layout import Geometry
from sharedrag.memory.region import Region

_HEADER = struct.Struct("<4sIQQQQQ128s")
_HEADER_CHECKSUM = struct.Struct("<Q")
_BODY_OFFSET = _HEADER.size + _HEADER_CHECKSUM.size
_ENTRY = struct.Struct("<QBBHIQQQQQQQQIIII8x")
_RELIES_ON = struct.Struct(f"<{layout.NODES_MAX}Q")
_MAGIC = b"SRMF"
_READ_ATTEMPTS = 2000
_COUNTER_DIGITS = 20  # `rows_retired` and `next` are written in decimal, and grow
assert _BODY_OFFSET == 184 and _ENTRY.size == 104
UID_NODE_SHIFT = 48


class Kind(enum.IntEnum):
    """What an entry's extents hold."""

    SEGMENT = 1
    DELETIONS = 2
    COLUMNS = 3
    TERMS = 4
    INDEX = 5


class State(enum.IntEnum):
    """Where an entry stands; free -> open -> sealed -> retired -> punching -> free, or free -> building -> sealed."""

    OPEN = 1
    SEALED = 2
    BUILDING = 3
    RETIRED = 4
    PUNCHING = 5


class Entry(NamedTuple):
    """One allocated run of extents; see the table above."""

    uid: int
    kind: int
    state: int
    lane: int
    collection: int
    first_extent: int
    extents: int
    rows: int
    retired_at: int
    key_min: int
    key_max: int
    size_used: int
    of: int = 0
    nprobe: int = 0
    candidates: int = 0
    recall_millionths: int = 0
    target_millionths: int = 0

    @property
    def visible(self) -> bool:
        """True if readers of this manifest may use it."""
        return self.state in (State.OPEN, State.SEALED)


@dataclass(frozen=True, slots=True)
class CollectionEntry:
    """What a node's catalog says of a collection; `number` is this node's own, `rows_retired` all rows that left it.

    `recall_target` is what its indexes are built to reach at k = 10.
    """

    number: int
    name: str
    dimension: int | None
    metric: str
    dtype: str
    embedding_model: str | None
    created_us: int
    rows_retired: int = 0
    recall_target: float = 0.95


@dataclass(frozen=True, slots=True)
class Manifest:
    """One generation of one node, immutable."""

    node: int
    generation: int
    next_number: int
    published_us: int
    relies_on: tuple[int, ...]
    entries: tuple[Entry, ...]
    collections: tuple[CollectionEntry, ...]
    next_collection: int = 1
    by_uid: dict[int, Entry] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        """Index the entries by uid."""
        object.__setattr__(self, "by_uid", {entry.uid: entry for entry in self.entries})

    @classmethod
    def empty(cls, node: int) -> Manifest:
        """The first manifest of a node."""
        return cls(node, 1, 1, time.time_ns() // 1000, (0,) * layout.NODES_MAX, (), ())

    def collection(self, name: str) -> CollectionEntry | None:
        """The catalog's entry of that name, or None."""
        return next((entry for entry in self.collections if entry.name == name), None)

    def successor(self, **changes: Any) -> Manifest:
        """The next generation, with these fields changed."""
        return replace(self, generation=self.generation + 1, published_us=time.time_ns() // 1000, **changes)

    def with_entries(self, changed: dict[int, Entry | None], **changes: Any) -> Manifest:
        """The next generation, with entries replaced, added (a new uid) or, where None, removed."""
        kept = [changed.get(entry.uid, entry) for entry in self.entries]
        added = [entry for uid, entry in changed.items() if entry is not None and uid not in self.by_uid]
        return self.successor(entries=tuple(entry for entry in (*kept, *added) if entry is not None), **changes)


def differs(one: CollectionEntry, other: CollectionEntry) -> bool:
    """True if the two cannot be the same collection."""
    return (one.dimension, one.metric, one.dtype) != (other.dimension, other.metric, other.dtype)


def with_rows_retired(collection: CollectionEntry, rows: int) -> CollectionEntry:
    """The catalog entry after `rows` of the collection's rows left for good."""
    return replace(collection, rows_retired=collection.rows_retired + rows)


def encode(manifest: Manifest) -> bytes:
    """The slot's bytes of a manifest."""
    catalog = {
        "next": manifest.next_collection,
        "collections": [
            {name: getattr(entry, name) for name in CollectionEntry.__slots__} for entry in manifest.collections
        ],
    }
    body = b"".join(_ENTRY.pack(*entry) for entry in manifest.entries) + orjson.dumps(catalog)
    header = _HEADER.pack(
        _MAGIC,
        len(manifest.entries),
        manifest.generation,
        len(body),
        xxhash.xxh3_64_intdigest(body),
        manifest.next_number,
        manifest.published_us,
        _RELIES_ON.pack(*manifest.relies_on),
    )
    return header + _HEADER_CHECKSUM.pack(xxhash.xxh3_64_intdigest(header)) + body


def decode(node: int, header: bytes, body: bytes) -> Manifest:
    """The manifest in a slot whose checksums are right."""
    _, count, generation, _, _, next_number, published_us, relies_on = _HEADER.unpack(header)
    entries = tuple(Entry._make(fields) for fields in _ENTRY.iter_unpack(body[: count * _ENTRY.size]))
    catalog = orjson.loads(body[count * _ENTRY.size :])
    collections = tuple(CollectionEntry(**entry) for entry in catalog["collections"])
    return Manifest(
        node, generation, next_number, published_us, _RELIES_ON.unpack(relies_on), entries, collections, catalog["next"]
    )


def check_catalog_room(geometry: Geometry, manifest: Manifest, path: str) -> None:
    """Raise `PoolFull` if the collections leave no room in the slot for an entry for each extent.

    With that room kept free, a manifest outgrows its slot only here, where nothing is lost yet.
    """
    catalog = len(encode(manifest)) - _ENTRY.size * len(manifest.entries) + _COUNTER_DIGITS * len(manifest.collections)
    room = geometry.manifest_slot_size - _ENTRY.size * geometry.extents_per_node
    if catalog > room:
        raise PoolFull(
            f"{len(manifest.collections):,} collections need {catalog:,} bytes of the manifest, there are {room:,} for them",
            operation="collection",
            path=path,
            hint="Drop collections that are not needed, tell records apart by metadata, or make a pool of larger capacity",
        )


def root_index(geometry: Geometry, node: int) -> int:
    """Index of a node's root in `Region.words`."""
    return (geometry.node_offset(node) + layout.ROOT_OFFSET) >> 3


def publish(region: Region, geometry: Geometry, manifest: Manifest) -> None:
    """Write the manifest whole, then store its root. REQUIRES: the node lock (or a file without a name).

    Raises `PoolFull` when the manifest's slot has no room or no memory.
    """
    data = encode(manifest)
    if len(data) > geometry.manifest_slot_size:
        raise PoolFull(
            f"the manifest needs {len(data):,} bytes, its slot has {geometry.manifest_slot_size:,}",
            operation="publish",
            path=region.path,
            hint="Too many small segments: run `sharedrag maintain`, or make a pool of larger capacity",
        )
    start = geometry.manifest_offset(manifest.node, manifest.generation)
    if len(data) > layout.MANIFEST_RESERVED:
        region.reserve(start, -(-len(data) // layout.MANIFEST_RESERVED) * layout.MANIFEST_RESERVED, operation="publish")
    region.bytes[start : start + len(data)] = data
    faults.passing("manifest.written")
    region.words[root_index(geometry, manifest.node)] = order.checked(manifest.generation)
    faults.passing("manifest.published")


def load(region: Region, geometry: Geometry, node: int) -> Manifest:
    """The node's manifest at the newest generation; raises `PoolDamaged`."""
    root = root_index(geometry, node)
    what, offset = "", 0
    for attempt in range(_READ_ATTEMPTS):
        word = region.words[root]
        if not order.is_checked(word):
            raise PoolDamaged(
                f"the root of node {node} fails its check", offset=root << 3, operation="open", path=region.path
            )
        generation = word & order.VALUE_MASK
        found = _try_load(region, geometry, node, generation)
        if isinstance(found, Manifest):
            return found
        if region.words[root] == word and attempt:  # nobody overwrote it meanwhile: it is damage
            what, offset = found
            break
        time.sleep(0)
    raise PoolDamaged(
        what or f"the manifest of node {node} never held still", offset=offset, operation="open", path=region.path
    )


def _try_load(region: Region, geometry: Geometry, node: int, generation: int) -> Manifest | tuple[str, int]:
    start = geometry.manifest_offset(node, generation)
    header = bytes(region.bytes[start : start + _HEADER.size])
    (checksum,) = _HEADER_CHECKSUM.unpack(region.bytes[start + _HEADER.size : start + _BODY_OFFSET])
    magic, count, written, length, body_checksum, *_ = _HEADER.unpack(header)
    if magic != _MAGIC or checksum != xxhash.xxh3_64_intdigest(header) or written != generation:
        return f"the manifest header of node {node} (generation {generation}) is wrong", start
    if length > geometry.manifest_slot_size - _BODY_OFFSET or count * _ENTRY.size > length:
        return f"the manifest of node {node} has an impossible length", start
    body = bytes(region.bytes[start + _BODY_OFFSET : start + _BODY_OFFSET + length])
    if body_checksum != xxhash.xxh3_64_intdigest(body):
        return f"the manifest of node {node} (generation {generation}) fails its checksum", start + _BODY_OFFSET
    return decode(node, header, body)
