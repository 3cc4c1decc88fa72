"""A private FAISS index in the process that asks, with texts and metadata in Python lists: the limit to beat.

Nothing is shared: each process reads its own copy, and sees only what it wrote itself.
"""

from __future__ import annotations

import importlib
import json
from collections import defaultdict
from collections.abc import Iterable
from typing import Any, ClassVar

import numpy as np

from tests.peers.protocol import DIMENSION, PRIVATE, Hit, Peer, Place, Rows, Vectors

faiss: Any = importlib.import_module("faiss")

_LARGE = 500_000
_EXACT_MAX = 1_500  # rows of a room up to which comparing all of them is quicker than a selector
_TRAIN_PER_CELL = 64


class _FaissPrivate(Peer):
    """Index, original vectors, texts: all of this process."""

    package: ClassVar[str] = "faiss-cpu"
    processes: ClassVar[str] = PRIVATE
    why: ClassVar[str] = "memory of one process"

    def __init__(self, place: Place) -> None:
        """Read what was saved, if anything was."""
        faiss.omp_set_num_threads(2)  # to build; one query takes one thread in any case
        self._place = place
        self._index: Any = None
        self._vectors = np.empty((0, DIMENSION), np.float32)
        self._ids: list[str] = []
        self._texts: list[str] = []
        self._metadata: list[dict[str, Any]] = []
        if (place.folder / "index.faiss").exists():
            self._index = faiss.read_index(str(place.folder / "index.faiss"))
            self._vectors = np.load(place.folder / "vectors.npy")
            self._ids, self._texts, self._metadata = json.loads((place.folder / "rows.json").read_bytes())
        self._rooms: defaultdict[str, list[int]] = defaultdict(list)
        for row, fields in enumerate(self._metadata):
            self._rooms[fields["room"]].append(row)
        self._selectors: dict[str, Any] = {}
        self._room_rows = {room: np.array(rows) for room, rows in self._rooms.items()}

    def _build(self, vectors: Vectors) -> Any:
        raise NotImplementedError

    def load(self, batches: Iterable[Rows]) -> None:
        """Collect, build, save."""
        parts = []
        for rows in batches:
            parts.append(rows.vectors)
            self._remember(rows)
        self._vectors = np.concatenate(parts)
        self._index = self._build(self._vectors)
        folder = self._place.folder
        faiss.write_index(self._index, str(folder / "index.faiss"))
        np.save(folder / "vectors.npy", self._vectors)
        (folder / "rows.json").write_text(json.dumps([self._ids, self._texts, self._metadata]))

    def _remember(self, rows: Rows) -> None:
        self._ids += rows.ids
        self._texts += rows.texts
        self._metadata += rows.metadata

    def write(self, rows: Rows) -> None:
        """Add to this process's index and lists."""
        begin, end = len(self._ids), len(self._ids) + len(rows.ids)
        if end > len(self._vectors):
            grown = np.empty((2 * end, DIMENSION), np.float32)
            grown[:begin] = self._vectors[:begin]
            self._vectors = grown
        self._vectors[begin:end] = rows.vectors
        self._index.add(rows.vectors)
        self._remember(rows)

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """By the index; within a room of few rows by comparing all of them, which is quicker."""
        if room is None:
            found = self._nearest(query, k)
        elif len(self._room_rows[room]) <= _EXACT_MAX:
            found = _best(self._vectors, query, self._room_rows[room], k)
        else:
            found = self._nearest(query, k, self._selector(room))
        return [Hit(self._ids[row], self._texts[row], self._metadata[row]) for row in found.tolist()]

    def _selector(self, room: str) -> Any:
        """Made at the first question in a room, and kept."""
        if room not in self._selectors:
            chosen = np.zeros(len(self._ids), bool)
            chosen[self._room_rows[room]] = True
            self._selectors[room] = faiss.IDSelectorBitmap(np.packbits(chosen, bitorder="little"))
        return self._selectors[room]

    def _nearest(self, query: Vectors, k: int, selector: Any = None) -> Any:
        raise NotImplementedError

    def have(self, ids: list[str]) -> set[str]:
        """What this process remembers."""
        return set(ids) & set(self._ids)


class FaissRaBitQ(_FaissPrivate):
    """IVF with 1-bit RaBitQ codes, the candidates re-ranked with the original vectors."""

    settings: ClassVar[str] = (
        "IVF + RaBitQ (qb 4), re-ranked with float32; knobs: nprobe and candidates; filter: exact in a room of at most "
        f"{_EXACT_MAX:,} rows, else by a bitmap"
    )
    knobs: ClassVar[tuple[tuple[int, int], ...]] = tuple(
        (probes, candidates)
        for probes, candidates in (
            (8, 40), (12, 40), (16, 50), (20, 50), (20, 80), (24, 60), (24, 80), (28, 60), (28, 80), (24, 120), (28, 120),
            (32, 120), (36, 120), (40, 120), (48, 120), (56, 120), (64, 160), (80, 160), (100, 200), (120, 200), (150, 250),
            (200, 300), (400, 600), (1_000, 600),
        )
    )  # fmt: skip

    def _build(self, vectors: Vectors) -> Any:
        cells = 1 << round(np.log2(1.6 * len(vectors) ** 0.5))
        index = faiss.index_factory(
            DIMENSION,
            "IVF4096_HNSW32,RaBitQ" if len(vectors) >= _LARGE else f"IVF{cells},RaBitQ",
            faiss.METRIC_INNER_PRODUCT,
        )
        some = np.random.default_rng(0).permutation(len(vectors))[: index.nlist * _TRAIN_PER_CELL]
        index.train(vectors[some])
        index.add(vectors)
        return index

    def use(self, knob: Any) -> None:
        """(cells to look into, candidates to re-rank)."""
        probes, self._candidates = knob
        self._parameters = faiss.IVFRaBitQSearchParameters(nprobe=probes, qb=4, centered=False)
        if self._index is not None and isinstance(coarse := faiss.downcast_index(self._index.quantizer), faiss.IndexHNSW):
            coarse.hnsw.efSearch = 2 * probes

    def _nearest(self, query: Vectors, k: int, selector: Any = None) -> Any:
        self._parameters.sel = selector
        _, found = self._index.search(query[np.newaxis], self._candidates, params=self._parameters)
        rows = found[0][found[0] >= 0]
        return _best(self._vectors, query, rows, k)


class FaissHnsw(_FaissPrivate):
    """What is most often taken for speed."""

    settings: ClassVar[str] = "HNSW32 + SQ8, efConstruction 80; knob: efSearch; filter: as above"
    knobs: ClassVar[tuple[int, ...]] = (10, 12, 16, 20, 24, 28, 32, 40, 48, 64, 96, 128, 192, 256, 512)

    def _build(self, vectors: Vectors) -> Any:
        index = faiss.index_factory(DIMENSION, "HNSW32,SQ8", faiss.METRIC_INNER_PRODUCT)
        index.hnsw.efConstruction = 80
        index.train(vectors[:50_000])
        index.add(vectors)
        return index

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._parameters = faiss.SearchParametersHNSW(efSearch=knob)

    def _nearest(self, query: Vectors, k: int, selector: Any = None) -> Any:
        self._parameters.sel = selector
        _, found = self._index.search(query[np.newaxis], k, params=self._parameters)
        return found[0][found[0] >= 0]


def _best(vectors: Vectors, query: Vectors, rows: Any, k: int) -> Any:
    """The k of these rows that are nearest, best first."""
    scores = vectors[rows] @ query
    if len(rows) > k:
        top = np.argpartition(scores, -k)[-k:]
        rows, scores = rows[top], scores[top]
    return rows[np.argsort(-scores)]
