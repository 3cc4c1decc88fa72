"""The vectors that an index leads to, where they lie: gathered by internal id, scored exactly, widened in pieces.

Internal ids count through the arrays: with arrays of 5 and 3 rows, id 6 is row 1 of the second one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import gcd
from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag.search import openmp
from sharedrag.search.ivf_layout import METRICS, faiss

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Vectors = npt.NDArray[Any]  # float32 or float16

_SCRATCH_ROWS = 256  # candidates that a scratch has room for at first
_swig_ptr = faiss.swig_ptr
_empty = np.empty
_by_idx = {"l2": faiss.knn_L2sqr_by_idx, "ip": faiss.knn_inner_products_by_idx, "cosine": faiss.knn_inner_products_by_idx}


class _Scratch:
    """A small float16 index with room for one query's candidates: vectors gathered into it are scored by FAISS at once.

    The index owns the memory and `into` is NumPy's view of it. NumPy would have to widen the vectors first, which takes
    it four times as long as all of this.
    """

    __slots__ = ("index", "into")

    def __init__(self, rows: int, dimension: int, metric: str) -> None:
        self.index = faiss.IndexScalarQuantizer(dimension, faiss.ScalarQuantizer.QT_fp16, METRICS[metric])
        size = rows * dimension * 2
        self.index.codes.resize(size)
        self.into = faiss.rev_swig_ptr(self.index.codes.data(), size).view(np.float16).reshape(rows, dimension)


# Free scratches by dimension and metric; a thread takes one and puts it back, so that no two use the same.
_free: dict[tuple[int, str], list[_Scratch]] = {}


class Rows:
    """The vectors of internal ids, (rows, dimension), in arrays of one dtype that are not copied.

    `arrays` are C-contiguous (n_i, dimension) float32 or float16, at least one; under cosine they hold unit vectors.
    Cheap to make: a view may have its own.
    """

    __slots__ = (
        "_back",
        "_base",
        "_grid",
        "_offsets",
        "_places_count",
        "_scratches",
        "_starts",
        "_step",
        "arrays",
        "count",
        "dimension",
        "dtype",
        "metric",
    )

    def __init__(self, arrays: Sequence[Vectors], metric: str) -> None:
        first = arrays[0]
        self.arrays = tuple(array for array in arrays if len(array)) or (first,)
        self.metric = metric
        self.dtype = first.dtype
        self.dimension = int(first.shape[1])
        self.count = self._places_count = sum(len(array) for array in arrays)
        self._scratches = _free.setdefault((self.dimension, metric), [])
        self._base = _swig_ptr(self.arrays[0]) if len(self.arrays) == 1 and self.dtype == np.float32 else None
        self._grid: Vectors | None = None
        self._starts = self._offsets = np.empty(0, np.int64)
        self._step = 0
        self._back: tuple[I64, I64] | None = None  # from places on the grid to internal ids, where each is one row's
        if len(self.arrays) > 1:
            self._lay_grid()

    def _lay_grid(self) -> None:
        """One strided array over all of them, so that any rows are gathered in one call.

        Its rows overlap and begin at every address at which a row of any array can begin. Only such are ever read.
        """
        row_size = self.dimension * self.dtype.itemsize
        addresses = [int(array.__array_interface__["data"][0]) for array in self.arrays]
        first = min(addresses)
        assert not any(address % self.dtype.itemsize for address in addresses)
        pitch = gcd(row_size, *(address - first for address in addresses))
        places = max(address + (len(array) - 1) * row_size for address, array in zip(addresses, self.arrays, strict=True))
        lowest = self.arrays[addresses.index(first)]
        self._grid = np.lib.stride_tricks.as_strided(
            lowest, ((places - first) // pitch + 1, self.dimension), (pitch, self.dtype.itemsize), writeable=False
        )
        self._starts = np.cumsum([0] + [len(array) for array in self.arrays[:-1]])
        self._step = row_size // pitch
        begins = np.array([(address - first) // pitch for address in addresses])
        self._offsets = begins - self._starts * self._step
        if self._step == 1 and self.dtype == np.float32:
            order = begins.argsort()
            self._back = begins[order], self._offsets[order]
            self._base, self._places_count = _swig_ptr(lowest), len(self._grid)

    def _places(self, ids: I64) -> I64:
        """Where on the grid the rows `ids` begin."""
        places: I64 = self._offsets[self._starts.searchsorted(ids, "right") - 1]
        places += ids * self._step
        return places

    def take(self, ids: I64) -> F32:
        """The vectors of `ids` (m,), each in 0..count-1, as a float32 copy (m, dimension)."""
        found = self.arrays[0].take(ids, axis=0) if self._grid is None else self._grid[self._places(ids)]
        return widened(found)

    def blocks(self, rows_max: int) -> Iterator[tuple[int, F32]]:
        """(first internal id, vectors as float32) in pieces of at most `rows_max`; float32 arrays are not copied."""
        at = 0
        for array in self.arrays:
            for start in range(0, len(array), rows_max):
                piece = array[start : start + rows_max]
                yield at + start, widened(piece)
            at += len(array)

    def best(self, query: F32, ids: I64, k: int) -> tuple[F32, I64]:
        """The best k of the rows `ids` by exact score: (scores falling, their ids), fewer than k if there are no more.

        `query` (dimension,) float32 contiguous; `ids` (c,) int64 contiguous and different, -1 at the end where there are
        fewer. A score is the inner product, or minus the *squared* Euclidean distance under l2.
        """
        if k > len(ids):
            k = len(ids)
        scores, best = _empty(k, np.float32), _empty(k, np.int64)
        if not k:
            return scores, best
        if self._base is not None:
            self._best_in_place(query, ids, k, scores, best)
        else:
            if ids[-1] < 0:
                ids = ids[ids >= 0]
            self._best_gathered(query, ids, k, scores, best)
        if best[-1] < 0:
            found = int((best >= 0).sum())
            scores, best = scores[:found], best[:found]
        if self.metric == "l2":
            np.negative(scores, scores)
        return scores, best

    def _best_in_place(self, query: F32, ids: I64, k: int, scores: F32, best: I64) -> None:
        if self._back is not None:
            if ids[-1] < 0:
                ids = ids[ids >= 0]
            ids = ids + self._offsets[self._starts.searchsorted(ids, "right") - 1]
        _by_idx[self.metric](
            _swig_ptr(query),
            self._base,
            _swig_ptr(ids),
            self.dimension,
            1,
            self._places_count,
            len(ids),
            k,
            _swig_ptr(scores),
            _swig_ptr(best),
        )
        if self._back is not None:
            begins, offsets = self._back
            best -= np.where(best < 0, 0, offsets[begins.searchsorted(best, "right") - 1])

    def _best_gathered(self, query: F32, ids: I64, k: int, scores: F32, best: I64) -> None:
        wanted = len(ids)
        best.fill(-1)
        if not wanted:
            return
        places = ids if self._grid is None else self._places(ids)
        if self.dtype == np.float32:
            assert self._grid is not None
            _knn(self.metric, query, self._grid[places], k, scores, best)
        else:
            scratch = self._take_scratch(wanted)
            if self._grid is None:
                self.arrays[0].take(ids, 0, scratch.into[:wanted], "clip")
            else:
                scratch.into[:wanted] = self._grid[places]
            scratch.index.ntotal = wanted
            with openmp.Threads(1):
                scratch.index.search_c(1, _swig_ptr(query), k, _swig_ptr(scores), _swig_ptr(best))
            self._scratches.append(scratch)
        found = min(k, wanted)
        best[:found] = ids[best[:found]]

    def _take_scratch(self, rows: int) -> _Scratch:
        try:
            scratch = self._scratches.pop()
        except IndexError:
            scratch = None
        if scratch is None or len(scratch.into) < rows:
            scratch = _Scratch(max(rows, _SCRATCH_ROWS), self.dimension, self.metric)
        return scratch


def _knn(metric: str, query: F32, vectors: F32, k: int, scores: F32, best: I64) -> None:
    rows, dimension = vectors.shape
    where = (_swig_ptr(query), _swig_ptr(vectors), dimension, 1, rows, k, _swig_ptr(scores), _swig_ptr(best))
    if metric == "l2":
        faiss.knn_L2sqr(*where, None, None)
    else:
        faiss.knn_inner_product(*where, None)


def widened(vectors: Vectors) -> F32:
    """Vectors (m, dimension) as float32; not copied if they are."""
    return vectors.astype(np.float32, copy=False)
