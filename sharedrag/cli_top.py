"""`sharedrag top`: a pool, live, in as much of the terminal as there is.

A look costs a millisecond (`watch`); drawing it is what costs. So lines are put together here, each one text with few
colours, and rich only brings them to the screen. Each section gets what rows it needs, or its share of what there are.
"""

from __future__ import annotations

import select
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, NamedTuple

import typer
from rich.cells import cell_len, set_cell_size
from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.segment import Segment
from rich.style import Style

from sharedrag.cli_base import NodeOption, PoolPath, console, open_pool
from sharedrag.cli_view import age, plain, size
from sharedrag.info import SessionInfo
from sharedrag.watch import CollectionSample, LaneSample, NodeSample, PoolSample, PoolWatch, Write

NEWEST = 50
BARS = " ▁▂▃▄▅▆▇█"
RATES_KEPT = 300
_ELASTIC_MIN = 10  # characters of the column that takes what is left
_HEAD, _DIM, _BOLD = Style(color="cyan"), Style(dim=True), Style(bold=True)
#: By kind, or where a run is on its way out or in by state: how the map shows extents.
MAP = {
    "segment": Style(color="green"),
    "open": Style(color="bright_green", bold=True),
    "columns": Style(color="magenta"),
    "terms": Style(color="magenta"),
    "index": Style(color="blue"),
    "deletions": Style(color="cyan"),
    "building": Style(color="white"),
    "retired": Style(color="yellow"),
    "punching": Style(color="yellow"),
    "": _DIM,
}
Line = list[Segment]


def top(
    path: PoolPath,
    every: Annotated[float, typer.Option("--every", min=0.05, help="Seconds between looks.")] = 0.5,
    node: NodeOption = 0,
) -> None:
    """Watch a pool live: space, nodes, collections, lanes and who writes how fast, processes, the newest writes.

    In the map of a node's extents, green are segments (bright: open), magenta columns and terms, blue indexes, cyan lists of
    what is deleted, yellow what is being freed. q or Ctrl-C ends. Into a pipe or a file it writes one look.

    ```
    sharedrag top /dev/shm/team.pool
    ```
    """
    screen = console()
    with open_pool(path, "top", node=node) as pool:
        view = _View(PoolWatch(pool, newest=NEWEST))
        view.look()
        if not screen.is_terminal:
            time.sleep(every)
            view.look()
            screen.print(view)
            return
        try:
            with _keys() as pressed, Live(view, console=screen, auto_refresh=False, screen=True) as live:
                while not pressed(every):
                    view.look()
                    live.refresh()
        except KeyboardInterrupt:
            return


@contextmanager
def _keys() -> Iterator[Callable[[float], bool]]:
    """A function that waits so many seconds, or shorter when q is pressed: then it returns True."""
    if not sys.stdin.isatty():
        yield lambda seconds: bool(time.sleep(seconds))  # type: ignore[func-returns-value]
        return
    before = termios.tcgetattr(sys.stdin)

    def pressed(seconds: float) -> bool:
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            if select.select([sys.stdin], [], [], left)[0] and sys.stdin.read(1) in ("q", "Q", ""):
                return True
        return False

    try:
        tty.setcbreak(sys.stdin)
        yield pressed
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class _Column(NamedTuple):
    """A column: its width, 0 for the one that takes what is left; negative widths are for numbers, to the right."""

    title: str
    width: int


class _Section(NamedTuple):
    """Lines under a line of titles; of more lines than there is room for, the last says how many."""

    columns: Sequence[_Column]
    rows: Sequence[Sequence[str | Line]]


class _View:
    """The newest look, drawn to the size of the console."""

    def __init__(self, watch: PoolWatch) -> None:
        self._watch = watch
        self._rates: deque[float] = deque(maxlen=RATES_KEPT)
        self._sample: PoolSample | None = None

    def look(self) -> None:
        """Look at the pool again."""
        self._sample = self._watch.sample()
        if self._sample.seconds:
            self._rates.append(self._sample.rows_per_s)

    def __rich_console__(self, screen: Console, options: ConsoleOptions) -> RenderResult:
        """Exactly as many lines as the window has, or as are needed where it is none."""
        assert self._sample is not None
        height = options.height or options.size.height if screen.is_terminal else 1000
        width = options.max_width
        lines = [*_head(self._sample, self._rates, width), *_body(self._sample, width, height - 3)]
        for number, line in enumerate(lines[:height]):
            if number:
                yield Segment.line()
            yield from line
        if not screen.is_terminal:
            yield Segment.line()


def _head(sample: PoolSample, rates: Sequence[float], width: int) -> Iterator[Line]:
    clock = f" {sample.at.astimezone():%H:%M:%S}  q quits"
    yield [Segment(_fit(plain(sample.path).plain, width - len(clock)), _BOLD), Segment(_fit(clock, width), _DIM)]
    held = f", {size(sample.reserved)} held" if width >= 60 else ""
    used = f"{size(sample.allocated)} of {size(sample.capacity)} used, {size(sample.free)} free{held}"
    room = max(0, width - len(used) - 2)
    filled = round(room * sample.allocated / max(1, sample.capacity))
    yield [Segment(f"{used}  "), Segment("━" * filled, MAP["segment"]), Segment("━" * (room - filled), _DIM)]
    written = f"{sample.rows_per_s:,.0f} rows/s, {size(round(sample.bytes_per_s))}/s written"
    shown = list(rates)[-max(0, width - len(written) - 2) :]
    top_rate = max([*shown, 1.0])
    spark = "".join(BARS[min(8, -int(-8 * rate // top_rate))] for rate in shown)
    yield [Segment(f"{_fit(written, width - len(spark) - 2)}  "), Segment(spark, MAP["segment"])]


def _body(sample: PoolSample, width: int, height: int) -> Iterator[Line]:
    sections = [
        _nodes(sample.nodes, width),
        _collections(sample.collections),
        _lanes(sample.lanes),
        _processes(sample.sessions),
        _newest(sample.newest, sample.at),
    ]
    rooms = _shared_out([len(one.rows) for one in sections], height - len(sections))
    for one, room in zip(sections, rooms, strict=True):
        if room:
            yield from _drawn(one, width, room)


def _shared_out(wanted: list[int], room: int) -> list[int]:
    """How many lines each gets: what it wants, or else a fair share of what the others leave."""
    given = [0] * len(wanted)
    while room > 0 and any(got < want for got, want in zip(given, wanted, strict=True)):
        for at, want in enumerate(wanted):
            if given[at] < want and room > 0:
                given[at] += 1
                room -= 1
    return given


def _drawn(section: _Section, width: int, room: int) -> Iterator[Line]:
    shown = _fitting(section.columns, width)
    columns = [section.columns[at] for at in shown]
    widths = [one.width or max(0, _left(columns, width)) for one in columns]
    titles = [_cell(one.title, at) for one, at in zip(columns, widths, strict=True)]
    yield [Segment(_fit(" ".join(titles), width), _HEAD)]
    rows = section.rows if len(section.rows) <= room else section.rows[: room - 1]
    for row in rows:
        line: Line = []
        for cell, at in zip((row[number] for number in shown), widths, strict=True):
            line += [Segment(" ")] if line else []
            line += [Segment(_cell(cell, at))] if isinstance(cell, str) else cell
        yield line
    if len(rows) < len(section.rows):
        yield [Segment(f"  and {len(section.rows) - len(rows)} more", _DIM)]


def _left(columns: Sequence[_Column], width: int) -> int:
    return width - sum(abs(one.width) for one in columns) - len(columns) + 1


def _fitting(columns: Sequence[_Column], width: int) -> list[int]:
    """Which columns to show: in a narrow window those right of the next to the one that takes what is left give way."""
    shown = list(range(len(columns)))
    least = next(at for at, one in enumerate(columns) if not one.width) + 2
    while _left([columns[at] for at in shown], width) < _ELASTIC_MIN and len(shown) > least:
        del shown[least]
    return shown


def _nodes(nodes: Sequence[NodeSample], width: int) -> _Section:
    fixed = [_Column("NODE", -4), _Column("label", 12), _Column("used", -8), _Column("free", -8), _Column("rows/s", -8)]
    room = max(0, width - sum(abs(one.width) + 1 for one in fixed))
    rows: list[list[str | Line]] = [
        [str(one.node), one.label, size(one.allocated), size(one.free), f"{one.rows_per_s:,.0f}", _map(one, room)]
        for one in nodes
    ]
    return _Section([*fixed, _Column("extents", 0)], rows)


def _map(node: NodeSample, width: int) -> Line:
    """The node's extents in so many cells; each shows what most of it holds that is not free."""
    if not width:
        return []
    cells: list[dict[str, float]] = [{} for _ in range(width)]
    per_cell = node.extents / width
    for run in node.runs:
        what = run.state if run.state in MAP else run.kind
        first, last = run.first / per_cell, (run.first + run.extents) / per_cell
        for at in range(int(first), min(width, -int(-last // 1))):
            cells[at][what] = cells[at].get(what, 0.0) + min(last, at + 1) - max(first, at)
    kinds = [max(cell, key=lambda kind: cell[kind]) if cell else "" for cell in cells]
    line: Line = []
    start = 0
    for at in range(1, width + 1):
        if at == width or kinds[at] != kinds[start]:
            line.append(Segment(("·" if not kinds[start] else "■") * (at - start), MAP[kinds[start]]))
            start = at
    return line


def _collections(collections: Sequence[CollectionSample]) -> _Section:
    columns = [_Column("COLLECTION", 0), _Column("rows", -11), _Column("dead", -9), _Column("open", -4)]
    columns += [_Column("sealed", -6), _Column("indexed", -9), _Column("space", -8), _Column("rows/s", -8)]
    rows = [
        [
            one.name,
            "damaged" if one.damage else f"{one.rows:,}",
            f"{one.rows_dead:,}",
            str(one.segments_open),
            str(one.segments_sealed),
            f"{sum(index.rows for index in one.indexes):,}" if one.indexes else "-",
            size(one.bytes_allocated),
            f"{one.rows_per_s:,.0f}",
        ]
        for one in sorted(collections, key=lambda one: -one.rows_per_s)
    ]
    return _Section(columns, rows)


def _lanes(lanes: Sequence[LaneSample]) -> _Section:
    columns = [_Column("LANE", -5), _Column("process", -8), _Column("label", 0), _Column("open", -4)]
    columns += [_Column("filled", -7), _Column("rows/s", -8), _Column("bytes/s", -8)]
    rows = []
    for one in sorted(lanes, key=lambda one: (-one.rows_per_s, not one.held, one.node, one.lane)):
        filled = max((segment.rows / max(1, segment.room) for segment in one.open), default=None)
        rows.append(
            [
                f"{one.node}.{one.lane}",
                str(one.pid) if one.held else "free",
                one.label,
                str(one.open_segments),
                "-" if filled is None else f"{filled:.0%}",
                f"{one.rows_per_s:,.0f}",
                size(round(one.bytes_per_s)),
            ]
        )
    return _Section(columns, rows)


def _processes(sessions: Sequence[SessionInfo]) -> _Section:
    columns = [_Column("PROCESS", -8), _Column("node", -4), _Column("label", 0), _Column("state", 9)]
    columns += [_Column("behind", -6), _Column("private", -8), _Column("shared", -8)]
    rows = [
        [
            str(one.pid),
            str(one.node),
            one.label,
            "stopped" if one.stopped else "running" if one.alive else "elsewhere",
            str(one.generations_behind),
            size(one.memory_private),
            size(one.memory_shared),
        ]
        for one in sorted(sessions, key=lambda one: (not one.stopped, -(one.memory_private or 0)))
    ]
    return _Section(columns, rows)


def _newest(newest: Sequence[Write], now: datetime) -> _Section:
    columns = [_Column("NEWEST", 8), _Column("lane", -5), _Column("collection", 18), _Column("record", 0)]
    rows = [[age(one.written, now), f"{one.node}.{one.lane}", one.collection, _record(one)] for one in newest]
    return _Section(columns, rows)


def _record(write: Write) -> str:
    if write.deleted:
        return f"deleted: {write.id}"
    who = write.metadata.get("user") or write.metadata.get("author") or write.metadata.get("kind") or write.id
    return f"{who}: {' '.join(write.text.split())}" if write.text else str(write.metadata.get("kind") or write.id)


def _cell(text: str, width: int) -> str:
    shown = plain(text).plain.replace("\n", " ")
    if width < 0:
        return " " * max(0, -width - cell_len(shown)) + _fit(shown, min(-width, cell_len(shown)))
    return _fit(shown, width)


def _fit(text: str, width: int) -> str:
    """Text in exactly so many cells; what is longer ends in an ellipsis."""
    if cell_len(text) > width > 0:
        return set_cell_size(text, width - 1) + "…"
    return set_cell_size(text, max(0, width))
