"""The bench itself: it runs, and its JSON has the shape that others read. No figure here can fail a test."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.bench.__main__ import BENCHES
from tests.bench.figures import Figure, percentile

_REPOSITORY = Path(__file__).resolve().parent.parent
_MACHINE = {"processor", "cores", "memory_gib", "kernel", "python", "packages", "load_before"}
_FIGURE = {
    "name",
    "what",
    "unit",
    "rounds",
    "value",
    "best",
    "higher_is_better",
    "demanded",
    "met",
    "limit",
    "notes",
}


@pytest.mark.slow
def test_the_smallest_bench_measures_everything(tmp_path: Path) -> None:
    """Every bench runs at the tiny size, prints a table and writes JSON of the agreed shape, with nothing lost."""
    written = tmp_path / "bench.json"
    command = [sys.executable, "-m", "tests.bench", "--size", "tiny", "--json", str(written)]
    ran = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 0, ran.stderr
    assert "one writer, single-record put" in ran.stdout
    found = json.loads(written.read_text())
    assert set(found) == {"machine", "size", "seconds", "figures"}
    assert set(found["machine"]) == _MACHINE
    figures = {one["name"]: one for one in found["figures"]}
    assert len(figures) == len(found["figures"]) >= len(BENCHES)
    for one in figures.values():
        assert set(one) == _FIGURE
        assert one["rounds"]
        assert one["limit"] is None or set(one["limit"]) == {"what", "value"}
    assert figures["lost"]["value"] == 0
    demanded = {name: one["demanded"] for name, one in figures.items() if one["demanded"] is not None}
    assert demanded == {
        "singles": 100_000,
        "batches": 300_000,
        "fleet": 150_000,
        "lost": 0,
        "visible p50": 100,
        "memory": 8,
        "opening": 10,
        "heir, new": 5,
        "heir, attached": 5,
    }


def test_a_figure_is_judged_by_its_median_in_its_own_direction() -> None:
    """Of rates the median must reach the demand, of durations it must stay below; the best round only informs."""
    rate = Figure("a", "a", "records/s", [90.0, 120.0, 100.0], True, demanded=100)
    duration = Figure("b", "b", "ms", [9.0, 12.0, 11.0], False, demanded=10)
    undemanded = Figure("c", "c", "ms", [1.0], False)
    assert (rate.value, rate.best, rate.met) == (100, 120, True)
    assert (duration.value, duration.best, duration.met) == (11, 9, False)
    assert undemanded.met is None


def test_percentiles_are_values_that_occurred() -> None:
    """The 50th and 99th percentile of 0..100 are 50 and 99, and one value is all its percentiles."""
    values = [float(value) for value in range(100, -1, -1)]
    assert (percentile(values, 0.5), percentile(values, 0.99), percentile([7.0], 0.99)) == (50, 99, 7)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_smallest_bench_of_search_measures_everything(shared_data: Path, tmp_path: Path) -> None:
    """At 4,000 rows and one round it runs, prints a table and writes JSON; its answers are as good as a private index's."""
    written = tmp_path / "search.json"
    command = [sys.executable, "-m", "tests.bench_search", "--quick", "--rows", "4000", "--data", str(shared_data)]
    ran = subprocess.run(
        [*command, "--json", str(written)], cwd=_REPOSITORY, capture_output=True, text=True, timeout=580, check=False
    )
    assert ran.returncode == 0, ran.stderr
    assert "search over real sentence vectors" in ran.stdout
    figures = {one["name"]: one for one in json.loads(written.read_text())["figures"]}
    assert set(figures["ratio 4000"]) == _FIGURE
    expected = ("load", "index bytes", "search", "recall", "filter", "newest", "llama", "beside writers", "shrunk")
    assert not [name for name in expected if f"{name} 4000" not in figures]
    recall = figures["recall 4000"]
    assert recall["value"] >= 0.9 and abs(recall["value"] - recall["limit"]["value"]) < 0.002


def test_the_bench_of_search_says_what_it_needs(tmp_path: Path) -> None:
    """Without the real vectors it names what is missing and the option that helps."""
    command = [sys.executable, "-m", "tests.bench_search", "--data", str(tmp_path)]
    ran = subprocess.run(command, cwd=_REPOSITORY, capture_output=True, text=True, timeout=110, check=False)
    assert ran.returncode == 2
    assert "minilm_120k_i8.npy" in ran.stderr and "--data DIR" in ran.stderr
