"""A pool filled to the last byte refuses politely, keeps serving readers, and can be emptied and filled again."""

from __future__ import annotations

import contextlib
import os
import random
import re
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import sharedrag as sr
from tests.conftest import REPOSITORY

CAPACITY = 4 << 20
DIMENSION = 64
_FILLS_MAX = 1_000_000
_WAIT_S = 30.0


def fill(collection: sr.Collection, text_bytes: int, batch: int, prefix: str = "") -> tuple[int, sr.PoolFull]:
    """Put batches until the pool is full: how many records are in, and the error."""
    text = "x" * text_bytes
    for start in range(0, _FILLS_MAX, batch):
        try:
            collection.put([f"{prefix}{row}" for row in range(start, start + batch)], None, [text] * batch)
        except sr.PoolFull as error:
            return start, error
    raise AssertionError("the pool never became full")


def delete_all(collection: sr.Collection, ids: list[str], batches: int = 20) -> None:
    """Delete these ids in so many batches; each is gone at once."""
    step = max(1, -(-len(ids) // batches))
    for start in range(0, len(ids), step):
        part = ids[start : start + step]
        before = len(collection)
        assert collection.delete(part) == len(part)
        assert len(collection) == before - len(part)


@pytest.fixture(params=[False, True], ids=["by hand", "in the background"])
def small(pool_path: str, request: pytest.FixtureRequest) -> Iterator[sr.Pool]:
    """A new pool of 4 MiB, maintained only when asked, or by its own thread too."""
    with sr.Pool.open(pool_path, create=True, capacity=CAPACITY, maintenance=request.param) as opened:
        yield opened


def test_a_full_pool_says_how_full_and_what_to_do(small: sr.Pool) -> None:
    """The error names the bytes wanted, owned, free and kept back, and advises; what was in stays in and readable."""
    collection = small.collection("full", dimension=DIMENSION)
    vectors = np.eye(DIMENSION, dtype=np.float32)
    collection.put(["first"], vectors[:1], ["the first"])
    count, error = fill(collection, 500, 10)
    assert re.search(r"[\d,]+ bytes wanted .* of the node's 4,194,304 bytes [\d,]+ are free", str(error))
    assert "524,288 more kept back" in str(error) and error.path == small.path and error.operation
    for advice in ("Delete records", "drop a collection", "sharedrag maintain", "larger capacity"):
        assert advice in error.hint
    version = collection.version
    for _ in range(3):
        with pytest.raises(sr.PoolFull):
            collection.put([f"more {row}" for row in range(3000)], None, ["y" * 500] * 3000)
    assert (len(collection), collection.version) == (count + 1, version), "a refused batch left something"
    assert [hit.id for hit in collection.search(vectors[0], k=1)] == ["first"]
    assert all(one is not None for one in collection.get([f"{row}" for row in range(count)]))
    assert collection.scan().num_rows == len(collection) == count + 1
    assert small.verify().ok


@pytest.mark.parametrize(("text_bytes", "batch"), [(20, 1), (20, 50), (2000, 1), (2000, 50), (100_000, 1)])
def test_a_full_pool_can_be_emptied_and_filled_again(small: sr.Pool, text_bytes: int, batch: int) -> None:
    """Deletes work in a full pool, and three times over the space comes back, for small records and for large ones."""
    collection = small.collection("cycles")
    first, _ = fill(collection, text_bytes, batch)
    assert first * max(text_bytes, 60) > CAPACITY // 2, "full far too early"
    count = first
    for _ in range(3):
        delete_all(collection, [f"{row}" for row in range(count)])
        assert len(collection) == 0
        small.maintain()
        count, _ = fill(collection, text_bytes, batch)
        assert count >= 0.9 * first - 2 * batch
    assert len(collection) == count and small.verify().ok


def test_the_smallest_pool_can_be_emptied_and_filled_again(pool_path: str) -> None:
    """In a pool of 1 MiB, all of whose segments are one extent, the same holds."""
    with sr.Pool.open(pool_path, create=True, capacity="1 MiB") as pool:
        collection = pool.collection("cycles")
        first, _ = fill(collection, 2000, 1)
        for _ in range(4):
            delete_all(collection, [record.id for record in collection.find()])
            pool.maintain()
            count, _ = fill(collection, 2000, 1)
            assert count >= 0.75 * first
        assert pool.verify().ok


@pytest.mark.parametrize("text_bytes", [500, 2000])
def test_half_the_records_deleted_at_random_make_room_for_others(small: sr.Pool, text_bytes: int) -> None:
    """With every other record gone, wherever it lay, maintenance gives most of its space to new ones; the rest stay."""
    collection = small.collection("random")
    count, _ = fill(collection, text_bytes, 10)
    chance = random.Random(3)
    gone = sorted(chance.sample(range(count), count // 2), key=lambda row: chance.random())
    delete_all(collection, [f"{row}" for row in gone])
    small.maintain()
    added, _ = fill(collection, text_bytes, 10, prefix="new ")
    # A segment is rewritten when a third of it is dead, so up to a third of the space may still be waiting for that.
    assert added >= 0.3 * len(gone), f"{len(gone)} of {count} went, and only {added} came"
    assert len(collection) == count - len(gone) + added
    dead = set(gone)
    kept = [f"{row}" for row in range(count) if row not in dead]
    assert all(one is not None for one in collection.get(kept)) and not any(collection.get([f"{row}" for row in gone]))
    assert small.verify().ok


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_deletes_in_a_full_pool_do_not_cost_as_much_as_vectors(small: sr.Pool, dtype: str) -> None:
    """Records that are mostly vectors can be deleted at random from a full pool, and others put and found again."""
    collection = small.collection("vectors", dimension=384, dtype=dtype)
    vectors = np.random.default_rng(5).standard_normal((4 * CAPACITY // 1536, 384), np.float32)
    count, full = 0, False
    while not full and count < len(vectors):
        try:
            collection.put([f"{row}" for row in range(count, count + 20)], vectors[count : count + 20])
            count += 20
        except sr.PoolFull:
            full = True
    assert full
    gone = random.Random(3).sample(range(count), count // 2)
    delete_all(collection, [f"{row}" for row in gone])
    kept = sorted(set(range(count)) - set(gone))
    found = [hits[0].id for hits in collection.search(vectors[kept], k=1)]
    assert found == [f"{row}" for row in kept]
    small.maintain()
    for start in range(0, len(gone) // 4, 10):
        rows = gone[start : start + 10]
        collection.put([f"{row}" for row in rows], vectors[rows])
        kept += rows
    with sr.Pool.open(small.path, maintenance=False) as other:
        theirs = other.collection("vectors")
        assert [hits[0].id for hits in theirs.search(vectors[kept], k=1)] == [f"{row}" for row in kept]
        assert theirs.scan().num_rows == len(theirs) == len(kept)
        assert other.verify().ok


def test_a_put_after_deletes_in_a_full_pool_has_its_vector(small: sr.Pool) -> None:
    """What comes after the deletes is a record like any other, with and without a vector, before and after maintenance."""
    collection = small.collection("vectors", dimension=DIMENSION)
    vectors = np.eye(DIMENSION, dtype=np.float32)
    count, _ = fill(collection, 500, 10)
    delete_all(collection, [f"{row}" for row in range(count - 50)], batches=200)
    collection.put(["with", "without"], [vectors[7] * 3, None], ["a", "b"], delete=[f"{count - 1}"])
    for _ in range(3):
        assert [hit.id for hit in collection.search(vectors[7], k=3)] == ["with"]
        (record,) = collection.get(["with"])
        assert record is not None and record.vector is not None and np.allclose(record.vector, vectors[7] * 3)
        assert collection.scan(columns=["id", "vector"]).num_rows == len(collection) == 51
        assert small.verify().ok
        small.maintain()


def test_overwriting_the_same_records_never_fills_the_pool(small: sr.Pool) -> None:
    """Ten times the capacity goes through a hundred ids without PoolFull, and the last of each is there."""
    collection = small.collection("same")
    ids, text = [f"{row}" for row in range(100)], "z" * 4000
    rounds = 10 * CAPACITY // (len(ids) * len(text))
    for turn in range(rounds):
        collection.put(ids, None, [text + str(turn)] * len(ids))
    assert len(collection) == len(ids)
    assert {one.text for one in collection.get(ids) if one} == {text + str(rounds - 1)}
    assert small.verify().ok


def test_a_put_that_deletes_as_much_works_on_for_long(small: sr.Pool) -> None:
    """A queue whose every batch deletes its oldest records runs through many times the capacity."""
    collection = small.collection("queue")
    batch, kept, text = 20, 400, "q" * 2000
    turns = 5 * CAPACITY // (batch * len(text))
    for turn in range(turns):
        new = range(turn * batch, (turn + 1) * batch)
        collection.put(
            [f"{row}" for row in new], None, [text] * batch, delete=[f"{row - kept}" for row in new if row >= kept]
        )
    assert [one.id for one in collection.find()] == [f"{row}" for row in range(turns * batch - kept, turns * batch)]


def test_dropping_a_collection_empties_a_full_pool(small: sr.Pool) -> None:
    """A drop needs no room: after it and maintenance another collection has all the space."""
    first, _ = fill(small.collection("one"), 2000, 10)
    with pytest.raises(sr.PoolFull):
        small.collection("two").put(["large"], None, ["x" * 200_000])
    small.drop("one")
    small.maintain()
    second, _ = fill(small.collection("two"), 2000, 10, prefix="more ")
    assert second >= 0.8 * first


def test_a_view_that_is_held_keeps_its_memory_until_it_is_gone(pool_path: str) -> None:
    """An Arrow table of a full pool stays valid through delete, maintenance and refusal; given up, its space returns."""
    with sr.Pool.open(pool_path, create=True, capacity=CAPACITY, maintenance=False) as pool:
        collection = pool.collection("held")
        count, _ = fill(collection, 2000, 10)
        table = collection.scan()
        before = table.slice(0, count).column("id").to_pylist()
        delete_all(collection, before)
        report = pool.maintain()
        assert report.segments_waiting > 0, "nothing waits for the table"
        added, _ = fill(collection, 2000, 10, prefix="new ")
        assert added < 0.5 * count
        assert table.column("id").to_pylist() == before and set(table.column("text").to_pylist()) == {"x" * 2000}
        del table
        pool.maintain()
        again, _ = fill(collection, 2000, 10, prefix="last ")
        assert added + again >= 0.8 * count


# ---------------------------------------------------------------------- the memory itself is full

READER = """
    import sys
    import sharedrag as sr
    pool = sr.Pool.open(sys.argv[1], maintenance=False)
    collection = pool.collection("records")
    for line in sys.stdin:
        ids = [one.id for one in collection.find()]
        assert all(one is not None for one in collection.get(ids))
        assert collection.scan().num_rows == len(ids) and pool.verify().ok
        print(len(ids), flush=True)
"""


class Reader:
    """Another process that reads everything whenever it is asked, and is killed by SIGBUS if it touches a hole."""

    def __init__(self, path: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(READER), path],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
        )

    def count(self) -> int:
        """How many records it reads now."""
        assert self._process.stdin and self._process.stdout
        print(file=self._process.stdin, flush=True)
        answer = self._process.stdout.readline()
        assert answer, f"the reader died with {self._process.wait()}"
        return int(answer)

    def close(self) -> None:
        """Let it end; it did so by itself, without a signal."""
        self._process.communicate()
        assert self._process.returncode == 0


@pytest.fixture
def tiny_memory() -> Iterator[Path]:
    """A tmpfs of 8 MiB of our own, unmounted afterwards."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a tmpfs")
    folder = Path(tempfile.mkdtemp(prefix="sharedrag-test-"))
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        folder.rmdir()
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        folder.rmdir()


def eat(file: Path) -> int:
    """Take all the memory that is left, as somebody else's file would; how many bytes that was."""
    with file.open("wb", buffering=0) as opened:
        taken = 0
        for piece in (1 << 20, 1 << 12):
            with contextlib.suppress(OSError):
                while True:
                    taken += opened.write(bytes(piece))
    assert not os.statvfs(file.parent).f_bavail
    return taken


def test_memory_used_up_by_the_pool_is_no_sigbus(tiny_memory: Path) -> None:
    """A pool larger than the memory behind it fills until PoolFull names the file system; a reader lives on throughout."""
    path = str(tiny_memory / "test.pool")
    with sr.Pool.open(path, create=True, capacity="64 MiB") as pool:
        collection = pool.collection("records")
        collection.put(["0"])
        reader = Reader(path)
        assert reader.count() == 1
        first, error = fill(collection, 2000, 10)
        assert "file system has" in str(error) and "/dev/shm" in error.hint and "sharedrag maintain" in error.hint
        assert reader.count() == first == len(collection)
        for _ in range(2):
            delete_all(collection, [f"{row}" for row in range(first)])
            assert reader.count() == 0
            pool.maintain()
            count, _ = fill(collection, 2000, 10)
            assert count >= 0.7 * first
            first = count
            assert reader.count() == count
        assert pool.verify().ok
        reader.close()


def test_memory_used_up_by_others_can_be_given_back_by_deletes(tiny_memory: Path) -> None:
    """With all memory in somebody else's file, reads and deletes still work, and what they free is there for new puts."""
    path = str(tiny_memory / "test.pool")
    with sr.Pool.open(path, create=True, capacity="64 MiB", maintenance=False) as pool:
        collection = pool.collection("records")
        for start in range(0, 1000, 10):
            collection.put([f"{row}" for row in range(start, start + 10)], None, ["t" * 2000] * 10)
        reader = Reader(path)
        assert eat(tiny_memory / "theirs") > 0
        with pytest.raises(sr.PoolFull, match="file system has"):
            collection.put(["large"], None, ["x" * 6_000_000])
        there = len(collection)
        assert reader.count() == there >= 1000
        delete_all(collection, [record.id for record in collection.find()])
        assert reader.count() == len(collection) == 0
        deadline = time.monotonic() + _WAIT_S
        while pool.maintain().segments_waiting and time.monotonic() < deadline:
            reader.count()  # it moves on to what is there now
        count, _ = fill(collection, 2000, 10, prefix="new ")
        assert count >= 0.5 * there and reader.count() == count
        assert pool.verify().ok
        reader.close()


def test_no_pool_is_made_where_no_memory_is_left(tiny_memory: Path) -> None:
    """Creating a pool in a full file system raises PoolFull, and leaves neither a file nor memory taken."""
    eat(tiny_memory / "theirs")
    free = os.statvfs(tiny_memory).f_bavail
    with pytest.raises(sr.PoolFull, match="file system has"):
        sr.Pool.open(tiny_memory / "test.pool", create=True, capacity="64 MiB")
    assert [one.name for one in tiny_memory.iterdir()] == ["theirs"]
    assert os.statvfs(tiny_memory).f_bavail == free


def test_somebody_elses_file_in_the_way_and_gone_again(tiny_memory: Path) -> None:
    """As soon as others give memory back, the very next put goes through: a refusal leaves nothing behind."""
    with sr.Pool.open(tiny_memory / "test.pool", create=True, capacity="64 MiB") as pool:
        collection = pool.collection("records")
        collection.put(["before"])
        eat(tiny_memory / "theirs")
        with pytest.raises(sr.PoolFull):
            collection.put(["large"], None, ["x" * 2_000_000])
        (tiny_memory / "theirs").unlink()
        collection.put(["large"], None, ["x" * 2_000_000])
        assert "large" in collection and pool.verify().ok
