"""What an adapter is: a class that implements `Peer`. An instance is one process's open handle to the peer's store."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

DIMENSION = 384
Vectors = npt.NDArray[np.float32]

#: How many processes may have the store open; what a measure asks for follows from it.
MANY = "many"  # any number, all may write
ONE_WRITER = "one writer"  # many may read
ONE = "one"  # the store is locked by the process that has it open
PRIVATE = "private"  # the store is this process's memory; saved and loaded whole


class Cannot(Exception):
    """The peer cannot do what was asked; the message says why, in the words of the table."""


class Rows(NamedTuple):
    """As many records. `ids[i]` is "m" and `numbers[i]`; vectors are unit length, (n, 384) float32."""

    numbers: list[int]
    ids: list[str]
    vectors: Vectors
    texts: list[str]
    metadata: list[dict[str, Any]]  # {"room": str (of 100), "author": str, "ts": int}


class Hit(NamedTuple):
    """A found record, with what a caller needs to show it."""

    id: str
    text: str
    metadata: Mapping[str, Any]


@dataclass(frozen=True)
class Place:
    """Where a peer keeps its things in this run."""

    folder: Path  # the peer's own, on shared memory
    rows: int  # how many will be loaded
    port: int  # free when the run began, for a server

    @property
    def url(self) -> str:
        """Of the peer's server."""
        return f"http://127.0.0.1:{self.port}"


class Peer(Protocol):
    """One store, opened by one process; subclasses override what differs.

    What a method cannot do raises `Cannot`. All vectors are compared by cosine.
    """

    package: ClassVar[str]  # the distribution whose version is shown
    settings: ClassVar[str]  # index and knobs, for the table's notes
    knobs: ClassVar[Sequence[Any]] = (None,)  # search settings, quick to accurate; None: exact, or tunes itself
    processes: ClassVar[str] = MANY
    why: ClassVar[str] = ""  # why not many processes
    cannot: ClassVar[Mapping[str, str]] = {}  # measure (or "filter") -> why not
    rows_max: ClassVar[int] = 0  # more are not loaded (0: no bound); `why_rows` says why
    why_rows: ClassVar[str] = ""

    def __init__(self, place: Place) -> None:
        """Open what `create` made."""

    @classmethod
    def serve(cls, place: Place) -> list[str]:
        """The command of the peer's server, started once for all measures; [] if it has none. May prepare the folder."""
        return []

    @classmethod
    def create(cls, place: Place) -> None:
        """Make an empty store, once, before anybody opens it; with a server, wait until it answers."""
        return

    def load(self, batches: Iterable[Rows]) -> None:
        """Take all rows in bulk, as the peer recommends, and return when they are indexed and others may open them."""
        return

    def write(self, rows: Rows) -> None:
        """Insert; returns when the peer has acknowledged. Many processes may do this at once if `processes` says so."""
        return

    def use(self, knob: Any) -> None:
        """Search with this knob from now on."""
        return

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """The k best for a (384,) query, best first, of the one room if given; sees what others wrote if the peer can."""
        raise NotImplementedError

    def have(self, ids: list[str]) -> set[str]:
        """Those of these ids that are there."""
        raise NotImplementedError

    def close(self) -> None:
        """Let go of everything, so that the same process may open it afresh."""
        return


def identifier(number: int) -> str:
    """The id of the record with this number."""
    return f"m{number:09d}"


def number_of(id: str) -> int:
    """The number of the record with this id."""
    return int(id[1:])
