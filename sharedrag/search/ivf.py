"""An index over many rows, read where it lies: inverted lists of short codes that name candidates, which are then scored
exactly with the rows' own vectors.

FAISS searches the blob's bytes in place; opening one takes a few milliseconds at a million rows and no memory for the
codes. Made by `ivf_build`.

Where only some rows are allowed, FAISS passes over the others, and more lists are probed the fewer are allowed. Looking at
all allowed rows (`Rows.best`) is exact and costs 46 us for 1,000 of them, 107 for 2,300, 400 for 6,000 at 384 dimensions;
through an index of 100,000 rows a question takes 150 us at 1 % and at 10 %, 180 at 50 %, and 130 with none excluded. So up
to some 3,000 allowed rows all of them are the better choice, and beyond for whoever must not miss any: where what is
allowed lies far from the question, lists are probed until enough of it is met, and recall is less than measured.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from sharedrag.search.ivf_layout import IndexInvalid, faiss, unpack
from sharedrag.search.ivf_measure import ef_for, scaled, search_parameters
from sharedrag.search.ivf_rows import F32, I64, Rows

Bools = npt.NDArray[np.bool_]

_RARER = 0.28  # the power of 1 / share by which more lists are probed where only a share of the rows is allowed
_RARE, _EVEN_PART = 0.3, 0.3
_MORE_PROBES = 3  # times as many lists where those probed had too few rows that are allowed
_PARAMETERS_MAX = 64  # kept per index, by how many lists are probed
_swig_ptr = faiss.swig_ptr
_empty = np.empty


class Allowed:
    """Which internal ids may be found, packed once for FAISS; a view or a remembered filter may keep it."""

    __slots__ = ("_bits", "count", "selector", "share")

    def __init__(self, mask: Bools) -> None:
        """From (rows,) bool over the internal ids."""
        self._bits = np.packbits(mask, bitorder="little")
        self.selector = faiss.IDSelectorBitmap(len(mask), _swig_ptr(self._bits))
        self.count = int(np.count_nonzero(mask))
        self.share = self.count / max(1, len(mask))

    @property
    def nbytes(self) -> int:
        """What it takes, in bytes."""
        return int(self._bits.nbytes)


class Index:
    """One blob, open. Searches change nothing in it, so threads may share it.

    It owns what FAISS reads from, and `keep`, which is to hold the bytes in place (a pin).
    """

    __slots__ = ("_array", "_default", "_index", "_kept_parameters", "_reader", "keep", "settings")

    def __init__(self, payload: npt.NDArray[np.uint8], keep: object = None) -> None:
        """Open a payload (n,) uint8 without copying it. Raises `IndexInvalid`. REQUIRES: its checksum was verified."""
        self.settings, self._array = unpack(payload)
        self.keep = keep
        self._reader = faiss.ZeroCopyIOReader(_swig_ptr(self._array), len(self._array))
        try:
            self._index = faiss.read_index(self._reader)
        except RuntimeError as error:
            raise IndexInvalid(f"FAISS cannot read an index: {error}") from error
        settings = self.settings
        if (self._index.d, self._index.nlist, self._index.ntotal) != (
            settings.dimension,
            settings.lists,
            settings.indexed,
        ):
            raise IndexInvalid("an index blob's header and its index differ")
        self._kept_parameters: dict[int, Any] = {}
        self._default = self._parameters(settings.nprobe, None)

    @classmethod
    def open(cls, payload: npt.NDArray[np.uint8], keep: object = None) -> Index:
        """The same as the constructor."""
        return cls(payload, keep)

    def search(
        self, query: F32, k: int, rows: Rows, *, allowed: Allowed | None = None, nprobe_factor: float = 1.0
    ) -> tuple[F32, I64]:
        """The best k for one query: (scores falling, internal ids), fewer than k where fewer were found.

        `query` (dimension,) is contiguous float32, of unit length under cosine; `rows` give the vectors of all internal
        ids. Scores are exact: inner products, or minus the squared Euclidean distances under l2.
        """
        settings = self.settings
        if allowed is not None:
            return self._search_allowed(query, k, rows, allowed, nprobe_factor)
        if nprobe_factor == 1.0 and k <= settings.k:
            wanted, parameters = settings.candidates, self._default
        else:
            wanted, nprobe = self._plan(k, None, nprobe_factor)
            parameters = self._parameters(nprobe, None)
        if not settings.query_scale:
            aimed = query
        elif settings.metric == "cosine":
            aimed = query * settings.query_scale
        else:
            aimed = scaled(query[None], settings.metric, settings.query_scale)
        distances, found = _empty(wanted, np.float32), _empty(wanted, np.int64)
        self._index.search_c(1, _swig_ptr(aimed), wanted, _swig_ptr(distances), _swig_ptr(found), parameters)
        return rows.best(query, found, k)

    def _search_allowed(self, query: F32, k: int, rows: Rows, allowed: Allowed, nprobe_factor: float) -> tuple[F32, I64]:
        """`search` where only some rows are allowed: where the nearest lists hold too few of them, in more lists."""
        settings = self.settings
        wanted, nprobe = self._plan(k, allowed, nprobe_factor)
        asked = wanted
        if allowed.share < _RARE:
            # Were the allowed rows spread evenly, there would be so many in the lists probed. Where not even a part of
            # them is there, the question is far from what is allowed, and the best of it is elsewhere.
            even = allowed.share * nprobe * settings.indexed / settings.lists
            asked = max(wanted, min(round(_EVEN_PART * even), 4 * wanted))
        asked = max(1, min(asked, allowed.count))
        aimed = scaled(query[None], settings.metric, settings.query_scale)
        distances, found = _empty(asked, np.float32), _empty(asked, np.int64)
        while True:
            parameters = self._parameters(nprobe, allowed.selector)
            self._index.search_c(1, _swig_ptr(aimed), asked, _swig_ptr(distances), _swig_ptr(found), parameters)
            if found[-1] >= 0 or nprobe >= settings.lists:
                return rows.best(query, found[:wanted], k)
            nprobe = min(settings.lists, _MORE_PROBES * nprobe)

    def candidates(self, queries: F32, k: int, *, allowed: Allowed | None = None, nprobe_factor: float = 1.0) -> I64:
        """The internal ids worth scoring, for each of the queries (n, dimension): (n, c) int64, -1 at the end of a row."""
        wanted, nprobe = self._plan(k, allowed, nprobe_factor)
        parameters = self._parameters(nprobe, allowed.selector if allowed else None)
        aimed = scaled(queries, self.settings.metric, self.settings.query_scale)
        found: I64 = self._index.search(aimed, wanted, params=parameters)[1]
        while allowed is not None and nprobe < self.settings.lists:
            short = np.flatnonzero(found[:, -1] < 0)
            if not len(short):
                break
            nprobe = min(self.settings.lists, _MORE_PROBES * nprobe)
            parameters = self._parameters(nprobe, allowed.selector)
            found[short] = self._index.search(aimed[short], wanted, params=parameters)[1]
        return found

    def _plan(self, k: int, allowed: Allowed | None, nprobe_factor: float) -> tuple[int, int]:
        """(candidates, lists to probe)."""
        settings = self.settings
        more = max(1.0, k / settings.k)
        probes = settings.nprobe * nprobe_factor * more**0.35
        wanted = max(k, round(settings.candidates * more**0.8), 1)
        if allowed is not None:
            probes *= max(allowed.share, 1e-6) ** -_RARER
        return wanted, max(1, min(settings.lists, round(probes)))

    def _parameters(self, nprobe: int, selector: Any) -> Any:
        if selector is not None:
            return self._made(nprobe, selector)
        known = self._kept_parameters.get(nprobe)
        if known is None:
            known = self._made(nprobe, None)
            if len(self._kept_parameters) < _PARAMETERS_MAX:
                self._kept_parameters[nprobe] = known
        return known

    def _made(self, nprobe: int, selector: Any) -> Any:
        settings = self.settings
        return search_parameters(settings.kind, settings.qb, nprobe, ef_for(nprobe) if settings.hnsw else 0, selector)
