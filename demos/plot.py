"""The run as a picture: rows over time with the kill, how soon writes are found, and memory against private copies."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from demos.outcome import Outcome, percentile

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Okabe and Ito's colours, told apart by colour-blind readers too.
NODE_COLOURS = ("#0072B2", "#009E73", "#CC79A7", "#E69F00")
KILL_COLOUR = "#D55E00"
POOL_COLOUR, OWN_COLOUR, COPY_COLOUR = "#0072B2", "#56B4E9", "#999999"
MEBIBYTE = 1 << 20
SIZE_INCHES = (13.5, 5.2)
LEAST_MS = 0.01  # what was seen before the writer's call returned has no place on a logarithmic axis
DOTS_PER_INCH = 140


def plot(outcome: Outcome, path: Path) -> None:
    """Write the picture as PNG. Raises OSError where that cannot be."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    # No pyplot: it would look for a display, and keep the figure.
    figure = Figure(figsize=SIZE_INCHES, layout="constrained", facecolor="white")
    FigureCanvasAgg(figure)
    axes = figure.subplots(1, 3, width_ratios=(5, 4, 3))
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    _rows(axes[0], outcome)
    _latencies(axes[1], outcome)
    _memory(axes[2], outcome)
    figure.suptitle(outcome.title, fontsize=13, fontweight="bold", x=0.01, ha="left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=DOTS_PER_INCH, format="png")


def _rows(axes: Axes, outcome: Outcome) -> None:
    kill = outcome.kill
    ends = [max(tally.acknowledged.values(), default=0.0) for tally in outcome.tallies]
    for tally, colour in zip(outcome.tallies, NODE_COLOURS, strict=True):
        moments = sorted(tally.acknowledged.values())
        steps = [0.0, *moments, max(ends)]
        counts = [*range(len(moments) + 1), len(moments)]
        axes.step(steps, counts, where="post", color=colour, linewidth=2, label=f"node {tally.node}")
    if kill is not None:
        axes.axvline(kill.at, color=KILL_COLOUR, linewidth=1.5)
        axes.plot([kill.at], [kill.acknowledged], marker="X", markersize=11, color=KILL_COLOUR, zorder=5)
        if kill.back_at is not None:
            axes.axvspan(kill.at, kill.back_at, color=KILL_COLOUR, alpha=0.1, linewidth=0)
        axes.text(
            kill.at, 1.0, f" SIGKILL of node {kill.node}", color=KILL_COLOUR, va="top", transform=axes.get_xaxis_transform()
        )
    lost = len(outcome.lost) + (kill.missing if kill else 0)
    axes.set_title(f"Rows written: {outcome.acknowledged + outcome.unacknowledged:,}, lost: {lost}", loc="left", fontsize=11)
    axes.set_xlabel("seconds since the beginning")
    axes.set_ylabel("rows acknowledged")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=4, fontsize=9)


def _latencies(axes: Axes, outcome: Outcome) -> None:
    searches = [one for tally in outcome.tallies for one in tally.search_ms]
    waited = [one for tally in outcome.tallies for one in tally.found_after_ms]
    kinds: list[tuple[str, Sequence[float], str]] = [
        ("write -> found elsewhere, idle", outcome.probes_ms, NODE_COLOURS[1]),
        ("write -> found elsewhere, all busy", waited, NODE_COLOURS[3]),
        ("search through LlamaIndex, all busy", searches, NODE_COLOURS[0]),
    ]
    for name, values, colour in kinds:
        if len(values):
            ordered = np.maximum(np.sort(np.asarray(values)), LEAST_MS)
            share = np.arange(1, len(ordered) + 1) / len(ordered) * 100
            axes.step(
                ordered,
                share,
                where="post",
                color=colour,
                linewidth=2,
                label=f"{name}  (half within {percentile(values, 50):.2f} ms)",
            )
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_title("How soon: share found within ...", loc="left", fontsize=11)
    axes.set_xlabel("milliseconds")
    axes.set_ylabel("percent")
    axes.set_ylim(0, 101)
    axes.grid(axis="x", color="#dddddd", linewidth=0.7)
    if axes.get_legend_handles_labels()[0]:
        # Below: the curves leave no corner of the axes free.
        axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)


def _memory(axes: Axes, outcome: Outcome) -> None:
    bill = outcome.bill
    if bill is None:
        axes.set_axis_off()
        return
    pool, own = bill.pool / MEBIBYTE, sum(bill.each) / MEBIBYTE
    copy = bill.private_copy / MEBIBYTE
    axes.bar(["one pool"], [pool], color=POOL_COLOUR, label="the pool, once")
    axes.bar(["one pool"], [own], bottom=[pool], color=OWN_COLOUR, label="the four processes' own")
    for number in range(len(bill.each)):
        label = "a copy in each process" if not number else None
        axes.bar(["private copies"], [copy], bottom=[number * copy], color=COPY_COLOUR, edgecolor="white", label=label)
    total = len(bill.each) * copy
    for name, height in (("one pool", pool + own), ("private copies", total)):
        axes.text(name, height, f"{height:,.0f} MiB", ha="center", va="bottom", fontweight="bold")  # type: ignore[arg-type]
    axes.set_ylim(0, max(total, pool + own) * 1.1)
    axes.set_title(f"Memory at {bill.rows:,} rows (made up)", loc="left", fontsize=11)
    axes.set_ylabel("MiB, beyond interpreter and model")
    axes.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16), fontsize=9)
