"""The results as a Markdown table: a cell is a figure, or says why there is none."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from tests.peers.adapters import PEERS
from tests.peers.job import RECALL

Results = dict[str, Any]
_LIMIT_OF_WORDS = 110


def number(value: float) -> str:
    """Three digits that count, with separators: 0.0123, 1.23, 123, 12,300."""
    if value == 0:
        return "0"
    if abs(value) >= 100:
        digits = 10 ** max(0, len(str(int(abs(value)))) - 3)
        return f"{round(value / digits) * digits:,.0f}"
    return f"{value:#.3g}".rstrip(".")


def outcome(results: Results, peer: str, measure: str) -> dict[str, Any]:
    """What a measure of a peer gave; {} if it was not asked for."""
    found: dict[str, Any] = results["peers"].get(peer, {}).get("measures", {}).get(measure, {})
    return found


def disturbed(results: Results) -> str:
    """What other processes had of the cores while the peers were measured, one after the other: 30 to 50 %."""
    shares = [100 * peer["others"] for peer in results["peers"].values() if "others" in peer]
    return f"{min(shares):.0f} to {max(shares):.0f} %" if shares else "nothing"


def _short(text: str) -> str:
    text = " ".join(text.replace("|", "/").split())
    return text if len(text) <= _LIMIT_OF_WORDS else text[: _LIMIT_OF_WORDS - 3] + "..."


def _cell(results: Results, peer: str, measure: str, show: Callable[[dict[str, Any]], str]) -> str:
    got = outcome(results, peer, measure)
    if "found" in got:
        return show(got["found"])
    if "cannot" in got:
        return f"cannot: {_short(got['cannot'])}"
    return f"failed: {_short(got['failed'])}" if "failed" in got else ""


def _load(found: dict[str, Any]) -> str:
    return f"{number(found['rows_per_s'])} ({number(found['seconds'])} s)"


def _query(part: str) -> Callable[[dict[str, Any]], str]:
    def show(found: dict[str, Any]) -> str:
        one = found[part]
        if "cannot" in one:
            return f"cannot: {_short(one['cannot'])}"
        recall = f"{one['recall']:.3f}".removeprefix("0")
        missed = "" if one["recall"] >= RECALL else " (not reached)"
        return f"{number(one['p50_ms'])} / {number(one['p99_ms'])} @ {recall}{missed}"

    return show


def _opening(found: dict[str, Any]) -> str:
    return f"{number(found['open_and_query_ms'])} (+ {number(found['import_ms'])})"


def _memory(found: dict[str, Any]) -> str:
    server = f" + server {number(found['server_mb'])}" if "server_mb" in found else ""
    alone = f" (alone: {_short(found['alone'])})" if "alone" in found else ""
    return f"{number(found['own_mb'])} (+ {number(found['imports_mb'])}){server}{alone}"


def _visible(found: dict[str, Any]) -> str:
    missed = f" ({found['missed']} of {found['samples']} not found)" if found["missed"] else ""
    after = f" ({number(max(0.0, found['after_return_p50_ms']))})"
    return f"{number(found['p50_ms'])} / {number(found['p99_ms'])}{after}{missed}"


def _writers(name: str) -> Callable[[dict[str, Any]], str]:
    def show(found: dict[str, Any]) -> str:
        rates, readers, notes = [], [], []
        for writers in (1, 2, 4):
            one = found.get(f"{name} x {writers}")
            if one is None or "records_per_s" not in one:
                rates += [] if "alone" in found else ["-"]
                notes += [] if one is None else [f"{writers}: {_short(one['crashed'])}"]
                continue
            rates.append(number(one["records_per_s"]))
            if "reader_p50_ms" in one:
                readers.append(number(one["reader_p50_ms"]))
            notes += [f"{writers}: {one[what]:,} {what}" for what in ("lost", "refused") if one.get(what)]
        shown = " / ".join(rates) + (f" ({' / '.join(readers)})" if readers else "")
        notes += [_short(one["crashed"]) for one in found.values() if "crashed" in one and "records_per_s" in one]
        if notes:
            shown += f"; **{', '.join(notes)}**"
        return shown + (f"; only 1: {_short(found['alone'])}" if "alone" in found else "")

    return show


def _paced(found: dict[str, Any]) -> str:
    one = found.get("1,000/s x 2")
    if one is None:
        return f"cannot: {_short(found['alone'])}"
    if "records_per_s" not in one:
        return f"**{_short(one['crashed'])}**"
    lost = f", **{one['lost']:,} lost**" if one.get("lost") else ""
    if "reader_p50_ms" not in one:
        return f"no query returned, at {number(one['records_per_s'])}/s{lost}"
    return f"{number(one['reader_p50_ms'])} / {number(one['reader_p99_ms'])} at {number(one['records_per_s'])}/s{lost}"


def _kills(found: dict[str, Any]) -> str:
    failed = f"; {found['failed']} did not come back: {_short(found['failure'])}" if "failed" in found else ""
    again = f"; next record after {number(found['first_record_p50_ms'])} ms" if "first_record_p50_ms" in found else ""
    lost = "0" if not found["lost"] else f"**{found['lost']:,}**"
    return f"{lost} of {found['acknowledged']:,}{again}{failed}"


#: heading, measure, how its figures are shown
COLUMNS: list[tuple[str, str, Callable[[dict[str, Any]], str]]] = [
    ("query, ms p50 / p99 @ recall@10", "query", _query("plain")),
    ("within 1 % (filter), ms p50 / p99 @ recall@10", "query", _query("filtered")),
    ("write -> another process's query finds it, ms p50 / p99 (p50 from the write's return)", "visible", _visible),
    ("single records/s, 1 / 2 / 4 writers (reader p50 ms)", "writers", _writers("singles")),
    ("batches of 32, records/s, 1 / 2 / 4 writers (reader p50 ms)", "writers", _writers("batches")),
    ("query beside 2 writers of 1,000/s each, ms p50 / p99", "writers", _paced),
    ("open + first query, ms (+ imports)", "opening", _opening),
    ("one more reader, MB (+ imports)", "memory", _memory),
    ("load with index, rows/s", "load", _load),
    ("kill -9: acknowledged records lost", "kills", _kills),
]


def cells(results: Results, peer: str) -> list[tuple[str, str]]:
    """(heading, figure) of what was measured of a peer."""
    found = [(heading, _cell(results, peer, measure, show)) for heading, measure, show in COLUMNS]
    return [(heading, cell) for heading, cell in found if cell]


def markdown(results: Results) -> str:
    """The whole report: table, notes, what it was measured on."""
    machine = results["machine"]
    columns = [column for column in COLUMNS if any(outcome(results, peer, column[1]) for peer in results["peers"])]
    lines = [
        f"# sharedrag and its peers, {results['rows']:,} rows",
        "",
        f"{results['begun'][:10]}, {machine['cores']} cores ({machine['processor']}), {machine['memory_gib']} GiB, Linux "
        f"{machine['kernel']}, Python {machine['python']}; everything on /dev/shm; effort: {results['effort']}; "
        f"{results['seconds'] / 60:.0f} min; other processes took {disturbed(results)} of the cores meanwhile.",
        "",
        "384-dimensional vectors of real sentences"
        + ("" if results["rows"] <= results["real_rows"] else f" ({results['real_rows']:,} real, the others made from them)")
        + ", with their texts and metadata, which every hit brings. "
        "One query at a time, one thread, with the first search setting of each peer that reaches recall@10 >= 0.95.",
        "",
        "| peer | " + " | ".join(heading for heading, _, _ in columns) + " |",
        "| --- |" + " --- |" * len(columns),
    ]
    shown = [peer for peer in PEERS if peer in results["peers"]]
    for peer in shown:
        cells = [_cell(results, peer, measure, show) for _, measure, show in columns]
        fewer = results["peers"][peer]["facts"].get("why_rows")
        name = PEERS[peer][2] + (f" (**{results['peers'][peer]['facts']['rows']:,} rows**)" if fewer else "")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Settings", ""]
    for peer in shown:
        facts = results["peers"][peer]["facts"]
        if facts:
            fewer = f" At {facts['rows']:,} rows: {facts['why_rows']}." if facts["why_rows"] else ""
            chosen = outcome(results, peer, "query").get("found", {})
            used = ", ".join(
                f"{what} {chosen[part]['setting']}" for part, what in (("plain", "unfiltered"), ("filtered", "filtered"))
                if chosen.get(part, {}).get("setting", "None") != "None"
            )  # fmt: skip
            lines.append(
                f"- {PEERS[peer][2]} ({facts['package']} {facts['version']}): {facts['settings']}."
                + (f" Used: {used}." if used else "") + fewer
            )  # fmt: skip
    return "\n".join([*lines, "", _NOTES, ""])


_NOTES = """## How to read it

- *Imports* are what a process pays before it opens anything. Memory is private memory (smaps), MB are 10^6 bytes; a server's
  is the proportional share of all its processes.
- *Write -> found* counts from the call of the write to the return of the first query of another process, which asks all
  the time, that has the row among its 10 hits; in brackets, from the return of the write. A row that no query found within
  3 s is not found.
- Writers write as fast as they can for some seconds, into the loaded store; *lost* is acknowledged and not there for a new
  process; *refused* raised an error. The reader beside them asks without a pause.
- Load counts until the index stands, without the time to make the rows.
- A writer is killed at a random moment, and the next one opens the store and goes on."""
