"""A pool with everything in it that damage can hit, and the truth about what it holds.

Four collections (float32 under cosine, float16 under l2, no vectors, and an empty one), written by two lanes in turn:
sealed, open and merged segments, superseded rows, tombstones, deletion vectors, and a third lane whose writer was killed
between linking its rows and publishing them.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag import Pool
from sharedrag.arena.manifest import Kind, State
from sharedrag.arena.segment import Segment
from sharedrag.memory import layout

CAPACITY_MIB = 8  # of each node
QUERIES = 3
_START = datetime(2025, 1, 1, tzinfo=UTC)
_REPOSITORY = Path(__file__).resolve().parent.parent.parent
_HALF_PUT = """
import sys
from sharedrag import Pool
pool = Pool.open(sys.argv[1], maintenance=False)
pool.collection("notes").put(["note-3", "half"], [[1.0] * 8] * 2, ["half-visible"] * 2)
"""


@dataclass(frozen=True)
class Expected:
    """A record as it was put."""

    text: str | None
    metadata: dict[str, Any]
    created: datetime
    vector: tuple[float, ...] | None


@dataclass(frozen=True)
class Area:
    """Bytes of the file and what they are."""

    name: str
    offset: int
    length: int


@dataclass
class Sample:
    """What was written into the pool, and where in the file it lies."""

    live: dict[str, dict[str, Expected]] = field(default_factory=dict)
    gone: dict[str, set[str]] = field(default_factory=dict)
    order: dict[str, list[str]] = field(default_factory=dict)
    queries: dict[str, npt.NDArray[np.float32]] = field(default_factory=dict)
    scores: dict[str, dict[str, npt.NDArray[np.float64]]] = field(default_factory=dict)
    areas: list[Area] = field(default_factory=list)
    file_size: int = 0

    def put(self, name: str, records: dict[str, Expected]) -> None:
        """Note records that were put in this order."""
        for key, record in records.items():
            if key in self.live[name]:
                self.order[name].remove(key)
            self.order[name].append(key)
            self.live[name][key] = record
            self.gone[name].discard(key)

    def delete(self, name: str, keys: list[str]) -> None:
        """Note records that were deleted."""
        for key in keys:
            del self.live[name][key]
            self.order[name].remove(key)
            self.gone[name].add(key)


METRICS = {"notes": ("cosine", "float32", 8), "halves": ("l2", "float16", 6), "keys": ("cosine", "float32", None)}


def build(path: str, nodes: int, seed: int = 1) -> Sample:
    """Make the pool at `path`, its lanes on one node or on two; returns what it holds."""
    rng = np.random.default_rng(seed)
    sample = Sample()
    with (
        Pool.open(path, create=True, capacity=f"{nodes * CAPACITY_MIB} MiB", nodes=nodes, maintenance=False) as first,
        Pool.open(path, node=nodes - 1, maintenance=False) as second,
    ):
        for name, (metric, dtype, dimension) in METRICS.items():
            sample.live[name], sample.gone[name], sample.order[name] = {}, set(), []
            for pool in (first, second):
                pool.collection(name, dimension, metric, dtype)
        first.collection("empty", 4)
        for round_ in range(12):
            for name in METRICS:
                for pool in (first, second):
                    _write(pool, sample, name, rng, round_)
            if round_ in (4, 8):
                first.maintain()
                second.maintain()
        _leave_half_a_put(path)
        _describe(first, sample)
    _judge(sample, rng)
    return sample


def _write(pool: Pool, sample: Sample, name: str, rng: np.random.Generator, round_: int) -> None:
    """One batch of new records, one of replacements, one of deletes."""
    collection = pool.collection(name)
    known = sorted(sample.live[name])
    stem = {"notes": "note", "halves": "half", "keys": "key"}[name]
    fresh = [f"{stem}-{len(known) + len(sample.gone[name]) + number}" for number in range(20)]
    again = rng.choice(known, 16, replace=False).tolist() if known else []
    for ids in (fresh, again):
        records = {one: _record(one, collection.dimension, rng, round_) for one in ids}
        if not records:
            continue
        vectors = [record.vector for record in records.values()] if collection.dimension else None
        collection.put(
            list(records),
            vectors,
            [record.text for record in records.values()],
            [record.metadata or None for record in records.values()],
            created=[record.created for record in records.values()],
        )
        sample.put(name, records)
    dying = rng.choice(known, 4, replace=False).tolist() if known else []
    collection.delete(dying)
    sample.delete(name, dying)


def _record(key: str, dimension: int | None, rng: np.random.Generator, round_: int) -> Expected:
    number = int(rng.integers(1_000_000))
    vector = None
    if dimension and number % 10:
        vector = tuple(float(one) for one in rng.standard_normal(dimension).astype(np.float16))
    text = (
        None if number % 7 == 0 else f"{key} in round {round_} says {number}: " + "aloha ʻāina " * int(rng.integers(1, 24))
    )
    metadata: dict[str, Any] = {} if number % 5 == 0 else {"room": f"room-{number % 4}", "number": number}
    return Expected(text, metadata, _START + timedelta(microseconds=number), vector)


def _leave_half_a_put(path: str) -> None:
    """Let another process claim a third lane and be killed before it publishes what it wrote."""
    child = subprocess.run(
        [sys.executable, "-c", _HALF_PUT, path],
        env={**os.environ, "SHAREDRAG_FAULT": "put.linked:kill", "PYTHONPATH": str(_REPOSITORY)},
        check=False,
        timeout=60,
    )
    assert child.returncode == -9, child


def _describe(pool: Pool, sample: Sample) -> None:
    """Where everything lies: the areas that targeted damage picks from."""
    arena = pool.arena
    geometry = arena.geometry
    sample.file_size = geometry.file_size
    add = sample.areas.append
    add(Area("superblock", 0, 88))
    for node in range(geometry.nodes):
        _describe_node(pool, node, sample)


def _describe_node(pool: Pool, node: int, sample: Sample) -> None:
    arena = pool.arena
    geometry = arena.geometry
    add = sample.areas.append
    add(Area("node words", geometry.node_offset(node), 384))
    add(Area("lane slots", geometry.lane_offset(node, 0), 4 * layout.LANE_SIZE))
    add(Area("session slots", geometry.session_offset(node, 0), 4 * layout.SESSION_SIZE))
    current = arena.refresh().manifests[node]
    for generation in (current.generation, current.generation - 1):
        name = "manifest" if generation == current.generation else "manifest, the slot before"
        add(Area(name, geometry.manifest_offset(node, generation), 184 + 104 * len(current.entries) + 300))
    for entry in current.entries:
        start = geometry.extent_offset(node, entry.first_extent)
        if entry.kind == Kind.DELETIONS and entry.visible:
            add(Area("deletion vectors", start, entry.size_used))
        if entry.kind != Kind.SEGMENT or not entry.visible:
            continue
        segment = arena.segment(node, entry)
        rows = segment.watermark()
        add(Area("segment header", start, 64))
        add(Area("watermark", start + 1024, 8))
        add(Area("epoch", start + 1088, 8))
        kind = "open" if entry.state == State.OPEN else "sealed"
        for column, (at, size) in segment.columns.items():
            used = _used(column, size, rows, segment)
            if used:
                add(Area(f"{column}, {kind}", start + at, used))


def _used(column: str, size: int, rows: int, segment: Segment) -> int:
    """Bytes of a column that published rows use."""
    if column.endswith("_heap"):
        return int(getattr(segment, column.replace("_heap", "_offsets"))[rows])
    if column.endswith("_offsets"):
        return 4 * (rows + 1)
    if column == "heads":
        return size
    return size * rows // segment.shape.rows


def _judge(sample: Sample, rng: np.random.Generator) -> None:
    """The true score of every record for some queries, by NumPy in double precision."""
    for name, (metric, _, dimension) in METRICS.items():
        if dimension is None:
            continue
        queries = rng.standard_normal((QUERIES, dimension)).astype(np.float32)
        sample.queries[name] = queries
        sample.scores[name] = {}
        for key, record in sample.live[name].items():
            if record.vector is None:
                continue
            vector, wide = np.asarray(record.vector, np.float64), queries.astype(np.float64)
            if metric == "cosine":
                lengths = np.linalg.norm(wide, axis=1) * np.linalg.norm(vector)
                sample.scores[name][key] = wide @ vector / lengths
            else:
                sample.scores[name][key] = -np.linalg.norm(wide - vector, axis=1)


def as_json(sample: Sample) -> str:
    """A short account of the sample, for reports."""
    return json.dumps({name: [len(live), len(sample.gone[name])] for name, live in sample.live.items()})
