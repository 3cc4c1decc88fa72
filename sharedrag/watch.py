"""Watching a pool: looks at it, one after the other, and what was written between two of them. For `top` and the page's map.

A look costs what changed: manifests are read where a root word differs, rows are counted by watermarks, the map of a node's
extents is made anew only with its generation. What processes cost in memory is dear to find out (the kernel walks their page
tables), so after the first look one process is looked at in `MEMORY_EVERY_S` seconds.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple

import numpy as np
import orjson
from pydantic import BaseModel, Field

from sharedrag import info
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import UID_NODE_SHIFT, Entry, Kind, Manifest, State
from sharedrag.arena.row import PUT
from sharedrag.arena.segment import Segment
from sharedrag.errors import PoolDamaged
from sharedrag.info import CollectionInfo, LaneInfo, NodeInfo, PoolInfo
from sharedrag.memory import layout
from sharedrag.pool import Pool
from sharedrag.segments import batch

MEMORY_EVERY_S = 2.0
_FIRST_SEGMENTS = 4
TEXT_MAX = 300  # characters of a newest write that are shown


class Run(NamedTuple):
    """Consecutive extents that hold one thing; what no run covers is free. In JSON an array of these, in this order."""

    first: int
    extents: int
    kind: str  # segment, deletions, columns, terms, index
    state: str  # open, sealed, building, retired, punching
    collection: str  # "" once it was dropped
    lane: int  # of the node; of a block, 0
    rows: int  # 0 while the segment is open: see `LaneSample.open`


class OpenSegment(NamedTuple):
    """A segment that a lane appends to: rows published so far, and how many it has room for. In JSON an array."""

    first: int
    collection: str
    rows: int
    room: int


class NodeSample(NodeInfo):
    """A node, what was written in it since the look before, and the map of its extents."""

    rows_per_s: float = Field(default=0.0, description="rows published a second: puts and deletes")
    bytes_per_s: float = Field(default=0.0, description="bytes of those rows")
    extents: int = Field(description="how many the node has")
    runs: Sequence[Run] = Field(description="what they hold, in file order; the same as long as `generation` is")


class LaneSample(LaneInfo):
    """A lane, and what was written through it since the look before."""

    rows_per_s: float = 0.0
    bytes_per_s: float = 0.0
    open: list[OpenSegment] = Field(default_factory=list)


class CollectionSample(CollectionInfo):
    """A collection, and what was written to it since the look before."""

    rows_per_s: float = 0.0
    bytes_per_s: float = 0.0


class Write(BaseModel):
    """A row that was just published."""

    collection: str
    id: str
    deleted: bool
    node: int
    lane: int
    written: datetime = Field(description="by its order key")
    text: str | None
    metadata: dict[str, Any]


class PoolSample(PoolInfo):
    """A look at a pool, and the rates since the look before (0 in the first)."""

    at: datetime
    seconds: float = Field(description="since the look before; 0 for the first")
    rows_per_s: float
    bytes_per_s: float
    extent_size: int = Field(default=layout.EXTENT_SIZE, description="bytes")
    nodes: Sequence[NodeSample]
    collections: Sequence[CollectionSample]
    lanes: Sequence[LaneSample]
    newest: list[Write] = Field(description="the newest first; empty unless the watch was asked for them")


class PoolWatch:
    """Looks at a pool again and again. Each viewer has its own, or all share what one sees; safe with threads.

    `newest` is how many of the newest writes a look carries, with their texts: whoever sees them sees all groups'.
    """

    def __init__(self, pool: Pool, newest: int = 0) -> None:
        """Watch an open pool, which stays the caller's to close."""
        self.pool = pool
        self._lock = threading.Lock()
        self._memory = _Memory()
        self._meter = _Meter(pool.arena)
        self._runs: dict[int, tuple[int, list[Run]]] = {}
        self._newest: deque[Write] = deque(maxlen=newest)
        self._before: float | None = None

    def sample(self) -> PoolSample:
        """The pool now, and the rates since the last call. Raises `PoolClosed`, `PoolReplaced`, `PoolDamaged`."""
        with self._lock, self.pool.arena.session.stays():
            now = time.monotonic()
            seconds = 0.0 if self._before is None else now - self._before
            snapshot = self.pool.arena.refresh()
            grown = self._meter.grown(snapshot.manifests)
            if self._newest.maxlen:
                self._remember(grown)
            seen = self.pool.info(memory=self._memory.of)
            self._before = now
            return self._sample(seen, snapshot.manifests, grown, seconds)

    def _sample(self, seen: PoolInfo, manifests: tuple[Manifest, ...], grown: list[_Growth], seconds: float) -> PoolSample:
        rates = _Rates(grown, seconds)
        everything = rates.of("all")
        opened = self._meter.open_segments()
        extents = self.pool.arena.geometry.extents_per_node
        nodes = [
            NodeSample(
                **dict(one),
                **rates.of("node", one.node),
                extents=extents,
                runs=self._runs_of(manifests[one.node]),
            )
            for one in seen.nodes
        ]
        lanes = [
            LaneSample(**dict(one), **rates.of("lane", one.node, one.lane), open=opened.get((one.node, one.lane), []))
            for one in seen.lanes
        ]
        collections = [CollectionSample(**dict(one), **rates.of("collection", one.name)) for one in seen.collections]
        return PoolSample(
            **{name: value for name, value in seen if name not in ("nodes", "collections", "lanes")},
            **everything,
            at=datetime.now(UTC),
            seconds=seconds,
            nodes=nodes,
            collections=collections,
            lanes=lanes,
            newest=list(self._newest),
        )

    def _runs_of(self, current: Manifest) -> list[Run]:
        generation, runs = self._runs.get(current.node, (0, []))
        if generation != current.generation:
            names = {one.number: one.name for one in current.collections}
            runs = [_run(entry, names.get(entry.collection, "")) for entry in current.entries]
            runs.sort()
            self._runs[current.node] = (current.generation, runs)
        return runs

    def _remember(self, grown: list[_Growth]) -> None:
        most = self._newest.maxlen or 0
        if self._before is None:  # all that there is: what was written last is in the segments written last
            grown = sorted(grown, key=lambda one: one.segment.key[one.stop - 1])[-_FIRST_SEGMENTS:]
        found: list[tuple[int, Write]] = []
        for one in grown:
            found += _writes(one, most)
        found.sort(key=lambda item: item[0])
        self._newest.extendleft(write for _, write in found[-most:])


class _Growth(NamedTuple):
    """What was published in one segment since the look before: rows [start, stop)."""

    segment: Segment
    node: int
    lane: int
    collection: str
    start: int
    stop: int
    size: int


class _Open(NamedTuple):
    entry: Entry
    segment: Segment
    node: int
    collection: str


class _Meter:
    """Counts, by watermarks, the rows that are new in each segment since the look before.

    A segment that came since then and is sealed already was filled meanwhile, or merged of older ones: its rows with keys
    above the newest that was seen are the new ones (but for the moment by which lanes' clocks differ).
    """

    def __init__(self, arena: Arena) -> None:
        self._arena = arena
        self._generations: dict[int, int] = {}
        self._rows: dict[int, dict[int, int]] = {}  # node -> uid -> rows counted
        self._open: dict[int, list[_Open]] = {}
        self._newest_key = 0

    def grown(self, manifests: Sequence[Manifest]) -> list[_Growth]:
        """The growth of all segments; in the first look all that there is."""
        newest_before = self._newest_key
        found: list[_Growth] = []
        for current in manifests:
            if self._generations.get(current.node) != current.generation:
                found += self._adopt(current, newest_before)
                self._generations[current.node] = current.generation
            counted = self._rows[current.node]
            for one in self._open[current.node]:
                rows = one.segment.watermark()
                if rows > counted[one.entry.uid]:
                    found.append(_growth(one, counted[one.entry.uid], rows))
                    counted[one.entry.uid] = rows
        self._newest_key = max((newest_before, *(one.segment.key[one.stop - 1] for one in found)))
        return found

    def _adopt(self, current: Manifest, newest_before: int) -> Iterator[_Growth]:
        """Take over a new manifest; yields the growth of what was sealed since. Who calls counts the open segments."""
        names = {one.number: one.name for one in current.collections}
        before = self._rows.get(current.node, {})
        now = self._rows[current.node] = {}
        opened = self._open[current.node] = []
        for entry in current.entries:
            if entry.kind != Kind.SEGMENT or not entry.visible or entry.collection not in names:
                continue
            counted = before.get(entry.uid, 0)
            if entry.state == State.OPEN:
                now[entry.uid] = counted
                opened.append(self._opened(current.node, entry, names))
                continue
            now[entry.uid] = entry.rows
            self._newest_key = max(self._newest_key, entry.key_max)
            if entry.rows > counted and entry.key_max > newest_before:
                one = self._opened(current.node, entry, names)
                if entry.uid not in before:
                    counted = int(np.searchsorted(one.segment.key_array[: entry.rows], np.uint64(newest_before), "right"))
                yield _growth(one, counted, entry.rows)

    def _opened(self, node: int, entry: Entry, names: dict[int, str]) -> _Open:
        return _Open(entry, self._arena.segment(node, entry), node, names[entry.collection])

    def open_segments(self) -> dict[tuple[int, int], list[OpenSegment]]:
        """Node and lane -> the open segments of the lane, as they were counted."""
        found: dict[tuple[int, int], list[OpenSegment]] = {}
        for node, opened in self._open.items():
            for one in opened:
                rows = self._rows[node][one.entry.uid]
                segment = OpenSegment(one.entry.first_extent, one.collection, rows, one.segment.shape.rows)
                found.setdefault((node, one.entry.lane % layout.LANES_PER_NODE), []).append(segment)
        return found


class _Rates:
    """Rows and bytes a second: of all, of each node, lane and collection."""

    def __init__(self, grown: list[_Growth], seconds: float) -> None:
        self._seconds = seconds
        self._sums: dict[tuple[object, ...], tuple[int, int]] = {}
        for one in grown:
            for whose in (("all",), ("node", one.node), ("lane", one.node, one.lane), ("collection", one.collection)):
                rows, size = self._sums.get(whose, (0, 0))
                self._sums[whose] = (rows + one.stop - one.start, size + one.size)

    def of(self, *whose: object) -> dict[str, Any]:
        """The two fields of a sample."""
        rows, size = self._sums.get(whose, (0, 0))
        per_s = 1 / self._seconds if self._seconds else 0.0
        return {"rows_per_s": rows * per_s, "bytes_per_s": size * per_s}


class _Memory:
    """What processes cost: found out for all at first, then for one in a while, the one whose figures are oldest."""

    def __init__(self) -> None:
        self._known: dict[int, tuple[float, tuple[int | None, int | None]]] = {}
        self._last = 0.0

    def of(self, pid: int, pool_inode: int) -> tuple[int | None, int | None]:
        """(private, shared) resident bytes, as `info.process_memory` tells them or told them lately."""
        now = time.monotonic()
        known = self._known.get(pid)
        oldest = min((at for at, _ in self._known.values()), default=now)
        if known is None or (known[0] <= oldest and now - self._last >= MEMORY_EVERY_S):
            self._last = now
            known = self._known[pid] = (now, info.process_memory(pid, pool_inode))
            if len(self._known) > layout.SESSIONS_PER_NODE:  # processes that went long ago
                del self._known[min(self._known, key=lambda one: self._known[one][0])]
        return known[1]


def _run(entry: Entry, collection: str) -> Run:
    kind, state = Kind(entry.kind).name.lower(), State(entry.state).name.lower()
    lane = entry.lane % layout.LANES_PER_NODE
    return Run(entry.first_extent, entry.extents, kind, state, collection, lane, entry.rows)


def _growth(one: _Open, start: int, stop: int) -> _Growth:
    # The key says who wrote it; a merged segment's entry names one lane of several.
    lane = one.segment.key[stop - 1] & ((1 << layout.KEY_LANE_BITS) - 1)
    size = _bytes_of(one.segment, start, stop)
    return _Growth(one.segment, one.node, lane % layout.LANES_PER_NODE, one.collection, start, stop, size)


def _bytes_of(segment: Segment, start: int, stop: int) -> int:
    """Bytes of the rows [start, stop), all columns, without what padding costs."""
    shape = segment.shape
    fixed = 2 + 8 * 4 + 4 * 3 + (4 + segment.vector_width if shape.dimension else 0)
    offsets = (segment.id_offsets, segment.text_offsets, segment.metadata_offsets)
    return (stop - start) * fixed + sum(max(0, one[stop] - one[start]) for one in offsets)


def _writes(grown: _Growth, most: int) -> Iterator[tuple[int, Write]]:
    """The last rows of a growth, at most `most`, with their keys; a row that is damaged is left to `verify`."""
    for row in range(max(grown.start, grown.stop - most), grown.stop):
        try:
            raw = grown.segment.read(row)
            metadata = orjson.loads(raw.metadata) if raw.metadata else {}
        except (PoolDamaged, orjson.JSONDecodeError):
            continue
        yield (
            raw.key,
            Write(
                collection=grown.collection,
                id=raw.id.decode(errors="replace"),
                deleted=not raw.flags & PUT,
                node=grown.segment.uid >> UID_NODE_SHIFT,
                lane=grown.lane,
                written=batch.moment(layout.clock_of(raw.key) + layout.KEY_EPOCH_US),
                text=None if raw.text is None else raw.text.decode(errors="replace")[:TEXT_MAX],
                metadata=metadata,
            ),
        )
