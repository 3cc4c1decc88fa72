"""One question, one merged top-k: FAISS over the vector columns as they lie, dead and filtered rows excluded inside.

Scores are higher-is-better for every metric: inner product (of unit vectors under cosine), or minus the Euclidean
distance under l2.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple, Protocol

import faiss
import numpy as np
import numpy.typing as npt

from sharedrag.arena.row import HAS_VECTOR
from sharedrag.errors import InvalidRecord
from sharedrag.search import openmp
from sharedrag.segments.live import Part

_HALF_CHUNK_ROWS = 4096  # float16 columns are widened in pieces that stay in cache

Mask = npt.NDArray[np.bool_]
_swig_ptr = faiss.swig_ptr


class PerPart(Protocol):
    """Which rows of each part of a view, by its position, a search may find: (rows,) bool, None for all of them."""

    def __getitem__(self, part: int, /) -> Mask | None: ...


class Found(NamedTuple):
    """The best rows for one query: scores falling, and for each the part and the row it is in."""

    scores: list[float]
    parts: list[int]
    rows: list[int]


class _Block(NamedTuple):
    """Consecutive rows of one part, as float32 vectors that FAISS can read where they lie."""

    part: int
    start: int
    vectors: npt.NDArray[np.float32]
    wanted: Mask | None


def check_k(k: object) -> int:
    """`k` as an int; raises `InvalidRecord` unless it is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InvalidRecord(f"k is {k!r}", operation="search", hint="Give a whole number, at least 1")
    return int(k)


def search_parts(
    parts: tuple[Part, ...],
    masks: PerPart,
    queries: npt.NDArray[np.float32],
    k: int,
    metric: str,
    spans: list[list[tuple[int, int]]] | None = None,
) -> list[Found]:
    """The best k rows of all parts for each query; `masks[i]` (rows,) bool narrows part i, None leaves it whole.

    With `spans` only the rows [start, stop) of `spans[i]` are looked at in part i. `queries` is (n, dimension) C-contiguous
    float32, unit vectors under cosine.
    """
    count = len(queries)
    if not count:
        return []
    k = max(1, min(k, sum(part.rows for part in parts)))
    blocks = 0
    scores: list[npt.NDArray[np.float32]] = []
    rows: list[npt.NDArray[np.int64]] = []
    places: list[tuple[int, int]] = []
    for block in _blocks(parts, masks, spans):
        block_scores, block_rows = _knn(block, queries, k, metric)
        scores.append(block_scores)
        rows.append(block_rows)
        places.append((block.part, block.start))
        blocks += 1
    if not blocks:
        return [Found([], [], [])] * count
    all_scores = scores[0] if blocks == 1 else np.concatenate(scores, axis=1)
    all_rows = rows[0] if blocks == 1 else np.concatenate(rows, axis=1)
    return [_best(all_scores[query], all_rows[query], places, k, metric) for query in range(count)]


def _best(
    scores: npt.NDArray[np.float32], rows: npt.NDArray[np.int64], places: list[tuple[int, int]], k: int, metric: str
) -> Found:
    """The best k of the blocks' best k each: item i is of block i // k."""
    if len(places) == 1:  # FAISS has sorted them
        values, found = scores.tolist(), rows.tolist()
        owners = [0] * len(found)
    else:
        best = (-scores).argsort(kind="stable")[:k]
        values, owners, found = scores[best].tolist(), (best // k).tolist(), rows[best].tolist()
    if found and found[-1] < 0:  # fewer than k in all: what is missing sorts last
        kept = sum(row >= 0 for row in found)
        values, owners, found = values[:kept], owners[:kept], found[:kept]
    if metric == "l2":
        values = [-math.sqrt(max(0.0, -value)) for value in values]
    where = [places[owner] for owner in owners]
    return Found(values, [part for part, _ in where], [row + start for row, (_, start) in zip(found, where, strict=True)])


def _blocks(parts: tuple[Part, ...], masks: PerPart, spans: list[list[tuple[int, int]]] | None) -> Iterator[_Block]:
    for index, part in enumerate(parts):
        within = [(0, part.rows)] if spans is None else spans[index]
        if not within:
            continue
        wanted = _wanted_rows(part, masks[index])
        if wanted is not None and not wanted.any():
            continue
        vectors = part.segment.vectors_array
        step = part.rows if vectors.dtype == np.float32 else _HALF_CHUNK_ROWS
        for first, last in within:
            for start in range(first, last, step):
                stop = min(last, start + step)
                narrowed = None if wanted is None else wanted[start:stop]
                if narrowed is None or narrowed.any():
                    block = vectors[start:stop]
                    yield _Block(index, start, block if step == part.rows else block.astype(np.float32), narrowed)


def _wanted_rows(part: Part, mask: Mask | None) -> Mask | None:
    """Which of the part's rows may be found, (rows,) bool; None for all."""
    wanted = None
    if part.dead:
        wanted = part.alive
    if mask is not None:
        wanted = mask if wanted is None else wanted & mask
    if part.without_vector:
        has = (part.segment.flags_array[: part.rows] & HAS_VECTOR) != 0
        wanted = has if wanted is None else wanted & has
    return wanted


def _knn(
    block: _Block, queries: npt.NDArray[np.float32], k: int, metric: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(scores, rows), each (queries, k), best first; row -1 and score -inf where there are fewer than k."""
    count, dimension = queries.shape
    scores = np.empty((count, k), np.float32)
    rows = np.empty((count, k), np.int64)
    selector, bits = None, None
    if block.wanted is not None:
        bits = np.packbits(block.wanted, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(block.wanted), _swig_ptr(bits))
    vectors = block.vectors
    where = (
        _swig_ptr(queries),
        _swig_ptr(vectors),
        dimension,
        count,
        len(vectors),
        k,
        _swig_ptr(scores),
        _swig_ptr(rows),
    )
    with openmp.of_scan(count, len(vectors), dimension):
        if metric == "l2":
            faiss.knn_L2sqr(*where, None, selector)
        else:
            faiss.knn_inner_product(*where, selector)
    if metric == "l2":
        np.negative(scores, out=scores)
    if rows[:, -1].min() < 0:
        scores[rows < 0] = -np.inf
    return scores, rows
