"""Vectors that lie as real ones do, collections with indexes over them, and what a search with them is compared with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag import Collection, Hit, Pool
from sharedrag.arena.manifest import Entry, Kind, State
from sharedrag.search import coverage
from sharedrag.search.coverage import CoveredIndex

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]


class World:
    """Vectors in clusters, with most of their spread in few directions, as embeddings have it."""

    def __init__(self, dimension: int, seed: int = 0, clusters: int = 40) -> None:
        self._rng = np.random.default_rng(seed)
        self.dimension = dimension
        directions = min(dimension, 48)
        self._mixing = self._rng.standard_normal((directions, dimension)).astype(np.float32)
        self._mixing *= (np.arange(1, directions + 1, dtype=np.float32) ** -0.5)[:, None]
        self._centres = self._rng.standard_normal((clusters, directions)).astype(np.float32)

    def spread_out(self, factor: float) -> None:
        """Move the clusters apart."""
        self._centres *= np.float32(factor)

    def draw(self, count: int) -> F32:
        """(count, dimension) vectors of all clusters."""
        return self.of(self._rng.integers(0, len(self._centres), count))

    def of(self, clusters: npt.NDArray[np.int64]) -> F32:
        """A vector of each of these clusters (n,): (n, dimension)."""
        shape = (len(clusters), self._centres.shape[1])
        inner = self._centres[clusters] + 0.7 * self._rng.standard_normal(shape).astype(np.float32)
        noise = 0.1 * self._rng.standard_normal((len(clusters), self.dimension)).astype(np.float32)
        drawn: F32 = (inner @ self._mixing + noise).astype(np.float32)
        return drawn


def put_all(collection: Collection, vectors: Any, prefix: str = "", metadata: Any = None, batch: int = 500) -> list[str]:
    """Put vectors in several batches; ids are numbers behind a prefix."""
    ids = [f"{prefix}{number}" for number in range(len(vectors))]
    for start in range(0, len(ids), batch):
        part = slice(start, start + batch)
        collection.put(ids[part], vectors[part], [f"text of {one}" for one in ids[part]], metadata and metadata[part])
    return ids


def index_entries(pool: Pool, kind: Kind = Kind.INDEX) -> list[Entry]:
    """The visible entries of a kind, of all nodes and collections."""
    found = [entry for one in pool.arena.refresh().manifests for entry in one.entries]
    return [entry for entry in found if entry.kind == kind and entry.visible]


def covered_rows(pool: Pool) -> int:
    """How many rows the visible indexes cover."""
    total = 0
    for one in pool.arena.refresh().manifests:
        for entry in one.entries:
            if entry.kind == Kind.INDEX and entry.visible:
                total += sum(piece.rows for piece in coverage.decode(pool.arena.block(one.node, entry))[0])
    return total


def settled(pool: Pool, rounds: int = 12) -> None:
    """Maintain until nothing is left to do."""
    for _ in range(rounds):
        pool.move_pins_on()
        report = pool.maintain()
        if report.elected and not (report.segments_merged or report.blocks_built or report.segments_freed):
            return
    raise AssertionError(f"after {rounds} rounds maintenance still finds something to do: {report}")


def leftovers(pool: Pool) -> list[Entry]:
    """What no reader sees and still takes space."""
    found = [entry for one in pool.arena.refresh().manifests for entry in one.entries]
    return [entry for entry in found if entry.state in (State.BUILDING, State.RETIRED, State.PUNCHING)]


@contextmanager
def counted_uses() -> Iterator[list[int]]:
    """Inside, each question that an index is asked adds one to the single number of the list."""
    from sharedrag.search import planner

    before = planner._ask
    uses = [0]

    def asked(index: CoveredIndex, *rest: object) -> object:
        uses[0] += 1
        return before(index, *rest)  # type: ignore[arg-type]

    planner._ask = asked  # type: ignore[assignment]
    try:
        yield uses
    finally:
        planner._ask = before


def reference(collection: Collection, queries: F32, filter: dict[str, Any] | None = None) -> tuple[list[str], F64, F64]:
    """(ids, scores (queries, ids), how far off float32 may be (queries, ids)) of all records that have a vector.

    By NumPy over what `scan` gives.
    """
    table = collection.scan(filter, columns=["id", "vector"])
    table = table.filter(table["vector"].is_valid())
    ids: list[str] = table["id"].to_pylist()
    vectors = np.zeros((0, queries.shape[1]))
    if ids:
        vectors = np.concatenate([chunk.flatten().to_numpy(zero_copy_only=False) for chunk in table["vector"].chunks])
        vectors = vectors.reshape(len(ids), -1).astype(np.float64)
    queries64 = queries.astype(np.float64)
    if collection.metric == "cosine":
        queries64 /= np.linalg.norm(queries64, axis=1, keepdims=True)
    products = queries64 @ vectors.T
    lengths = (queries64**2).sum(1)[:, None] + (vectors**2).sum(1)
    if collection.metric != "l2":
        return ids, products, 1e-5 * lengths
    squares = np.maximum(lengths - 2 * products, 0)
    return ids, -np.sqrt(squares), np.sqrt(squares + 1e-5 * lengths) - np.sqrt(squares)


def compared(
    collection: Collection,
    queries: F32,
    k: int = 10,
    filter: dict[str, Any] | None = None,
    ids: list[str] | None = None,
    found: list[list[Hit]] | None = None,
) -> float:
    """Search with indexes and by NumPy: hits must be as many, live, different and scored alike. Returns the recall.

    `found` are hits that somebody else got. A hit that scores as the last that belongs in counts. REQUIRES: nobody writes
    meanwhile.
    """
    known, scores, slack = reference(collection, queries, filter)
    if ids is not None:
        wanted = set(ids)
        chosen = [at for at, one in enumerate(known) if one in wanted]
        known, scores, slack = [known[at] for at in chosen], scores[:, chosen], slack[:, chosen]
    places = {one: at for at, one in enumerate(known)}
    expected = min(k, len(known))
    good = 0
    for hits, right, off in zip(found or collection.search(queries, k, filter, ids=ids), scores, slack, strict=True):
        assert len(hits) == expected, f"{len(hits)} hits, and there are {expected}"
        assert len({hit.id for hit in hits}) == len(hits), "a record twice"
        strangers = [hit.id for hit in hits if hit.id not in places]
        assert not strangers, f"{strangers} are not among the records that may be found"
        at = [places[hit.id] for hit in hits]
        assert (abs(np.array([hit.score for hit in hits]) - right[at]) <= off[at]).all(), "another score than its own"
        assert all(one.score >= other.score for one, other in pairwise(hits)), "scores do not fall"
        if expected:
            last = np.argpartition(right, -expected)[-expected]
            good += int((right[at] >= right[last] - off[last]).sum())
    return good / (expected * len(queries)) if expected else 1.0
