"""One question by vector: indexes over what they cover, everything else exactly, one merged top-k."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from sharedrag.arena.row import HAS_VECTOR
from sharedrag.search import knn
from sharedrag.search.blocks import Blocks
from sharedrag.search.coverage import CoveredIndex, Range
from sharedrag.search.ivf import Allowed
from sharedrag.search.knn import Found, Mask, PerPart
from sharedrag.segments.live import Part, View

_INDEXED_K_MAX = 128  # for more hits than this all rows are compared: settings were measured at ten
Span = tuple[int, int]


class _Plan(NamedTuple):
    """Which indexes answer, and what of each segment none of them covers."""

    indexes: list[CoveredIndex]
    gaps: dict[int, list[Span]]  # by uid: uncovered rows before the last covered one
    until: dict[int, int]  # by uid: one past the last covered row


class _Cut(NamedTuple):
    """What of a plan and a view all questions share that are asked of that view."""

    version: int
    positions: dict[int, int]  # by uid: which part of the view that segment is
    spans: list[list[Span]] | None  # for each part the rows that no index covers; None if there are none at all
    dead: list[tuple[int, ...]]  # for each index how many rows of each segment it covers are dead


_NO_PLAN = _Plan([], {}, {})
_NO_CUT = _Cut(-1, {}, None, [])
_NOTHING = Found([], [], [])


class Planner:
    """The search of one collection."""

    def __init__(self, blocks: Blocks, metric: str) -> None:
        """`blocks` opens the indexes."""
        self._blocks = blocks
        self._metric = metric
        self._planned: tuple[object, _Plan] = ((), _NO_PLAN)
        self._cut_of: tuple[_Plan, _Cut] = (_NO_PLAN, _NO_CUT)

    def search(
        self, view: View, masks: PerPart, asked: str | None, queries: npt.NDArray[np.float32], k: int, exact: bool
    ) -> list[Found]:
        """The best k rows for each query (n, dimension) float32; `masks[i]` (rows,) bool narrows part i, None leaves it.

        `asked` names the question that the masks answer ("" for none), None if it has no name. With `exact` no index is
        used; nor is one for very many hits.
        """
        plan = _NO_PLAN if exact or k > _INDEXED_K_MAX else self._plan(view)
        if not plan.indexes:
            return knn.search_parts(view.parts, masks, queries, k, self._metric)
        cut = self._cut(view, plan)
        tails = None
        if cut.spans is not None:
            tails = knn.search_parts(view.parts, masks, queries, k, self._metric, cut.spans)
        answers = []
        for number, query in enumerate(queries):
            best = _NOTHING  # the largest index first: most often nothing in the others is better
            for index, dead in zip(plan.indexes, cut.dead, strict=True):
                scores, rows = _ask(index, view.parts, cut.positions, dead, masks, asked, query, k)
                values = scores.tolist()
                if self._metric == "l2":
                    values = [-math.sqrt(max(0.0, -value)) for value in values]
                better = _better(values, best, k)
                if better:
                    more = Found(values[:better], *index.places(rows[:better].tolist(), cut.positions))
                    best = _merged(best, more, k)
            if tails is not None and _better(tails[number].scores, best, k):
                best = _merged(best, tails[number], k)
            answers.append(best)
        return answers

    def _plan(self, view: View) -> _Plan:
        """Made once for each change of the indexes; the views between differ only in rows that came later."""
        seen, plan = self._planned
        if seen is not view.indexes:
            plan = _plan_of(self._blocks.indexes(view))
            self._planned = (view.indexes, plan)
        return plan

    def _cut(self, view: View, plan: _Plan) -> _Cut:
        """Made once for each view: while the plan is the same, views with equal versions have the same rows."""
        of, cut = self._cut_of
        if of is not plan or cut.version != view.version:
            parts = view.parts
            positions = {part.segment.uid: position for position, part in enumerate(parts)}
            spans = [_uncovered(plan, part) for part in parts]
            dead = [tuple([parts[positions[uid]].dead for uid in index.by_uid]) for index in plan.indexes]
            cut = _Cut(view.version, positions, spans if any(spans) else None, dead)
            self._cut_of = (plan, cut)
        return cut


def _plan_of(indexes: list[CoveredIndex]) -> _Plan:
    """Of indexes that cover the same row the first is used."""
    covered: dict[int, list[Range]] = {}
    used = []
    for index in indexes:
        if not any(uid in covered and _overlap(covered[uid], ranges) for uid, ranges in index.by_uid.items()):
            used.append(index)
            for uid, ranges in index.by_uid.items():
                covered.setdefault(uid, []).extend(ranges)
    gaps: dict[int, list[Span]] = {}
    until: dict[int, int] = {}
    for uid, ranges in covered.items():
        at = 0
        gaps[uid] = []
        for one in sorted(ranges):
            if one.start > at:
                gaps[uid].append((at, one.start))
            at = one.start + one.rows
        until[uid] = at
    return _Plan(used, gaps, until)


def _overlap(ones: list[Range], others: list[Range]) -> bool:
    return any(
        one.start < other.start + other.rows and other.start < one.start + one.rows for one in ones for other in others
    )


def _uncovered(plan: _Plan, part: Part) -> list[Span]:
    uid = part.segment.uid
    until = plan.until.get(uid, 0)
    rest = [(until, part.rows)] if until < part.rows else []
    return plan.gaps[uid] + rest if until else rest


def _ask(
    index: CoveredIndex,
    parts: tuple[Part, ...],
    positions: Mapping[int, int],
    dead: tuple[int, ...],
    masks: PerPart,
    asked: str | None,
    query: npt.NDArray[np.float32],
    k: int,
) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
    """(scores, internal ids) of one index's best."""
    if asked == "" and not any(dead):
        return index.search(query, k)
    covered = [positions[uid] for uid in index.by_uid]
    allowed = index.allowed(
        None if asked is None else (asked, dead),
        lambda: {parts[position].segment.uid: _wanted(parts[position], masks[position]) for position in covered},
    )
    if not isinstance(allowed, Allowed):
        return index.rows.best(query, allowed, k)
    return index.search(query, k, allowed)


def _wanted(part: Part, mask: Mask | None) -> Mask | None:
    """What of a part may be found. Rows without a vector are in no index, but all that may be found may be looked at."""
    wanted = part.alive if part.dead else None
    if mask is not None:
        wanted = mask if wanted is None else wanted & mask
    if part.without_vector:
        has = (part.segment.flags_array[: part.rows] & HAS_VECTOR) != 0
        wanted = has if wanted is None else wanted & has
    return wanted


def _better(scores: list[float], best: Found, k: int) -> int:
    """How many of these falling scores are among the best k, if what was found so far has the others."""
    if len(best.scores) < k:
        return len(scores)
    bar = best.scores[-1]
    return sum([score > bar for score in scores])


def _merged(best: Found, more: Found, k: int) -> Found:
    """The best k of two answers."""
    if not best.scores:
        return more
    pairs = sorted([(-score, part, row) for one in (best, more) for score, part, row in zip(*one, strict=True)])[:k]
    return Found([-score for score, _, _ in pairs], [part for _, part, _ in pairs], [row for _, _, row in pairs])
