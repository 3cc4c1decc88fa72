"""One look at the pool for all who watch it: a sampler that runs only while somebody does, and what each of them may see.

Members see the whole pool's sizes, rates, lanes and the labels of processes (which stand beside messages anyway). What other
collections are called, paths, process ids and processes' memory only the admin sees.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, Mapping, Sequence
from datetime import UTC, datetime
from typing import NamedTuple

from server.work import Overloaded, Work
from sharedrag.history import History
from sharedrag.watch import NodeSample, PoolSample, PoolWatch

EVERY_S = 0.4
#: How often a watcher hears something even where nothing changes.
SILENCE_S = 2.0
_NEVER = datetime.fromtimestamp(0, UTC)


class _Look(NamedTuple):
    """One look, and its JSON for who saw the one before: without the runs of nodes whose generation is the same."""

    number: int
    sample: PoolSample
    brief: Mapping[bool, bytes]  # by: for the admin? Only for those who watch


class Watching:
    """Shares one `PoolWatch` among all watchers of a worker."""

    def __init__(self, history: History, work: Work, stopping: asyncio.Event) -> None:
        """Members know of the history's collections; `stopping` ends all streams."""
        self._pool, self._work, self._stopping = history.pool, work, stopping
        self._names = frozenset((history.name, f"{history.name}.exchanges"))
        self._watchers = {False: 0, True: 0}  # by: is it the admin?
        self._sampler: asyncio.Task[None] | None = None
        self._look: _Look | None = None
        self._next = asyncio.Event()  # a new one for each look

    async def map(self, admin: bool) -> bytes:
        """The pool now, as JSON of a `PoolSample`, with no rates. Raises `Overloaded`."""
        return await self._work.run(lambda: self._whole(PoolWatch(self._pool).sample(), admin))

    async def stream(self, admin: bool) -> AsyncGenerator[bytes, None]:
        """JSON of one look after the other, the first whole, later ones without runs that have not changed.

        What is as it was is not sent again, but at least once in `SILENCE_S`. A watcher that is slow misses looks.
        """
        self._watchers[admin] += 1
        try:
            if self._sampler is None or self._sampler.done():
                self._look = None
                self._sampler = asyncio.create_task(self._run())
            number, sent, sent_at = -1, b"", 0.0
            while not self._stopping.is_set():
                look, following = self._look, self._next
                if look is not None and look.number != number:
                    content = look.brief.get(admin) if number >= 0 and look.number == number + 1 else None
                    if content is None:
                        content = await self._work.run(self._whole, look.sample, admin)
                    number = look.number
                    now = time.monotonic()
                    if content != sent or now - sent_at > SILENCE_S:
                        sent, sent_at = content, now
                        yield content
                await following.wait()
        finally:
            self._watchers[admin] -= 1

    async def _run(self) -> None:
        watch, number = PoolWatch(self._pool), 0
        generations: dict[int, int] = {}
        try:
            while any(self._watchers.values()) and not self._stopping.is_set():
                began = time.monotonic()
                audiences = [admin for admin, count in self._watchers.items() if count]
                try:
                    self._look = await self._work.run(_look, watch, number, generations, audiences, self._names)
                    number += 1
                except Overloaded:  # who asks questions comes first
                    pass
                self._wake()
                await asyncio.sleep(max(0.05, EVERY_S - (time.monotonic() - began)))
        finally:
            self._sampler = None
            self._wake()

    def _whole(self, sample: PoolSample, admin: bool) -> bytes:
        return _json(_seen_by(admin, sample, self._names))

    def _wake(self) -> None:
        self._next.set()
        self._next = asyncio.Event()


def _look(
    watch: PoolWatch, number: int, generations: dict[int, int], audiences: Sequence[bool], names: frozenset[str]
) -> _Look:
    """Look once (blocking); `generations` are those of the look before, and then of this one."""
    sample = watch.sample().model_copy(update={"at": _NEVER, "seconds": 0.0})
    news = [node if generations.get(node.node) != node.generation else _without_runs(node) for node in sample.nodes]
    generations.update((node.node, node.generation) for node in sample.nodes)
    brief = sample.model_copy(update={"nodes": news})
    return _Look(number, sample, {admin: _json(_seen_by(admin, brief, names)) for admin in audiences})


def _without_runs(node: NodeSample) -> NodeSample:
    return node.model_copy(update={"runs": []})


def _json(sample: PoolSample) -> bytes:
    return sample.model_dump_json().encode()


def _seen_by(admin: bool, sample: PoolSample, names: frozenset[str]) -> PoolSample:
    """What the admin, or any member of a group, may see of a look."""
    if admin:
        return sample
    others = (one.name for one in sample.collections if one.name not in names)
    called = {name: f"another {number}" for number, name in enumerate(others, 1)} | {name: name for name in names}

    def name(collection: str) -> str:
        return called.get(collection, "another") if collection else ""

    nodes = [
        node.model_copy(
            update={
                "maintainer_pid": 0,
                "lock_holder_pid": 0,
                "runs": [run._replace(collection=name(run.collection)) for run in node.runs],
            }
        )
        for node in sample.nodes
    ]
    lanes = [
        lane.model_copy(update={"pid": 0, "open": [one._replace(collection=name(one.collection)) for one in lane.open]})
        for lane in sample.lanes
    ]
    collections = [
        one.model_copy(update={"name": name(one.name), "damage": "damaged" if one.damage else ""}
                       | ({} if one.name in names else {"embedding_model": None}))
        for one in sample.collections
    ]  # fmt: skip
    return sample.model_copy(
        update={"path": "", "uuid": "", "nodes": nodes, "lanes": lanes, "collections": collections, "sessions": []}
    )
