"""Run the side-by-side benchmark: `python -m tests.peers [--rows N] [--only PEER,...] [--measure NAME,...] [--quick]`.

Writes OUT/peers-ROWS.json, .md and two .png, after each peer again, so a run that is ended early has told what it knew.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from tests.bench.__main__ import Others, machine
from tests.peers import plots, report
from tests.peers.adapters import PEERS
from tests.peers.corpus import REAL_MAX
from tests.peers.job import EFFORTS
from tests.peers.measures import MEASURES, READING
from tests.peers.runner import REPOSITORY, Outcome, Plan, Runner, measures_in_order

_ROWS_MIN = 1_000
_PIPED_WIDTH = 160
_DATA = REPOSITORY.parent / "shared" / "data"


def _names(known: dict[str, Any]) -> Any:
    def parse(text: str) -> list[str]:
        found = [one.strip() for one in text.split(",") if one.strip()]
        unknown = [one for one in found if one not in known]
        if unknown or not found:
            raise argparse.ArgumentTypeError(f"{', '.join(unknown) or 'nothing'}: choose from {', '.join(known)}")
        return found

    return parse


def arguments(given: list[str] | None = None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.peers", description=__doc__)
    names = f"of {', '.join(PEERS)}"
    parser.add_argument("--only", type=_names(PEERS), metavar="PEER,...", default=list(PEERS), help=names)
    parser.add_argument("--without", type=_names(PEERS), metavar="PEER,...", default=[], help="all but these")
    of = f"of {', '.join(MEASURES)}; by default all, or with more than {REAL_MAX:,} rows {', '.join(READING)}"
    parser.add_argument("--measure", type=_names(MEASURES), metavar="NAME,...", help=of)
    parser.add_argument("--rows", type=int, default=100_000, metavar="N", help="rows to load (default: 100,000)")
    parser.add_argument("--quick", action="store_true", help="less of everything: to see whether it runs")
    parser.add_argument("--add", action="store_true", help="keep what an earlier run wrote of other peers")
    parser.add_argument("--patience", type=float, default=1.0, metavar="X", help="multiply every time limit")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "out" / "peers", metavar="DIR", help="where results go")
    parser.add_argument("--data", type=Path, default=_DATA, metavar="DIR", help="the real vectors and texts")
    chosen = parser.parse_args(given)
    if chosen.rows < _ROWS_MIN:
        parser.error(f"--rows {chosen.rows}: at least {_ROWS_MIN:,}")
    if not (chosen.data / "minilm_120k_i8.npy").exists():
        parser.error(f"the real vectors are not in {chosen.data}; say --data DIR")
    return chosen


class _Book:
    """The results so far, on disk after each peer."""

    def __init__(self, chosen: argparse.Namespace) -> None:
        self._stem = chosen.out / f"peers-{chosen.rows}"
        self._begun = time.monotonic()
        self.results: dict[str, Any] = {
            "machine": machine(),
            "rows": chosen.rows,
            "real_rows": min(chosen.rows, REAL_MAX),
            "effort": "quick" if chosen.quick else "full",
            "begun": datetime.now(UTC).isoformat(timespec="seconds"),
            "seconds": 0.0,
            "peers": {},
        }
        chosen.out.mkdir(parents=True, exist_ok=True)
        if chosen.add and (earlier := self._stem.with_suffix(".json")).exists():
            known = json.loads(earlier.read_bytes())
            self.results |= {name: known[name] for name in ("begun", "peers")}
            self._begun -= known["seconds"]
        self._others = Others()

    def note(self, name: str, outcome: Outcome) -> None:
        """One more peer is measured."""
        outcome["others"] = round(self._others.share(), 2)  # of the cores, to other processes, meanwhile
        self._others = Others()
        self.results["peers"][name] = outcome
        self.results["seconds"] = round(time.monotonic() - self._begun, 1)
        told = json.dumps(self.results, indent=2).replace(str(REPOSITORY), ".")  # nobody needs to know where it lay
        self._stem.with_suffix(".json").write_text(told + "\n")
        self._stem.with_suffix(".md").write_text(report.markdown(self.results))
        rows = self.results["rows"]
        plots.draw(self.results, plots.READING, "Reading and loading", self._stem.with_name(f"peers-{rows}-reading.png"))
        plots.draw(
            self.results, plots.WRITING, "Writing while others read", self._stem.with_name(f"peers-{rows}-writing.png")
        )

    @property
    def path(self) -> Path:
        """Of the Markdown."""
        return Path(self._stem.with_suffix(".md"))


def _shown(results: dict[str, Any]) -> Table:
    """The Markdown's table for a terminal: a column for each peer would be too wide, so a line for each figure."""
    table = Table("peer", "what", "measured", title=f"{results['rows']:,} rows")
    for peer, (_, _, label) in PEERS.items():
        if peer in results["peers"]:
            for at, (heading, measured) in enumerate(report.cells(results, peer)):
                table.add_row("" if at else label.replace("**", ""), heading, measured)
            table.add_section()
    return table


def main(given: list[str] | None = None) -> int:
    """Measure, write, print. The exit code is 1 if a measure failed (not if a peer cannot)."""
    chosen = arguments(given)
    console = Console()
    if not console.is_terminal:
        console.width = _PIPED_WIDTH
    peers = [name for name in PEERS if name in chosen.only and name not in chosen.without]
    measures = measures_in_order(chosen.measure or (READING if chosen.rows > REAL_MAX else list(MEASURES)))
    book = _Book(chosen)
    effort = EFFORTS["quick" if chosen.quick else "full"]
    plan = Plan(peers, measures, chosen.rows, effort, chosen.data, chosen.patience, book.note)
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(), TextColumn("{task.description}"))
    # Drawn rarely: whoever draws takes a core from what is measured.
    with Progress(*columns, console=console, refresh_per_second=1) as progress:
        task = progress.add_task("starting", total=len(peers) * len(measures))

        def say(text: str) -> None:
            progress.update(task, description=text)

        with Runner(plan, say, lambda: progress.advance(task)) as runner:
            runner.run()
        say("done")
    console.print(_shown(book.results))
    console.print(f"Written: {book.path}, with .json and .png beside it")
    return int(any("failed" in one for name in peers for one in book.results["peers"][name]["measures"].values()))


if __name__ == "__main__":
    sys.exit(main())
