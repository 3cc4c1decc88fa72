"""The fuzzer in short: some hundred damaged pools, each in a child of its own. `python -m tests.fuzz` runs thousands."""

from __future__ import annotations

import shutil
import tempfile

from tests import fuzz
from tests.damage.mutations import Plan

RUNS = 150


def test_damaged_pools_answer_rightly_or_with_typed_errors() -> None:
    """Of some hundred randomly damaged pools none crashes, hangs, gives a wrong answer or an untyped error."""
    tally = fuzz.Tally()
    for result in fuzz.campaign(first_seed=0, runs=RUNS, jobs=2):
        tally.add(result)
    assert tally.runs == RUNS
    failures = "\n".join(f"seed {one.seed}: {one.pieces}: {one.failures[:3]}" for one in tally.failures)
    assert not tally.failures, failures
    assert tally.changed > RUNS * 0.8  # else the damage missed
    assert tally.found > tally.changed / 2


def test_an_undamaged_pool_passes_every_check() -> None:
    """The same questions asked of an undamaged copy find nothing wrong: the fuzzer does not cry wolf."""
    folder = tempfile.mkdtemp(prefix="sharedrag-test-", dir="/dev/shm")
    try:
        fuzz.prepare(folder)
        outcome = fuzz.run_one(folder, fuzz.load(folder), Plan(0, ()))
    finally:
        shutil.rmtree(folder)
    assert outcome.opened
    assert not outcome.verify_found
    assert outcome.errors == 0
    assert outcome.failures == []
