"""What a measure is told: which peer, where, with which rows, and how much of everything."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tests.peers import adapters
from tests.peers.corpus import Corpus
from tests.peers.protocol import Peer, Place

STATUS = "\x1e"  # begins a line of the measure's standard output that says what it is doing; libraries print there, too
RECALL = 0.95


@dataclass(frozen=True)
class Effort:
    """How much of everything; times are in seconds, and end a loop whose peer is slow."""

    queries: int = 1_000
    query_s: float = 10.0  # for each pass over the queries
    tuning: int = 400  # queries that choose the knob
    tuning_s: float = 3.0
    samples: int = 100  # writes that a reader waits for
    samples_s: float = 20.0
    window_s: float = 2.0  # of writing, for each number of writers
    singles: int = 30_000  # written by one writer in a window, at most
    batches: int = 1_000
    openings: int = 3
    kills: int = 20


EFFORTS = {
    "full": Effort(),
    "quick": Effort(200, 3.0, 100, 1.5, 20, 8.0, 0.7, 2_000, 100, 1, 5),
}


@dataclass(frozen=True)
class Job:
    """One measure of one peer; crosses to other processes."""

    peer: str
    place: Place
    corpus_folder: Path
    effort: Effort
    knob: int | None = None  # which of the peer's knobs reaches the recall, once that is known
    limit_s: float = math.inf  # when the runner ends the measure

    def as_json(self) -> str:
        """For the command line of a measure."""
        return json.dumps(asdict(self), default=str)

    @classmethod
    def from_json(cls, text: str) -> Job:
        """What `as_json` gave."""
        found = json.loads(text)
        place = Place(**(found["place"] | {"folder": Path(found["place"]["folder"])}))
        effort = Effort(**found["effort"])
        return cls(**(found | {"place": place, "effort": effort, "corpus_folder": Path(found["corpus_folder"])}))

    @property
    def corpus(self) -> Corpus:
        """Rows and questions."""
        return Corpus(self.corpus_folder)

    @property
    def kind(self) -> type[Peer]:
        """The adapter; imports the peer's library."""
        return adapters.find(self.peer)

    def open(self) -> Peer:
        """A handle of this process, searching with the knob."""
        opened = self.kind(self.place)
        opened.use(self.chosen_knob())
        return opened

    def chosen_knob(self) -> Any:
        """The knob found by tuning; the middle one if nothing was tuned."""
        knobs = self.kind.knobs
        return knobs[len(knobs) // 2 if self.knob is None else self.knob]


def tell(text: str) -> None:
    """Say what is being done, for the runner's progress line."""
    sys.stdout.write(f"{STATUS}{text}\n")
    sys.stdout.flush()


def milliseconds_since(begun_ns: int) -> float:
    """Of `time.perf_counter_ns`."""
    return (time.perf_counter_ns() - begun_ns) / 1e6


def rounded(value: float) -> float:
    """Four digits that count: more would only seem exact."""
    return float(f"{value:.4g}")
