"""One question, one merged top-k: FAISS over the vector columns as they lie, dead and filtered rows excluded inside.

Scores are higher-is-better for every metric: inner product (of unit vectors under cosine), or minus the Euclidean
distance under l2.
"""

from __future__ import annotations

from typing import NamedTuple

import faiss
import numpy as np
import numpy.typing as npt

from sharedrag.errors import InvalidRecord
from sharedrag.live import Part
from sharedrag.segment import HAS_VECTOR

_HALF_CHUNK_ROWS = 4096  # float16 columns are widened in pieces that stay in cache

Mask = npt.NDArray[np.bool_]


class Found(NamedTuple):
    """The best rows for one query: scores (m,) float32 falling, and for each the part and the row it is in."""

    scores: npt.NDArray[np.float32]
    parts: npt.NDArray[np.int64]
    rows: npt.NDArray[np.int64]


def check_k(k: object) -> int:
    """`k` as an int; raises `InvalidRecord` unless it is a whole number of at least 1."""
    if isinstance(k, bool) or not isinstance(k, (int, np.integer)) or k < 1:
        raise InvalidRecord(f"k is {k!r}", operation="search", hint="Ask for at least one hit")
    return int(k)


def search_parts(
    parts: tuple[Part, ...], masks: list[Mask | None], queries: npt.NDArray[np.float32], k: int, metric: str
) -> list[Found]:
    """The best k rows of all parts for each query; `masks[i]` (rows,) bool narrows part i, None leaves it whole.

    `queries` is (n, dimension) C-contiguous float32, unit vectors under cosine.
    """
    scores: list[npt.NDArray[np.float32]] = []
    rows: list[npt.NDArray[np.int64]] = []
    owners: list[npt.NDArray[np.int64]] = []
    for index, (part, mask) in enumerate(zip(parts, masks, strict=True)):
        wanted = _wanted_rows(part, mask)
        if wanted is not None and not wanted.any():
            continue
        part_scores, part_rows = _search_part(part, wanted, queries, min(k, part.rows), metric)
        scores.append(part_scores)
        rows.append(part_rows)
        owners.append(np.full(part_rows.shape, index, np.int64))
    if not scores:
        nothing = np.empty(0, np.int64)
        return [Found(np.empty(0, np.float32), nothing, nothing)] * len(queries)
    return _merge(np.hstack(scores), np.hstack(owners), np.hstack(rows), k, metric)


def _merge(
    scores: npt.NDArray[np.float32], owners: npt.NDArray[np.int64], rows: npt.NDArray[np.int64], k: int, metric: str
) -> list[Found]:
    best = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    found = []
    for query, columns in enumerate(best):
        columns = columns[rows[query, columns] >= 0]
        values = scores[query, columns]
        if metric == "l2":
            values = -np.sqrt(np.maximum(-values, 0))
        found.append(Found(values, owners[query, columns], rows[query, columns]))
    return found


def _wanted_rows(part: Part, mask: Mask | None) -> Mask | None:
    """Which of the part's rows may be found, (rows,) bool; None for all."""
    wanted = None
    if part.dead:
        wanted = part.alive[: part.rows]
    if mask is not None:
        wanted = mask[: part.rows] if wanted is None else wanted & mask[: part.rows]
    if part.without_vector:
        has = (part.segment.flags_array[: part.rows] & HAS_VECTOR) != 0
        wanted = has if wanted is None else wanted & has
    return wanted


def _search_part(
    part: Part, wanted: Mask | None, queries: npt.NDArray[np.float32], k: int, metric: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(scores, rows), each (queries, k); row -1 where there are fewer than k."""
    vectors = part.segment.vectors_array[: part.rows]
    if vectors.dtype == np.float32:
        return _knn(vectors, wanted, queries, k, metric)
    pieces = []
    for start in range(0, part.rows, _HALF_CHUNK_ROWS):
        chunk = np.ascontiguousarray(vectors[start : start + _HALF_CHUNK_ROWS], dtype=np.float32)
        narrowed = None if wanted is None else wanted[start : start + _HALF_CHUNK_ROWS]
        if narrowed is None or narrowed.any():
            scores, rows = _knn(chunk, narrowed, queries, min(k, len(chunk)), metric)
            pieces.append((scores, np.where(rows >= 0, rows + start, -1)))
    return np.hstack([one for one, _ in pieces]), np.hstack([one for _, one in pieces])


def _knn(
    vectors: npt.NDArray[np.float32], wanted: Mask | None, queries: npt.NDArray[np.float32], k: int, metric: str
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    count, dimension = queries.shape
    scores = np.empty((count, k), np.float32)
    rows = np.empty((count, k), np.int64)
    selector, bits = None, None
    if wanted is not None:
        bits = np.packbits(wanted, bitorder="little")
        selector = faiss.IDSelectorBitmap(len(wanted), faiss.swig_ptr(bits))
    function = faiss.knn_L2sqr if metric == "l2" else faiss.knn_inner_product
    arguments = [faiss.swig_ptr(one) for one in (queries, vectors)]
    results = [faiss.swig_ptr(one) for one in (scores, rows)]
    if metric == "l2":
        function(*arguments, dimension, count, len(vectors), k, *results, None, selector)
        scores = -scores
    else:
        function(*arguments, dimension, count, len(vectors), k, *results, selector)
    scores[rows < 0] = -np.inf
    return scores, rows
