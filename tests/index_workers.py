"""Processes that write, maintain and search one collection until they are told to stop, and then say what they did.

Times are those of the monotonic clock, which all processes of a machine share.
"""

from __future__ import annotations

import random
import time
from multiprocessing.connection import Connection
from typing import NamedTuple

import numpy as np

from sharedrag import Pool
from tests.index_helpers import World

NAME = "live"
WIDTH = 32
SEED = 21
FIRST_ROWS = 4000
K = 10


class Written(NamedTuple):
    """One version of a record became visible, or went for good (version None), in between two times."""

    id: str
    version: int | None
    begun_ns: int
    done_ns: int


class Asked(NamedTuple):
    """One search: when, which versions it found, and how much of the exact answer at the same cut."""

    begun_ns: int
    done_ns: int
    found: list[tuple[str, int]]
    hits: int
    exact: int
    missed: int


def write_on(conn: Connection, path: str, seed: int) -> None:
    """Put, replace and delete; sends the list of `Written`."""
    chance = random.Random(seed)
    world = World(WIDTH, SEED)
    log: list[Written] = []
    known: list[str] = []
    version = 0
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection(NAME)

        def put(ids: list[str]) -> None:
            nonlocal version
            version += 1
            begun = time.monotonic_ns()
            metadata = [{"version": version, "half": chance.random() < 0.5} for _ in ids]
            collection.put(ids, world.draw(len(ids)), [f"{one} in version {version}" for one in ids], metadata)
            done = time.monotonic_ns()
            log.extend(Written(one, version, begun, done) for one in ids)

        for start in range(0, FIRST_ROWS, 500):
            known += [f"{seed}-{number}" for number in range(start, start + 500)]
            put(known[start:])
        conn.send("ready")
        number = FIRST_ROWS
        while not conn.poll():
            match chance.choice(("new", "new", "again", "again", "delete")):
                case "new":
                    fresh = [f"{seed}-{number + at}" for at in range(chance.choice((1, 20, 100)))]
                    number += len(fresh)
                    put(fresh)
                    known += fresh
                case "again":
                    put(chance.sample(known, chance.choice((1, 20, 60))))
                case "delete":
                    gone = chance.sample(known, chance.choice((1, 20, 100)))
                    begun = time.monotonic_ns()
                    collection.delete(gone)
                    done = time.monotonic_ns()
                    log += [Written(one, None, begun, done) for one in gone]
                    known = sorted(set(known) - set(gone))
            time.sleep(0.004)
        conn.send(log)


def maintain_on(conn: Connection, path: str) -> None:
    """Maintain, round after round; sends (blocks built, segments merged)."""
    built = merged = 0
    with Pool.open(path, maintenance=False) as pool:
        conn.send("ready")
        while not conn.poll():
            report = pool.maintain()
            built += report.blocks_built
            merged += report.segments_merged
            time.sleep(0.02)
        conn.send((built, merged))


def read_on(conn: Connection, path: str, seed: int) -> None:
    """Search with and without a filter; sends (the list of `Asked`, how many of its searches asked an index)."""
    world = World(WIDTH, SEED)
    rng = np.random.default_rng(seed)
    log: list[Asked] = []
    indexed = 0
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection(NAME)
        conn.send("ready")
        while not conn.poll():
            question = world.draw(1)[0]
            wanted = {"half": True} if rng.random() < 0.3 else None
            begun = time.monotonic_ns()
            hits = collection.search(question, K, wanted)
            done = time.monotonic_ns()
            found = [(hit.id, hit.metadata["version"]) for hit in hits]
            view = collection.live.acquire()
            try:
                masks = collection._masks(view, None, None)
                queries, _ = collection._queries(question)
                (ours,) = collection._planner.search(view, masks, "", queries, K, False)
                (exact,) = collection._planner.search(view, masks, "", queries, K, True)
                indexed += bool(view.indexes)
            finally:
                collection.live.release()
            bar = exact.scores[-1] - 1e-5
            missed = sum(score < bar for score in ours.scores) + K - len(ours.scores)
            log.append(Asked(begun, done, found, len(hits), len(exact.scores), missed))
            time.sleep(0.002)
        conn.send((log, indexed))
