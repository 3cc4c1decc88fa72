"""The README's table of peers, from the committed results: `python -m tests.peers.readme` writes it there anew.

A line for each peer, from the run with 100,000 rows and the one with a million; the whole reports lie beside the results.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.peers.adapters import PEERS
from tests.peers.job import RECALL
from tests.peers.protocol import MANY, ONE, ONE_WRITER, PRIVATE
from tests.peers.report import Results, disturbed, number, outcome

RESULTS = Path(__file__).parent / "results"
README = Path(__file__).resolve().parents[2] / "README.md"
BEGIN, END = "<!-- peers: made by python -m tests.peers.readme -->\n", "<!-- peers: end -->\n"
_ROWS = (100_000, 1_000_000)
_PROCESSES = {MANY: "all", ONE_WRITER: "one writes", ONE: "one process", PRIVATE: "a copy each"}
_NONE = "-"

Found = dict[str, Any]


def results(rows: int) -> Results:
    """Those that are committed."""
    found: Results = json.loads((RESULTS / f"peers-{rows}.json").read_bytes())
    return found


def _one(run: Results, peer: str, measure: str, show: Callable[[Found], str]) -> str:
    got = outcome(run, peer, measure)
    if "found" not in got:
        return "failed" if "failed" in got else _NONE
    try:
        return show(got["found"])
    except KeyError:  # of a store for one process, for instance
        return _NONE


def _query(part: str) -> Callable[[Found], str]:
    def show(found: Found) -> str:
        one = found[part]
        missed = "" if one["recall"] >= RECALL else f" (recall {one['recall']:.2f})"
        return number(one["p50_ms"]) + missed

    return show


def _memory(found: Found) -> str:
    return number(found["own_mb"]) + (f" + server {number(found['server_mb'])}" if "server_mb" in found else "")


def _writes(found: Found) -> str:
    loads = [found.get(f"singles x {writers}", {}) for writers in (1, 4)]
    windows = [window for window in found.values() if isinstance(window, dict)]
    lost = sum(window.get("lost", 0) for window in windows)
    rates = " / ".join(number(load["records_per_s"]) if "records_per_s" in load else _NONE for load in loads)
    broken = ", **then broken**" if any("crashed" in window for window in windows) else ""
    return rates + (f", **{lost:,} lost**" if lost else "") + broken


def _load(run: Results, peer: str) -> str:
    got = outcome(run, peer, "load")
    if "found" in got:
        return number(got["found"]["rows_per_s"])
    told = got.get("cannot") or got.get("failed") or _NONE
    if told.startswith("not done"):
        return told.partition(":")[0]
    return "failed" if "failed" in got else _NONE


def _visible(run: Results, peer: str) -> str:
    got = outcome(run, peer, "visible")
    if "never" in got.get("cannot", ""):
        return "never"
    return _one(run, peer, "visible", lambda found: number(found["p50_ms"]))


def table() -> str:
    """The Markdown between the marks."""
    small, large = map(results, _ROWS)
    machine = small["machine"]
    kernel = machine["kernel"].partition("-")[0]
    headings = [
        "",
        "open to",
        "query, ms",
        "within 1 %, ms",
        "write -> found elsewhere, ms",
        "writes/s, 1 / 4 writers",
        "query beside 2,000 writes/s, ms",
        "open + first query, ms",
        "one more reader, MB",
        "load, rows/s",
    ]
    lines = [
        f"Run of {small['begun'][:10]}: {machine['cores']} cores ({machine['processor']}, a virtual machine), Python "
        f"{machine['python'].rpartition('.')[0]}, Linux {kernel}; other processes took {disturbed(small)} of the cores "
        f"meanwhile ({disturbed(large)} in the second run). **Two figures in a cell are at 100,000 and at 1,000,000 rows**; "
        "medians.",
        "",
        f"| {' | '.join(headings)} |",
        "|" + " --- |" * len(headings),
    ]
    for peer, (_, _, label) in PEERS.items():
        facts = small["peers"][peer]["facts"]

        def both(measure: str, show: Callable[[Found], str], peer: str = peer) -> str:
            return f"{_one(small, peer, measure, show)} / {_one(large, peer, measure, show)}"

        fewer = f" ({facts['rows']:,} rows)" if facts["why_rows"] else ""
        cells = [
            label + fewer,
            _PROCESSES[facts["processes"]],
            both("query", _query("plain")),
            both("query", _query("filtered")),
            _visible(small, peer),
            _one(small, peer, "writers", _writes),
            _one(small, peer, "writers", lambda found: number(found["1,000/s x 2"]["reader_p50_ms"])),
            both("opening", lambda found: number(found["open_and_query_ms"])),
            both("memory", _memory),
            f"{_load(small, peer)} / {_load(large, peer)}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    """Write it into the README."""
    text = README.read_text()
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    README.write_text(before + BEGIN + table() + END + after)


if __name__ == "__main__":
    main()
