"""The results as pictures: bars on logarithmic axes, sharedrag in a colour of its own."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.peers.adapters import PEERS
from tests.peers.report import Results, number, outcome

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OWN, LIMIT, OTHER = "#D55E00", "#999999", "#0072B2"
_DOTS_PER_INCH = 100
_ACROSS = 3
_COLOURS = 32  # enough, and a third of the bytes

Pick = Callable[[dict[str, Any]], float]
Panel = tuple[str, str, Pick]  # title, measure, figure; a KeyError where there is none

READING: list[Panel] = [
    ("query, p50, ms", "query", lambda found: found["plain"]["p50_ms"]),
    ("query, p99, ms", "query", lambda found: found["plain"]["p99_ms"]),
    ("query within 1 %, p50, ms", "query", lambda found: found["filtered"]["p50_ms"]),
    ("open + first query, ms, without imports", "opening", lambda found: found["open_and_query_ms"]),
    ("one more reader's own memory, MB (of a server: its client)", "memory", lambda found: found["own_mb"]),
    ("load with index, rows/s", "load", lambda found: found["rows_per_s"]),
]
WRITING: list[Panel] = [
    ("write -> found by another process, p50, ms", "visible", lambda found: found["p50_ms"]),
    ("single records/s, 1 writer", "writers", lambda found: found["singles x 1"]["records_per_s"]),
    ("single records/s, 4 writers", "writers", lambda found: found["singles x 4"]["records_per_s"]),
    ("batches of 32, records/s, 4 writers", "writers", lambda found: found["batches x 4"]["records_per_s"]),
    ("reader's p50 beside 4 writers of single records, ms", "writers", lambda found: found["singles x 4"]["reader_p50_ms"]),
    ("reader's p50 beside 2 writers of 1,000/s, ms", "writers", lambda found: found["1,000/s x 2"]["reader_p50_ms"]),
]


def draw(results: Results, panels: list[Panel], title: str, path: Path) -> None:
    """Write a panel of bars for each figure that was measured, as PNG; a peer without the figure says so."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from PIL import Image

    peers = [peer for peer in PEERS if peer in results["peers"]][::-1]
    panels = [one for one in panels if any(_value(results, peer, *one[1:]) for peer in peers)]
    if not panels:
        return
    down = -(-len(panels) // _ACROSS)
    figure = Figure(figsize=(16, down * (1.0 + 0.26 * len(peers))), layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(down, _ACROSS, sharey=True)
    for axis in axes.flat[len(panels) :]:
        axis.set_visible(False)
    for axis, (heading, measure, pick) in zip(axes.flat, panels, strict=False):
        _bars(axis, results, peers, heading, measure, pick)
    machine = results["machine"]
    about = f"{results['rows']:,} rows, {machine['cores']} cores, {results['begun'][:10]}, recall@10 >= 0.95"
    figure.suptitle(
        f"{title}: of ms and MB less is better, of records/s more ({about})",
        fontsize=13,
        fontweight="bold",
        x=0.01,
        ha="left",
    )
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=_DOTS_PER_INCH)
    Image.open(drawn).convert("RGB").quantize(_COLOURS).save(path, optimize=True)


def _bars(axis: Axes, results: Results, peers: list[str], heading: str, measure: str, pick: Pick) -> None:
    axis.set_title(heading, fontsize=10, loc="left")
    axis.spines[["top", "right"]].set_visible(False)
    axis.set_yticks(range(len(peers)), [PEERS[peer][2].replace("**", "") for peer in peers], fontsize=9)
    values = {row: max(value, 1e-3) for row, peer in enumerate(peers) if (value := _value(results, peer, measure, pick))}
    axis.set_xscale("log")
    low, high = min(values.values()), max(values.values())
    axis.set_xlim(low / 2, high * 4)
    for row, peer in enumerate(peers):
        if row in values:
            colour = OWN if "sharedrag" in peer else LIMIT if peer.startswith("faiss") else OTHER
            axis.barh(row, values[row], left=0, color=colour, height=0.7)
            axis.text(values[row] * 1.08, row, number(values[row]), va="center", fontsize=8)
        elif got := outcome(results, peer, measure):
            why = "failed" if "failed" in got else "cannot"
            axis.text(low / 1.9, row, why, va="center", fontsize=8, color="#777777", style="italic")


def _value(results: Results, peer: str, measure: str, pick: Pick) -> float | None:
    try:
        return pick(outcome(results, peer, measure)["found"])
    except KeyError:
        return None
