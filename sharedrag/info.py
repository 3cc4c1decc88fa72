"""What a pool says of itself, as pydantic models: for `sharedrag info`, its JSON, and whoever watches a pool."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from typing import TypeAlias

from pydantic import BaseModel, Field

from sharedrag.arena import extents, session
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import UID_NODE_SHIFT, Entry, Kind, State
from sharedrag.errors import PoolDamaged
from sharedrag.memory import layout, order, superblock
from sharedrag.memory.layout import EXTENT_SIZE
from sharedrag.segments.live import LiveRows

#: (pid, inode of the pool's file) -> (private, shared) resident bytes; None where the kernel does not tell
MemoryOf: TypeAlias = Callable[[int, int], tuple[int | None, int | None]]


class LaneInfo(BaseModel):
    """A lane that is held, or that has open segments."""

    node: int
    lane: int
    held: bool
    pid: int
    label: str
    since_us: int = Field(description="claimed, us since 1970")
    open_segments: int
    appending: bool = Field(description="an append is under way (its intent is stored)")


class SessionInfo(BaseModel):
    """An attached process and the memory of it that is its own."""

    node: int
    slot: int
    pid: int
    label: str
    since_us: int
    alive: bool
    stopped: bool = Field(description="the process is stopped (SIGSTOP, a debugger): its pins hold memory")
    generations_behind: int = Field(description="how far its oldest view lags behind its node's newest manifest")
    memory_private: int | None = Field(
        description="bytes that it alone holds, without the pool; None if not readable from here"
    )
    memory_shared: int | None = Field(description="bytes of the pool that it has touched, and of shared libraries")


class IndexInfo(BaseModel):
    """An index blob: what it holds and how it is asked."""

    node: int
    rows: int = Field(description="vectors in it")
    size: int = Field(description="bytes")
    nprobe: int = Field(description="lists that a question looks into")
    candidates: int = Field(description="rows that are then scored exactly")
    recall: float = Field(description="share of the best 10 that it found when it was built, of held-back questions")
    recall_target: float


class CollectionInfo(BaseModel):
    """A collection, over all nodes."""

    name: str
    dimension: int | None
    metric: str
    dtype: str
    embedding_model: str | None
    rows: int = Field(description="live records")
    rows_dead: int = Field(description="superseded or deleted, not yet merged away")
    segments_open: int
    segments_sealed: int
    bytes_allocated: int
    indexes: list[IndexInfo] = Field(default_factory=list)
    version: int
    damage: str = Field(default="", description="what keeps its rows from being counted")


class NodeInfo(BaseModel):
    """One lock domain and its space."""

    node: int
    label: str
    generation: int
    this_boot: bool
    capacity: int = Field(description="bytes of extents")
    allocated: int = Field(description="bytes of extents that some entry holds")
    retired: int = Field(description="bytes that wait for readers to move on, or for the next maintenance")
    free: int
    maintainer_pid: int
    lock_holder_pid: int


class PoolInfo(BaseModel):
    """Everything about a pool at one moment."""

    path: str
    uuid: str
    format_version: int
    created_us: int
    file_size: int = Field(description="bytes of address space; the file is sparse unless preallocated")
    preallocated: bool = Field(description="all memory is held from the start and never given back")
    reserved: int = Field(description="bytes of memory or disk behind it now")
    capacity: int
    allocated: int
    free: int
    nodes: Sequence[NodeInfo]
    collections: Sequence[CollectionInfo]
    lanes: Sequence[LaneInfo]
    sessions: Sequence[SessionInfo]


class MaintenanceReport(BaseModel):
    """What one round of maintenance did."""

    elected: bool = False
    blocks_built: int = Field(default=0, description="columns, postings and indexes")
    postponed: int = Field(default=0, description="merges that the budget did not afford yet")
    segments_sealed: int = 0
    segments_merged: int = 0
    segments_freed: int = 0
    segments_waiting: int = Field(default=0, description="retired, but still in some process's view")
    builds_undone: int = 0
    deletions_written: int = 0
    bytes_freed: int = 0
    seconds: float = 0.0

    @property
    def did_something(self) -> bool:
        """Whether it changed anything, so that the next round may find more to do."""
        return any(self.model_dump(exclude={"elected", "postponed", "segments_waiting", "seconds"}).values())

    def __add__(self, later: MaintenanceReport) -> MaintenanceReport:
        """What two rounds did; what waits is what waits after the later one."""
        counts = {name: value + getattr(later, name) for name, value in self.model_dump(exclude={"elected"}).items()}
        left = {"postponed": later.postponed, "segments_waiting": later.segments_waiting}
        return MaintenanceReport(elected=True, **counts | left)


class Problem(BaseModel):
    """One thing that is wrong in a pool."""

    offset: int = Field(description="bytes from the start of the file")
    what: str
    advice: str


class VerifyReport(BaseModel):
    """What `verify` found."""

    path: str
    rows: int = 0
    segments: int = 0
    seconds: float = 0.0
    problems: list[Problem] = Field(default_factory=list)

    @property
    def ok(self) -> bool:
        """True if nothing is wrong."""
        return not self.problems


def node_info(arena: Arena, node: int) -> NodeInfo:
    """A node's space and state."""
    geometry, words = arena.geometry, arena.region.words
    current = arena.refresh().manifests[node]
    area = geometry.node_offset(node)
    boot = bytes(arena.region.bytes[area + layout.BOOT_ID_OFFSET : area + layout.BOOT_ID_OFFSET + 16])
    waiting = (State.RETIRED, State.PUNCHING)
    return NodeInfo(
        node=node,
        label=session.read_label(arena.region, area + layout.NODE_LABEL_OFFSET, layout.LABEL_SIZE),
        generation=current.generation,
        this_boot=boot == superblock.boot_id(),
        capacity=geometry.node_capacity,
        allocated=sum(entry.extents for entry in current.entries) * EXTENT_SIZE,
        retired=sum(entry.extents for entry in current.entries if entry.state in waiting) * EXTENT_SIZE,
        free=extents.free_extents(current, geometry) * EXTENT_SIZE,
        maintainer_pid=words[(area + layout.MAINTENANCE_HOLDER_OFFSET) >> 3],
        lock_holder_pid=words[(area + layout.NODE_HOLDER_OFFSET) >> 3],
    )


def lane_infos(arena: Arena, own_lane: int | None) -> list[LaneInfo]:
    """The lanes that are held or have open segments, of all nodes."""
    geometry, words = arena.geometry, arena.region.words
    found = []
    for current in arena.refresh().manifests:
        open_segments: dict[int, int] = {}
        for entry in current.entries:
            if entry.kind == Kind.SEGMENT and entry.state == State.OPEN:
                open_segments[entry.lane % layout.LANES_PER_NODE] = (
                    open_segments.get(entry.lane % layout.LANES_PER_NODE, 0) + 1
                )
        for lane in range(layout.LANES_PER_NODE):
            offset = geometry.lane_offset(current.node, lane)
            mine = current.node == arena.node and lane == own_lane
            held = mine or arena.session.locks.held_elsewhere(offset)
            if held or lane in open_segments:
                found.append(
                    LaneInfo(
                        node=current.node,
                        lane=lane,
                        held=held,
                        pid=words[(offset + layout.LANE_PID) >> 3] if held else 0,
                        label=session.read_label(arena.region, offset + layout.LANE_LABEL, layout.LANE_LABEL_SIZE)
                        if held
                        else "",
                        since_us=words[(offset + layout.LANE_SINCE) >> 3],
                        open_segments=open_segments.get(lane, 0),
                        appending=bool(words[(offset + layout.LANE_INTENT) >> 3]),
                    )
                )
    return found


def session_infos(arena: Arena, memory: MemoryOf) -> list[SessionInfo]:
    """The attached processes of all nodes, with what `memory` says that they cost."""
    geometry, words = arena.geometry, arena.region.words
    manifests = arena.refresh().manifests
    pool_inode = arena.region.identity[1]
    found = []
    for node in range(geometry.nodes):
        for slot in range(layout.SESSIONS_PER_NODE):
            offset = geometry.session_offset(node, slot)
            pid = words[(offset + layout.SESSION_PID) >> 3]
            mine = node == arena.node and slot == arena.session.slot
            if not pid or not (mine or arena.session.locks.held_elsewhere(offset)):
                continue
            pinned = words[((offset + layout.SESSION_PINS) >> 3) + node] & order.VALUE_MASK
            near = words[(offset + layout.SESSION_PID_NAMESPACE) >> 3] in (0, session.pid_namespace())
            private, shared = memory(pid, pool_inode) if near else (None, None)
            found.append(
                SessionInfo(
                    node=node,
                    slot=slot,
                    pid=pid,
                    label=session.read_label(arena.region, offset + layout.SESSION_LABEL, layout.SESSION_LABEL_SIZE),
                    since_us=words[(offset + layout.SESSION_SINCE) >> 3],
                    alive=not near or os.path.exists(f"/proc/{pid}"),  # its lock is held
                    stopped=near and _is_stopped(pid),
                    generations_behind=max(0, manifests[node].generation - pinned) if pinned else 0,
                    memory_private=private,
                    memory_shared=shared,
                )
            )
    return found


def process_memory(pid: int, pool_inode: int) -> tuple[int | None, int | None]:
    """(private, shared) resident bytes of a process; None where the kernel does not tell.

    The pool's pages count as shared even while one process alone has touched them (the kernel calls them private then):
    they are there once, however many come.
    """
    private = shared = 0
    of_pool = False
    try:
        with open(f"/proc/{pid}/smaps") as file:
            for line in file:
                name, *rest = line.split()
                if not name.endswith(":"):  # the head of a mapping: addresses, flags, offset, device, inode
                    of_pool = rest[0].endswith("s") and int(rest[3]) == pool_inode
                elif name.startswith("Private_") and not of_pool:
                    private += int(rest[0]) * 1024
                elif name.startswith(("Private_", "Shared_")):
                    shared += int(rest[0]) * 1024
    except (OSError, ValueError, IndexError):
        return None, None
    return private, shared


def _is_stopped(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] in ("T", "t")
    except (OSError, IndexError):
        return False


def collection_entries(arena: Arena, name: str) -> list[Entry]:
    """The visible entries of a collection in all nodes' newest manifests."""
    found = []
    for current in arena.refresh().manifests:
        definition = current.collection(name)
        if definition is not None:
            found += [entry for entry in current.entries if entry.collection == definition.number and entry.visible]
    return found


def _index_info(entry: Entry) -> IndexInfo:
    return IndexInfo(
        node=entry.uid >> UID_NODE_SHIFT,
        rows=entry.rows,
        size=entry.size_used,
        nprobe=entry.nprobe,
        candidates=entry.candidates,
        recall=entry.recall_millionths / 1e6,
        recall_target=entry.target_millionths / 1e6,
    )


def collection_info(arena: Arena, name: str, live: LiveRows) -> CollectionInfo:
    """A collection's rows and segments; damage that keeps its rows from being counted is told, not raised."""
    rows = dead = version = 0
    damage = ""
    try:
        view = live.acquire()
        live.release()
        rows, dead, version = view.live, sum(part.dead for part in view.parts), view.version
    except PoolDamaged as error:
        damage = f"{error.what} at offset {error.offset}"
    entries = collection_entries(arena, name)
    segments = [entry for entry in entries if entry.kind == Kind.SEGMENT]
    definition = live.definition
    assert definition is not None
    return CollectionInfo(
        name=name,
        dimension=definition.dimension,
        metric=definition.metric,
        dtype=definition.dtype,
        embedding_model=definition.embedding_model,
        rows=rows,
        rows_dead=dead,
        segments_open=sum(entry.state == State.OPEN for entry in segments),
        segments_sealed=sum(entry.state == State.SEALED for entry in segments),
        bytes_allocated=sum(entry.extents for entry in entries) * EXTENT_SIZE,
        indexes=[_index_info(entry) for entry in entries if entry.kind == Kind.INDEX],
        version=version,
        damage=damage,
    )
