"""sharedrag itself, through `Collection`."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

from sharedrag import Pool
from tests.peers.protocol import DIMENSION, Hit, Peer, Place, Rows, Vectors

NAME = "records"
_BYTES_PER_ROW = 2_560  # of vector, text, metadata, index
_ROOM_TO_WRITE = 3 << 30
_SETTLED_WITHIN_S = 1_000.0


class SharedRag(Peer):
    """One pool on shared memory, opened by every process."""

    package: ClassVar[str] = "sharedrag"
    settings: ClassVar[str] = "one pool, defaults; maintained until it settles before queries are timed"

    def __init__(self, place: Place) -> None:
        """Attach."""
        self.pool = Pool.open(_path(place))
        self._collection = self.pool.collection(NAME, dimension=DIMENSION)

    @classmethod
    def create(cls, place: Place) -> None:
        """A pool with room for the rows, once merged, and for what writers add."""
        capacity = 2 * _BYTES_PER_ROW * place.rows + _ROOM_TO_WRITE
        with Pool.open(_path(place), create=True, capacity=capacity) as pool:
            pool.collection(NAME, dimension=DIMENSION)

    def load(self, batches: Iterable[Rows]) -> None:
        """Put, then merge and index until there is nothing left to do."""
        for rows in batches:
            self.write(rows)
        self.settle()

    def settle(self) -> None:
        """Merge and index until a round finds nothing to do."""
        self.pool.settle(_SETTLED_WITHIN_S)

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
        self.pool.close()


def _path(place: Place) -> str:
    return str(place.folder / "records.pool")
