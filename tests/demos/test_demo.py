"""The demo itself, run as users run it: its table, its picture, its pool, and that it leaves nothing behind."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from sharedrag import Pool

REPOSITORY = Path(__file__).resolve().parents[2]
PNG_MAGIC = b"\x89PNG\r\n\x1a\n"
EXCHANGES = 439
PLAYING, READY = "the chat is played again", "ready"
TIMEOUT_S = 240  # half a minute is usual; a machine busy with other things takes its time

pytestmark = pytest.mark.timeout(300)


class Played:
    """A finished run of the quick demo: what it printed, its picture and the pool that it kept."""

    def __init__(self, folder: Path) -> None:
        self.pool, self.picture = folder / "demo.pool", folder / "out" / "demo.png"
        options = ["--quick", "--keep", "--pool", str(self.pool), "--plot", str(self.picture)]
        done = _run(*options)
        self.returncode, self.printed, self.errors = done.returncode, done.stdout, done.stderr

    def figure(self, name: str) -> str:
        """The figure in the row of a table that begins with `name`."""
        found = re.search(rf"│ {re.escape(name)}\s+│\s*([^│]*?)\s*│", self.printed)
        assert found, f"no row {name!r} in:\n{self.printed}"
        return found[1]


def _command(*options: str) -> list[str]:
    return [sys.executable, "-m", "demos.hawaii", *options]


def _run(*options: str) -> subprocess.CompletedProcess[str]:
    command = _command(*options)
    return subprocess.run(
        command, cwd=REPOSITORY, env=_plain(), capture_output=True, text=True, check=False, timeout=TIMEOUT_S
    )


def _plain() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "FORCE_COLOR")}


@pytest.fixture(scope="module")
def folder() -> Iterator[Path]:
    """A folder on shared memory, removed afterwards."""
    made = tempfile.mkdtemp(prefix="sharedrag-test-", dir="/dev/shm")
    yield Path(made)
    shutil.rmtree(made)


@pytest.fixture(scope="module")
def played(folder: Path) -> Played:
    """One run for all the looks at it."""
    return Played(folder)


def test_nothing_is_lost(played: Played) -> None:
    """Every exchange is written and acknowledged, a killed writer's too; no process had an error; the pool verifies."""
    assert played.returncode == 0, played.printed + played.errors
    assert played.figure("rows in the pool") == str(EXCHANGES)
    assert played.figure("lost rows") == "0"
    assert played.figure("errors") == "0"
    assert played.figure("pool verified") == "yes"
    unsaid = int(re.search(r"(\d+) more there", " ".join(played.printed.split()))[1])  # type: ignore[index]
    assert int(played.figure("acknowledged")) + unsaid == EXCHANGES


def test_the_kill_and_what_others_found_are_shown(played: Played) -> None:
    """Without a terminal, lines tell of the kill, the restart, and whose answer was found how soon."""
    assert re.fullmatch(r"at [\d.]+ s", played.figure("SIGKILL of node 2"))
    assert re.search(r"-- node 2 \(process \d+\): KILLED", played.printed)
    assert re.search(r"\S+ on node \d asked “.+” -> found \S+'s answer, written by node \d [\d.]+ ms before", played.printed)


def test_latency_and_quality_are_measured(played: Played) -> None:
    """Write-to-visible has a figure from every probe, and the labelled questions find about what plain cosine finds."""
    assert "0 missed" in " ".join(played.printed.replace("│", " ").split())
    assert re.fullmatch(r"[\d.]+ ms / [\d.]+ ms", played.figure("write -> visible, idle, p50 / p99"))
    everything = re.search(r"│ all with an answer │\s+251 │ ([\d.]+) │ ([\d.]+) │", played.printed)
    assert everything, played.printed
    assert 0.5 < float(everything[1]) < float(everything[2])
    assert 0.8 < float(everything[2]) <= 1


def test_memory_is_measured_at_two_sizes(played: Played) -> None:
    """The bill has the chat's rows and the made-up ones; each node's own memory is in the account of the processes."""
    assert re.search(r"│ 439 \(this chat\)\s+│\s+[\d.]+ MiB │", played.printed)
    assert re.search(r"│ [\d,]+ more \(made up\) │\s+[\d.]+ MiB │\s+[\d.]+ [KM]iB │", played.printed)
    assert len(re.findall(r"│ node \d │\s+\d+ │\s+\d+ │\s+\d+ │\s+[\d.]+ MiB │\s+[\d.]+ MiB │", played.printed)) == 4


def test_the_plot_is_a_picture(played: Played) -> None:
    """The plot is a PNG of a size to look at."""
    content = played.picture.read_bytes()
    assert content.startswith(PNG_MAGIC)
    width, height = (int.from_bytes(content[at : at + 4], "big") for at in (16, 20))
    assert width > 1_000
    assert height > 400
    assert len(content) > 20_000


def test_the_pool_stays_and_can_be_asked(played: Played) -> None:
    """The very command that is printed answers from the pool that was kept; the made-up rows are gone from it."""
    printed = re.search(r"^  (\S+) ask (\S+) '(.+)'$", played.printed, re.MULTILINE)
    assert printed, played.printed
    assert printed[2] == str(played.pool)
    command = [sys.executable, "-m", "sharedrag", "ask", printed[2], printed[3], "--json"]
    answers = json.loads(subprocess.run(command, cwd=REPOSITORY, capture_output=True, check=True, timeout=60).stdout)
    assert "Tuesday" in answers[0]["text"]
    assert answers[0]["metadata"]["author"] == "lani"
    with Pool.open(played.pool) as pool:
        history = pool.collection("history")
        assert (len(history), history.embedding_model) == (EXCHANGES, "all-MiniLM-L6-v2")
        assert {record.metadata["node"] for record in history.find()} == {0, 1, 2, 3}
        assert "ballast" not in pool.collections()


def _started(pool: Path, data: Path) -> subprocess.Popen[str]:
    options = ["--quick", "--keep", "--pool", str(pool), "--data", str(data), "--plot", str(pool.with_suffix(".png"))]
    return subprocess.Popen(
        _command(*options),
        cwd=REPOSITORY,
        env=_plain(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.parametrize(
    ("number", "moment", "code"),
    [(signal.SIGINT, READY, 130), (signal.SIGHUP, PLAYING, 129), (signal.SIGKILL, READY, -9)],
)
def test_stopped_it_leaves_no_process(folder: Path, tmp_path: Path, number: signal.Signals, moment: str, code: int) -> None:
    """Ctrl-C (to all processes of the terminal) and a closed terminal end nodes and pool; SIGKILL ends the nodes."""
    data = tmp_path / "chat.jsonl"
    data.write_text("".join(f'{{"question": "Question {at}?", "answer": "Answer {at}."}}\n' for at in range(40)))
    pool = folder / f"stopped-{number}.pool"
    process = _started(pool, data)
    try:
        assert process.stdout is not None
        assert any(moment in line for line in process.stdout), f"the demo ended before {moment!r}"
        children = psutil.Process(process.pid).children(recursive=True)
        assert len(children) >= 4
        if number == signal.SIGINT:
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, errors = process.communicate(timeout=60)
        assert "Traceback" not in errors
        _, alive = psutil.wait_procs(children, timeout=60)
        assert not alive
    finally:
        process.kill()
        process.wait()
    assert process.returncode == code
    if number == signal.SIGKILL:
        pool.unlink()  # nobody was left to remove it
    assert not pool.exists()


def test_a_file_without_exchanges_is_refused_before_anything_starts(tmp_path: Path) -> None:
    """The error says what is missing, before any node is started."""
    data = tmp_path / "list.jsonl"
    data.write_text('{"text": "a list"}\n{"text": "of texts"}\n')
    done = _run("--data", str(data))
    assert done.returncode == 1
    assert "none answers another" in done.stdout
    assert "node 0" not in done.stdout
