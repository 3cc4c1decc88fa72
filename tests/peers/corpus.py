"""The rows and the questions, made once per run and mapped by every process of it; and what the right answers are.

Rows are real sentences with real vectors (all-MiniLM-L6-v2). Where more rows are wanted than there are real ones, the rest
is made from them: row = unit(w*a + (1-w)*b), where a is a random real row, b another one of its k-means cell (1,024 cells)
and w is uniform in [0.5, 0.8]. Such rows lie where real ones lie, at the distances that a denser collection would have;
their text is a's and b's. Questions are 1,000 held-out real sentences. Everything follows from fixed seeds.

faiss and pyarrow are imported where they are needed: a measure of imports or of memory must not find them loaded.

An answer counts as right if its true similarity reaches that of the 10th best (less 1e-5), so ties are nobody's fault.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from tests.peers.protocol import DIMENSION, Hit, Rows, Vectors, identifier, number_of

ROOMS = 100
K = 10
REAL_MAX = 100_000  # real rows that are loaded; the others are what writers write
_FRESH = 4_000
_FRESH_APART = 0.995  # a fresh row is no closer than this to any loaded real row or other fresh row
_CELLS = 1_024
_CHUNK = 50_000
_TIE = 1e-5
FRESH_FIRST = 50_000_000  # numbers of records that writers write begin here


def room_of(number: int) -> str:
    """The room of a record; each has 1 % of them."""
    return f"room{number % ROOMS:02d}"


def _metadata(number: int) -> dict[str, Any]:
    return {"room": room_of(number), "author": f"author{number // ROOMS % 997}", "ts": 1_790_000_000 + number}


def _unit(vectors: Vectors) -> Vectors:
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


# ---------------------------------------------------------------------- making


def prepare(source: Path, folder: Path, rows: int) -> None:
    """Write all that `Corpus(folder)` reads; `source` holds the real data."""
    import faiss
    import pyarrow.parquet as pq

    folder.mkdir(parents=True)
    real = _unit(np.load(source / "minilm_120k_i8.npy").astype(np.float32))
    texts = pq.read_table(source / "minilm_120k_texts.parquet").column("text").to_pylist()
    base = np.lib.format.open_memmap(folder / "vectors.npy", mode="w+", dtype=np.float32, shape=(rows, DIMENSION))
    known = min(rows, REAL_MAX)
    base[:known] = real[:known]
    base_texts = texts[:known] + _derive(real[:REAL_MAX], texts, base, known)
    fresh = _apart(real[REAL_MAX:], base[:known])
    np.save(folder / "fresh.npy", real[REAL_MAX:][fresh])
    _write_texts(folder / "texts.arrow", base_texts)
    _write_texts(folder / "fresh.arrow", [texts[REAL_MAX + row] for row in fresh.tolist()])
    queries = _unit(np.load(source / "minilm_queries_1k_f16.npy").astype(np.float32))
    np.save(folder / "queries.npy", queries)
    scores, _ = faiss.knn(queries, base, min(K, rows), metric=faiss.METRIC_INNER_PRODUCT)
    np.save(folder / "bars.npy", scores[:, -1])
    np.save(folder / "bars_filtered.npy", _filtered_bars(queries, base))


def _derive(real: Vectors, texts: list[str], base: Vectors, known: int) -> list[str]:
    """Fill the rows from `known` on with mixtures of real ones; returns their texts."""
    missing = len(base) - known
    if not missing:
        return []
    import faiss

    rng = np.random.default_rng(11)
    means = faiss.Kmeans(DIMENSION, _CELLS, niter=8, seed=11, max_points_per_centroid=64)
    means.train(real)
    cell = means.index.search(real, 1)[1][:, 0]
    order = np.argsort(cell, kind="stable")
    begins, sizes = np.searchsorted(cell[order], np.arange(_CELLS)), np.bincount(cell, minlength=_CELLS)
    place = np.empty(len(real), np.int64)  # of each row within its cell
    place[order] = np.arange(len(real)) - begins[cell[order]]
    made: list[str] = []
    for start in range(known, len(base), _CHUNK):
        count = min(_CHUNK, len(base) - start)
        one = rng.integers(len(real), size=count)
        here = cell[one]
        step = 1 + (rng.random(count) * np.maximum(1, sizes[here] - 1)).astype(np.int64)
        two = order[begins[here] + (place[one] + step) % sizes[here]]
        weight = rng.uniform(0.5, 0.8, (count, 1)).astype(np.float32)
        base[start : start + count] = _unit(weight * real[one] + (1 - weight) * real[two])
        made += [f"{texts[a]} {texts[b]}" for a, b in zip(one.tolist(), two.tolist(), strict=True)]
    return made


def _apart(candidates: Vectors, base: Vectors) -> npt.NDArray[np.int64]:
    """Rows of `candidates` that no loaded real row and no other such row lies too close to: each can be found again."""
    import faiss

    candidates = candidates[: 2 * _FRESH]
    nearest, _ = faiss.knn(candidates, base, 1, metric=faiss.METRIC_INNER_PRODUCT)
    among, _ = faiss.knn(candidates, candidates, 2, metric=faiss.METRIC_INNER_PRODUCT)
    alone = (nearest[:, 0] < _FRESH_APART) & (among[:, 1] < _FRESH_APART)
    return np.flatnonzero(alone)[:_FRESH]


def _filtered_bars(queries: Vectors, base: Vectors) -> Vectors:
    import faiss

    bars = np.empty(len(queries), np.float32)
    for room in range(min(ROOMS, len(queries))):
        asked = np.ascontiguousarray(queries[room::ROOMS])
        members = np.ascontiguousarray(base[room::ROOMS])
        scores, _ = faiss.knn(asked, members, min(K, len(members)), metric=faiss.METRIC_INNER_PRODUCT)
        bars[room::ROOMS] = scores[:, -1]
    return bars


def _write_texts(path: Path, texts: list[str]) -> None:
    import pyarrow as pa

    table = pa.table({"text": pa.array(texts, pa.string())})
    with pa.OSFile(str(path), "wb") as file, pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table, max_chunksize=_CHUNK)


def _read_texts(path: Path) -> Any:
    import pyarrow as pa

    return pa.ipc.open_file(pa.memory_map(str(path))).read_all().column("text")


# ---------------------------------------------------------------------- using


class Corpus:
    """What `prepare` made; nothing is read before it is asked for."""

    def __init__(self, folder: Path) -> None:
        """`folder` as given to `prepare`."""
        self._folder = folder

    @cached_property
    def vectors(self) -> Vectors:
        """All loaded rows, mapped: (rows, 384)."""
        return np.load(self._folder / "vectors.npy", mmap_mode="r")  # type: ignore[no-any-return]

    @cached_property
    def queries(self) -> Vectors:
        """The questions, in this process's memory: (1000, 384)."""
        return np.load(self._folder / "queries.npy")  # type: ignore[no-any-return]

    @cached_property
    def _bars(self) -> tuple[Vectors, Vectors]:
        return np.load(self._folder / "bars.npy"), np.load(self._folder / "bars_filtered.npy")

    @cached_property
    def _fresh(self) -> tuple[Vectors, list[str]]:
        return np.load(self._folder / "fresh.npy"), _read_texts(self._folder / "fresh.arrow").to_pylist()

    def batches(self, size: int, stop: int = 0) -> Iterator[Rows]:
        """All rows (or those before `stop`), `size` at a time."""
        texts = _read_texts(self._folder / "texts.arrow")
        end = stop or len(self.vectors)
        for start in range(0, end, size):
            numbers = list(range(start, min(start + size, end)))
            found = texts.slice(start, len(numbers)).to_pylist()
            vectors = np.ascontiguousarray(self.vectors[start : start + len(numbers)])
            yield Rows(numbers, [identifier(one) for one in numbers], vectors, found, [_metadata(one) for one in numbers])

    def fresh(self, first: int, count: int) -> Rows:
        """`count` records that were not loaded, numbered from `FRESH_FIRST + first` on; they repeat after some thousands."""
        vectors, texts = self._fresh
        numbers = list(range(FRESH_FIRST + first, FRESH_FIRST + first + count))
        turns = [number % len(texts) for number in numbers]
        found = [texts[turn] for turn in turns]
        return Rows(
            numbers, [identifier(one) for one in numbers], vectors[turns], found, [_metadata(one) for one in numbers]
        )

    def room(self, query: int) -> str:
        """The room that a question is asked in, when filtered."""
        return room_of(query)

    def right(self, query: int, hits: list[Hit], filtered: bool) -> float:
        """The share of the 10 best that are among these hits; hits of another room are wrong."""
        numbers = {number_of(hit.id) for hit in hits}
        found = [one for one in numbers if one < len(self.vectors) and (not filtered or room_of(one) == self.room(query))]
        if not found:
            return 0.0
        scores = self.vectors[found] @ self.queries[query]
        return float(np.sum(scores >= self._bars[int(filtered)][query] - _TIE)) / min(K, len(self.vectors))


def cut(rows: Rows, size: int) -> list[Rows]:
    """The rows in pieces of `size`, made before a clock runs."""
    pieces = [slice(at, at + size) for at in range(0, len(rows.ids), size)]
    return [Rows(rows.numbers[one], rows.ids[one], rows.vectors[one], rows.texts[one], rows.metadata[one]) for one in pieces]
