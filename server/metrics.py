"""Counts for Prometheus that are right under several workers, whoever of them answers the scrape.

Each worker writes its counts into files of its own, in a folder that all of one server share (prometheus_client's
multiprocess mode). The files are named for *slots*, not processes: a worker claims the first slot whose lock is free, and
the lock dies with it. So the successor of a killed worker goes on counting in its predecessor's files: counters never fall,
and no file of a dead worker stays behind.
"""

from __future__ import annotations

import fcntl
import itertools
import os
import struct
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.multiprocess import MultiProcessCollector
from starlette.types import ASGIApp, Message, Receive, Scope, Send

if TYPE_CHECKING:
    from sharedrag import Pool

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_READ_ATTEMPTS = 5
#: Paths that no route has are counted under one name: their number is the caller's choice.
_NO_ROUTE = "(none)"
_slot: tuple[int, int] | None = None  # this process's slot and the descriptor that holds it: one for all apps in it


class Metrics:
    """What one worker counts, and the sum of all workers as text."""

    def __init__(self, folder: Path | None) -> None:
        """`folder`: where the workers of this server share their counts; None for a server of one process."""
        self._folder = folder
        if folder is not None:
            _claim_slot(folder)
        self._registry = registry = CollectorRegistry()
        self.requests = Counter(
            "sharedrag_http_requests", "Requests answered.", ("method", "route", "status"), registry=registry
        )
        self.seconds = Histogram(
            "sharedrag_http_request_seconds",
            "From a request's first byte to its answer's last.",
            ("route",),
            buckets=_BUCKETS_S,
            registry=registry,
        )
        self.in_flight = self._gauge("sharedrag_http_requests_in_flight", "Requests being answered.")
        self.waiting = self._gauge("sharedrag_work_waiting", "Calls that are in a worker's threads or wait for one.")
        self.streams = self._gauge("sharedrag_event_streams", "Event streams that are open.")
        self.refused = Counter("sharedrag_refused", "Requests refused to keep the rest fast.", ("why",), registry=registry)
        self.events = Counter("sharedrag_events_sent", "Events handed to streams.", registry=registry)

    def _gauge(self, name: str, what: str) -> Gauge:
        gauge = Gauge(name, what, registry=self._registry, multiprocess_mode="sum")
        gauge.set(0)  # a killed predecessor's
        return gauge

    def text(self, pool: Pool) -> bytes:
        """All workers' counts and the pool's own state (blocking)."""
        for attempt in itertools.count(1):
            registry = self._registry if self._folder is None else CollectorRegistry()
            if self._folder is not None:
                MultiProcessCollector(registry, str(self._folder))  # type: ignore[no-untyped-call]
            try:
                return generate_latest(registry) + generate_latest(_PoolGauges(pool).registry())
            except (struct.error, ValueError, KeyError):  # a worker is making a file at this moment
                if attempt == _READ_ATTEMPTS:
                    raise
                time.sleep(0.01)
        raise AssertionError("unreachable")


def _claim_slot(folder: Path) -> None:
    """Take the first free slot of the folder for this process, for as long as it lives."""
    global _slot
    if _slot is not None:
        return
    folder.mkdir(parents=True, exist_ok=True)
    os.environ["PROMETHEUS_MULTIPROC_DIR"] = str(folder)
    for number in itertools.count():
        descriptor = os.open(folder / f"slot-{number}.lock", os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            continue
        _slot = number, descriptor
        values.ValueClass = values.MultiProcessValue(partial(int, number))  # type: ignore[no-untyped-call]
        return


class _PoolGauges:
    """The pool's state at one moment. Names of collections are the server's own, never a group's or a user's."""

    def __init__(self, pool: Pool) -> None:
        self._pool = pool

    def registry(self) -> CollectorRegistry:
        """A registry that holds only this."""
        registry = CollectorRegistry()
        registry.register(self)
        return registry

    def collect(self) -> Iterator[Metric]:
        """Gauges made from `Pool.info`."""
        info = self._pool.info()
        space = GaugeMetricFamily("sharedrag_pool_bytes", "Space of the pool.", labels=["node", "state"])
        for node in info.nodes:
            used = node.allocated - node.retired
            for state, amount in (("used", used), ("retired", node.retired), ("free", node.free)):
                space.add_metric([str(node.node), state], amount)
        yield space
        yield GaugeMetricFamily("sharedrag_pool_capacity_bytes", "Room for records.", value=info.capacity)
        yield GaugeMetricFamily("sharedrag_pool_reserved_bytes", "Memory behind the file.", value=info.reserved)
        rows = GaugeMetricFamily("sharedrag_collection_rows", "Rows of a collection.", labels=["collection", "state"])
        size = GaugeMetricFamily("sharedrag_collection_bytes", "Extents of a collection.", labels=["collection"])
        segments = GaugeMetricFamily("sharedrag_collection_segments", "Its segments.", labels=["collection", "state"])
        indexed = GaugeMetricFamily("sharedrag_collection_indexed_rows", "Rows in indexes.", labels=["collection"])
        for one in info.collections:
            rows.add_metric([one.name, "live"], one.rows)
            rows.add_metric([one.name, "dead"], one.rows_dead)
            size.add_metric([one.name], one.bytes_allocated)
            segments.add_metric([one.name, "open"], one.segments_open)
            segments.add_metric([one.name, "sealed"], one.segments_sealed)
            indexed.add_metric([one.name], sum(index.rows for index in one.indexes))
        yield from (rows, size, segments, indexed)
        sessions = GaugeMetricFamily("sharedrag_pool_sessions", "Attached processes.", labels=["node"])
        lanes = GaugeMetricFamily("sharedrag_pool_lanes_held", "Writers that hold a lane.", labels=["node"])
        for node in info.nodes:
            sessions.add_metric([str(node.node)], sum(one.node == node.node for one in info.sessions))
            lanes.add_metric([str(node.node)], sum(one.node == node.node and one.held for one in info.lanes))
        yield from (sessions, lanes)


class Measured:
    """ASGI middleware: counts every answer under its route's template, never under the path itself."""

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, and count what comes back."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        metrics = self._metrics
        started = time.perf_counter()
        status = 500

        async def noted(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        metrics.in_flight.inc()
        try:
            await self._app(scope, receive, noted)
        finally:
            metrics.in_flight.dec()
            route = getattr(scope.get("route"), "path", _NO_ROUTE)
            method = scope["method"] if route != _NO_ROUTE else ""
            metrics.requests.labels(method, route, str(status)).inc()
            metrics.seconds.labels(route).observe(time.perf_counter() - started)
