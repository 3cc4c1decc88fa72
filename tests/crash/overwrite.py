"""The reclaim workload: many more writes than the pool has room for, under few ids, while readers query."""

from __future__ import annotations

import random
import shutil
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

from rich.console import Console
from rich.table import Table

from sharedrag import Pool, PoolFull
from tests.crash.launcher import Launcher

IDS = 10_000
CAPACITY = "256 MiB"
READERS = 2
_BATCH = 32
_TEXT = "Stay on the marked trail above the caldera; the edge crumbles. " * 4


def read(conn: Connection, path: str, seed: int) -> None:
    """Query until told to stop; say how many queries, and the worst value that was not what it should be."""
    chance = random.Random(seed)
    queries = wrong = 0
    newest = [-1] * IDS
    with Pool.open(path, name="reader") as pool:
        notes = pool.collection("notes")
        conn.send("ready")
        while not conn.poll(0):
            numbers = [chance.randrange(IDS) for _ in range(5)]
            for number, record in zip(numbers, notes.get([f"n{number}" for number in numbers]), strict=True):
                value = -1 if record is None else record.metadata["value"]
                wrong += value < newest[number] or (record is not None and record.text != f"{value} {_TEXT}")
                newest[number] = max(newest[number], value)
            found = notes.find({"room": f"room {chance.randrange(IDS // 10)}"}, limit=20)
            wrong += len({record.id for record in found}) != len(found)
            queries += 2
    conn.send((queries, wrong))


def overwrite(records: int, console: Console, capacity: str = CAPACITY, ids: int = IDS) -> int:
    """Write `records` records under `ids` ids while two readers query; 1 if the pool fills up or anything is wrong."""
    folder = Path(tempfile.mkdtemp(prefix="sharedrag-soak-", dir="/dev/shm"))
    launcher = Launcher()
    try:
        path = str(folder / "overwrite.pool")
        with Pool.open(path, create=True, capacity=capacity, name="writer") as pool:
            notes = pool.collection("notes")
            readers = [launcher.start("tests.crash.overwrite:read", path, seed) for seed in range(READERS)]
            for reader in readers:
                assert reader.receive() == "ready"
            started = time.perf_counter()
            most = full = 0
            chance = random.Random(7)
            for first in range(0, records, _BATCH):
                count = min(_BATCH, records - first)
                numbers = [chance.randrange(ids) for _ in range(count)]
                values = range(first, first + count)
                try:
                    notes.put(
                        [f"n{number}" for number in numbers],
                        texts=[f"{value} {_TEXT}" for value in values],
                        metadata=[
                            {"value": value, "room": f"room {number // 10}"}
                            for value, number in zip(values, numbers, strict=True)
                        ],
                    )
                except PoolFull as error:
                    full += 1
                    console.print(str(error))
                    break
                if first % 16_384 == 0:
                    most = max(most, sum(entry.extents for entry in pool.arena.current.manifests[0].entries))
            seconds = time.perf_counter() - started
            queries = wrong = 0
            for reader in readers:
                reader.conn.send("stop")
            for reader in readers:
                done, bad = reader.receive()
                queries, wrong = queries + done, wrong + bad
                wrong += reader.wait() != 0
            wrong += not pool.verify().ok
            table = Table(title="overwriting", show_header=False)
            table.add_row("writes", f"{records:,} under {ids:,} ids in {seconds:.1f} s: {records / seconds:,.0f} /s")
            table.add_row("written", f"{records * (len(_TEXT) + 100) >> 20:,} MiB of rows, in a pool of {capacity}")
            table.add_row("most extents in use", f"{most * 65_536 >> 20:,} MiB")
            table.add_row("live in the end", f"{len(notes):,}")
            table.add_row("queries meanwhile", f"{queries:,}")
            table.add_row("pool full", f"{full}")
            table.add_row("wrong answers", f"{wrong}")
            console.print(table)
            return 1 if full or wrong else 0
    finally:
        launcher.kill()
        shutil.rmtree(folder, ignore_errors=True)
