from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedrag.history import ranking
from sharedrag.history.ranking import Reputation, Weights

WEIGHTS = Weights()
DAY_US = 86_400_000_000
votes = st.floats(0, 1000)
shares = st.floats(0, 1)
counts = st.integers(0, 10_000)


def test_few_votes_are_laplaces_and_many_are_wilsons() -> None:
    """One half without votes; near Wilson's lower bound, by its own formula, with many."""
    assert ranking.quality(0, 0) == 0.5
    up, count, z = 700.0, 1000.0, 1.28
    share = up / count
    spread = z * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    bound = (share + z * z / (2 * count) - spread) / (1 + z * z / count)
    assert ranking.quality(up, count - up, z) == pytest.approx(bound, abs=1e-3)
    assert ranking.quality(1, 0) < ranking.quality(5, 0) < ranking.quality(50, 0) < 1


@given(up=votes, down=votes, more=st.floats(0.001, 10))
def test_another_vote_moves_quality_its_own_way(up: float, down: float, more: float) -> None:
    """More up-votes never lower it, more down-votes never raise it, however much they have decayed."""
    assert ranking.quality(up + more, down) >= ranking.quality(up, down) - 1e-12
    assert ranking.quality(up, down + more) <= ranking.quality(up, down) + 1e-12
    assert 0 <= ranking.quality(up, down) <= 1


@given(age=st.floats(0, 1e17), younger=st.floats(0, 1))
def test_freshness_falls_with_age_to_its_floor(age: float, younger: float) -> None:
    """A newer confirmation never lowers it."""
    assert WEIGHTS.stale <= ranking.freshness(age, WEIGHTS) <= ranking.freshness(age * younger, WEIGHTS) <= 1


def test_freshness_halves_its_way_to_the_floor() -> None:
    """After one half-life half of what can go is gone; what lies ahead is as fresh as now."""
    half = WEIGHTS.fresh_half_life_days * DAY_US
    assert ranking.freshness(half, WEIGHTS) == pytest.approx(WEIGHTS.stale + (1 - WEIGHTS.stale) / 2)
    assert ranking.freshness(-half, WEIGHTS) == 1


@given(approved=counts, up=counts, down=counts, probation=st.integers(0, 10))
def test_trust_grows_with_approval_within_bounds(approved: int, up: int, down: int, probation: int) -> None:
    """Approval and up-votes never lower it, down-votes never raise it; it stays within what its docstring says."""
    trust = ranking.trust(Reputation(approved, up, down), probation, WEIGHTS)
    assert 0.55 <= trust <= 1.31
    assert ranking.trust(Reputation(approved + 1, up + 1, down), probation, WEIGHTS) >= trust
    assert ranking.trust(Reputation(approved, up, down + 1), probation, WEIGHTS) <= trust


@given(similarity=st.floats(-1, 1), share=shares, more=st.floats(0, 1))
def test_relevance_rises_with_both(similarity: float, share: float, more: float) -> None:
    """From 0 to 1, and neither a higher cosine nor more of the words ever lowers it."""
    found = ranking.relevance(similarity, share, WEIGHTS)
    assert 0 <= found <= 1
    assert ranking.relevance(min(1.0, similarity + more), share, WEIGHTS) >= found
    assert ranking.relevance(similarity, min(1.0, share + more), WEIGHTS) >= found
    assert ranking.relevance(None, share, WEIGHTS) == share


@given(up=votes, down=votes, age=st.floats(0, 1e17), approved=counts, ups=counts)
def test_votes_cannot_rescue_an_irrelevant_answer(up: float, down: float, age: float, approved: int, ups: int) -> None:
    """Whatever is thought of it and its author: at a third of the relevance it loses to what nobody has judged, unless that
    has gone entirely stale.
    """
    loved = ranking.score(
        0.3,
        ranking.quality(up, down),
        ranking.freshness(age, WEIGHTS),
        ranking.trust(Reputation(approved, ups, 0), 3, WEIGHTS),
        WEIGHTS,
    )
    plain = ranking.score(0.9, 0.5, WEIGHTS.stale, ranking.trust(Reputation(), 3, WEIGHTS), WEIGHTS)
    assert loved < plain


def test_the_floor_depends_on_whether_there_are_vectors() -> None:
    """Words alone have a floor of their own."""
    assert ranking.floor(0.5, WEIGHTS) == WEIGHTS.floor
    assert ranking.floor(None, WEIGHTS) == WEIGHTS.words_floor
