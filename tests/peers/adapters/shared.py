"""sharedrag itself, through `Collection`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from sharedrag import Pool
from tests.peers.protocol import DIMENSION, Hit, Peer, Place, Rows, Vectors

_NAME = "records"
_BYTES_PER_ROW = 2_560  # of vector, text, metadata, index
_ROOM_TO_WRITE = 3 << 30
_SETTLE_ROUNDS_MAX = 50


class SharedRag(Peer):
    """One pool on shared memory, opened by every process."""

    package: ClassVar[str] = "sharedrag"
    settings: ClassVar[str] = "one pool, defaults; maintained until it settles before queries are timed"

    def __init__(self, place: Place) -> None:
        """Attach."""
        self._pool = Pool.open(_path(place))
        self._collection = self._pool.collection(_NAME, dimension=DIMENSION)

    @classmethod
    def create(cls, place: Place) -> None:
        """A pool with room for the rows, once merged, and for what writers add."""
        capacity = 2 * _BYTES_PER_ROW * place.rows + _ROOM_TO_WRITE
        with Pool.open(_path(place), create=True, capacity=capacity) as pool:
            pool.collection(_NAME, dimension=DIMENSION)

    def load(self, batches: Iterable[Rows]) -> None:
        """Put, then merge and index until there is nothing left to do."""
        for rows in batches:
            self.write(rows)
        for _ in range(_SETTLE_ROUNDS_MAX):
            report = self._pool.maintain()
            if report.elected and not _did_something(report):
                return

    def write(self, rows: Rows) -> None:
        """One `put`."""
        self._collection.put(rows.ids, rows.vectors, rows.texts, rows.metadata)

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """`Collection.search`; its hits have what is asked for."""
        found = self._collection.search(query, k, None if room is None else {"room": room})
        return [Hit(hit.id, hit.text, hit.metadata) for hit in found]

    def have(self, ids: list[str]) -> set[str]:
        """By id."""
        return {record.id for record in self._collection.get(ids) if record is not None}

    def close(self) -> None:
        """Detach."""
        self._pool.close()


def _path(place: Place) -> str:
    return str(place.folder / "records.pool")


def _did_something(report: Any) -> bool:
    """Whether any of the report's counts is not zero; what waits for readers is no work."""
    counts = report.model_dump(exclude={"elected", "segments_waiting", "seconds"})
    return any(counts.values())
