"""`python -m tests.bench_server`: the server's figures, printed as Markdown and written as JSON and Markdown.

make bench-server
make bench-server ARGS="--quick"
make bench-server ARGS="--only ask,events"
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from pathlib import Path
from typing import Any

import orjson

from tests.bench_server import data as corpora
from tests.bench_server import measures

REPOSITORY = Path(__file__).resolve().parents[2]
MEASURES = ("ask", "peers", "memory", "events", "kills")
MIB = 1 << 20


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=100_000, help="exchanges")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round of load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--only", default=",".join(MEASURES), help=f"some of {','.join(MEASURES)}")
    parser.add_argument("--data", type=Path, default=REPOSITORY.parent / "shared" / "data")
    parser.add_argument("--peers", type=Path, default=REPOSITORY / ".venv-peers" / "bin" / "python")
    parser.add_argument("--out", type=Path, default=Path("out/bench-server"), help="files to write, without ending")
    parser.add_argument("--quick", action="store_true", help="few rows, short rounds: to see that it runs")
    given = parser.parse_args()
    if given.quick:
        given.rows, given.seconds, given.rounds, given.kills = 5_000, 2.0, 1, 3
    if not given.data.is_dir():
        print(f"The real data is not at {given.data}: say --data", file=sys.stderr)
        return 2
    found = _measure(given, set(given.only.split(",")))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.with_suffix(".json").write_bytes(orjson.dumps(found, option=orjson.OPT_INDENT_2))
    text = report(found)
    given.out.with_suffix(".md").write_text(text)
    print(text)
    return 0


def _measure(given: argparse.Namespace, wanted: set[str]) -> dict[str, Any]:
    found: dict[str, Any] = {"machine": _machine(), "rows": given.rows, "clients": measures.CLIENTS}
    data = corpora.corpus(given.data, given.rows)
    with measures.folder() as place:
        pool = str(place / "bench.pool")
        if wanted & {"ask", "memory"}:
            _say(f"loading {given.rows:,} exchanges")
            group = corpora.fill(pool, data)
        if "ask" in wanted:
            for workers in (1, 2):
                _say(f"/v1/ask, {workers} worker(s)")
                found[f"ask_{workers}"] = measures.asked(pool, group, data, workers, given.rounds, given.seconds)
        if "memory" in wanted:
            _say("memory")
            small, empty = str(place / "small.pool"), str(place / "empty.pool")
            few = corpora.corpus(given.data, given.rows // 10)
            found["memory"] = {
                "empty": measures.memory(empty, None, data),
                "tenth": measures.memory(small, corpora.fill(small, few), data),
                "all": measures.memory(pool, group, data),
            }
    if "peers" in wanted:
        for name, what in measures.PEERS.items():
            _say(what)
            found[name] = measures.peer(name, given.peers, data, given.data, given.rounds, given.seconds)
    if "events" in wanted:
        _say("events")
        found["events"] = measures.events(50 if given.quick else 300)
    if "kills" in wanted:
        _say(f"{given.kills} kills")
        found["kills"] = measures.killed(given.kills)
    return found


def _machine() -> dict[str, Any]:
    information = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in information if line.startswith("model name")), "")
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": model,
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
        "load_before": os.getloadavg()[0],
    }


def report(found: dict[str, Any]) -> str:
    """The figures as a Markdown table, each beside its demand and what was measured with it."""
    machine = found["machine"]
    lines = [
        f"Run of {machine['date']}: {machine['cores']} cores ({machine['processor']}), Python {machine['python']}, "
        f"{found['rows']:,} exchanges, {found['clients']} keep-alive clients beside the server; "
        f"load of the machine before: {machine['load_before']:.1f}.",
        "",
        "| what | measured | at least |",
        "| --- | --- | --- |",
    ]
    one, two = found.get("ask_1"), found.get("ask_2")
    if one:
        lines.append(f"| `/v1/ask` with the vector given, one worker | {_rate(one)} | 600 / s, p99 under 40 ms |")
    if one and two:
        times = two["per_second"] / one["per_second"]
        lines.append(f"| the same, two workers | {_rate(two)}: {times:.2f}x | 1.5x |")
    for name, what in measures.PEERS.items():
        if name in found:
            lines.append(f"| {what}, by vector alone | {_rate(found[name])} | (the peer) |")
    if "memory" in found:
        lines += _memory(found)
    if "events" in found:
        was = found["events"]
        took = f"p50 {was['p50_ms']} ms, p99 {was['p99_ms']} ms ({was['after_answer_p50_ms']} ms after the answer)"
        lines.append(f"| POST at worker A -> event from worker B | {took} | p50 under 25 ms |")
    if "kills" in found:
        was = found["kills"]
        lost = f"{was['lost']} of {was['acknowledged']:,} lost, {was['answers_5xx']} answers 5xx"
        lines.append(f"| SIGKILL of a worker under load, {was['kills']} times | {lost} | 0 lost, no 5xx |")
    return "\n".join(lines) + "\n"


def _rate(was: dict[str, Any]) -> str:
    if "failed" in was:
        return str(was["failed"])
    recall = f", recall@10 {was['recall']}" if was.get("recall") else ""
    cost = f", {was['processor_ms']:.2f} ms of processor each" if "processor_ms" in was else ""
    errors = f", {was['errors']} errors" if was["errors"] else ""
    return f"{was['per_second']:,.0f} / s, p50 {was['p50_ms']} ms, p99 {was['p99_ms']} ms{cost}{recall}{errors}"


def _memory(found: dict[str, Any]) -> list[str]:
    """What ten times the data adds to the second worker, beside what it adds to the pool; and all that it holds."""
    empty, few, all_ = (found["memory"][name] for name in ("empty", "tenth", "all"))
    more, data = all_["second_private"] - few["second_private"], all_["data"] - few["data"]
    held = ", ".join(f"{one['second_private'] / MIB:.0f}" for one in (empty, few, all_))
    text = f"{held} MiB at 0, {found['rows'] // 10:,} and {found['rows']:,} exchanges"
    grown = f"{more / MIB:.1f} MiB for {data / MIB:.0f} MiB of data: {100 * more / data:.1f} %"
    shares = ", ".join(f"{100 * one['second_private'] / one['data']:.1f}" for one in (few, all_))
    return [
        f"| private memory of the second worker, all of it | {text}: {shares} % of the data | under 15 % |",
        f"| what ten times the data adds to it | {grown} | |",
    ]


def _say(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    sys.exit(main())
