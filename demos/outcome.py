"""All that is known of a run: what each node wrote, asked and found, what was killed, what was measured."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from demos.events import Asked, Event, Failed, Finished, Found, Ready, Wrote
from demos.memory import Usage
from demos.questions import Score

RATE_WINDOW_S = 2.0
KILLED, RESTARTING = "KILLED", "starting again"
DOWN = (KILLED, RESTARTING)


@dataclass(slots=True)
class Tally:
    """One node's account. Moments are seconds since the replay began, spans milliseconds."""

    node: int
    total: int
    state: str = "loading the model"
    pid: int = 0
    acknowledged: dict[str, float] = field(default_factory=dict)
    put_ms: list[float] = field(default_factory=list)
    embed_ms: list[float] = field(default_factory=list)
    asked_at: list[float] = field(default_factory=list)
    search_ms: list[float] = field(default_factory=list)
    found_after_ms: list[float] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)
    attach_ms: list[float] = field(default_factory=list)
    finished_at: float | None = None

    def rows_per_second(self, now: float, window_s: float = RATE_WINDOW_S) -> float:
        """Rows acknowledged in the window that ends at `now`, a second."""
        window_s = min(window_s, now) or window_s
        return sum(now - window_s < moment <= now for moment in self.acknowledged.values()) / window_s


@dataclass(frozen=True, slots=True)
class News:
    """A line of the feed: who asked, and whose answer was found how soon after it was written."""

    at: float
    asked_on: int
    asker: str | None
    question: str
    author: str | None
    answer: str
    written_by: int
    after_ms: float


@dataclass(slots=True)
class Kill:
    """The SIGKILL of one writer, and what came of it."""

    node: int
    at: float
    pid: int
    acknowledged: int
    written_unacknowledged: int = 0
    missing: int = 0
    restarted_at: float | None = None
    back_at: float | None = None
    first_put_ms: float | None = None


@dataclass(slots=True)
class MemoryBill:
    """Bytes for a number of rows: the pool once, what each node holds for itself, and what one private copy costs."""

    rows: int
    pool: int
    each: list[int]
    private_copy: int


@dataclass(slots=True)
class Outcome:
    """Everything the views, the report and the plot show."""

    tallies: list[Tally]
    title: str
    pool_path: str
    began_ns: int = 0
    phase: str = "starting four processes"
    news: deque[News] = field(default_factory=lambda: deque(maxlen=200))
    news_count: int = 0
    kill: Kill | None = None
    lost: list[str] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    rows_in_pool: int = 0
    probes_ms: list[float] = field(default_factory=list)
    probes_missed: int = 0
    scores: list[Score] = field(default_factory=list)
    usage: list[Usage] = field(default_factory=list)
    chat_bill: MemoryBill | None = None
    bill: MemoryBill | None = None
    ballast_rate: float = 0.0
    pool_after: int = 0
    problems: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def total(self) -> int:
        """Rows that all shares have."""
        return sum(tally.total for tally in self.tallies)

    @property
    def acknowledged(self) -> int:
        """Rows whose put has returned."""
        return sum(len(tally.acknowledged) for tally in self.tallies)

    @property
    def unacknowledged(self) -> int:
        """Rows that the killed writer had published without living to say so; they are there, and not written again."""
        return self.kill.written_unacknowledged if self.kill else 0

    @property
    def errors(self) -> list[str]:
        """Errors of all nodes."""
        return [f"node {tally.node}: {error}" for tally in self.tallies for error in tally.errors]

    @property
    def ok(self) -> bool:
        """True if everything written is there, and nothing failed."""
        written = self.acknowledged + self.unacknowledged
        whole = written == self.total == self.rows_in_pool and not self.lost and not self.changed
        return whole and not self.errors and not self.problems and not self.probes_missed

    def since_begin(self, moment_ns: int) -> float:
        """Seconds since the replay began."""
        return (moment_ns - self.began_ns) / 1e9


def percentile(values: Sequence[float], percent: float) -> float:
    """Nearest-rank percentile; NaN for no values."""
    return float(np.percentile(values, percent, method="inverted_cdf")) if len(values) else float("nan")


class Ledger:
    """Enters the nodes' events into an outcome."""

    def __init__(self, outcome: Outcome) -> None:
        self.outcome = outcome
        self._written_ns: dict[str, int] = {}
        self._unmatched: dict[str, list[tuple[int, Found]]] = {}
        self.askers: list[list[str]] = [[] for _ in outcome.tallies]

    def enter(self, node: int, event: Event) -> None:
        """Take account of an event of a node."""
        tally = self.outcome.tallies[node]
        if isinstance(event, Ready):
            tally.pid = event.pid
            tally.attach_ms.append(event.attach_ms)
            tally.state = "ready"
        elif isinstance(event, Wrote):
            self._enter_written(tally, event)
        elif isinstance(event, Asked):
            tally.asked_at.append(self.outcome.since_begin(event.at_ns))
            tally.search_ms.append(event.search_ms)
        elif isinstance(event, Found):
            self._enter_found(node, event)
        elif isinstance(event, Finished):
            tally.finished_at = self.outcome.since_begin(event.at_ns)
            tally.state = "share written"
        elif isinstance(event, Failed):
            tally.errors.append(f"{event.doing}: {event.error}")

    def _enter_written(self, tally: Tally, event: Wrote) -> None:
        moment = self.outcome.since_begin(event.returned_ns)
        tally.state = "writing"
        tally.put_ms.append(event.put_ms)
        tally.embed_ms.append(event.embed_ms / len(event.ids))
        for one in event.ids:
            tally.acknowledged[one] = moment
            self._written_ns[one] = event.returned_ns
            for node, found in self._unmatched.pop(one, []):
                self._tell(node, found, event.returned_ns)

    def _enter_found(self, node: int, found: Found) -> None:
        # What was there before the first look, or was written by the same process, says nothing of other processes.
        if found.at_first or found.written_by == node:
            return
        written_ns = self._written_ns.get(found.record_id)
        if written_ns is None:  # the finder's pipe was read before the writer's
            self._unmatched.setdefault(found.record_id, []).append((node, found))
        else:
            self._tell(node, found, written_ns)

    def _tell(self, node: int, found: Found, written_ns: int) -> None:
        # Others may see a record before its writer's call has returned: that is as soon as can be, not a negative time.
        after_ms = max(0.0, (found.found_ns - written_ns) / 1e6)
        self.outcome.tallies[node].found_after_ms.append(after_ms)
        askers = [name for name in self.askers[node] if name != found.author]
        self.outcome.news.append(
            News(
                at=self.outcome.since_begin(found.found_ns),
                asked_on=node,
                asker=askers[self.outcome.news_count % len(askers)] if askers else None,
                question=found.question.text,
                author=found.author,
                answer=found.answer,
                written_by=found.written_by,
                after_ms=after_ms,
            )
        )
        self.outcome.news_count += 1
