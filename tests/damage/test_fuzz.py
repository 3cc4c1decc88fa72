"""The fuzzer in short: some hundred damaged pools, each in a child of its own. `python -m tests.fuzz` runs thousands."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from tests import fuzz
from tests.damage.mutations import Plan
from tests.damage.sample import Sample
from tests.damage.trial import Outcome

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
        areas = [{area.name for area in loaded.sample.areas} for loaded in fuzz.load(folder)]
        outcomes = [fuzz.run_one(folder, loaded, Plan(0, ())) for loaded in fuzz.load(folder)]
    finally:
        shutil.rmtree(folder)
    for names in areas:
        assert {"deletion vectors", "link, sealed", "link, open", "vectors, sealed", "superblock"} <= names
    for outcome in outcomes:
        assert outcome.opened
        assert not outcome.verify_found
        assert outcome.errors == 0
        assert outcome.failures == []


@pytest.mark.parametrize(("mishap", "told"), [("crash", "SIGSEGV"), ("hang", "no answer"), ("raise", "status 1")])
def test_the_fuzzer_tells_of_a_child_that_dies_or_hangs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, mishap: str, told: str
) -> None:
    """A crash of the interpreter, a hang and a mistake of the trial itself are failures of their run, with a stack."""

    def misbehave(*_: object) -> Outcome:
        if mishap == "crash":
            os.kill(os.getpid(), signal.SIGSEGV)
        while mishap == "hang":
            time.sleep(1)
        raise AssertionError("a mistake")

    monkeypatch.setattr(fuzz, "run_one", misbehave)
    monkeypatch.setattr(fuzz, "HANG_S", 0.5)
    result = fuzz.Result(7, [], False)
    fuzz._in_child(str(tmp_path), fuzz.Loaded(Sample(), b"", []), Plan(7, ()), result)
    (failure,) = result.failures
    assert told in failure
    assert "misbehave" in failure


def test_the_fuzzer_tells_wrong_answers_from_right_ones() -> None:
    """Compared with a truth that differs in one text, one score and one deleted record, a sound pool fails in each."""
    folder = tempfile.mkdtemp(prefix="sharedrag-test-", dir="/dev/shm")
    try:
        fuzz.prepare(folder)
        loaded = fuzz.load(folder)[0]
        live = loaded.sample.live
        first, second, third = [one for one in loaded.sample.order["notes"] if live["notes"][one].vector][:3]
        live["notes"][first] = replace(live["notes"][first], text="another text")
        loaded.sample.scores["notes"][second] = loaded.sample.scores["notes"][second] + 5
        loaded.sample.gone["keys"].add(loaded.sample.order["keys"][0])
        del live["keys"][loaded.sample.order["keys"].pop(0)]
        wrong = fuzz.run_one(folder, loaded, Plan(0, ())).failures
    finally:
        shutil.rmtree(folder)
    assert any(f"get notes {first}" in one for one in wrong)
    assert any("search in notes" in one for one in wrong)
    assert any(one.startswith("len(keys)") for one in wrong)
    assert any(one.startswith("get keys") for one in wrong)
    assert third not in " ".join(wrong)
