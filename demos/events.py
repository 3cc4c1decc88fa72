"""What the demo's processes tell each other, by pipes: commands to a node, events from it.

Moments are nanoseconds of the monotonic clock, which all processes of a machine share; spans are milliseconds.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Literal

from demos.memory import Usage
from demos.questions import Question
from sharedrag.chats import Exchange

monotonic_ns = time.monotonic_ns


@dataclass(frozen=True, slots=True)
class Task:
    """All that a node's process is told at its start. `due` is when, as a part of the replay, each exchange is answered."""

    pool_path: str
    node: int
    embedder: str
    share: tuple[Exchange, ...]
    due: tuple[float, ...]
    questions: tuple[Question, ...]
    replay_s: float


# ---------------------------------------------------------------------- commands


@dataclass(frozen=True, slots=True)
class Begin:
    """Write your share, beginning then; ask meanwhile."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Probe:
    """Measure how soon what one node writes is found by another: the one puts records, the other searches for them."""

    role: Literal["write", "find"]
    collection: str
    count: int


@dataclass(frozen=True, slots=True)
class Ballast:
    """Write so many made-up rows, then search them: what memory costs at a size where it counts."""

    collection: str
    rows: int


@dataclass(frozen=True, slots=True)
class SearchBallast:
    """Search the made-up rows of all, and tell your memory."""

    collection: str


Order = Literal["quiet", "evaluate", "tidy", "quit"]
Command = Begin | Probe | Ballast | SearchBallast | Order


# ---------------------------------------------------------------------- events


@dataclass(frozen=True, slots=True)
class Ready:
    """Model loaded, pool open. `missing` of the share are still to be written (some are there after a kill)."""

    pid: int
    missing: int
    attach_ms: float


@dataclass(frozen=True, slots=True)
class Wrote:
    """These records are acknowledged: the call that put them returned at `returned_ns`."""

    ids: tuple[str, ...]
    returned_ns: int
    embed_ms: float
    put_ms: float


@dataclass(frozen=True, slots=True)
class Asked:
    """A question was embedded and searched."""

    at_ns: int
    embed_ms: float
    search_ms: float


@dataclass(frozen=True, slots=True)
class Found:
    """A question that waited for an answer has found one. `at_first`: it was there already at the first look."""

    question: Question
    record_id: str
    answer: str
    author: str | None
    written_by: int
    score: float
    found_ns: int
    at_first: bool


@dataclass(frozen=True, slots=True)
class Finished:
    """The whole share is written."""

    at_ns: int


@dataclass(frozen=True, slots=True)
class Answers:
    """The ids found for each of the node's questions, best first, with every share written."""

    found: dict[str, tuple[str, ...]]


@dataclass(frozen=True, slots=True)
class ProbesWritten:
    """When each put returned."""

    returned_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class ProbesFound:
    """When the first search that found each record returned; 0 for one that was not found in time."""

    found_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BallastWritten:
    """The made-up rows are acknowledged; memory of the process before it wrote them."""

    rows: int
    seconds: float
    before: Usage


@dataclass(frozen=True, slots=True)
class Memory:
    """Memory of the process after it searched the made-up rows."""

    after: Usage


@dataclass(frozen=True, slots=True)
class Done:
    """An order without other result is carried out."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An operation raised; the node goes on where it can."""

    doing: str
    error: str


Event = (
    Ready
    | Wrote
    | Asked
    | Found
    | Finished
    | Answers
    | ProbesWritten
    | ProbesFound
    | BallastWritten
    | Memory
    | Done
    | Failed
)
