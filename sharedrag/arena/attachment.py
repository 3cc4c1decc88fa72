"""One process's attachment to a pool: its mapping, session, view of all manifests, and the right to change its node's.

Lock order: lane, then node; whoever holds a node's lock only tries for anything else.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import NamedTuple

from sharedrag.arena import block, manifest
from sharedrag.arena.manifest import Entry, Manifest
from sharedrag.arena.segment import Segment
from sharedrag.arena.session import Pin, Session, write_label
from sharedrag.errors import PoolBusy, PoolClosed, PoolDamaged, PoolReplaced, pool_closed
from sharedrag.memory import layout, locks, order, superblock
from sharedrag.memory import region as regions
from sharedrag.memory.region import Region

_LOAD_ATTEMPTS = 2000


class Snapshot(NamedTuple):
    """All nodes' manifests at one moment, and the pin that keeps what they show."""

    manifests: tuple[Manifest, ...]
    roots: tuple[int, ...]
    pin: Pin


class Arena:
    """The attachment; see the module. Safe to use from many threads, and across `fork`."""

    def __init__(self, path: str, node: int, label: str, lock_timeout_s: float) -> None:
        """Attach to an existing pool; raises what `superblock.read`, `Region.open` and `Session` raise."""
        order.require_ordered_platform()
        self.path = os.path.realpath(path)
        self.node = node
        self.label = label or Path(sys.argv[0] or "python").name
        self.lock_timeout_s = lock_timeout_s
        self.geometry = superblock.read(self.path)
        self._check_geometry()
        self.guard = threading.RLock()
        self._node_guards = [threading.Lock() for _ in range(self.geometry.nodes)]
        self._root_indexes = [manifest.root_index(self.geometry, index) for index in range(self.geometry.nodes)]
        self._segments: dict[int, Segment] = {}
        self._blocks: dict[int, block.Payload] = {}
        self.closed = False
        self.replaced = False
        self.region = Region.open(self.path, self.geometry.file_size, keeps_memory=bool(self.geometry.preallocated))
        try:
            self._check_same_file()
            locks.check_locks_work(self.path, layout.NAMED_LOCKS_OFFSET - 2 - 2 * (os.getpid() % 100_000))
            self.session = Session(self.region, self.geometry, node, self.label)
        except BaseException:
            self.region.close()
            raise
        try:
            self.current = Snapshot((), (), self.session.pin_newest())
            self.current = self._load()
        except BaseException:
            self.session.close()
            self.region.close()
            raise

    def _check_same_file(self) -> None:
        """The geometry was read from the path, the region mapped from it: somebody may have replaced the file between."""
        head = superblock.encode(self.geometry)
        if self.region.bytes[: len(head)] != head:
            raise PoolReplaced("the file was replaced meanwhile", operation="open", path=self.path, hint="Open it again")

    def _check_geometry(self) -> None:
        if not 0 <= self.node < self.geometry.nodes:
            raise ValueError(f"node {self.node}: the pool at {self.path} has nodes 0 to {self.geometry.nodes - 1}")

    # ------------------------------------------------------------------ reading the manifests

    def refresh(self) -> Snapshot:
        """The newest snapshot: a comparison of root words when nothing changed."""
        current = self.current
        words = self.region.words
        seen = current.roots
        for node, index in enumerate(self._root_indexes):
            if words[index] != seen[node]:
                with self.guard:
                    self._check_usable()
                    current = self.current = self._load()
                    if self.closed:  # by a signal handler in the middle of it, and with it the older pin was gone
                        self.current = current._replace(pin=None)  # type: ignore[arg-type]
                        raise self.closed_error()
                    return current
        if self.closed or self.replaced:
            self._check_usable()
        return current

    def _check_usable(self) -> None:
        if self.closed:
            raise self.closed_error()
        self.region.check_not_replaced()

    def look_at_path(self) -> None:
        """Notice, now and then, that the pool's file was deleted or replaced: every later call raises `PoolReplaced`."""
        try:
            self.region.check_not_replaced()
        except PoolReplaced:
            self.replaced = True
            raise

    def _load(self) -> Snapshot:
        """Load all manifests under the current, older pin, and pin what was loaded."""
        words = self.region.words
        for _ in range(_LOAD_ATTEMPTS):
            roots = tuple(words[index] for index in self._root_indexes)
            manifests = [self._load_node(node, roots[node]) for node in range(self.geometry.nodes)]
            lagging = [
                node
                for one in manifests
                for node, least in enumerate(one.relies_on[: self.geometry.nodes])
                if manifests[node].generation < least
            ]
            if lagging:
                time.sleep(0)
                continue  # a manifest that this one relies on was published meanwhile: read it too
            found = tuple(manifests)
            roots = tuple(order.checked(one.generation) for one in found)
            live = {uid for one in found for uid in one.by_uid}
            for opened in (self._segments, self._blocks):
                for uid in opened.keys() - live:
                    opened.pop(uid, None)
            return Snapshot(found, roots, self.session.pin(found))
        raise PoolDamaged(
            f"the manifest of node {lagging[0]} is older than others rely on",
            offset=self._root_indexes[lagging[0]] << 3,
            operation="refresh",
            path=self.path,
        )

    def _load_node(self, node: int, root: int) -> Manifest:
        current = self.current
        if current.roots and current.roots[node] == root:
            return current.manifests[node]
        found = manifest.load(self.region, self.geometry, node)
        if current.roots and found.generation < current.manifests[node].generation:
            raise PoolDamaged(
                f"the generation of node {node} went back from {current.manifests[node].generation} to {found.generation}",
                offset=self._root_indexes[node] << 3,
                operation="refresh",
                path=self.path,
            )
        return found

    def segment(self, node: int, entry: Entry) -> Segment:
        """The segment of a manifest entry, opened once per process."""
        found = self._segments.get(entry.uid)
        if found is None:
            extents = self.geometry.extents_per_node
            if entry.first_extent + entry.extents > extents:
                raise PoolDamaged("an entry leads beyond the pool", offset=0, operation="open segment", path=self.path)
            offset = self.geometry.extent_offset(node, entry.first_extent)
            found = Segment(self.region, offset, entry.uid, entry.extents * layout.EXTENT_SIZE)
            self._segments[entry.uid] = found
        return found

    def block(self, node: int, entry: Entry) -> block.Payload:
        """The payload of a block's entry, (n,) uint8 where it lies, verified once per process. Raises `PoolDamaged`."""
        found = self._blocks.get(entry.uid)
        if found is None:
            if entry.first_extent + entry.extents > self.geometry.extents_per_node:
                raise PoolDamaged("an entry leads beyond the pool", offset=0, operation="open block", path=self.path)
            offset = self.geometry.extent_offset(node, entry.first_extent)
            found = block.read(self.region, offset, entry.extents * layout.EXTENT_SIZE, entry.kind, entry.uid)
            self._blocks[entry.uid] = found
        return found

    # ------------------------------------------------------------------ changing the node's manifest

    @contextmanager
    def node_locked(self, operation: str, node: int | None = None, *, wait: bool = True) -> Iterator[Manifest | None]:
        """Hold a node's lock; yields its newest manifest, or None when not `wait` and it is held by somebody.

        Raises `PoolBusy` with the holder's name when it is not free in time.
        """
        node = self.node if node is None else node
        area = self.geometry.node_offset(node)
        offset = area + layout.ROOT_OFFSET
        holder = (area + layout.NODE_HOLDER_OFFSET) >> 3
        guard = self._node_guards[node]
        if not guard.acquire(timeout=self.lock_timeout_s if wait else 0):
            if not wait:
                yield None
                return
            raise PoolBusy("another thread of this process holds the node lock", operation=operation, path=self.path)
        try:
            with self.session.stays():  # a signal handler may close the handle, but not take the lock away
                own = self.session.locks
                if wait:
                    own.lock(
                        offset,
                        self.lock_timeout_s,
                        lambda: f"node {node}'s lock is held by {self._holder(holder)}",
                        operation,
                    )
                elif not own.try_lock(offset):
                    yield None
                    return
                try:
                    self.region.words[holder] = os.getpid()
                    self.region.words[holder + 1] = time.time_ns() // 1000
                    yield manifest.load(self.region, self.geometry, node)
                finally:
                    self.region.words[holder] = 0
                    own.unlock(offset)
        finally:
            guard.release()

    def _holder(self, index: int) -> str:
        pid, since_us = self.region.words[index], self.region.words[index + 1]
        held_s = max(0.0, time.time() - since_us / 1e6)
        return f"process {pid} for {held_s:.1f} s" if pid else "a process that is just taking or leaving it"

    def publish(self, new: Manifest) -> None:
        """Publish a manifest of a node. REQUIRES: that node's lock."""
        manifest.publish(self.region, self.geometry, new)

    def note_boot(self) -> None:
        """Write this boot's id and the node's label into the node area, once per boot."""
        start = self.geometry.node_offset(self.node)
        mine = superblock.boot_id()
        if bytes(self.region.bytes[start + layout.BOOT_ID_OFFSET : start + layout.BOOT_ID_OFFSET + 16]) != mine:
            with self.node_locked("attach"):
                self.region.bytes[start + layout.BOOT_ID_OFFSET : start + layout.BOOT_ID_OFFSET + 16] = mine
                write_label(self.region, start + layout.NODE_LABEL_OFFSET, layout.LABEL_SIZE, self.label)

    # ------------------------------------------------------------------ closing and forking

    def closed_error(self) -> PoolClosed:
        """The error for any use after `close`."""
        return pool_closed(self.path)

    def close(self) -> None:
        """Release everything; views that callers still hold stay valid, and pinned, until they are gone.

        Who is changing a manifest in another thread does so to the end. Where that does not come in time, because a signal
        handler is closing in the middle of it, the lock and the session are given back by who is at it (`Session.stays`).
        """
        with ExitStack() as others:
            for node_guard in self._node_guards:
                if node_guard.acquire(timeout=self.lock_timeout_s):
                    others.callback(node_guard.release)
            others.enter_context(self.guard)
            if self.closed:
                return
            self.closed = True
            self._segments.clear()
            self._blocks.clear()
            self.current = self.current._replace(pin=None)  # type: ignore[arg-type]
            self.session.close()

    def before_fork(self) -> None:
        """Hold everything still; the session's own hook comes after this one."""
        self.guard.acquire()
        self.session.crosses = True

    def after_fork_in_parent(self) -> None:
        """Go on."""
        self.guard.release()

    def after_fork_in_child(self) -> None:
        """Go on with the session that was claimed for us, if there was one."""
        self.guard = threading.RLock()
        self._node_guards = [threading.Lock() for _ in range(self.geometry.nodes)]
        if self.closed or self.session.dead:
            self.closed = True
        else:
            self.current = self.current._replace(pin=self.session.pin(self.current.manifests))
            self.session.settle()


def suitable_path(path: str | os.PathLike[str]) -> str:
    """The absolute path, after a look at its file system; raises `UnsupportedFileSystem`."""
    absolute = os.path.realpath(os.fspath(path))
    regions.refuse_unsuitable_file_system(absolute)
    return absolute
