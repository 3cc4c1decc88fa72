"""The replay as it happens: a live table and feed on a terminal, plain lines elsewhere (a file, a pipe, CI)."""

from __future__ import annotations

import time
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from demos.events import monotonic_ns
from demos.outcome import DOWN, News, Outcome, percentile
from sharedrag.cli_view import plain

REFRESH_EVERY_S = 0.125
LINE_EVERY_S = 2.0
FEED_LINE_EVERY_S = 1.0
FEED_LINES = 9
QUESTION_WIDTH_MIN, QUESTION_WIDTH_MAX, ANSWER_WIDTH = 16, 64, 56
NEWS_WIDTH_BESIDES = 90  # of a line of news, without the question and the answer's text
NODE_STYLES = ("cyan", "green", "magenta", "yellow")
RECENT = 200


class View(Protocol):
    """What shows an outcome while it grows."""

    def __enter__(self) -> Self:
        """Begin to show."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop showing."""

    def show(self) -> None:
        """Called often; shows when it is time to."""


def view_for(console: Console, outcome: Outcome) -> View:
    """The live view where there is a terminal, else lines."""
    return LiveView(console, outcome) if console.is_terminal else LineView(console, outcome)


def milliseconds(value: float) -> str:
    """0.31 -> "0.31 ms", 41.7 -> "42 ms"; a dash for what is not known."""
    if value != value:
        return "-"
    return f"{value:.2f} ms" if value < 10 else f"{value:.0f} ms"


def shortened(text: str, width: int) -> str:
    """One line of at most `width` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1].rstrip() + "\N{HORIZONTAL ELLIPSIS}"


def news_line(news: News, width: int) -> Text:
    """Who asked what where, and whose answer was found how soon after it was written; that much fits in `width`."""
    question_width = min(QUESTION_WIDTH_MAX, max(QUESTION_WIDTH_MIN, width - NEWS_WIDTH_BESIDES))
    asker = (news.asker or "somebody").upper()
    author = f"{(news.author or 'somebody').upper()}'s answer"
    return Text.assemble(
        (f"{news.at:5.1f} s  ", "dim"),
        (plain(asker).plain, "bold"),
        " on ",
        (f"node {news.asked_on}", NODE_STYLES[news.asked_on]),
        " asked ",
        (f"\u201c{plain(shortened(news.question, question_width)).plain}\u201d", "italic"),
        " -> found ",
        (plain(author).plain, "bold"),
        ", written by ",
        (f"node {news.written_by}", NODE_STYLES[news.written_by]),
        (f" {milliseconds(news.after_ms)} before", "bold"),
        (f": {plain(shortened(news.answer, ANSWER_WIDTH)).plain}", "dim"),
    )


def kill_line(outcome: Outcome) -> Text:
    """What the kill did to its victim and to the others; empty before it."""
    kill = outcome.kill
    if kill is None:
        return Text("")
    others = [tally for tally in outcome.tallies if tally.node != kill.node]
    errors = sum(len(tally.errors) for tally in others)
    gone = outcome.tallies[kill.node].state in DOWN
    since = "starting again" if kill.restarted_at else "down"
    return Text.assemble(
        (f"SIGKILL of node {kill.node} at {kill.at:.1f} s: ", "bold red"),
        f"{kill.acknowledged:,} rows acknowledged, {kill.missing} of them missing; ",
        f"{since if gone else 'back, and finishes its share'}; the others go on, {errors} errors",
    )


class LiveView:
    """Table, feed and progress, redrawn some times a second."""

    def __init__(self, console: Console, outcome: Outcome) -> None:
        self._outcome = outcome
        self._live = Live(console=console, auto_refresh=False, transient=False)
        self._shown_at = 0.0

    def __enter__(self) -> Self:
        """Take over the lower part of the terminal."""
        self._live.__enter__()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Draw once more and leave it there."""
        self._live.update(self._drawn(), refresh=True)
        self._live.__exit__(kind, error, trace)

    def show(self) -> None:
        """Redraw if the last time is long enough ago."""
        now = time.monotonic()
        if now - self._shown_at >= REFRESH_EVERY_S:
            self._shown_at = now
            self._live.update(self._drawn(), refresh=True)

    def _drawn(self) -> Panel:
        feed = list(self._outcome.news)[-FEED_LINES:]
        lines = [news_line(news, self._live.console.width) for news in feed]
        for line in lines:
            line.no_wrap, line.overflow = True, "ellipsis"
        lines += [Text("")] * (FEED_LINES - len(lines))
        heard = Panel(Group(*lines), title="just asked, just answered", title_align="left", border_style="dim")
        return Panel(
            Group(self._progress(), self._nodes(), kill_line(self._outcome), heard),
            title=f"[bold]{plain(self._outcome.title).plain}[/bold]",
            title_align="left",
            subtitle=plain(self._outcome.phase),
            subtitle_align="left",
        )

    def _progress(self) -> Table:
        outcome = self._outcome
        grid = Table.grid(padding=(0, 1))
        done = outcome.acknowledged
        grid.add_row(
            ProgressBar(total=max(1, outcome.total), completed=done, width=40),
            f"{done:,} of {outcome.total:,} exchanges in one pool, {plain(outcome.pool_path).plain}",
        )
        return grid

    def _nodes(self) -> Table:
        table = Table(header_style="dim", expand=True)
        for column in ("node", "process", "state"):
            table.add_column(column)
        for column in ("rows written", "rows/s", "asked", "search p50", "found others' answers", "after (p50)", "errors"):
            table.add_column(column, justify="right")
        now = self._now()
        for tally in self._outcome.tallies:
            table.add_row(
                Text(f"node {tally.node}", style=NODE_STYLES[tally.node]),
                str(tally.pid or "-"),
                Text(tally.state, style="bold red" if tally.state in DOWN else ""),
                f"{len(tally.acknowledged):,} of {tally.total:,}",
                f"{tally.rows_per_second(now):.1f}",
                f"{len(tally.search_ms):,}",
                milliseconds(percentile(tally.search_ms[-RECENT:], 50)),
                f"{len(tally.found_after_ms):,}",
                milliseconds(percentile(tally.found_after_ms, 50)),
                Text(str(len(tally.errors)), style="bold red" if tally.errors else "green"),
            )
        return table

    def _now(self) -> float:
        return self._outcome.since_begin(monotonic_ns()) if self._outcome.began_ns else 0.0


class LineView:
    """A line for each phase, for the kill, now and then for the nodes and the feed."""

    def __init__(self, console: Console, outcome: Outcome) -> None:
        self._console, self._outcome = console, outcome
        self._phase = ""
        self._states: list[str] = []
        self._news_count = 0
        self._began = self._line_at = self._news_at = time.monotonic()

    def __enter__(self) -> Self:
        """Say what this is."""
        self._say(f"{self._outcome.title}; pool {self._outcome.pool_path}")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Say what is left to say."""
        self._changes()

    def show(self) -> None:
        """Print what is new and due."""
        self._changes()
        now, outcome = time.monotonic(), self._outcome
        if outcome.news_count > self._news_count and now - self._news_at >= FEED_LINE_EVERY_S:
            self._news_at, self._news_count = now, outcome.news_count
            line = news_line(outcome.news[-1], self._console.width)
            self._console.print(line, soft_wrap=True, highlight=False)
        if 0 < outcome.acknowledged < outcome.total and now - self._line_at >= LINE_EVERY_S:
            self._line_at = now
            nodes = "  ".join(f"node {tally.node}: {len(tally.acknowledged):,} rows" for tally in outcome.tallies)
            asked = sum(len(tally.search_ms) for tally in outcome.tallies)
            self._say(
                f"{outcome.since_begin(monotonic_ns()):5.1f} s  {nodes}  {asked:,} questions, {len(outcome.errors)} errors"
            )

    def _changes(self) -> None:
        if self._outcome.phase != self._phase:
            self._phase = self._outcome.phase
            self._say(f"-- {time.monotonic() - self._began:4.1f} s: {self._phase}")
        states = [tally.state for tally in self._outcome.tallies]
        for tally, before in zip(self._outcome.tallies, self._states or states, strict=True):
            if tally.state != before:
                self._say(f"-- node {tally.node} (process {tally.pid}): {tally.state}")
        self._states = states

    def _say(self, line: str) -> None:
        self._console.print(plain(line), soft_wrap=True, highlight=False)
