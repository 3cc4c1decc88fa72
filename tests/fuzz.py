"""Damage a pool file at random, again and again: every answer stays right or becomes a typed error.

    python -m tests.fuzz --runs 10000         # prints what was found, and what share of the damage `verify` reports
    python -m tests.fuzz --seed 4711 --runs 1 # repeats one run and says what it does

Each run works on a fresh copy in a forked child of its own, so a crash or a hang of the interpreter is a result like any
other. `tests/damage` says what is damaged how, and what must hold.
"""

from __future__ import annotations

import faulthandler
import json
import logging
import os
import pickle
import queue
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections import defaultdict
from collections.abc import Generator
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, NamedTuple, NoReturn

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from tests.damage import sample as samples
from tests.damage.mutations import Plan, plan
from tests.damage.sample import Sample
from tests.damage.trial import Outcome, Trial

HANG_S = 30.0
NODES = (1, 2)
_REPOSITORY = Path(__file__).resolve().parent.parent


@dataclass
class Result:
    """One run as the driver sees it."""

    seed: int
    pieces: list[tuple[str, str, int, int, bool]]  # area, kind, offset, length, bytes changed
    attached: bool
    died: str = ""
    outcome: dict[str, Any] = field(default_factory=dict)

    @property
    def failures(self) -> list[str]:
        """What must not be; empty for a good run."""
        return [self.died] if self.died else Outcome(**self.outcome).failures

    @property
    def changed(self) -> bool:
        """True if any byte of the file differs."""
        return any(piece[4] for piece in self.pieces)


# ---------------------------------------------------------------------- the sample and its copies


class Loaded(NamedTuple):
    """The sample pool: what it holds, its bytes, and the (offset, length) pieces of it that have memory."""

    sample: Sample
    image: bytes
    reserved: list[tuple[int, int]]


def prepare(folder: str) -> None:
    """Build the sample pools, of one node and of two, and keep them, with what they hold, in a folder."""
    for nodes in NODES:
        path = f"{folder}/sample-{nodes}.pool"
        made = samples.build(path, nodes)
        kept = (made, Path(path).read_bytes(), _reserved(path))
        Path(f"{folder}/sample-{nodes}.pickle").write_bytes(pickle.dumps(kept))
        os.unlink(path)


def _reserved(path: str) -> list[tuple[int, int]]:
    """The (offset, length) pieces of a file that have memory behind them."""
    pieces = []
    with open(path, "rb") as file:
        end, at = os.fstat(file.fileno()).st_size, 0
        while at < end:
            try:
                start = os.lseek(file.fileno(), at, os.SEEK_DATA)
            except OSError:
                break
            at = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            pieces.append((start, at - start))
    return pieces


def load(folder: str) -> list[Loaded]:
    """What `prepare` kept; a run takes the sample that its seed leads to, in turn."""
    return [Loaded(*pickle.loads(Path(f"{folder}/sample-{nodes}.pickle").read_bytes())) for nodes in NODES]


def run_one(folder: str, loaded: Loaded, damage: Plan) -> Outcome:
    """Damage a copy and try it, in this process."""
    sample, image, reserved = loaded
    path = f"{folder}/trial-{os.getpid()}.pool"
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        os.ftruncate(fd, len(image))
        for offset, length in reserved:
            os.pwrite(fd, image[offset : offset + length], offset)
        if damage.attached:
            return Trial(path, sample).run(partial(_strike, fd, damage))
        _strike(fd, damage)
        return Trial(path, sample).run()
    finally:
        os.close(fd)
        os.unlink(path)


def _strike(fd: int, damage: Plan) -> None:
    for piece in damage.pieces:
        os.pwrite(fd, piece.after, piece.offset)


# ---------------------------------------------------------------------- the fork server


def serve(folder: str, seeds: range) -> None:
    """Run each seed in a forked child and print one line of JSON for each."""
    logging.getLogger("sharedrag").setLevel(logging.CRITICAL)  # that it warns of damage is no news here
    all_loaded = load(folder)
    for seed in seeds:
        loaded = all_loaded[seed % len(all_loaded)]
        damage = plan(*loaded, seed)
        pieces = [(one.area, one.kind, one.offset, len(one.after), one.changed) for one in damage.pieces]
        result = Result(seed, pieces, damage.attached)
        _in_child(folder, loaded, damage, result)
        print(json.dumps(asdict(result)), flush=True)


def _in_child(folder: str, loaded: Loaded, damage: Plan, result: Result) -> None:
    stacks = Path(f"{folder}/stacks-{os.getpid()}.txt")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        _answer(folder, loaded, damage, stacks, writer)
    os.close(writer)
    answer, hung = _await(reader, child)
    os.close(reader)
    _, status = os.waitpid(child, 0)
    if hung:
        result.died = f"hangs (no answer within {HANG_S:g} s)\n{stacks.read_text()}"
    elif status:
        by = f"signal {signal.Signals(os.WTERMSIG(status)).name}" if os.WIFSIGNALED(status) else f"status {status >> 8}"
        result.died = f"the interpreter ends by {by}\n{stacks.read_text()}"
    else:
        result.outcome = json.loads(answer)
    Path(f"{folder}/trial-{child}.pool").unlink(missing_ok=True)


def _answer(folder: str, loaded: Loaded, damage: Plan, stacks: Path, writer: int) -> NoReturn:
    """The child: run, write the outcome, end without the fork server's own clean-up."""
    status = 1
    try:
        with stacks.open("w") as file:
            faulthandler.enable(file)
            faulthandler.register(signal.SIGUSR1, file)
            unseen: list[str] = []
            threading.excepthook = lambda hook: unseen.append(f"a thread dies of {hook.exc_value!r}")
            sys.unraisablehook = lambda hook: unseen.append(f"nobody sees {hook.exc_value!r}")
            outcome = run_one(folder, loaded, damage)
            outcome.untyped += unseen
        with os.fdopen(writer, "w") as pipe:
            json.dump(asdict(outcome), pipe)
        status = 0
    except BaseException:  # noqa: BLE001 - a mistake of the trial itself; what the pool raises is caught there
        stacks.write_text(traceback.format_exc())
    finally:
        os._exit(status)


def _await(reader: int, child: int) -> tuple[bytes, bool]:
    """What the child answers, and whether it had to be killed for taking too long."""
    answer = b""
    deadline = time.monotonic() + HANG_S
    while True:
        ready, _, _ = select.select([reader], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            os.kill(child, signal.SIGUSR1)  # its stacks, for the report
            time.sleep(0.5)
            os.kill(child, signal.SIGKILL)
            return answer, True
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            return answer, False
        answer += chunk


# ---------------------------------------------------------------------- the driver


def campaign(first_seed: int, runs: int, jobs: int) -> Generator[Result, None, None]:
    """Run the seeds on `jobs` fork servers; yields results as they come. Leaves nothing behind."""
    shared_memory = "/dev/shm" if os.path.isdir("/dev/shm") else None
    folder = tempfile.mkdtemp(prefix="sharedrag-fuzz-", dir=shared_memory)
    servers: list[subprocess.Popen[str]] = []
    results: queue.Queue[Result | int] = queue.Queue()
    try:
        prepare(folder)
        for job in range(jobs):
            seeds = (str(first_seed + job), str(first_seed + runs), str(jobs))
            server = subprocess.Popen(
                [sys.executable, "-m", "tests.fuzz", "--serve", folder, *seeds],
                cwd=_REPOSITORY,
                stdout=subprocess.PIPE,
                text=True,
            )
            servers.append(server)
            threading.Thread(target=_collect, args=(server, results), daemon=True).start()
        running = jobs
        while running:
            result = results.get(timeout=4 * HANG_S)
            if isinstance(result, Result):
                yield result
            else:
                running -= 1
                assert result == 0, f"a fork server ended with status {result}"
    finally:
        for server in servers:
            server.kill()
            server.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _collect(server: subprocess.Popen[str], results: queue.Queue[Result | int]) -> None:
    assert server.stdout is not None
    for line in server.stdout:
        results.put(Result(**json.loads(line)))
    results.put(server.wait())


# ---------------------------------------------------------------------- the report


class Tally:
    """What `verify` finds, by where the damage was."""

    def __init__(self) -> None:
        self.runs = self.changed = self.found = self.refused = 0
        self.areas: dict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.failures: list[Result] = []

    def add(self, result: Result) -> None:
        """Count a run in."""
        self.runs += 1
        if result.failures:
            self.failures.append(result)
        if not result.changed or result.died:
            return
        self.changed += 1
        found = bool(result.outcome["verify_found"])
        self.found += found
        self.refused += not result.outcome["opened"]
        if len(result.pieces) == 1:
            name = result.pieces[0][0]
            self.areas[name][0] += 1
            self.areas[name][1] += found

    def table(self) -> Table:
        """The share that is found, for runs with one piece of damage."""
        table = Table(title="Damage that verify (or opening) reports, runs with one piece of damage")
        table.add_column("where")
        for column in ("runs", "found", "share"):
            table.add_column(column, justify="right")
        for name, (runs, found) in sorted(self.areas.items()):
            table.add_row(name, str(runs), str(found), f"{found / runs:.0%}")
        return table


def _print_failure(console: Console, result: Result) -> None:
    console.print(f"[red]seed {result.seed}[/red]" + (", under an open handle" if result.attached else ""))
    for area, kind, offset, length, _ in result.pieces:
        console.print(f"  {kind} in {area}: {length} B at {offset:,}", highlight=False)
    for failure in result.failures[:5]:
        console.print(f"  {failure}", style="yellow", markup=False, highlight=False)


def main(
    runs: Annotated[int, typer.Option(help="How many copies to damage.")] = 10_000,
    seed: Annotated[int, typer.Option(help="Seed of the first run; the others follow it.")] = 0,
    jobs: Annotated[int, typer.Option(help="Processes to run them in.")] = 2,
) -> None:
    """Damage copies of a pool at random: answers stay right or become typed errors, nothing crashes or hangs."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # leave nothing behind then, either
    console = Console()
    tally = Tally()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    started = time.monotonic()
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("damaging", total=runs)
        for result in campaign(seed, runs, max(1, min(jobs, runs))):
            tally.add(result)
            progress.update(task, advance=1, description=f"damaging ({len(tally.failures)} failures)")
            if result.failures and len(tally.failures) <= 20:
                _print_failure(console, result)
            if not console.is_terminal and tally.runs % 500 == 0:
                console.print(f"{tally.runs:,} runs, {time.monotonic() - started:.0f} s, {len(tally.failures)} failures")
    console.print(tally.table())
    console.print(
        f"{tally.runs:,} runs in {time.monotonic() - started:.0f} s; {tally.changed:,} changed a byte, of these "
        f"{tally.found:,} ({tally.found / max(1, tally.changed):.1%}) were reported by verify or refused at open "
        f"({tally.refused:,}); [bold]{len(tally.failures)} failures[/bold]"
    )
    raise typer.Exit(1 if tally.failures else 0)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--serve"]:
        serve(sys.argv[2], range(*map(int, sys.argv[3:6])))
    else:
        typer.run(main)
