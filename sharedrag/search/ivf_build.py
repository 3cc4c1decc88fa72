"""Makes index blobs: from rows, from a blob and more rows, and from a blob whose rows have new internal ids."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.search import ivf_layout, ivf_measure, ivf_train, openmp
from sharedrag.search.ivf_layout import Settings, faiss
from sharedrag.search.ivf_rows import I64, Rows

ROWS_MIN = 256  # of fewer there is no index: to look at all of them costs less
GROWTH_MAX = 4.0  # lists made for a quarter of the rows are too long
MEASURED_AGAIN = 1.4  # to measure costs as much as adding some thousand rows; recall falls by less than the margin till then
_ADD_ROWS = 1 << 15
_QB = 4  # bits of a query's code: with 8 the same rows are found, in a sixth more time

Bools = npt.NDArray[np.bool_]


class Built(NamedTuple):
    """A new blob: buffers to be stored one after the other, and what its header says."""

    payload: list[memoryview]
    settings: Settings

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return sum(buffer.nbytes for buffer in self.payload)


def build(
    rows: Rows,
    *,
    leave_out: Bools | None = None,
    recall_target: float = 0.95,
    k: int = 10,
    growth: float = 1.0,
    threads: int = 1,
    seed: int = 0,
) -> Built | None:
    """An index over the rows, those of `leave_out` (rows.count,) bool excepted; None for fewer than `ROWS_MIN` of them.

    Rows that are left out (dead, or without a vector) keep their internal ids, and their vectors are not read. The
    settings are measured: see `ivf_measure`. The lists suit `growth` times the rows. Where 1-bit codes cannot reach the
    target, 8-bit ones are taken.
    Memory: the blob twice, a sample of 40 rows for each list, and blocks of 32,768 rows.
    """
    ids = _included(rows, leave_out)
    if len(ids) < ROWS_MIN:
        return None
    metric, lists, kind = rows.metric, ivf_train.lists_for(round(growth * len(ids))), ivf_train.kind_for(rows.dimension)
    with openmp.Threads(threads):
        rng = np.random.default_rng(seed)
        sample = ivf_train.sampled(rows, ids, ivf_train.SAMPLES_PER_LIST * lists, rng)
        centres, scale = ivf_train.centres_of(sample, lists, metric, seed)
        index, settings = _filled(kind, centres, scale, sample, rows, ids, recall_target, k, seed)
        if settings.recall < recall_target and settings.nprobe == lists and kind != "SQ8":  # not for want of probes
            better = _filled("SQ8", centres, scale, sample, rows, ids, recall_target, k, seed)
            if better[1].recall > settings.recall:
                index, settings = better
        return _packed(index, settings)


def _filled(
    kind: str, centres: Any, scale: float, sample: Any, rows: Rows, ids: I64, target: float, k: int, seed: int
) -> tuple[Any, Settings]:
    index = ivf_train.empty_index(kind, centres, rows.metric, sample)
    _add(index, rows, ids)
    hnsw = len(centres) >= ivf_train.HNSW_LISTS_MIN
    choice = ivf_measure.measured(index, kind, _QB, hnsw, rows, ids, k, scale, target, seed)
    settings = Settings(
        kind=kind,
        metric=rows.metric,
        qb=_QB,
        hnsw=hnsw,
        dimension=rows.dimension,
        lists=len(centres),
        nprobe=choice.nprobe,
        candidates=choice.candidates,
        ef=ivf_measure.ef_for(choice.nprobe) if hnsw else 0,
        k=k,
        rows=rows.count,
        indexed=len(ids),
        trained=len(ids),
        recall_target=target,
        recall=choice.recall,
        query_scale=scale,
        cost_us=choice.cost_us,
        measured=len(ids),
    )
    return index, settings


def extended(
    payload: npt.NDArray[np.uint8],
    rows: Rows,
    *,
    leave_out: Bools | None = None,
    threads: int = 1,
    seed: int = 0,
) -> Built:
    """The index and the rows that are new: those from its `settings.rows` on. The lists stay, and so do the settings,
    until there are `MEASURED_AGAIN` times the rows that they were measured with.

    `rows` are all of them, the old ones first, as they were numbered; `leave_out` is over all of them too, but what is
    in the index stays in it (leave it out by `renumbered`). Raises `IndexInvalid` for a payload that is none.
    """
    settings, faiss_bytes = ivf_layout.unpack(payload)
    assert (rows.metric, rows.dimension) == (settings.metric, settings.dimension) and rows.count >= settings.rows
    with openmp.Threads(threads):
        index = _own_copy(faiss_bytes)
        fresh = _included(rows, leave_out)
        fresh = fresh[fresh.searchsorted(settings.rows) :]
        _add(index, rows, fresh)
        settings = settings._replace(rows=rows.count, indexed=settings.indexed + len(fresh))
        if settings.indexed > MEASURED_AGAIN * settings.measured:
            settings = _measured_again(index, settings, rows, seed)
    return _packed(index, settings)


def _measured_again(index: Any, settings: Settings, rows: Rows, seed: int) -> Settings:
    ids = _ids_in(index, rows.count)
    kind, qb, hnsw, scale = settings.kind, settings.qb, settings.hnsw, settings.query_scale
    choice = ivf_measure.measured(index, kind, qb, hnsw, rows, ids, settings.k, scale, settings.recall_target, seed)
    return settings._replace(
        nprobe=choice.nprobe,
        candidates=choice.candidates,
        ef=ivf_measure.ef_for(choice.nprobe) if hnsw else 0,
        recall=choice.recall,
        cost_us=choice.cost_us,
        measured=len(ids),
    )


class More(NamedTuple):
    """Rows to add to an index: `ids` (m,) of them rising, row 0 of `rows` has the internal id `first`."""

    rows: Rows
    first: int
    ids: I64


def renumbered(payload: npt.NDArray[np.uint8], mapping: I64, rows_new: int, more: More | None = None) -> Built:
    """The index with the internal ids `mapping` (settings.rows,) int64 gives, each in 0..rows_new-1, or -1: no longer in.

    Costs a pass over the blob, and the adding of `more`. Settings are taken over. Raises `IndexInvalid` for a payload that
    is none.
    """
    settings, faiss_bytes = ivf_layout.unpack(payload)
    assert len(mapping) == settings.rows
    index = _own_copy(faiss_bytes)
    inverted, code_size = index.invlists, index.code_size
    total = 0
    for number in range(index.nlist):
        size = inverted.list_size(number)
        if not size:
            continue
        ids = faiss.rev_swig_ptr(inverted.get_ids(number), size)
        new = mapping[ids]
        keep = new >= 0
        kept = int(keep.sum())
        if kept < size:
            codes = faiss.rev_swig_ptr(inverted.get_codes(number), size * code_size).reshape(size, code_size)
            codes[:kept] = codes[keep]
            new = new[keep]
        ids[:kept] = new
        if kept < size:
            inverted.resize(number, kept)
        total += kept
    index.ntotal = total
    if more is not None and len(more.ids):
        with openmp.Threads(1):
            _add(index, more.rows, more.ids, more.first)
        total += len(more.ids)
    return _packed(index, settings._replace(rows=rows_new, indexed=total))


def outgrown(settings: Settings, live: int) -> bool:
    """Whether the lists should be made anew for `live` rows: there are far more or fewer than they were made for, or the
    recall measured last missed the target.
    """
    few, many = settings.trained / GROWTH_MAX, settings.trained * GROWTH_MAX
    return not few <= live <= many or settings.recall < settings.recall_target


def _included(rows: Rows, leave_out: Bools | None) -> I64:
    if leave_out is None:
        return np.arange(rows.count)
    assert len(leave_out) == rows.count
    return np.flatnonzero(~leave_out)


def _add(index: Any, rows: Rows, ids: I64, first: int = 0) -> None:
    """Add the rows `ids` (rising), as `first` + their number; blocks in which all are wanted are not copied."""
    for start, block in rows.blocks(_ADD_ROWS):
        names = ids[ids.searchsorted(start) : ids.searchsorted(start + len(block))]
        if len(names):
            index.add_with_ids(block if len(names) == len(block) else block[names - start], names + first)


def _ids_in(index: Any, rows: int) -> I64:
    """The internal ids in an index, rising."""
    there = np.zeros(rows, np.bool_)
    for number in range(index.nlist):
        size = index.invlists.list_size(number)
        if size:
            there[faiss.rev_swig_ptr(index.invlists.get_ids(number), size)] = True
    return np.flatnonzero(there)


def _own_copy(faiss_bytes: npt.NDArray[np.uint8]) -> Any:
    """An index with memory of its own, to be changed."""
    try:
        return faiss.deserialize_index(faiss_bytes)
    except RuntimeError as error:
        raise ivf_layout.IndexInvalid(f"FAISS cannot read an index: {error}") from error


def _packed(index: Any, settings: Settings) -> Built:
    written: npt.NDArray[np.uint8] = faiss.serialize_index(index)
    return Built([memoryview(settings.pack(len(written))), written.data], settings)
