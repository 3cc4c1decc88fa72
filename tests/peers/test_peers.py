"""The side-by-side benchmark itself, without any peer installed: what it counts, how it tells it, that nothing stops it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.peers import adapters, corpus, readme, report, runner
from tests.peers.__main__ import arguments
from tests.peers.job import EFFORTS, Job
from tests.peers.measures import MEASURES, load
from tests.peers.protocol import DIMENSION, Cannot, Hit, Place, Rows, identifier
from tests.peers.runner import Plan, Runner

_ADAPTERS = Path(adapters.__file__).parent
_ADAPTER_LINES_MAX = 200
_ROWS = 1_000


@pytest.fixture
def made(shared_data: Path, tmp_path: Path) -> corpus.Corpus:
    """A thousand real rows."""
    corpus.prepare(shared_data, tmp_path / "corpus", _ROWS)
    return corpus.Corpus(tmp_path / "corpus")


@pytest.fixture
def running(shared_data: Path) -> Iterator[Runner]:
    """A runner with nothing to run."""
    plan = Plan([], [], _ROWS, EFFORTS["quick"], shared_data)
    with Runner(plan, lambda text: None, lambda: None) as found:
        yield found


def test_every_peer_has_a_short_adapter() -> None:
    """Each name leads to a module; none is long."""
    for module, _, label in adapters.PEERS.values():
        source = _ADAPTERS / f"{module}.py"
        assert source.exists(), label
        assert len(source.read_text().splitlines()) <= _ADAPTER_LINES_MAX, source


def test_recall_counts_ties_as_right_and_other_rooms_as_wrong(made: corpus.Corpus) -> None:
    """The exact ten are 1.0; of a filtered query, rows of another room count for nothing."""
    scores = made.vectors @ made.queries[0]
    best = [Hit(identifier(row), "", {}) for row in np.argsort(-scores)[: corpus.K].tolist()]
    assert made.right(0, best, filtered=False) == 1.0
    assert made.right(0, best[:5], filtered=False) == 0.5
    members = [row for row in np.argsort(-scores).tolist() if corpus.room_of(row) == made.room(0)][: corpus.K]
    assert made.right(0, [Hit(identifier(row), "", {}) for row in members], filtered=True) == 1.0
    strangers = [Hit(identifier(row + 1), "", {}) for row in members]
    assert made.right(0, strangers, filtered=True) == 0.0


def test_rows_come_in_batches_and_fresh_ones_can_be_told_apart(made: corpus.Corpus) -> None:
    """Every row once, in order; what writers write is new, distinct, and not too close to what is there."""
    batches = list(made.batches(300))
    assert [len(one.ids) for one in batches] == [300, 300, 300, 100]
    assert [number for one in batches for number in one.numbers] == list(range(_ROWS))
    fresh = made.fresh(0, 100)
    assert len(set(fresh.ids)) == 100 and min(fresh.numbers) >= corpus.FRESH_FIRST
    assert float(np.max(fresh.vectors @ made.vectors.T)) < 0.996
    assert [len(one.ids) for one in corpus.cut(fresh, 32)] == [32, 32, 32, 4]


def test_rows_made_from_real_ones_lie_between_them() -> None:
    """Each made row is a unit vector close to a real one, none is a copy of it, and the same seeds make the same rows."""
    real = np.random.default_rng(3).standard_normal((3_000, DIMENSION), np.float32)
    real[1_000:] = real[np.arange(2_000) % 1_000] + 0.5 * real[1_000:]  # families, as sentences have them
    real /= np.linalg.norm(real, axis=1, keepdims=True)
    made = [np.zeros((3_200, DIMENSION), np.float32) for _ in range(2)]
    texts = [corpus._derive(real, [f"text {row}" for row in range(3_000)], base, 3_000) for base in made]
    assert len(texts[0]) == 200 and texts[0] == texts[1]
    assert np.array_equal(made[0], made[1])
    rows = made[0][3_000:]
    nearest = np.max(rows @ real.T, axis=1)
    assert np.allclose(np.linalg.norm(rows, axis=1), 1, atol=1e-5)
    assert nearest.min() > 0.7 and np.median(nearest) < 0.9999


def test_a_job_crosses_to_another_process() -> None:
    """Its JSON gives it back."""
    job = Job("faiss", Place(Path("/x/y"), 5, 6), Path("/z"), EFFORTS["quick"], 3)
    assert Job.from_json(job.as_json()) == job


def test_what_a_peer_cannot_do_stands_in_the_table_with_its_reason() -> None:
    """Figures, reasons and failures each have their words; a column that nobody was asked for is left out."""
    query = {"knob": 0, "recall": 0.961, "p50_ms": 0.1234, "p99_ms": 2.0, "setting": "28"}
    weak = {**query, "recall": 0.94}
    facts = {"package": "p", "version": "1", "settings": "s", "rows": 10, "why_rows": "slow", "processes": "many"}
    results: dict[str, Any] = {
        "machine": {"cores": 2, "processor": "p", "memory_gib": 8, "kernel": "6", "python": "3.11"},
        "rows": 100_000,
        "real_rows": 100_000,
        "begun": "2026-01-01T00:00:00",
        "effort": "full",
        "seconds": 60.0,
        "peers": {
            "faiss": {
                "facts": facts,
                "measures": {
                    "query": {"found": {"knob": 0, "plain": query, "filtered": weak}},
                    "visible": {"cannot": "memory of one process"},
                },
            },
            "lancedb": {"facts": {}, "measures": {"query": {"failed": "it | broke"}, "visible": {"failed": "so"}}},
        },
    }
    shown = report.markdown(results)
    assert "0.123 / 2.00 @ .961 |" in shown
    assert "@ .940 (not reached)" in shown
    assert "cannot: memory of one process" in shown
    assert "failed: it / broke" in shown
    assert "(**10 rows**)" in shown and "At 10 rows: slow." in shown
    assert "kill -9: acknowledged" not in shown
    assert len({line.count("|") for line in shown.splitlines() if line.startswith("|")}) == 1


@pytest.mark.parametrize(
    ("value", "text"), [(0.01234, "0.0123"), (1.0, "1.00"), (99.96, "100"), (123.4, "123"), (85_432, "85,400"), (0, "0")]
)
def test_numbers_show_three_digits(value: float, text: str) -> None:
    """More would only seem exact."""
    assert report.number(value) == text


def test_a_measure_that_hangs_is_ended(running: Runner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time is up: the run goes on, and the table says so."""
    monkeypatch.setattr(runner, "limit_s", lambda measure, plan: 0.01)
    job = Job("faiss", Place(tmp_path, _ROWS, 0), tmp_path, EFFORTS["quick"])
    assert running._measure("facts", job)["failed"].startswith("not done within")


def test_a_peer_that_is_not_installed_says_so(running: Runner, tmp_path: Path) -> None:
    """All its measures are "cannot", and nothing else stops."""
    if importlib.util.find_spec("lancedb"):
        pytest.skip("LanceDB is installed here")
    found = running._peer("lancedb", tmp_path)
    assert found["facts"] == {}
    running._plan.measures.append("query")
    assert running._peer("lancedb", tmp_path)["measures"]["query"]["cannot"].startswith("not installed")


def test_only_what_is_known_may_be_asked_for(shared_data: Path) -> None:
    """A wrong name is refused with the right ones; measures keep their order."""
    with pytest.raises(SystemExit):
        arguments(["--only", "oracle"])
    assert arguments(["--only", "faiss, usearch"]).only == ["faiss", "usearch"]
    assert runner.measures_in_order(["writers", "load"]) == ["load", "writers"]


def test_the_readme_shows_the_committed_results() -> None:
    """Its table is what `python -m tests.peers.readme` makes of them."""
    _, marked, rest = readme.README.read_text().partition(readme.BEGIN)
    shown, ended, _ = rest.partition(readme.END)
    assert marked and ended
    assert shown == readme.table()


def test_the_committed_results_are_whole_and_small() -> None:
    """Every peer stands in both runs, full ones; no path of the machine that they ran on, no large picture."""
    for rows in (100_000, 1_000_000):
        found = readme.results(rows)
        assert set(found["peers"]) == set(adapters.PEERS)
        assert found["rows"] == rows and found["effort"] == "full"
        assert str(runner.REPOSITORY) not in (readme.RESULTS / f"peers-{rows}.json").read_text()
        assert report.markdown(found) == (readme.RESULTS / f"peers-{rows}.md").read_text()
    assert all(picture.stat().st_size < 200_000 for picture in readme.RESULTS.glob("*.png"))


def test_a_load_that_cannot_end_in_time_is_not_waited_for() -> None:
    """What it had taken so far stands in the reason; one that is quick enough goes on to the end."""
    batches = [Rows(list(range(1_000)), ["m"] * 1_000, np.zeros((1_000, DIMENSION), np.float32), [""] * 1_000, [{}] * 1_000)]
    timed = load._Timed(iter(batches * 5), 5_000, limit_s=100.0)
    assert sum(len(one.ids) for one in timed) == 5_000
    slow = load._Timed(iter(batches * 5), 5_000, limit_s=100.0)
    slow._begun -= 70.0
    with pytest.raises(Cannot, match=r"not done within 100 s: after 70 s it had taken 1,000 of 5,000 rows"):
        list(slow)


def test_beyond_the_real_rows_a_peer_that_takes_fewer_is_not_measured_again(running: Runner) -> None:
    """Its load says how many it takes and why; nothing else is tried."""
    running._plan.measures += ["load", "query"]
    told = running._too_many({"rows": 5_000, "why_rows": "it is slow"})
    assert told == {"load": {"cannot": "5,000 rows at most: it is slow"}, "query": {"cannot": "not loaded"}}


@pytest.mark.slow
def test_sharedrag_and_private_faiss_side_by_side(shared_data: Path, tmp_path: Path) -> None:
    """The whole command with the two peers that need no other package: every file is written, nothing failed or was lost."""
    command = [sys.executable, "-m", "tests.peers", "--quick", "--rows", str(_ROWS), "--only", "sharedrag,faiss"]
    ran = subprocess.run(
        [*command, "--out", str(tmp_path)], cwd=runner.REPOSITORY, capture_output=True, text=True, timeout=110, check=False
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    results = json.loads((tmp_path / f"peers-{_ROWS}.json").read_bytes())
    own = results["peers"]["sharedrag"]["measures"]
    assert set(own) == set(MEASURES)
    assert all("found" in one for one in own.values()), own
    assert own["kills"]["found"]["lost"] == 0
    assert all(not one["lost"] for one in own["writers"]["found"].values())
    assert own["query"]["found"]["plain"]["recall"] >= 0.95
    assert "cannot" in results["peers"]["faiss"]["measures"]["visible"]
    assert "| **sharedrag** |" in (tmp_path / f"peers-{_ROWS}.md").read_text()
    for name in ("reading", "writing"):
        assert (tmp_path / f"peers-{_ROWS}-{name}.png").stat().st_size > 10_000
