"""How good an answer is for a question: a product of what is known, each factor a pure function.

    score     = relevance^4 * (0.5 + quality) * freshness * trust
    relevance = (cosine + words * share) / (1 + words), the share by BM25 (`Lexicon.shares`); below a floor nothing is shown
    quality   = Laplace's estimate (up + 2) / (all + 4) of the share of up-votes while they are few, passing into Wilson's
                lower bound as they come: (4 * laplace + all * wilson) / (4 + all)
    freshness = 0.3 + 0.7 * 2^(-age / half-life), age since somebody last confirmed the answer, else since it was given
    trust     = by how many of the author's answers others approved, and by others' votes on them

It is a product, and relevance is in it to the fourth power, so that votes cannot rescue an irrelevant answer. A vote's
weight halves each half-life. Sources: Wilson, JASA 22 (1927); Agresti & Coull (1998) for the four added votes; Stack
Overflow's "Trending" for halving votes. Laplace below five votes and Wilson from the fifth on would let the fifth up-vote
*lower* an answer (three of four by Laplace: .63; four of five by Wilson: .49): hence the gradual passing.
"""

from __future__ import annotations

import math
from typing import Annotated, NamedTuple

from pydantic import Field

from sharedrag.history.models import Model

Share = Annotated[float, Field(ge=0, le=1)]
Days = Annotated[float, Field(gt=0)]
_DAY_US = 86_400_000_000
_PRIOR = 4.0  # votes that Laplace adds, half of them up


class Weights(Model):
    """The settings of the ranking; the defaults were chosen by `make eval`."""

    words: Annotated[float, Field(ge=0)] = Field(default=0.3, description="Of words beside the cosine, in relevance.")
    floor: Share = Field(default=0.34, description="Relevance below which nothing is shown.")
    words_floor: Share = Field(default=0.2, description="The same where there are no vectors: the share of words alone.")
    power: Annotated[float, Field(gt=0)] = Field(default=4.0, description="Of relevance in the score.")
    z: Annotated[float, Field(ge=0)] = Field(default=1.28, description="Of Wilson's bound: 1.28 is 90 % on one side.")
    vote_half_life_days: Days = 365.0
    fresh_half_life_days: Days = 1460.0
    stale: Share = Field(default=0.3, description="What freshness falls to in the end.")
    newcomer: Share = Field(default=0.8, description="Trust in an author none of whose answers anybody approved yet.")
    superseded: Share = Field(default=0.1, description="What becomes of the score of an answer that was superseded.")
    per_author: Annotated[int, Field(ge=1)] = Field(default=2, description="Answers of one author that are shown at most.")
    alike: Share = Field(default=0.8, description="Share of common words from which two answers are near-duplicates.")
    depth: Annotated[int, Field(ge=1)] = Field(default=16, description="Candidates that are looked at, at least.")
    previous_question: Annotated[float, Field(ge=0)] = Field(default=0.3, description="Of it in a follow-up's vector.")
    previous_answer: Annotated[float, Field(ge=0)] = Field(default=1.0, description="The same of the answer to it.")


class Reputation(NamedTuple):
    """What others made of an author: how many of the answers they approved, and all their votes."""

    approved: int = 0
    up: int = 0
    down: int = 0


NOBODY_JUDGED = Reputation()


def relevance(similarity: float | None, share: float, weights: Weights) -> float:
    """0 to 1, from the cosine (None: there are no vectors) and the share of the question's words."""
    if similarity is None:
        return share
    found = (max(0.0, similarity) + weights.words * share) / (1 + weights.words)
    return min(1.0, found)


def floor(similarity: float | None, weights: Weights) -> float:
    """The relevance below which nothing is shown."""
    return weights.words_floor if similarity is None else weights.floor


def quality(up: float, down: float, z: float = 1.28) -> float:
    """0 to 1; one half without votes. `up` and `down` are sums of decayed votes. One more up-vote never lowers it."""
    count = up + down
    laplace = (up + _PRIOR / 2) / (count + _PRIOR)
    if count <= 0:
        return laplace
    spread = z * math.sqrt(up * (down / count) + z * z / 4)
    wilson = max(0.0, (up + z * z / 2 - spread) / (count + z * z))
    return (_PRIOR * laplace + count * wilson) / (_PRIOR + count)


def decay(age_us: float, half_life_days: float) -> float:
    """2^(-age / half-life); 1 for what lies ahead."""
    return 1.0 if age_us <= 0 else 2.0 ** (-age_us / (half_life_days * _DAY_US))


def freshness(age_us: float, weights: Weights) -> float:
    """From 1 down to `stale`, by the age of the last confirmation."""
    return weights.stale + (1 - weights.stale) * decay(age_us, weights.fresh_half_life_days)


def trust(of: Reputation, probation: int, weights: Weights) -> float:
    """0.56 to 1.3: a newcomer's share grows to 1 with `probation` approved answers; others' votes move it by 0.3 at most."""
    known = 1.0 if probation <= 0 else min(1.0, of.approved / probation)
    share = (of.up + _PRIOR) / (of.up + of.down + 2 * _PRIOR)
    return (weights.newcomer + (1 - weights.newcomer) * known) * (0.7 + 0.6 * share)


def score(rel: float, qual: float, fresh: float, trusted: float, weights: Weights) -> float:
    """The product."""
    return rel**weights.power * (0.5 + qual) * fresh * trusted  # type: ignore[no-any-return]
