from __future__ import annotations

import os
import time
from datetime import UTC, datetime

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedrag import Pool
from sharedrag.history import History
from sharedrag.history import standings as module
from sharedrag.history.ranking import Reputation
from sharedrag.history.standings import NOTHING, Standings, Tally
from tests.history.helpers import RemoteHistory, asked

HALF_LIFE = 365.0


def _now() -> int:
    return time.time_ns() // 1000


def _answers(history: History, group: str, user: str = "ann", count: int = 1) -> list[str]:
    conversation = history.conversations.create(group, user).id
    return [
        history.messages.append(group, user, conversation, asked(f"question {at}?", f"answer {at}"))[1].id
        for at in range(count)
    ]


def _tally(standings: Standings, message: str) -> Tally:
    (found,) = standings.of([message], _now(), HALF_LIFE)
    return found


def test_every_kind_of_mark_counts_and_goes(history: History, group: str) -> None:
    """Votes, confirmations, comments, flags, corrections and moderation are folded, and unfolded when taken back."""
    old, new = _answers(history, group, count=2)
    marks, standings = history.marks, history.standings
    assert _tally(standings, old) == NOTHING
    marks.vote(group, "bob", old, 1)
    marks.vote(group, "cid", old, -1)
    marks.confirm(group, "bob", old)
    comment = marks.comment(group, "cid", old, "hm")
    marks.flag(group, "cid", old, "spam")
    marks.supersede(group, "ann", old, new)
    marks.moderate(group, "ann", old, "hidden")
    full = _tally(standings, old)
    assert (full.up, full.down, full.comments, full.flags, full.superseded, full.hidden) == (1, 1, 1, 1, True, True)
    assert full.up_weight == pytest.approx(1, abs=1e-3)
    assert abs(full.confirmed_us - _now()) < 60_000_000
    assert _tally(standings, new) == NOTHING
    marks.vote(group, "bob", old, 0)
    marks.vote(group, "cid", old, 1)
    marks.unconfirm(group, "bob", old)
    marks.delete_comment(group, "cid", comment.id)
    marks.unflag(group, "cid", old)
    marks.unsupersede(group, "ann", old)
    marks.moderate(group, "ann", old, "visible")
    left = _tally(standings, old)
    assert (left.up, left.down, left.confirmed_us, left.comments, left.flags) == (1, 0, 0, 0, 0)
    assert (left.superseded, left.hidden) == (False, False)
    anew = _tally(Standings(history.store.records), old)
    assert anew._replace(up_weight=left.up_weight) == left and anew.up_weight == pytest.approx(left.up_weight)


def test_ones_own_vote_counts_for_nothing(history: History, group: str) -> None:
    """Even where it is written past the rules, by hand."""
    (answer,) = _answers(history, group)
    fields = {"kind": "vote", "group": group, "message": answer, "user": "ann", "about": "ann", "value": 1}
    history.store.records.put([f"vote/{answer}/ann"], metadata=[fields])
    found = _tally(history.standings, answer)
    assert (found.up, found.down, found.up_weight) == (0, 0, 0)
    assert history.standings.authors(group, ["ann"]) == {"ann": Reputation()}


def test_reputation_is_by_group_and_follows_votes(history: History, group: str) -> None:
    """What others made of an author's answers, at once, and nothing of it in another group."""
    one, two = _answers(history, group, count=2)
    history.marks.vote(group, "bob", one, 1)
    history.marks.vote(group, "cid", one, 1)
    history.marks.confirm(group, "bob", two)
    history.marks.confirm(group, "ann", two)
    assert history.standings.authors(group, ["ann", "bob"]) == {"ann": Reputation(2, 2, 0), "bob": Reputation()}
    history.marks.vote(group, "cid", one, -1)
    assert history.standings.authors(group, ["ann"]) == {"ann": Reputation(2, 1, 1)}
    other = history.groups.create("Other", owner="ann").id
    assert history.standings.authors(other, ["ann"]) == {"ann": Reputation()}


def test_votes_fade_by_half_lives(history: History, group: str) -> None:
    """After one half-life a vote weighs half; the count stays."""
    (answer,) = _answers(history, group)
    history.marks.vote(group, "bob", answer, 1)
    later = _now() + round(HALF_LIFE * 86_400_000_000)
    (found,) = history.standings.of([answer], later, HALF_LIFE)
    assert found.up == 1 and found.up_weight == pytest.approx(0.5, abs=1e-3)


def test_what_another_process_marks_counts_at_once(history: History, group: str, remote: RemoteHistory) -> None:
    """Nothing is remembered that another process could make stale."""
    (answer,) = _answers(history, group)
    assert _tally(history.standings, answer).up == 0
    remote.call("marks.vote", group, "bob", answer, 1)
    assert _tally(history.standings, answer).up == 1
    remote.call("marks.vote", group, "bob", answer, -1)
    assert _tally(history.standings, answer)[:2] == (0, 1)
    remote.call("marks.vote", group, "bob", answer, 0)
    assert _tally(history.standings, answer) == NOTHING


def test_a_tombstone_that_was_cleared_away_is_noticed(history: History, group: str) -> None:
    """Deleted and compacted before anybody looked: the number of live marks tells, and the fold starts over."""
    answers = _answers(history, group, count=3)
    for answer in answers:
        history.marks.vote(group, "bob", answer, 1)
    assert _tally(history.standings, answers[0]).up == 1
    history.marks.vote(group, "bob", answers[0], 0)
    for _ in range(4):
        history.pool.maintain()
    assert _tally(history.standings, answers[0]) == NOTHING
    assert _tally(history.standings, answers[1]).up == 1


def test_a_forked_child_goes_on(history: History, group: str) -> None:
    """A child's fold is its own and catches up."""
    (answer,) = _answers(history, group)
    history.marks.vote(group, "bob", answer, 1)
    assert _tally(history.standings, answer).up == 1
    child = os.fork()
    if not child:
        seen = 0
        try:
            history.marks.vote(group, "cid", answer, 1)
            seen = _tally(history.standings, answer).up
        finally:
            os._exit(0 if seen == 2 else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert _tally(history.standings, answer).up == 2


steps = st.lists(
    st.tuples(
        st.sampled_from(["vote", "confirm", "flag", "look"]),
        st.integers(0, 3),
        st.sampled_from(["bob", "cid"]),
        st.sampled_from([1, -1, 0]),
    ),
    max_size=40,
)


@given(steps=steps)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_fold_that_catches_up_is_a_fold_made_anew(
    history: History, group: str, monkeypatch: pytest.MonkeyPatch, steps: list[tuple[str, int, str, int]]
) -> None:
    """Whatever is marked, taken back and marked again between looks, and however often the rows are merged."""
    monkeypatch.setattr(module, "_FRESH_MIN", 3)
    answers = _answers(history, group, count=4)
    now = _now()
    for what, at, user, value in steps:
        if what == "vote":
            history.marks.vote(group, user, answers[at], value)
        elif what == "look":
            history.standings.of(answers, now, HALF_LIFE)
            history.standings.authors(group, ["ann"])
        else:
            method = what if value else f"un{what}"
            getattr(history.marks, method)(group, user, answers[at])
    later = _now()
    anew = Standings(history.store.records)
    assert history.standings.of(answers, later, HALF_LIFE) == anew.of(answers, later, HALF_LIFE)
    assert history.standings.authors(group, ["ann"]) == anew.authors(group, ["ann"])
    for answer, tally in zip(answers, anew.of(answers, later, HALF_LIFE), strict=True):
        standing = history.marks.standing(group, "ann", answer)
        assert (tally.up, tally.down, tally.flags) == (standing.up, standing.down, standing.flags)


def test_many_marks_take_little_memory(pool: Pool) -> None:
    """46 bytes each, found by message."""
    records = pool.collection("history")
    created = datetime.now(UTC)
    for start in range(0, 20_000, 2_000):
        numbers = range(start, start + 2_000)
        records.put(
            [f"vote/msg_{at // 4}/user {at % 4}" for at in numbers],
            metadata=[
                {
                    "kind": "vote",
                    "group": "g",
                    "message": f"msg_{at // 4}",
                    "user": f"user {at % 4}",
                    "about": "x",
                    "value": 1,
                }
                for at in numbers
            ],
            created=created,
        )
    standings = Standings(records)
    found = standings.of([f"msg_{at}" for at in (0, 7, 4_999, 5_000)], _now(), HALF_LIFE)
    assert [one.up for one in found] == [4, 4, 4, 0]
    assert standings.nbytes <= 46 * 20_000
    assert standings.authors("g", ["x"]) == {"x": Reputation(5_000, 20_000, 0)}
