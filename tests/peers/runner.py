"""Peers one after the other, measures one after the other: each measure is a process that is ended when its time is up.

A peer's server, if it has one, is a child of the runner and lives through all measures of that peer. What a peer left in
shared memory is removed before the next one begins.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import psutil

from tests.bench.children import Pipe, ask
from tests.peers import corpus
from tests.peers.adapters import PEERS
from tests.peers.job import STATUS, Effort, Job
from tests.peers.measures import MEASURES
from tests.peers.protocol import Place

REPOSITORY = Path(__file__).resolve().parents[2]
_SERVER_PATIENCE_S = 15.0
_LIMITS_S = {"facts": 90.0, "load": 240.0, "query": 240.0, "opening": 120.0, "memory": 120.0, "visible": 90.0}
_LIMIT_S = 180.0
_LOAD_ROWS_PER_S = 5_000.0  # a million rows may take 240 + 200 s
_LINES_SHOWN = 3
#: No library may look for a network, or count its users.
_ENVIRONMENT = {
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_OFFLINE": "1",
    "LANCE_LOG": "error",
    "NO_PROXY": "127.0.0.1,localhost",
    "PYTHONUNBUFFERED": "1",
    "PYTHONWARNINGS": "ignore",
}

Outcome = dict[str, Any]
Say = Callable[[str], None]


@dataclass
class Plan:
    """What to run; also the time limits."""

    peers: list[str]
    measures: list[str]
    rows: int
    effort: Effort
    data: Path
    patience: float = 1.0  # multiplies every limit
    done: Callable[[str, Outcome], None] = field(default=lambda name, outcome: None)


def limit_s(measure: str, plan: Plan) -> float:
    """How long a measure may take."""
    limit = _LIMITS_S.get(measure, _LIMIT_S)
    if measure == "load":
        limit += plan.rows / _LOAD_ROWS_PER_S
    return limit * plan.patience


class Runner:
    """One run; its folder on shared memory is gone afterwards."""

    def __init__(self, plan: Plan, say: Say, advance: Callable[[], None]) -> None:
        """`say` shows what is being done, `advance` that one measure is over."""
        self._plan = plan
        self._say = say
        self._advance = advance
        shared = Path("/dev/shm")
        self._folder = Path(tempfile.mkdtemp(prefix="sharedrag-peers-", dir=shared if shared.is_dir() else None))
        self._folder.chmod(0o755)  # a server that refuses to run as root must reach its own folder

    def __enter__(self) -> Runner:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)

    def run(self) -> None:
        """Every peer; `plan.done` is told of each."""
        for name in self._plan.peers:
            folder = self._folder / name
            folder.mkdir()
            try:
                self._plan.done(name, self._peer(name, folder))
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    # ------------------------------------------------------------------ one peer

    def _peer(self, name: str, folder: Path) -> Outcome:
        """{"facts": ..., "measures": {measure: outcome}}."""
        job = Job(name, Place(folder, self._plan.rows, _free_port()), self._folder, self._plan.effort)
        facts = self._measure("facts", job)
        measures: dict[str, Outcome] = {}
        if "found" not in facts:
            if facts.get("failed", "").startswith(("ImportError", "ModuleNotFoundError")):
                facts = {"cannot": f"not installed ({facts['failed']})"}
            for measure in self._plan.measures:
                measures[measure] = facts
                self._advance()
            return {"facts": {}, "measures": measures}
        known = facts["found"]
        if known["rows"] < self._plan.rows and self._plan.rows > corpus.REAL_MAX:
            return {"facts": known, "measures": self._too_many(known)}
        job = replace(job, place=replace(job.place, rows=known["rows"]), corpus_folder=self._corpus(known["rows"]))
        with _served(known["server"], folder) as server:
            for measure in ["load", *(one for one in self._plan.measures if one != "load")]:
                if measure != "load" and "found" not in measures["load"]:
                    measures[measure] = {"cannot": "not loaded"}
                elif server is not None and server.poll() is not None:
                    measures[measure] = {
                        "failed": f"its server ended with code {server.returncode}: {_tail(folder / 'server.log')}"
                    }
                else:
                    measures[measure] = self._measure(measure, job)
                    if "found" in measures[measure]:
                        self._note(measure, measures[measure]["found"], server)
                    if measure == "query" and "found" in measures[measure]:
                        job = replace(job, knob=measures[measure]["found"]["knob"])
                if measure in self._plan.measures:
                    self._advance()
        return {"facts": known, "measures": measures}

    def _too_many(self, known: Outcome) -> dict[str, Outcome]:
        """Beyond the real rows, what a peer that takes fewer does with these is known from the smaller run."""
        for _ in self._plan.measures:
            self._advance()
        why = {"cannot": f"{known['rows']:,} rows at most: {known['why_rows']}"}
        return {"load": why} | {one: {"cannot": "not loaded"} for one in self._plan.measures if one != "load"}

    def _note(self, measure: str, found: Outcome, server: subprocess.Popen[bytes] | None) -> None:
        """What only the runner sees: the memory of a server."""
        if measure == "memory" and server is not None:
            found["server_mb"] = round(_memory_mb(server.pid), 1)

    def _corpus(self, rows: int) -> Path:
        folder = self._folder / f"corpus-{rows}"
        if not folder.exists():
            self._say(f"making {rows:,} rows and finding the right answers")
            ask(_prepare, str(self._plan.data), str(folder), rows)
        return folder

    # ------------------------------------------------------------------ one measure

    def _measure(self, measure: str, job: Job) -> Outcome:
        label = PEERS[job.peer][2].replace("**", "")
        self._say(f"{label}: {measure}")
        result, errors = self._folder / "result.json", self._folder / "errors.log"
        result.unlink(missing_ok=True)
        limit = limit_s(measure, self._plan)
        job = replace(job, limit_s=limit)
        begun = time.monotonic()
        with errors.open("wb") as log:
            process = _start([sys.executable, "-m", "tests.peers.measure", measure, job.as_json(), str(result)], log, True)
        assert process.stdout is not None
        listener = threading.Thread(target=_listen, args=(process.stdout, lambda text: self._say(f"{label}: {text}")))
        listener.start()
        outcome: Outcome = {}
        try:
            process.wait(limit)
        except subprocess.TimeoutExpired:
            outcome = {"failed": f"not done within {limit:.0f} s"}
        finally:
            _end(process)
            listener.join()
        if not outcome and result.exists():
            outcome = json.loads(result.read_bytes())
        if not outcome:
            outcome = {"failed": f"ended with code {process.returncode}: {_tail(errors)}"}
        outcome["seconds"] = round(time.monotonic() - begun, 1)
        return outcome


def measures_in_order(wanted: list[str]) -> list[str]:
    """These measures, as they must follow each other."""
    return [measure for measure in MEASURES if measure in wanted]


# ---------------------------------------------------------------------- processes


def _prepare(pipe: Pipe, data: str, folder: str, rows: int) -> None:
    corpus.prepare(Path(data), Path(folder), rows)
    pipe.send("made")


def _start(command: list[str], log: Any, listened: bool) -> subprocess.Popen[bytes]:
    """In a session of its own; killed by the kernel should the runner be."""
    setpriv = shutil.which("setpriv")
    return subprocess.Popen(
        [setpriv, "--pdeathsig", "KILL", *command] if setpriv else command,
        cwd=REPOSITORY,
        env={**os.environ, **_ENVIRONMENT},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE if listened else log,
        stderr=log,
        start_new_session=True,
    )


def _end(process: subprocess.Popen[bytes]) -> None:
    """The process and all that it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _listen(lines: Any, say: Say) -> None:
    for line in lines:
        text = line.decode(errors="replace").rstrip()
        if text.startswith(STATUS):
            say(text.removeprefix(STATUS))


@contextmanager
def _served(command: list[str], folder: Path) -> Iterator[subprocess.Popen[bytes] | None]:
    """The peer's server, running; asked to end at the end, then made to."""
    if not command:
        yield None
        return
    with (folder / "server.log").open("wb") as log:
        server = _start(command, log, False)
    try:
        yield server
    finally:
        server.terminate()
        with suppress(subprocess.TimeoutExpired):
            server.wait(_SERVER_PATIENCE_S)
        _end(server)


def _memory_mb(pid: int) -> float:
    """What a server and its processes hold: their proportional share of each page, in MB."""
    found = 0
    with suppress(psutil.NoSuchProcess):
        for process in (server := psutil.Process(pid), *server.children(recursive=True)):
            with suppress(psutil.Error):
                found += process.memory_full_info().pss
    return found / 1e6


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _tail(path: Path) -> str:
    lines = [line.strip() for line in path.read_text(errors="replace").splitlines() if line.strip()] if path.exists() else []
    return " / ".join(lines[-_LINES_SHOWN:])[:300] or "it said nothing"
