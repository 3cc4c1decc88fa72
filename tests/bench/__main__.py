"""Run the bench: `python -m tests.bench [--only NAME] [--size tiny|quick|full] [--json FILE]`.

A figure below its demand is no failure: the exit code is 1 only if records were lost.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench import latency, memory, opening, search, succession, writes
from tests.bench.figures import Figure
from tests.bench.workshop import SIZES, Workshop

BENCHES = {
    "singles": writes.singles,
    "batches": writes.batches,
    "fleet": writes.fleet,
    "latency": latency.latency,
    "memory": memory.memory,
    "opening": opening.opening,
    "succession": succession.succession,
    "search": search.search,
}
_PIPED_WIDTH = 160
OTHERS = "others' share of the cores"
_PACKAGES = ("sharedrag", "numpy", "faiss-cpu", "pyarrow", "orjson", "xxhash")


def machine() -> dict[str, Any]:
    """What the figures were measured on."""
    model = next(
        (line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")), "unknown"
    )
    memory_kib = next((int(line.split()[1]) for line in _lines("/proc/meminfo") if line.startswith("MemTotal")), 0)
    return {
        "processor": model,
        "cores": len(os.sched_getaffinity(0)),
        "memory_gib": round(memory_kib / (1 << 20), 1),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in _PACKAGES},
        "load_before": round(os.getloadavg()[0], 2),
    }


def _lines(path: str) -> list[str]:
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


class Others:
    """How much of the cores other processes took since this was made: what makes a figure worse than it is."""

    def __init__(self) -> None:
        self._begun = (time.monotonic(), _busy_s(), _own_s())

    def share(self) -> float:
        """0 (we were alone) to 1; of our own processes only those count as ours that have ended."""
        wall, busy, own = (
            now - then for now, then in zip((time.monotonic(), _busy_s(), _own_s()), self._begun, strict=True)
        )
        return max(0.0, busy - own) / (wall * len(os.sched_getaffinity(0)))


def _busy_s() -> float:
    """Seconds that all cores together were not idle."""
    first = next(iter(_lines("/proc/stat")), "cpu 0 0 0 0 0 0 0 0").split()
    user, nice, system, _idle, _io_wait, interrupt, soft_interrupt, stolen = map(int, first[1:9])
    return (user + nice + system + interrupt + soft_interrupt + stolen) / os.sysconf("SC_CLK_TCK")


def _own_s() -> float:
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in usages)


def number(value: float) -> str:
    """A figure as people read it: three or so digits that count."""
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"


def table(figures: list[Figure], about: dict[str, Any]) -> Table:
    """The figures, each beside its demand and its limit."""
    caption = (
        f"{about['cores']} cores ({about['processor']}), Python {about['python']}, Linux {about['kernel']}, "
        f"load before {about['load_before']}; median of the rounds (best round); "
        f"others: what other processes took of the cores meanwhile"
    )
    shown = Table(title="sharedrag: 384 dimensions, texts of 300 bytes, shared memory", caption=caption, expand=False)
    for name, justify in (
        ("what", "left"),
        ("measured", "right"),
        ("demanded", "right"),
        ("", "left"),
        ("others", "right"),
        ("to compare with", "left"),
    ):
        shown.add_column(name, justify=justify)  # type: ignore[arg-type]
    for one in figures:
        bound = "at least" if one.higher_is_better else "at most"
        demanded = "" if one.demanded is None else f"{bound} {number(one.demanded)}"
        mark = {None: "", True: "[green]met[/]", False: "[red]missed[/]"}[one.met]
        limit = "" if one.limit is None else f"{number(one.limit.value)}: {one.limit.what}"
        shown.add_row(
            one.what,
            f"{number(one.value)} {one.unit} ({number(one.best)})",
            demanded,
            mark,
            f"{one.notes[OTHERS]:.0%}",
            limit,
        )
    return shown


def run(names: list[str], size: str, console: Console) -> list[Figure]:
    """The figures of these benches, in order."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    figures: list[Figure] = []
    # Drawn rarely: whoever draws takes a core from what is measured.
    with Progress(*columns, console=console, refresh_per_second=1, transient=True) as progress:
        task = progress.add_task("starting", total=len(names))
        with Workshop(SIZES[size], lambda text: progress.update(task, description=text)) as workshop:
            for name in names:
                others = Others()
                measured = BENCHES[name](workshop)
                for one in measured:
                    one.notes[OTHERS] = round(others.share(), 2)
                figures += measured
                progress.advance(task)
    return figures


def main(arguments: list[str] | None = None) -> int:
    """Measure, print, and write the JSON if asked to."""
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument(
        "--only", action="append", choices=BENCHES, metavar="NAME", help=f"one of {', '.join(BENCHES)}; may be repeated"
    )
    parser.add_argument("--size", choices=SIZES, default="full", help="how much of everything (default: full, some minutes)")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all figures, rounds and notes there")
    chosen = parser.parse_args(arguments)
    about = machine()
    begun = time.time()
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    figures = run(chosen.only or list(BENCHES), chosen.size, console)
    console.print(table(figures, about))
    if chosen.json:
        found = {
            "machine": about,
            "size": chosen.size,
            "seconds": round(time.time() - begun, 1),
            "figures": [one.as_json() for one in figures],
        }
        chosen.json.write_text(json.dumps(found, indent=2) + "\n")
    return int(any(one.name == "lost" and one.value for one in figures))


if __name__ == "__main__":
    sys.exit(main())
