"""One ranking of two: rows found by vector and rows found by words.

Reciprocal rank fusion looks at ranks alone: a row scores the sum of 1 / (60 + rank) over the rankings it is in (Cormack,
Clarke & Büttcher, SIGIR 2009). Weighted fusion stretches the scores of each ranking to 0..1 and adds them, `alpha` of the
vector's and 1 - `alpha` of the words': 1 is the vector alone, 0 the words alone, as LlamaIndex means it.
"""

from __future__ import annotations

from collections.abc import Callable

from sharedrag.errors import InvalidRecord
from sharedrag.search.knn import Found

RANK_OFFSET = 60
_DEPTH_MIN = 50

Place = tuple[int, int]


def check_alpha(alpha: object) -> float | None:
    """`alpha` as a float from 0 to 1, or None; raises `InvalidRecord`."""
    if alpha is None:
        return None
    if isinstance(alpha, (int, float)) and not isinstance(alpha, bool) and 0 <= alpha <= 1:
        return float(alpha)
    raise InvalidRecord(
        f"alpha is {alpha!r}", operation="search", hint="Give a number from 0 (words alone) to 1 (vectors alone)"
    )


def depth(k: int) -> int:
    """How many of each ranking are looked at for the best k of both."""
    return max(_DEPTH_MIN, 2 * k)


def fused(by_vector: Found, by_words: Found, k: int, alpha: float | None = None) -> Found:
    """The best k of two rankings of the same parts: by rank, or with `alpha` by score.

    Of equal scores the row that is higher in the vector's ranking is first, then the one higher in the words'.
    """
    if alpha is None:
        scores = _sum((by_vector, 1.0), (by_words, 1.0), _by_rank)
    else:
        scores = _sum((by_vector, alpha), (by_words, 1.0 - alpha), _by_score)
    best = sorted(scores.items(), key=lambda one: -one[1])[:k]
    return Found([score for _, score in best], [part for (part, _), _ in best], [row for (_, row), _ in best])


def _sum(
    one: tuple[Found, float], other: tuple[Found, float], worth: Callable[[list[float]], list[float]]
) -> dict[Place, float]:
    """What each row is worth in all; a ranking of no weight is not looked at."""
    sums: dict[Place, float] = {}
    for found, weight in (one, other):
        if weight:
            for place, value in zip(zip(found.parts, found.rows, strict=True), worth(found.scores), strict=True):
                sums[place] = sums.get(place, 0.0) + weight * value
    return sums


def _by_rank(scores: list[float]) -> list[float]:
    return [1.0 / (RANK_OFFSET + rank) for rank in range(1, len(scores) + 1)]


def _by_score(scores: list[float]) -> list[float]:
    """Stretched to 0..1; all 1 where they are all the same."""
    if not scores:
        return []
    high, low = max(scores), min(scores)
    return [1.0 if high == low else (score - low) / (high - low) for score in scores]
