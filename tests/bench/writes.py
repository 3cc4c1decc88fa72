"""Records a second: one writer with single records and with batches; four writers beside a reader, and nothing lost."""

from __future__ import annotations

import gc
import mmap
import os
import time
from bisect import bisect
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import NamedTuple

from sharedrag import Pool
from tests.bench import data
from tests.bench.children import Child, Pipe
from tests.bench.figures import Figure, Limit
from tests.bench.workshop import COLLECTION, Workshop

_WRITERS = 4
_CAPACITY = "1 GiB"
_MARK = 50  # calls
_ELASTIC = "the same, the pool not preallocated: memory as the system finds it"
CPU = "processor's time for a record, us"


class Span(NamedTuple):
    """When a process began and ended what was timed, in ns of the common clock, and the processor's time it took."""

    start_ns: int
    end_ns: int
    cpu_s: float
    marks_ns: list[int]  # when each `_MARK` calls were done


class Rate(NamedTuple):
    """Records a second of all processes together, and the processor's time for one record in us."""

    records: float
    cpu_us: float


def prefix(seed: int) -> str:
    """How the ids of a writer's records begin."""
    return f"w{seed}-"


def write(pipe: Pipe, path: str, count: int, batch: int, seed: int) -> None:
    """Put `count` records, `batch` to a call, once told to; sends its span."""
    calls = data.records(count, seed, prefix(seed)).calls(batch)
    with Pool.open(path) as pool:
        put = pool.collection(COLLECTION, dimension=data.DIMENSION).put
        gc.freeze()  # the bench's own lists are no part of what a put costs
        pipe.send("ready")
        pipe.recv()
        marks = []
        start, cpu_s = time.monotonic_ns(), time.process_time()
        for at in range(0, len(calls), _MARK):
            for ids, vectors, texts, metadata in calls[at : at + _MARK]:
                put(ids, vectors, texts, metadata)
            marks.append(time.monotonic_ns())
        pipe.send(Span(start, time.monotonic_ns(), time.process_time() - cpu_s, marks))


def copy(pipe: Pipe, path: str, count: int, batch: int, seed: int) -> None:
    """What `write` could do at best: one copy of the same bytes for each call, into new pages on the same mount."""
    records = data.records(min(count, 1000), seed)
    piece = bytes(data.row_bytes(records) * batch)
    with open(path, "x+b") as file:
        os.truncate(path, len(piece) * -(-count // batch))
        with mmap.mmap(file.fileno(), 0) as mapped, memoryview(mapped) as view:
            pipe.send("ready")
            pipe.recv()
            marks = []
            start, cpu_s = time.monotonic_ns(), time.process_time()
            for at in range(0, len(view), len(piece) * _MARK):
                for begin in range(at, min(len(view), at + len(piece) * _MARK), len(piece)):
                    view[begin : begin + len(piece)] = piece
                marks.append(time.monotonic_ns())
            pipe.send(Span(start, time.monotonic_ns(), time.process_time() - cpu_s, marks))


def read(pipe: Pipe, path: str, writers: int, count: int) -> None:
    """Search without pause until told to stop; sends how many searches, and how many records are not there or too many."""
    queries = data.vectors(256, seed=9)
    with Pool.open(path) as pool:
        collection = pool.collection(COLLECTION, dimension=data.DIMENSION)
        pipe.send("ready")
        pipe.recv()
        asked = 0
        while not pipe.poll():
            collection.search(queries[asked % len(queries)], k=10)
            asked += 1
        found = collection.scan(columns=["id"]).column("id").to_pylist()
        expected = {f"{prefix(seed)}{number:09d}" for seed in range(writers) for number in range(count)}
        pipe.send((asked, len(expected - set(found)), len(found) - len(expected & set(found))))


def _timed(target: Callable[..., None], paths: list[str], count: int, batch: int, beside: Sequence[Child] = ()) -> Rate:
    """The rate of one process for each path, while all of them run; those `beside` start with them.

    From the first start until one is through: what the others do after that, they do with its share of the processors.
    """
    with ExitStack() as stack:
        children = [stack.enter_context(Child(target, path, count, batch, seed)) for seed, path in enumerate(paths)]
        for child in children:
            child.receive()
        for child in (*beside, *children):
            child.send("go")
        spans: list[Span] = [child.receive() for child in children]
    first_end = min(one.end_ns for one in spans)
    took_s = (first_end - min(one.start_ns for one in spans)) / 1e9
    until_then = sum(min(count, _MARK * batch * bisect(one.marks_ns, first_end)) for one in spans)
    return Rate(until_then / took_s, sum(one.cpu_s for one in spans) / (len(paths) * count) * 1e6)


def _one_writer(workshop: Workshop, name: str, what: str, batch: int, demanded: float) -> list[Figure]:
    """The rate into a preallocated pool; and into memory that the system must find first, beside the same for a copy."""
    size = workshop.size
    rounds: dict[str, list[Rate]] = {"held": [], "found": [], "copied": []}
    for number in range(size.rounds):
        workshop.tell(f"{what}, round {number + 1}")
        for place, target in (("held", write), ("found", write), ("copied", copy)):
            made = place != "copied"
            path = workshop.made(name, _CAPACITY, preallocate=place == "held") if made else workshop.fresh(name)
            rounds[place].append(_timed(target, [path], size.records, batch))
            workshop.remove(path)
    limit = Limit("copying the same bytes to new pages, a call each", max(one.records for one in rounds["copied"]))
    held, found = ([one.records for one in rounds[place]] for place in ("held", "found"))
    notes = {"records": size.records, "batch": batch, CPU: _cpu(rounds["held"])}
    return [
        Figure(name, what, "records/s", held, True, demanded, limit, notes),
        Figure(f"{name}-elastic", _ELASTIC, "records/s", found, True, None, limit, {CPU: _cpu(rounds["found"])}),
    ]


def _cpu(rounds: list[Rate]) -> list[float]:
    return [round(one.cpu_us, 2) for one in rounds]


def singles(workshop: Workshop) -> list[Figure]:
    """One writer, one record to a put."""
    return _one_writer(workshop, "singles", "one writer, single-record put", 1, 100_000)


def batches(workshop: Workshop) -> list[Figure]:
    """One writer, 32 records to a put."""
    return _one_writer(workshop, "batches", "one writer, batches of 32", 32, 300_000)


def fleet(workshop: Workshop) -> list[Figure]:
    """Four writers of single records and one reader that never pauses; every record must be there afterwards."""
    size = workshop.size
    rounds: dict[bool, list[Rate]] = {True: [], False: []}
    asked: list[int] = []
    lost = surplus = 0
    for number in range(size.rounds):
        workshop.tell(f"four writers and a reader, round {number + 1}")
        for preallocate, rates in rounds.items():
            path = workshop.made("fleet", _CAPACITY, preallocate=preallocate)
            with Child(read, path, _WRITERS, size.fleet_records) as reader:
                reader.receive()
                rates.append(_timed(write, [path] * _WRITERS, size.fleet_records, 1, beside=[reader]))
                reader.send("stop")
                searches, missing, too_many = reader.receive()
            workshop.remove(path)
            asked.append(searches)
            lost += missing
            surplus += too_many
    paths = [workshop.fresh("copies") for _ in range(_WRITERS)]
    copies = _timed(copy, paths, size.fleet_records, 1)
    for path in paths:
        workshop.remove(path)
    limit = Limit("four processes copying the same bytes to new pages", copies.records)
    notes = {"records": _WRITERS * size.fleet_records, "searches meanwhile": asked, CPU: _cpu(rounds[True])}
    held, found = ([one.records for one in rounds[preallocate]] for preallocate in (True, False))
    what = "four writers + one reader, single-record put, in all"
    return [
        Figure("fleet", what, "records/s", held, True, 150_000, limit, notes),
        Figure("fleet-elastic", _ELASTIC, "records/s", found, True, None, limit, {CPU: _cpu(rounds[False])}),
        Figure("lost", "of those, records lost or doubled", "records", [float(lost + surplus)], False, 0),
    ]
