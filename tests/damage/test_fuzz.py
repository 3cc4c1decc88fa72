"""The fuzzer in short: some hundred damaged pools, each in a child of its own. `python -m tests.fuzz` runs thousands."""

from __future__ import annotations

import shutil
import tempfile
import time
from contextlib import closing

from tests import fuzz
from tests.damage.mutations import Plan

RUNS, LEAST, SECONDS = 150, 40, 30.0  # a loaded machine tries fewer


def test_damaged_pools_answer_rightly_or_with_typed_errors() -> None:
    """Of some hundred randomly damaged pools none crashes, hangs, gives a wrong answer or an untyped error."""
    tally = fuzz.Tally()
    started = time.monotonic()
    with closing(fuzz.campaign(first_seed=0, runs=RUNS, jobs=2)) as results:
        for result in results:
            tally.add(result)
            if tally.runs >= LEAST and time.monotonic() - started > SECONDS:
                break
    assert tally.runs >= LEAST
    failures = "\n".join(f"seed {one.seed}: {one.pieces}: {one.failures[:3]}" for one in tally.failures)
    assert not tally.failures, failures
    assert tally.changed > tally.runs * 0.8  # else the damage missed
    assert tally.found > tally.changed / 2


def test_an_undamaged_pool_passes_every_check() -> None:
    """The same questions asked of undamaged copies find nothing wrong: the fuzzer does not cry wolf."""
    folder = tempfile.mkdtemp(prefix="sharedrag-test-", dir="/dev/shm")
    try:
        fuzz.prepare(folder)
        outcomes = [fuzz.run_one(folder, loaded, Plan(0, ())) for loaded in fuzz.load(folder)]
    finally:
        shutil.rmtree(folder)
    for outcome in outcomes:
        assert outcome.opened
        assert not outcome.verify_found
        assert outcome.errors == 0
        assert outcome.failures == []
