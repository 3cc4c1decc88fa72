"""The demo's parts: where its pool goes, and how its account of a run is kept."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from demos.events import Asked, Event, Failed, Finished, Found, Ready, Wrote
from demos.memory import settle, usage
from demos.outcome import Kill, Ledger, Outcome, Tally, percentile
from demos.place import CAPACITY, MARK, PlaceTaken, claimed, default_pool_path
from demos.questions import Question
from demos.report import report
from demos.view import milliseconds, news_line, shortened
from sharedrag import Pool
from sharedrag.errors import NotAPool

QUESTION = Question("e1", "paraphrase", "Any ferry?", ("m2",))
SECOND = 1_000_000_000
MILLISECOND = 1_000_000


def _found(written_by: int, at_ns: int, *, at_first: bool = False) -> Found:
    return Found(QUESTION, "m2", "No.", "tess", written_by, 0.9, at_ns, at_first)


@pytest.fixture
def ledger() -> Ledger:
    """The account of a run of four nodes, begun at second 0."""
    made = Ledger(Outcome([Tally(node, 2) for node in range(4)], "A chat", "/dev/shm/x.pool", began_ns=1))
    made.askers = [["ann", "tess"], ["bob"], [], ["tess"]]
    return made


# ---------------------------------------------------------------------- the account


@pytest.mark.parametrize("found_first", [False, True])
def test_news_whichever_pipe_is_read_first(ledger: Ledger, found_first: bool) -> None:
    """How soon is found minus written, also where the finder's word comes first; an author does not ask himself."""
    events: list[tuple[int, Event]] = [
        (3, Wrote(("m1", "m2"), SECOND, 20.0, 0.5)),
        (0, _found(3, SECOND + 3 * MILLISECOND)),
    ]
    for node, event in reversed(events) if found_first else events:
        ledger.enter(node, event)
    (news,) = ledger.outcome.news
    assert (news.asked_on, news.asker, news.author, news.written_by) == (0, "ann", "tess", 3)
    assert news.after_ms == pytest.approx(3.0)
    assert ledger.outcome.tallies[0].found_after_ms == [news.after_ms]


def test_what_was_there_or_is_ones_own_is_no_news(ledger: Ledger) -> None:
    """An answer there at the first look, or written by the same node, says nothing of how soon others see it."""
    ledger.enter(3, Wrote(("m2",), SECOND, 20.0, 0.5))
    ledger.enter(0, _found(3, 2 * SECOND, at_first=True))
    ledger.enter(3, _found(3, 2 * SECOND))
    assert not ledger.outcome.news


def test_seen_before_the_writers_call_returned(ledger: Ledger) -> None:
    """A record that another process saw before the writer's call was back counts as 0 ms, not as less."""
    ledger.enter(3, Wrote(("m2",), SECOND, 20.0, 0.5))
    ledger.enter(1, _found(3, SECOND - MILLISECOND))
    assert ledger.outcome.tallies[1].found_after_ms == [0.0]


def _whole(ledger: Ledger) -> Outcome:
    for node in range(4):
        ledger.enter(node, Ready(100 + node, 2, 5.0))
        ledger.enter(node, Wrote((f"{node}-a", f"{node}-b"), SECOND, 20.0, 0.5))
        ledger.enter(node, Asked(SECOND, 11.0, 0.4))
        ledger.enter(node, Finished(2 * SECOND))
    ledger.outcome.rows_in_pool = 8
    return ledger.outcome


def test_a_whole_run_is_ok(ledger: Ledger) -> None:
    """All written, all there, no errors."""
    assert _whole(ledger).ok


@pytest.mark.parametrize("fault", ["lost", "changed", "error", "damage", "unseen", "too few rows", "unacknowledged"])
def test_any_fault_makes_it_fail_and_is_named(ledger: Ledger, fault: str) -> None:
    """A run with anything amiss is not ok, and the report says what."""
    outcome = _whole(ledger)
    if fault == "lost":
        outcome.lost.append("m-lost")
    elif fault == "changed":
        outcome.changed.append("m-changed")
    elif fault == "error":
        ledger.enter(2, Failed("write", "PoolFull: no room"))
    elif fault == "damage":
        outcome.problems.append("a damaged row at 4096")
    elif fault == "unseen":
        outcome.probes_missed = 3
    elif fault == "too few rows":
        outcome.rows_in_pool = 7
    else:
        del outcome.tallies[0].acknowledged["0-a"]
    assert not outcome.ok
    console = Console(width=160, record=True, file=open("/dev/null", "w"))  # noqa: SIM115  Console keeps it open
    console.print(report(outcome))
    said = console.export_text()
    assert "What went wrong" in said
    expected = {
        "lost": "lost: m-lost",
        "changed": "text differs: m-changed",
        "error": "node 2: write: PoolFull: no room",
        "damage": "verify: a damaged row at 4096",
        "unseen": "3 probes were not found",
        "too few rows": "8 written, 8 wanted, 7 in the pool",
        "unacknowledged": "7 written, 8 wanted, 8 in the pool",
    }
    assert expected[fault] in said


def test_rows_that_the_killed_writer_could_not_acknowledge_count(ledger: Ledger) -> None:
    """A row published by a writer that died before it could say so is there, and is not missed."""
    outcome = _whole(ledger)
    del outcome.tallies[2].acknowledged["2-a"]
    outcome.kill = Kill(node=2, at=1.5, pid=102, acknowledged=1, written_unacknowledged=1)
    assert outcome.ok


def test_rows_per_second_looks_back_over_a_window() -> None:
    """Only rows of the last seconds count, and at the beginning the window is as long as the run."""
    tally = Tally(0, 10, acknowledged={str(at): float(at) for at in range(1, 9)})
    assert tally.rows_per_second(8.0, window_s=2.0) == 1.0
    assert tally.rows_per_second(1.0, window_s=2.0) == 1.0
    assert tally.rows_per_second(0.0) == 0.0


def test_percentile_of_nothing_and_of_some() -> None:
    """The nearest rank; a dash is shown where there is nothing."""
    assert percentile([3.0, 1.0, 2.0], 50) == 2.0
    assert percentile([1.0, 2.0], 99) == 2.0
    assert milliseconds(percentile([], 50)) == "-"


def test_news_are_text_whatever_they_hold(ledger: Ledger) -> None:
    """Markup and control characters in a chat do not reach the terminal as such, and long texts are cut."""
    ledger.enter(3, Wrote(("m2",), SECOND, 20.0, 0.5))
    ledger.enter(2, Found(QUESTION, "m2", "[red]No[/red] \x1b[31m" + "so " * 90, None, 3, 0.9, SECOND, False))
    line = news_line(ledger.outcome.news[0], 160).plain
    assert "[red]No[/red]" in line
    assert "\x1b" not in line
    assert "SOMEBODY on node 2" in line
    assert len(line) < 200
    assert shortened("a\nb  c", 10) == "a b c"


# ---------------------------------------------------------------------- the place


@pytest.fixture
def place(pool_path: str) -> Path:
    """A path where nothing is yet."""
    return Path(pool_path)


def test_a_pool_is_removed_unless_kept(place: Path) -> None:
    """Without `keep` the pool is gone afterwards, with it stays; it has as many nodes as asked for."""
    with claimed(place, 4, keep=False) as pool:
        assert len(pool.info().nodes) == 4
    assert not place.exists()
    with claimed(place, 4, keep=True) as pool:
        first = pool.info().uuid
    assert place.exists()
    with claimed(place, 4, keep=True) as pool:
        assert pool.info().uuid != first


def test_a_pool_that_failed_is_removed_even_if_to_be_kept(place: Path) -> None:
    """A half-filled pool is not left lying where the next user would ask it."""
    with pytest.raises(KeyboardInterrupt), claimed(place, 4, keep=True):
        raise KeyboardInterrupt
    assert not place.exists()


def test_others_pools_and_files_are_not_touched(place: Path) -> None:
    """A pool that no demo made, and a file that is no pool, stay as they are."""
    with Pool.open(place, create=True, capacity=CAPACITY) as pool:
        pool.collection("theirs").put(["a"], texts=["precious"])
    with pytest.raises(PlaceTaken, match="no demo made it"), claimed(place, 4, keep=False):
        raise AssertionError("claimed what was not ours")
    with Pool.open(place) as pool:
        assert "a" in pool.collection("theirs")
    place.write_bytes(b"a letter" * 10_000)
    with pytest.raises(NotAPool), claimed(place, 4, keep=False):
        raise AssertionError("claimed what was not ours")
    assert place.read_bytes().startswith(b"a letter")


def test_a_pool_in_use_is_not_replaced(place: Path) -> None:
    """While a demo plays, a second one at the same place is refused and says who is there."""
    program = """import sys; from sharedrag import Pool
pool = Pool.open(sys.argv[1], name="somebody"); print("open", flush=True); input()"""
    with Pool.open(place, create=True, capacity=CAPACITY) as pool:
        pool.collection(MARK).put(["made_by"], texts=["a test"])
    command = [sys.executable, "-c", program, str(place)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "open\n"
        with pytest.raises(PlaceTaken, match=f"somebody \\({other.pid}\\)"), claimed(place, 4, keep=False):
            raise AssertionError("claimed what was in use")
        other.communicate("\n", timeout=20)


def test_default_places_differ() -> None:
    """A pool that stays has one known place; one that goes has a place of its own for each run."""
    assert default_pool_path(True).name == "sharedrag-hawaii.pool"
    assert default_pool_path(True) != default_pool_path(False)


def test_memory_of_the_pool_is_not_a_process_own(place: Path) -> None:
    """What a process writes into the pool counts as the pool's, though nobody else has touched it yet."""

    def put(number: int) -> None:  # one at a time: the allocator may keep what a batch was encoded in, for itself
        collection.put([str(number)], texts=["x" * 50_000])

    with Pool.open(place, create=True, capacity="64 MiB", maintenance=False) as pool:
        collection = pool.collection("texts")
        put(0)  # what is imported or made at first use
        settle()
        before = usage(pool.path)
        for number in range(1, 400):
            put(number)
        settle()
        after = usage(pool.path)
    assert after.pool_mapped - before.pool_mapped > 15 << 20
    assert after.private - before.private < 4 << 20
