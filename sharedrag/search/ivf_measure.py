"""How many lists to probe and how many candidates to re-rank, measured on the rows themselves.

**The queries** are rows, displaced. A stored row is too easy a question: it lies in the middle of its own neighbours, and
at the settings where real questions reach a recall of 0.907 (16,000 real sentence vectors), rows left out of their own
result reach 0.944. So sampled rows are moved by 0.85 of what the rows spread around their mean, in directions drawn with
the rows' own covariance (random mixtures of rows: embeddings fill few directions), and a row does not count among the
answers to its own question. With as many probes, real questions and such queries then reach about the same: 0.955 and
0.958 at 16,000 rows, 0.957 and 0.948 at 100,000. Where rows have near copies, those would make the questions easy: the
nearer a row's k-th neighbour is, compared with the spread, the farther it is moved. Where rows lie in tight clusters, that
would lead into empty space: it is moved by at most 2.5 times what separates rows from their k-th neighbours.

**One search** with many probes and candidates answers for all smaller settings: a candidate's list says how many probes
it takes to meet it, and its place among those met by then how many candidates. The cheapest setting by a model of the
cost (of this machine's kind; only its ratios matter) is chosen.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.search.ivf_layout import METRICS, faiss
from sharedrag.search.ivf_rows import F32, I64, Rows

MARGIN = 0.01  # aimed at above the target: what is measured on some queries holds for others only about
_QUERIES_MIN, _QUERIES_MAX = 48, 512
_CANDIDATES_FIRST, _CANDIDATES_MAX = 128, 1024
_EXACT_ROWS_MAX = 250_000  # of more rows not all are looked at for the true answers
_BLOCK_ROWS = 1 << 12  # FAISS scores blocks that fit the cache twice as fast
_DISPLACED, _APART_MAX, _COPIES, _COPIES_BELOW = 0.85, 2.5, 0.7, 0.75
_MIXED = 16
_NEAR = 48  # rows whose distance to their neighbours is looked at
_TIES = 2  # equal rows beyond the k-th that may count, as a multiple of k

Bools = npt.NDArray[np.bool_]


class Choice(NamedTuple):
    """Settings, the recall measured with them, and what a query costs by the model, in us."""

    nprobe: int
    candidates: int
    recall: float
    cost_us: float


class Trial(NamedTuple):
    """The questions and their true answers."""

    queries: F32
    good: I64  # (queries, n) ids that score at least as the k-th best does, -1 where there are no more
    k: int


def search_parameters(kind: str, qb: int, nprobe: int, ef: int, selector: Any = None) -> Any:
    """FAISS's parameters for one search; they keep what they refer to. Never changed, so threads may share them."""
    more: dict[str, Any] = {} if selector is None else {"sel": selector}
    if ef:
        more["quantizer_params"] = faiss.SearchParametersHNSW(efSearch=ef)
    if kind == "SQ8":
        return faiss.SearchParametersIVF(nprobe=nprobe, **more)
    return faiss.IVFRaBitQSearchParameters(nprobe=nprobe, qb=qb, centered=False, **more)


def ef_for(nprobe: int) -> int:
    """How far the coarse HNSW looks to find `nprobe` lists: less costs recall, more costs time."""
    return 2 * nprobe


def scaled(queries: F32, metric: str, scale: float) -> F32:
    """Queries (n, dimension) at the length at which the codes estimate best; the ranking stays the same."""
    if not scale:
        return queries
    if metric == "cosine":
        return queries * np.float32(scale)
    lengths = np.linalg.norm(queries, axis=1, keepdims=True)
    lengthened: F32 = queries * (np.float32(scale) / np.maximum(lengths, np.float32(1e-30)))
    return lengthened


def prepare(
    index: Any,
    parameters: Any,
    rows: Rows,
    ids: I64,
    list_of: npt.NDArray[np.int32],
    k: int,
    scale: float,
    rng: np.random.Generator,
) -> Trial:
    """Questions for an index that holds the rows `ids`, and their answers.

    The answers are those of an exact search; at a million rows that would take a third of the whole build, so beyond
    `_EXACT_ROWS_MAX` they are those of a search with `parameters`, which are to find nearly all. The rows are taken from
    all lists evenly, which steadies the result.
    """
    k = min(k, len(ids) - 1)
    wanted = min(len(ids), max(_QUERIES_MIN, min(_QUERIES_MAX, len(ids) // 48)))
    by_list = ids[np.argsort(list_of[ids], kind="stable")]
    sources = by_list[((np.arange(wanted) + rng.random(wanted)) * (len(ids) / wanted)).astype(np.int64)]
    vectors = rows.take(sources)
    near = index.search(scaled(vectors[:_NEAR], rows.metric, scale), min(4 * k, len(ids)), params=parameters)[1]
    queries = _displaced(vectors, near, rows, ids, k, rng)
    if rows.metric == "cosine":
        queries /= np.maximum(np.linalg.norm(queries, axis=1, keepdims=True), np.float32(1e-30))
    kept = min(_TIES * k + 1, len(ids))
    if len(ids) <= _EXACT_ROWS_MAX:
        scores, found = _exact(queries, rows, ids, kept)
    else:
        scores, found = _nearly_exact(index, parameters, queries, rows, scale, kept)
    return Trial(queries, _good(scores, found, sources, k), k)


def _displaced(vectors: F32, near: I64, rows: Rows, ids: I64, k: int, rng: np.random.Generator) -> F32:
    """The rows, all moved equally far; `near` are candidates for the nearest rows of the first few."""
    mixed = rows.take(rng.choice(ids, min(len(ids), 2 * len(vectors)), replace=False))
    mixed -= mixed.mean(axis=0)
    away = _mixtures(_mixtures(mixed, len(mixed), rng), len(vectors), rng)
    apart = [0.0]
    for vector, found in zip(vectors, near, strict=False):
        best = rows.best(vector, found, k + 1)[1]  # the row itself is most often the first
        if len(best):
            apart.append(float(np.linalg.norm(rows.take(best[-1:])[0] - vector)))
    spread = float(np.linalg.norm(mixed, axis=1).mean())
    distance = sum(apart) / max(1, len(apart) - 1)
    copied = max(0.0, _COPIES_BELOW - distance / max(spread, 1e-30))
    step = min((_DISPLACED + _COPIES * copied) * spread, _APART_MAX * distance)
    away *= np.float32(step) / np.maximum(np.linalg.norm(away, axis=1, keepdims=True), np.float32(1e-30))
    moved: F32 = vectors + away
    return moved


def _mixtures(vectors: F32, count: int, rng: np.random.Generator) -> F32:
    """Sums of `_MIXED` of the vectors with random signs: about normally distributed with their covariance.

    NumPy's matrix product would do, but wakes threads beyond those allowed.
    """
    sums = np.zeros((count, vectors.shape[1]), np.float32)
    for _ in range(_MIXED):
        signs = rng.choice(np.array([-1, 1], np.float32), (count, 1))
        sums += signs * vectors[rng.integers(0, len(vectors), count)]
    return sums


def _exact(queries: F32, rows: Rows, ids: I64, kept: int) -> tuple[F32, I64]:
    """The best `kept` of the rows `ids` by looking at all: (scores, ids), each (queries, kept) in no order."""
    falling = rows.metric != "l2"
    scores = np.empty((len(queries), 0), np.float32)
    found = np.empty((len(queries), 0), np.int64)
    whole = len(ids) == rows.count
    for start, block in rows.blocks(_BLOCK_ROWS):
        if whole:
            names = np.arange(start, start + len(block))
        else:
            names = ids[ids.searchsorted(start) : ids.searchsorted(start + len(block))]
            block = block[names - start]
        if not len(names):
            continue
        block_scores, block_rows = faiss.knn(queries, block, min(kept, len(names)), metric=METRICS[rows.metric])
        scores = np.concatenate((scores, block_scores if falling else -block_scores), axis=1)
        found = np.concatenate((found, names[block_rows]), axis=1)
        if scores.shape[1] > kept:
            best = np.argpartition(-scores, kept - 1, axis=1)[:, :kept]
            scores, found = np.take_along_axis(scores, best, 1), np.take_along_axis(found, best, 1)
    return scores, found


def _nearly_exact(index: Any, parameters: Any, queries: F32, rows: Rows, scale: float, kept: int) -> tuple[F32, I64]:
    """The same from far more lists and candidates than any setting has."""
    candidates = index.search(scaled(queries, rows.metric, scale), _CANDIDATES_MAX, params=parameters)[1]
    scores = np.full((len(queries), kept), -np.inf, np.float32)
    found = np.full((len(queries), kept), -1, np.int64)
    for number, ids in enumerate(candidates):
        best_scores, best = rows.best(queries[number], ids, kept)
        scores[number, : len(best)], found[number, : len(best)] = best_scores, best
    return scores, found


def _good(scores: F32, found: I64, sources: I64, k: int) -> I64:
    """Of what was found, the ids that score as the k-th best does or better, else -1.

    The row that a query was made from, `sources` (queries,), does not count: no question has its own row.
    """
    scores[found == sources[:, None]] = -np.inf
    last = -np.partition(-scores, k - 1, axis=1)[:, k - 1 : k]
    found[scores < last - np.float32(1e-6) * np.abs(last)] = -1
    return found


class Table:
    """One search with many probes and candidates, from which the recall of any smaller setting is read."""

    def __init__(self, index: Any, found: I64, trial: Trial, list_of: npt.NDArray[np.int32], probes: I64) -> None:
        """`found` (queries, candidates) ids, best first; `probes` (queries, probes) lists, nearest first."""
        sizes = np.array([index.invlists.list_size(number) for number in range(index.nlist)])
        self.probes = probes.shape[1]
        self.candidates = found.shape[1]
        self.scanned = np.where(probes >= 0, sizes[probes], 0).cumsum(axis=1).mean(axis=0)
        ranks = np.full((len(found), index.nlist + 1), index.nlist, np.int32)  # the last one for probes that found none
        np.put_along_axis(ranks, np.where(probes < 0, index.nlist, probes), np.arange(self.probes, dtype=np.int32), 1)
        self._ranks = np.where(found >= 0, np.take_along_axis(ranks, list_of[found], 1), index.nlist)
        self._hits = (found[:, :, None] == trial.good[:, None, :]).any(axis=2) & (found >= 0)
        self._k = trial.k

    def recalls(self, nprobe: int, candidates: I64) -> npt.NDArray[np.float64]:
        """The recall with so many probes, for each number of candidates."""
        met = self._ranks < nprobe
        places = met.cumsum(axis=1)
        hits = self._hits & met
        # (candidates wanted, queries): how many of the first so many met are hits
        counts = np.stack([(hits & (places <= wanted)).sum(axis=1) for wanted in candidates.tolist()])
        recalls: npt.NDArray[np.float64] = np.minimum(counts, self._k).mean(axis=1) / self._k
        return recalls

    def choose(self, aim: float, k: int, costs: Costs) -> Choice:
        """The cheapest setting that reaches the aim; else the one with the best recall."""
        candidates = _steps(k, self.candidates, 1.15)
        best: Choice | None = None
        for nprobe in _steps(1, self.probes, 1.12).tolist():
            if best is not None and best.recall >= aim and costs.of(nprobe, self.scanned[nprobe - 1], k) > best.cost_us:
                break
            recalls = self.recalls(nprobe, candidates)
            reached = int(np.argmax(recalls >= aim)) if recalls[-1] >= aim else int(np.argmax(recalls))
            wanted = int(candidates[reached])
            cost = costs.of(nprobe, self.scanned[nprobe - 1], wanted)
            choice = Choice(nprobe, wanted, float(recalls[reached]), cost)
            if best is None or _better(choice, best, aim):
                best = choice
        assert best is not None
        return best


def _better(one: Choice, other: Choice, aim: float) -> bool:
    if one.recall >= aim and other.recall >= aim:
        return one.cost_us < other.cost_us
    return one.recall > other.recall


def _steps(first: int, last: int, ratio: float) -> I64:
    """Whole numbers from first to last, each about `ratio` times the one before."""
    first = min(first, last)
    count = int(np.ceil(np.log(last / first) / np.log(ratio))) + 1
    return np.unique(np.rint(np.geomspace(first, last, max(2, count))).astype(np.int64))


class Costs(NamedTuple):
    """A model of what a query costs, fitted to measurements at 64 to 4,096 dimensions; us."""

    kind: str
    dimension: int
    lists: int
    hnsw: bool

    def of(self, nprobe: int, scanned: float, candidates: int) -> float:
        """For so many probes, codes looked at and candidates re-ranked."""
        d = self.dimension
        per_code = {"RaBitQ": 11 + 0.008 * d, "RaBitQ2": 10 + 0.035 * d, "SQ8": 3 + 0.058 * d}[self.kind] / 1000
        coarse = 5 + 0.4 * ef_for(nprobe) if self.hnsw else self.lists * (10 + 0.06 * d) / 1000
        return 6 + coarse + 0.3 * nprobe + per_code * float(scanned) + (0.17 + 0.0002 * d) * candidates


def measured(
    index: Any, kind: str, qb: int, hnsw: bool, rows: Rows, ids: I64, k: int, scale: float, target: float, seed: int
) -> Choice:
    """The cheapest settings for an index over the rows `ids` (rising) that reach the target and `MARGIN`."""
    rng = np.random.default_rng(seed)
    lists = index.nlist
    costs = Costs(kind, rows.dimension, lists, hnsw)
    aim = min(1.0, target + MARGIN)
    many = min(lists, max(16, lists // 8))
    parameters = search_parameters(kind, qb, many, ef_for(many) if hnsw else 0)
    probes = min(lists, max(16, lists // 12))
    list_of = _lists_of(index, rows.count)
    trial = prepare(index, parameters, rows, ids, list_of, k, scale, rng)
    queries = scaled(trial.queries, rows.metric, scale)
    candidates = min(len(ids), max(_CANDIDATES_FIRST, 4 * k))
    most = min(len(ids), max(_CANDIDATES_MAX, 4 * k))
    while True:
        parameters = search_parameters(kind, qb, probes, ef_for(probes) if hnsw else 0)
        found = index.search(queries, candidates, params=parameters)[1]
        nearest = _nearest_lists(index, queries, probes, hnsw)
        table = Table(index, found, trial, list_of, nearest)
        choice = table.choose(aim, k, costs)
        if choice.recall >= aim or (probes == lists and candidates == most):
            break
        missed_by_lists = table.recalls(probes, np.array([candidates]))[0] < aim and probes < lists
        if missed_by_lists:
            probes = min(lists, 3 * probes)
        candidates = min(most, 3 * candidates)
    return _confirmed(index, kind, qb, rows, trial, queries, choice, aim) if hnsw else choice


def _confirmed(index: Any, kind: str, qb: int, rows: Rows, trial: Trial, queries: F32, choice: Choice, aim: float) -> Choice:
    """The choice, raised until a search with just these settings reaches the aim: a coarse HNSW asked for fewer lists
    finds less good ones.
    """
    while True:
        parameters = search_parameters(kind, qb, choice.nprobe, ef_for(choice.nprobe))
        found = index.search(queries, choice.candidates, params=parameters)[1]
        hits = ((found[:, :, None] == trial.good[:, None, :]).any(axis=2) & (found >= 0)).sum(axis=1)
        choice = choice._replace(recall=float(np.minimum(hits, trial.k).mean() / trial.k))
        if choice.recall >= aim or choice.nprobe >= index.nlist:
            break
        more = min(index.nlist, choice.nprobe + max(1, choice.nprobe // 10))
        choice = choice._replace(
            nprobe=more,
            candidates=choice.candidates + choice.candidates // 24,
            cost_us=choice.cost_us * more / choice.nprobe,
        )
    return choice


def _nearest_lists(index: Any, queries: F32, probes: int, hnsw: bool) -> I64:
    parameters = faiss.SearchParametersHNSW(efSearch=ef_for(probes)) if hnsw else None
    nearest: I64 = index.quantizer.search(queries, probes, params=parameters)[1]
    return nearest


def _lists_of(index: Any, rows: int) -> npt.NDArray[np.int32]:
    """In which list each internal id is."""
    owners = np.zeros(rows, np.int32)
    inverted = index.invlists
    for number in range(index.nlist):
        size = inverted.list_size(number)
        if size:
            owners[faiss.rev_swig_ptr(inverted.get_ids(number), size)] = number
    return owners
