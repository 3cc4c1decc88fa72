"""The pool as users meet it: open, collections, locks by name, information, care."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any

import faiss
import xxhash

from sharedrag import info
from sharedrag.arena import catalog, creation
from sharedrag.arena.attachment import Arena, suitable_path
from sharedrag.arena.manifest import CollectionEntry, differs
from sharedrag.collection import Collection
from sharedrag.errors import CollectionDropped, PoolBusy, PoolNotFound, SharedRagError
from sharedrag.info import CollectionInfo, MaintenanceReport, MemoryOf, PoolInfo, VerifyReport
from sharedrag.keeper import Keeper
from sharedrag.maintenance import verify
from sharedrag.maintenance.budget import Budget
from sharedrag.maintenance.maintainer import Maintainer
from sharedrag.memory import layout
from sharedrag.segments.batch import Batch
from sharedrag.segments.live import LiveRows
from sharedrag.writer import Writer

_UNITS = {
    "": 1,
    "b": 1,
    "kib": 1 << 10,
    "mib": 1 << 20,
    "gib": 1 << 30,
    "tib": 1 << 40,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "tb": 10**12,
}
_CREATE_ATTEMPTS = 5
_SETTLING_ROUNDS_MAX = 50
_MAINTENANCE_SHARE = 0.1  # of one core: writers on few cores feel more than that


def parse_size(size: str | int) -> int:
    """Bytes in "1 GiB", "256MiB", "10 GB" or a plain number; raises ValueError."""
    if isinstance(size, int) and not isinstance(size, bool):
        return size
    found = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?)\s*([a-zA-Z]*)\s*", str(size))
    if not found or found[2].lower() not in _UNITS:
        raise ValueError(f"size {size!r}: want a number of bytes or one like '512 MiB', '2 GiB'")
    number = float(found[1]) * _UNITS[found[2].lower()]
    if number >= 1 << 63:
        raise ValueError(f"size {size!r:.80}: no file is that large")
    return int(number)


class Pool:
    """One process's handle to a pool; many threads may use it, it survives `fork` and can be pickled.

    Each process opens the pool by its path. What one writes, the others find in their next call.
    """

    def __init__(self, path: str, node: int, name: str | None, maintenance: bool | float, lock_timeout_s: float) -> None:
        """Use `Pool.open`."""
        cpu_share = _cpu_share(maintenance)
        self.arena = Arena(path, node, name or "", lock_timeout_s)
        self.path = self.arena.path
        self.node = node
        self._name = name
        self._maintenance = maintenance
        self._collections: dict[str, Collection] = {}
        self._superseded: weakref.WeakSet[Collection] = weakref.WeakSet()  # dropped, but perhaps still in a caller's hands
        self._unnamed_live: dict[str, LiveRows] = {}
        self._named_guards: dict[str, threading.Lock] = {}
        self._guard = threading.RLock()
        self._maintainer = Maintainer(self.arena, _live_of(weakref.ref(self)))
        self._writer = Writer(self.arena, self._maintainer)
        with suppress(PoolBusy):
            self.arena.note_boot()
        self._keeper = Keeper(self, cpu_share)
        self._finalizer = weakref.finalize(self, _shut, self._keeper, self._writer, self._maintainer, self.arena)
        _open_pools.add(self)

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        create: bool = False,
        capacity: str | int = "2 GiB",
        *,
        node: int = 0,
        nodes: int = 1,
        preallocate: bool = False,
        name: str | None = None,
        maintenance: bool | float = True,
        lock_timeout_s: float = 5.0,
    ) -> Pool:
        """Attach to the pool at `path`; with `create`, make it first if it is not there (of several, one makes it).

        `capacity` is the room for records, as bytes or "1 GiB"; the file is sparse, so what is unused costs nothing.
        With `preallocate` all memory is taken at creation and kept: no write waits for the system or finds it out of memory,
        and nothing goes back before the file is deleted. `nodes` lock domains share the room evenly (1 unless hosts or
        containers want their own); this process is one of `node`.
        `name` labels this process in `sharedrag info`. `maintenance` is the share of one core that merging, indexing and
        reclaim may take in the background of this process, 0.1 for True; with False it leaves them to others. Waits for
        locks are bounded by `lock_timeout_s` seconds.

        Raises `PoolNotFound`, `NotAPool`, `PoolVersionUnsupported`, `PoolTruncated`, `PoolDamaged`, `PoolFull`, `PoolBusy`,
        `UnsupportedFileSystem`, `UnsupportedPlatform`, and ValueError for an impossible capacity, node or share.
        """
        if type(node) is not int:
            raise ValueError(f"node {node!r}: nodes are numbered 0, 1, ...")
        real = suitable_path(path)
        if create:
            size = parse_size(capacity)
            if type(nodes) is not int or not 1 <= nodes <= layout.NODES_MAX:
                raise ValueError(f"nodes={nodes!r}: a pool has 1 to {layout.NODES_MAX}")
            if size < layout.CAPACITY_MIN * nodes:
                raise ValueError(f"capacity {capacity!r}: at least {layout.CAPACITY_MIN:,} bytes for each of {nodes} nodes")
            for _ in range(_CREATE_ATTEMPTS):
                if not os.path.exists(real):
                    if not 0 <= node < nodes:
                        raise ValueError(f"node {node}: a pool of nodes={nodes} has nodes 0 to {nodes - 1}")
                    creation.create(real, size, nodes, preallocate)
                with suppress(PoolNotFound):  # somebody deleted it between the two steps: again
                    return cls._attach(real, node, name, maintenance, lock_timeout_s)
        return cls._attach(real, node, name, maintenance, lock_timeout_s)

    @classmethod
    def _attach(cls, path: str, node: int, name: str | None, maintenance: bool | float, lock_timeout_s: float) -> Pool:
        with _opening:
            return cls(path, node, name, maintenance, lock_timeout_s)

    # ------------------------------------------------------------------ collections

    def collection(
        self,
        name: str,
        dimension: int | None = None,
        metric: str = "cosine",
        dtype: str = "float32",
        *,
        embedding_model: str | None = None,
        recall_target: float = 0.95,
    ) -> Collection:
        """The collection of that name, made on first use by anybody and the same for all after.

        Without `dimension` an existing collection is taken as it is, and a new one holds no vectors (a key-value
        collection), unless it is asked for with a dimension before anything is put into it. `metric` is "cosine", "ip" or
        "l2"; `dtype`, how vectors are stored, "float32" or "float16". Its indexes are built to find `recall_target` of the
        best ten; it counts where the collection is made.
        Raises `CollectionMismatch` when it exists with another definition, ValueError for an impossible one.
        """
        with self._guard:
            wanted = catalog.definition(name, dimension, metric, dtype, embedding_model, recall_target)
            found = catalog.find_or_declare(self.arena, wanted)
            known = self._collections.get(name)
            if known is None or differs(known.definition, found) or known.embedding_model != found.embedding_model:
                self._supersede(name)
                known = self._collections[name] = Collection(self, found)
            return known

    def collections(self) -> list[str]:
        """The names of all collections, sorted."""
        return sorted({entry.name for one in self.arena.refresh().manifests for entry in one.collections})

    def drop(self, name: str) -> None:
        """Remove a collection with all its records, for everybody. Raises `CollectionNotFound`, `PoolBusy`."""
        with self._guard:
            catalog.drop(self.arena, name)
            self._supersede(name)
            self._unnamed_live.pop(name, None)

    def _supersede(self, name: str) -> None:
        known = self._collections.pop(name, None)
        if known is not None:
            self._superseded.add(known)
            known.live.move_on()  # it must not pin what was dropped for as long as a caller keeps it

    def write(self, definition: CollectionEntry, batch: Batch) -> None:
        """Append an encoded batch to a collection (what `Collection.put` and `delete` do)."""
        self._writer.write(definition, batch)

    def _live_of(self, name: str) -> LiveRows:
        found = catalog.find(self.arena, name)
        with self._guard:
            known = self._collections.get(name)
            if known is not None and (found is None or not differs(known.definition, found)):
                return known.live
            if name not in self._unnamed_live:
                self._unnamed_live[name] = LiveRows(self.arena, name)
            return self._unnamed_live[name]

    # ------------------------------------------------------------------ locks by name

    @contextmanager
    def exclusive(self, name: str, timeout_s: float | None = None) -> Iterator[None]:
        """Only one thread of one process at a time is inside, for each name; killed inside, it lets go at once.

        Serves where records cannot be derived and must be read, changed and put back. Not reentrant. Raises `PoolBusy`
        after `timeout_s` (default: the handle's lock timeout).
        """
        wait_s = self.arena.lock_timeout_s if timeout_s is None else timeout_s
        try:
            encoded = name.encode()
        except (AttributeError, UnicodeEncodeError):
            raise ValueError(f"lock name {name!r:.80}: want a str of valid Unicode") from None
        if self.closed:
            raise self.arena.closed_error()
        with self._guard:
            guard = self._named_guards.setdefault(name, threading.Lock())
        if not guard.acquire(timeout=wait_s):
            raise PoolBusy(f"{name!r} is held by another thread of this process", operation="exclusive", path=self.path)
        try:
            offset = layout.NAMED_LOCKS_OFFSET + xxhash.xxh3_64_intdigest(encoded) % layout.NAMED_LOCKS
            with self.arena.session.stays():  # closed meanwhile, it is ours to the end
                locks = self.arena.session.locks
                locks.lock(offset, wait_s, lambda: f"{name!r} is held by another process", "exclusive")
                try:
                    yield
                finally:
                    if locks is self.arena.session.locks:  # else: forked meanwhile, the lock is the parent's
                        locks.unlock(offset)
        finally:
            guard.release()

    # ------------------------------------------------------------------ information and care

    def info(self, *, memory: MemoryOf = info.process_memory) -> PoolInfo:
        """Collections, segments, lanes and who holds them, sessions, bytes used, reserved and in all.

        `memory` says what a process costs; to ask the kernel takes milliseconds for each.
        """
        with self.arena.session.stays():
            return self._info(memory)

    def _info(self, memory: MemoryOf) -> PoolInfo:
        geometry = self.arena.geometry
        nodes = [info.node_info(self.arena, node) for node in range(geometry.nodes)]
        lane = self._writer.lane
        return PoolInfo(
            path=self.path,
            uuid=geometry.uuid.hex(),
            format_version=layout.VERSION,
            created_us=geometry.created_us,
            file_size=geometry.file_size,
            preallocated=bool(geometry.preallocated),
            reserved=self.arena.region.allocated(),
            capacity=sum(one.capacity for one in nodes),
            allocated=sum(one.allocated for one in nodes),
            free=sum(one.free for one in nodes),
            nodes=nodes,
            collections=list(self._collection_infos()),
            lanes=info.lane_infos(self.arena, lane.number if lane else None),
            sessions=info.session_infos(self.arena, memory),
        )

    def _collection_infos(self) -> Iterator[CollectionInfo]:
        for name in self.collections():
            with suppress(CollectionDropped):  # meanwhile
                yield info.collection_info(self.arena, name, self._live_of(name))

    def verify(self, progress: Callable[[int, int], None] | None = None) -> VerifyReport:
        """Check every checksum and link of all that is visible; calls `progress(rows done, rows in all)` now and then."""
        return verify.verify(self.arena, progress)

    def maintain(self, budget: Budget | None = None, *, wait_s: float = 0.0) -> MaintenanceReport:
        """One round of maintenance of this node: all that is due, or what `budget` affords of it.

        If another process or thread, such as this handle's own, is at it for longer than `wait_s` seconds, nothing is done
        and the report's `elected` is False. Raises `PoolDamaged`, `PoolBusy`.
        """
        if self.closed:
            raise self.arena.closed_error()
        return self._maintainer.run(budget, wait_s)

    def settle(self, wait_s: float = 60.0) -> MaintenanceReport:
        """Maintain this node until nothing is due, as after a large load: then all that is there now is merged and indexed.

        Waits for whoever is at it meanwhile; raises `PoolBusy` where that takes longer than `wait_s` seconds, `PoolDamaged`.
        """
        done = MaintenanceReport(elected=True)
        for _ in range(_SETTLING_ROUNDS_MAX):  # else it would go on for as long as others write
            report = self.maintain(wait_s=wait_s)
            if not report.elected:
                busy = f"another process was maintaining this node for {wait_s:g} s"
                hint = "Wait longer, or leave it to that one: it does the same little by little"
                raise PoolBusy(busy, operation="maintain", path=self.path, hint=hint)
            done = done + report
            if not report.did_something:
                break
        return done

    def move_pins_on(self) -> None:
        """Bring every cached view to the newest manifests, so that none holds what others want to reclaim."""
        self.arena.refresh()
        with self._guard:
            lives = self._lives()
        for live in lives:
            live.move_on()
        self.arena.session.settle()  # should an interrupt have kept a pin that went from being noticed

    def close_marked(self) -> None:
        """Close the segments that this handle fills and that are to be purged (`Collection.purge`)."""
        self._writer.close_marked()

    def change_marker(self) -> object:
        """Something that differs when maintenance may have more to do than before."""
        snapshot = self.arena.refresh()
        words = self.arena.region.words
        open_rows = [
            words[self.arena.segment(one.node, entry).watermark_index]
            for one in snapshot.manifests
            for entry in one.entries
            if entry.visible and not entry.rows and entry.kind == 1
        ]
        return snapshot.roots, tuple(open_rows)

    # ------------------------------------------------------------------ life

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self.arena.closed

    def close(self) -> None:
        """Detach; what was written stays. Arrow tables that callers still hold stay valid until they are gone."""
        self._finalizer()
        with self._guard:
            for live in self._lives():
                live.move_on()  # to nothing: a Collection that outlives us pins nothing
            self._collections.clear()
            self._unnamed_live.clear()

    def __enter__(self) -> Pool:
        """Itself."""
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close."""
        self.close()

    def __repr__(self) -> str:
        """Path and node."""
        return f"Pool({self.path!r}, node={self.node}{', closed' if self.closed else ''})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled as its place: unpickling attaches, once per process for each pool and node."""
        return (shared, (self.path, self.node, self._name, self._maintenance, self.arena.lock_timeout_s))

    def before_fork(self) -> None:
        """Hold everything still, so that the child inherits nothing half-done."""
        self._writer.lock.acquire()  # first: a put that has to make room asks for a collection's live rows
        self._guard.acquire()
        for live in self._lives():
            live.lock.acquire()
        self.arena.before_fork()

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self.arena.after_fork_in_parent()
        for live in self._lives():
            live.lock.release()
        self._guard.release()
        self._writer.lock.release()

    def after_fork_in_child(self) -> None:
        """Own session, own locks, no lane; the parent's are left alone."""
        self._guard = threading.RLock()
        self._named_guards = {}
        self.arena.after_fork_in_child()
        self._writer.after_fork_in_child()
        self._maintainer.after_fork_in_child()
        for live in self._unnamed_live.values():
            live.after_fork_in_child()
        for collection in (*self._collections.values(), *self._superseded):
            collection.after_fork_in_child()
        if not self.closed:
            self._keeper = Keeper(self, _cpu_share(self._maintenance))
            self._finalizer.detach()
            self._finalizer = weakref.finalize(self, _shut, self._keeper, self._writer, self._maintainer, self.arena)

    def _lives(self) -> list[LiveRows]:
        return [
            *(one.live for one in (*self._collections.values(), *self._superseded)),
            *self._unnamed_live.values(),
        ]


def _cpu_share(maintenance: bool | float) -> float:
    """The share of one core that `maintenance` means; raises ValueError."""
    share = _MAINTENANCE_SHARE if maintenance is True else float(maintenance)
    if not 0 <= share <= 1:
        raise ValueError(f"maintenance={maintenance!r}: True, False or a share of one core up to 1.0")
    return share


def _live_of(pool: weakref.ref[Pool]) -> Callable[[str], LiveRows]:
    """`Pool._live_of` for the maintainer, which is kept by what closes a forgotten pool, and must not keep the pool."""

    def live_of(name: str) -> LiveRows:
        found = pool()
        assert found is not None, "maintenance for nobody"
        return found._live_of(name)

    return live_of


def _shut(keeper: Keeper, writer: Writer, maintainer: Maintainer, arena: Arena) -> None:
    keeper.stop()
    if not arena.closed:
        writer.release()
        maintainer.stop()
        arena.close()


_open_pools: weakref.WeakSet[Pool] = weakref.WeakSet()
_shared: dict[tuple[str, int], Pool] = {}
_shared_guard = threading.Lock()
_opening = threading.RLock()  # held by who has locks for a handle that no fork hook knows of yet
_forking: list[Pool] = []


def shared(
    path: str | os.PathLike[str],
    node: int = 0,
    name: str | None = None,
    maintenance: bool | float = True,
    lock_timeout_s: float = 5.0,
    **options: Any,
) -> Pool:
    """The one handle that this process shares for a pool and node; opened on first use, with `Pool.open`'s `options`."""
    real = os.path.realpath(os.fspath(path))
    with _shared_guard:
        known = _shared.get((real, node))
        if known is not None and not known.closed:
            with suppress(SharedRagError):
                known.arena.region.check_not_replaced()
                return known
        known = _shared[(real, node)] = Pool.open(
            real, node=node, name=name, maintenance=maintenance, lock_timeout_s=lock_timeout_s, **options
        )
        return known


def _before_fork() -> None:
    _shared_guard.acquire()
    _opening.acquire()
    _forking[:] = [pool for pool in list(_open_pools) if not pool.closed]
    for pool in _forking:
        pool.before_fork()


def _after_fork_in_parent() -> None:
    for pool in reversed(_forking):
        pool.after_fork_in_parent()
    _forking.clear()
    _opening.release()
    _shared_guard.release()


def _after_fork_in_child() -> None:
    global _shared_guard, _opening
    _shared_guard = threading.Lock()
    _opening = threading.RLock()
    if _forking:
        faiss.omp_set_num_threads(1)  # FAISS hangs in the child of a process whose OpenMP threads ran
    for pool in _forking:
        pool.after_fork_in_child()
    _forking.clear()


os.register_at_fork(before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child)
