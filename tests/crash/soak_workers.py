"""The processes of the soak: writers that log what they do, readers that believe nothing, a maintainer.

A writer's log lies outside the pool. Each operation is logged before it begins and after it returned; a writer that is
started in a killed one's place finds the one operation under way then, looks whether it took effect (whole, or not at
all), compares everything that only this writer writes with what must be there, and begins a new log with that state.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson
import xxhash

from sharedrag import Collection, CollectionDropped, CollectionNotFound, Hit, Pool, PoolFull, Record

DIMENSION = 8
OWN, SHARED, GROUPS, GROUP_SIZE = 150, 60, 6, 8
WRITERS = 4
_BEAT_S = 0.1
_FILLER = "Take the early boat: the wind comes up at ten and the channel gets rough. " * 40

Value = int | None  # None: deleted, or never written


class Anomaly(Exception):
    """Something that must not be."""


def vector_of(one: str, value: int) -> npt.NDArray[np.float32]:
    """The vector that goes with an id and a value, so that readers can tell a mixed-up row."""
    seed = xxhash.xxh3_64_intdigest(f"{one}/{value}".encode())
    return np.random.default_rng(seed).standard_normal(DIMENSION).astype(np.float32)


def text_of(one: str, value: int) -> str:
    """The text that goes with an id and a value, of a length that varies."""
    return f"{one} {value} {_FILLER[: (value * 7919 + len(one)) % 1800]}"


def metadata_of(one: str, value: int) -> dict[str, Any]:
    """The metadata that goes with an id and a value."""
    return {"id": one, "value": value, "group": one.rpartition("-")[0]}


def check_record(record: Record | Hit) -> int:
    """The value of a record or hit, after a look whether its parts belong together."""
    value = record.metadata.get("value")
    if not isinstance(value, int) or record.metadata != metadata_of(record.id, value):
        raise Anomaly(f"{record.id}: metadata {record.metadata}")
    if record.text != text_of(record.id, value):
        raise Anomaly(f"{record.id}: the text is not that of value {value}: {record.text!r:.60}")
    vector = record.vector if isinstance(record, Record) else None
    if vector is not None and not np.allclose(vector, vector_of(record.id, value), atol=1e-4):
        raise Anomaly(f"{record.id}: the vector is not that of value {value}")
    return value


def group_ids(slot: int, number: int) -> list[str]:
    """Ids that are only ever written and deleted together."""
    return [f"g{slot}-{number}-{index}" for index in range(GROUP_SIZE)]


def put(collection: Collection, ids: list[str], value: int, gone: list[str]) -> None:
    """One batch."""
    vectors = np.stack([vector_of(one, value) for one in ids]) if ids and collection.dimension else None
    collection.put(ids, vectors, [text_of(one, value) for one in ids], [metadata_of(one, value) for one in ids], delete=gone)


class Ledger:
    """What one writer's log tells: the values of its own ids, and of shared ids what it wrote last and when."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.own: dict[str, Value] = {}
        self.shared: dict[str, list[dict[str, Any]]] = {}  # by id: its last finished write, and unfinished ones after it
        self.under_way: dict[str, Any] | None = None
        self.sequence = 0
        self._fd = -1

    def load(self) -> None:
        """Read the log; an operation without an end stays in `under_way`."""
        lines = self.path.read_bytes().split(b"\n") if self.path.exists() else []
        for line in lines[:-1]:  # what comes after the last line's end was cut by a kill
            self._take(orjson.loads(line))

    def _take(self, entry: dict[str, Any]) -> None:
        if entry["kind"] == "state":
            self.own, self.shared, self.sequence = entry["own"], entry["shared"], entry["sequence"]
        elif entry["kind"] == "begin":
            self.under_way = entry
            self.sequence = entry["value"]
        else:
            assert self.under_way is not None
            self.settle(took_effect=True, ended=entry["at"])

    def settle(self, took_effect: bool, ended: int, certain: bool = True) -> None:
        """The operation under way is over; not `certain` when nobody knows whether it took effect."""
        entry, self.under_way = self.under_way, None
        assert entry is not None
        for ids, value in ((entry["gone"], None), (entry["ids"], entry["value"])):
            for one in ids:
                if entry["on"] == "shared":
                    write = {"value": value, "began": entry["at"], "ended": ended, "certain": certain}
                    self.shared[one] = [write] if certain else [*self.shared.get(one, []), write]
                elif took_effect:
                    self.own[one] = value

    def begin_log(self) -> None:
        """Replace the log by one that starts with the present state, in one step."""
        fresh = self.path.with_suffix(".new")
        state = {"kind": "state", "own": self.own, "shared": self.shared, "sequence": self.sequence}
        fresh.write_bytes(orjson.dumps(state) + b"\n")
        os.rename(fresh, self.path)
        self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND)

    def begin(self, on: str, ids: list[str], gone: list[str]) -> int:
        """Log that an operation begins; returns its value."""
        self.sequence += 1
        at = time.monotonic_ns()
        entry = {"kind": "begin", "on": on, "ids": ids, "gone": gone, "value": self.sequence, "at": at}
        self.under_way = entry
        os.write(self._fd, orjson.dumps(entry) + b"\n")
        return self.sequence

    def end(self) -> None:
        """Log that it returned."""
        at = time.monotonic_ns()
        os.write(self._fd, orjson.dumps({"kind": "end", "at": at}) + b"\n")
        self.settle(took_effect=True, ended=at)


def check_own(collection: Collection, ledger: Ledger) -> None:
    """Every id that only this writer writes is as its log tells."""
    ids = list(ledger.own)
    for one, record in zip(ids, collection.get(ids), strict=True):
        found = None if record is None else check_record(record)
        if found != ledger.own[one]:
            raise Anomaly(f"LOST: {one} is {found}, acknowledged was {ledger.own[one]}")


def recover(collection: Collection, ledger: Ledger) -> None:
    """After a kill: settle the operation that was under way, which must be there whole or not at all; check the rest."""
    now = time.monotonic_ns()
    entry = ledger.under_way
    if entry is not None and entry["on"] == "shared":
        ledger.settle(took_effect=False, ended=now, certain=False)
    elif entry is not None:
        touched = [(one, None) for one in entry["gone"]] + [(one, entry["value"]) for one in entry["ids"]]
        seen = [None if record is None else check_record(record) for record in collection.get([one for one, _ in touched])]
        with_it = dict(touched)
        whole = all(found == with_it[one] for (one, _), found in zip(touched, seen, strict=True))
        absent = all(found == ledger.own.get(one) for (one, _), found in zip(touched, seen, strict=True))
        if not whole and not absent:
            raise Anomaly(f"HALF: {touched} was under way, {seen} is there")
        ledger.settle(took_effect=whole, ended=now)
    check_own(collection, ledger)


class Speaker:
    """Tells the conductor that the process is alive, and hears when to stop."""

    def __init__(self, conn: Connection) -> None:
        self._conn = conn
        self._next = 0.0
        self._done = 0

    def going_on(self) -> bool:
        """Count one operation; False when the soak is over."""
        self._done += 1
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + _BEAT_S
            self._conn.send(("beat", self._done))
            self._done = 0
        return not self._conn.poll(0)

    def report(self, error: Anomaly) -> None:
        """An anomaly ends the soak."""
        self._conn.send(("anomaly", str(error)))


def _choices(slot: int, chance: random.Random) -> Iterator[tuple[str, list[str], list[str]]]:
    """Endless operations: (collection, ids to write, ids to delete)."""
    own = [f"w{slot}-{number}" for number in range(OWN)]
    shared = [f"s-{number}" for number in range(SHARED)]
    while True:
        kind = chance.random()
        if kind < 0.3:
            yield "own", [chance.choice(own)], []
        elif kind < 0.45:
            yield "own", chance.sample(own, chance.randint(2, 20)), []
        elif kind < 0.52:
            yield "own", [], chance.sample(own, chance.randint(1, 4))
        elif kind < 0.62:
            picked = chance.sample(own, chance.randint(3, 9))
            yield "own", picked[2:], picked[:2]
        elif kind < 0.8:
            yield "own", group_ids(slot, chance.randrange(GROUPS)), []
        elif kind < 0.83:
            yield "own", [], group_ids(slot, chance.randrange(GROUPS))
        elif kind < 0.95:
            yield "shared", chance.sample(shared, chance.randint(1, 3)), []
        elif kind < 0.99:
            yield "shared", [], chance.sample(shared, chance.randint(1, 2))
        else:
            yield "own", own[: OWN // 2], []


def write(conn: Connection, path: str, node: int, slot: int, log: str, seed: int) -> None:
    """A writer: recover what the one before left, then write until told to stop."""
    chance = random.Random(seed)
    speaker = Speaker(conn)
    ledger = Ledger(Path(log))
    ledger.load()
    own_care = chance.random() < 0.5
    with Pool.open(path, node=node, maintenance=own_care, name=f"writer {slot}", lock_timeout_s=30.0) as pool:
        collections = {"own": pool.collection("own", DIMENSION), "shared": pool.collection("shared")}
        try:
            recover(collections["own"], ledger)
            ledger.begin_log()
            for on, ids, gone in _choices(slot, chance):
                if not speaker.going_on():
                    break
                value = ledger.begin(on, ids, gone)
                put(collections[on], ids, value, gone)
                ledger.end()
            check_own(collections["own"], ledger)
        except Anomaly as error:
            speaker.report(error)
        except PoolFull as error:
            speaker.report(Anomaly(f"FULL: {error}"))


def read(conn: Connection, path: str, node: int, slot: int, seed: int) -> None:
    """A reader: batches whole, one value per group and never an older one, nothing dead among hits, a rising version."""
    chance = random.Random(seed)
    speaker = Speaker(conn)
    newest: dict[str, int] = {}
    version = 0
    with Pool.open(path, node=node, maintenance=False, name=f"reader {slot}") as pool:
        own, shared = pool.collection("own", DIMENSION), pool.collection("shared")
        try:
            while speaker.going_on():
                now = own.version
                if now < version:
                    raise Anomaly(f"the version fell from {version} to {now}")
                version = now
                ids = group_ids(chance.randrange(WRITERS), chance.randrange(GROUPS))
                _read_group(own, ids, chance, newest)
                kind = chance.random()
                if kind < 0.3:
                    _read_nearest(own, chance)
                elif kind < 0.4:
                    _read_all(own)
                elif kind < 0.6:
                    for record in shared.get([f"s-{chance.randrange(SHARED)}" for _ in range(5)]):
                        if record is not None:
                            check_record(record)
        except Anomaly as error:
            speaker.report(error)


def _read_group(own: Collection, ids: list[str], chance: random.Random, newest: dict[str, int]) -> None:
    """A group's records come together, by whichever way they are read, and never go back."""
    group = ids[0].rpartition("-")[0]
    way = chance.randrange(3)
    found: list[Any]
    if way == 0:
        found = [record for record in own.get(ids) if record is not None]
    elif way == 1:
        found = own.find({"group": group})
    else:
        found = own.search(vector_of(group, 1), k=3 * GROUP_SIZE, filter={"group": group})
    values = {check_record(record) for record in found}
    if len(values) > 1 or len(found) not in (0, GROUP_SIZE):
        seen = sorted((record.id, record.metadata["value"]) for record in found)
        raise Anomaly(f"HALF: group {group} read by {('get', 'find', 'search')[way]}: {seen}")
    for value in values:
        if value < newest.get(group, 0):
            raise Anomaly(f"group {group} went back from {newest[group]} to {value}")
        newest[group] = value


def _read_nearest(own: Collection, chance: random.Random) -> None:
    """Hits are live records with the vector and score that they should have."""
    query = vector_of("query", chance.randrange(1000))
    hits = own.search(query, k=25)
    if len({hit.id for hit in hits}) != len(hits):
        raise Anomaly(f"a record twice among the hits: {sorted(hit.id for hit in hits)}")
    for hit in hits:
        vector = vector_of(hit.id, check_record(hit))
        score = float(query @ vector / np.linalg.norm(query) / np.linalg.norm(vector))
        if abs(score - hit.score) > 1e-3:
            raise Anomaly(f"{hit.id}: score {hit.score}, its vector gives {score}")


def _read_all(own: Collection) -> None:
    """One scan is one cut: no id twice, each group whole and of one value; and the live rows are counted right."""
    view = own.live.acquire()
    try:
        counted = sum(int(part.alive[: part.rows].sum()) for part in view.parts)
        if counted != view.live or any(part.rows - part.dead != int(part.alive[: part.rows].sum()) for part in view.parts):
            raise Anomaly(f"{view.live} live rows by count, {counted} by bitmaps")
    finally:
        own.live.release()
    table = own.scan(columns=["id", "metadata"])
    ids = table["id"].to_pylist()
    if len(set(ids)) != len(ids):
        raise Anomaly(f"an id twice in a scan of {len(ids)}")
    groups: dict[str, list[int]] = {}
    for one, metadata in zip(ids, table["metadata"].to_pylist(), strict=True):
        if one.startswith("g"):
            groups.setdefault(one.rpartition("-")[0], []).append(orjson.loads(metadata)["value"])
    for group, values in groups.items():
        if len(set(values)) > 1 or len(values) != GROUP_SIZE:
            raise Anomaly(f"HALF: group {group} in a scan: {values}")


def maintain(conn: Connection, path: str, node: int, seed: int) -> None:
    """A maintainer that never rests; now and then it makes, fills and drops a collection."""
    chance = random.Random(seed)
    speaker = Speaker(conn)
    with Pool.open(path, node=node, maintenance=False, name="maintainer", lock_timeout_s=30.0) as pool:
        while speaker.going_on():
            pool.maintain()
            if chance.random() < 0.1:
                try:
                    ids = [f"t{number}" for number in range(40)]
                    pool.collection("passing").put(ids, texts=[_FILLER[: chance.randrange(2000)]] * len(ids))
                    if chance.random() < 0.7:
                        pool.drop("passing")
                except (CollectionDropped, CollectionNotFound):
                    pass  # by the maintainer before us, killed before it could tell
            time.sleep(0.005)
