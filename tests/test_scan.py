"""Scans as Arrow over the pool's own memory, segments of all sizes, and one pool of two nodes."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pyarrow as pa
import pytest

from sharedrag import Collection, CollectionDropped, InvalidFilter, Pool, RecordTooLarge


def mapped(path: str) -> Callable[[int, int], bool]:
    """Whether `size` bytes at an address lie within this process's mappings of a file."""
    ranges = []
    for line in Path("/proc/self/maps").read_text().splitlines():
        if line.endswith(path):
            found = re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)
            assert found
            ranges.append((int(found[1], 16), int(found[2], 16)))
    return lambda address, size: any(start <= address and address + size <= stop for start, stop in ranges)


def values_buffers(table: pa.Table) -> list[pa.Buffer]:
    """All buffers of a table but its validity bitmaps."""
    buffers: list[pa.Buffer] = []
    for column in table.columns:
        for chunk in column.chunks:
            values = chunk.buffers()[1:]
            buffers += [values[-1]] if pa.types.is_fixed_size_list(chunk.type) else values
    return buffers


def fill(collection: Collection, count: int = 300) -> None:
    """Records of all kinds: with and without text, metadata and vector."""
    collection.put(
        [f"id-{number}" for number in range(count)],
        [None if number % 4 == 3 else [number, 1] for number in range(count)],
        [None if number % 3 == 2 else f"text {number} ʻāina" for number in range(count)],
        [None if number % 5 == 4 else {"n": number} for number in range(count)],
        created=[datetime(2024, 1, 1 + number % 28, tzinfo=UTC) for number in range(count)],
    )


def agrees(table: pa.Table, collection: Collection, filter: dict[str, Any] | None = None) -> bool:
    """True if a table of all columns holds just what `find` finds, in any order."""
    rows = {row["id"]: row for row in table.to_pylist()}
    records = collection.find(filter)
    assert len(records) == table.num_rows == len(rows)
    for record in records:
        row = rows[record.id]
        vector = None if record.vector is None else record.vector.tolist()
        assert (row["text"], row["created"], row["vector"]) == (record.text, record.created, vector)
        assert (orjson.loads(row["metadata"]) if row["metadata"] else {}) == record.metadata
    keys = [rows[record.id]["key"] for record in records]
    return keys == sorted(keys)


@pytest.fixture
def other(pool: Pool) -> Iterator[Pool]:
    """A second handle to the same pool, in this process."""
    with Pool.open(pool.path) as opened:
        yield opened


class TestScan:
    def test_copies_nothing(self, pool: Pool, other: Pool) -> None:
        """Every buffer of a scan's values lies within a mapping of the pool, also after a few deletes."""
        fill(pool.collection("c", 2, "l2"))
        collection = other.collection("c")
        assert collection.delete(["id-17", "id-99", "id-100"]) == 3
        table = collection.scan()
        inside = mapped(pool.path)
        buffers = values_buffers(table)
        assert len(buffers) >= 3 * 2 + 3
        assert all(inside(buffer.address, buffer.size) for buffer in buffers)
        assert not inside(pa.array([1, 2, 3]).buffers()[1].address, 24)
        assert agrees(table, collection)

    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    def test_holds_what_find_finds(self, pool: Pool, dtype: str) -> None:
        """All columns agree with the records: in whole segments, in runs of live rows, and where live rows lie scattered."""
        collection = pool.collection("c", 2, "l2", dtype)
        assert collection.scan().num_rows == 0 and agrees(collection.scan(), collection)
        fill(collection)
        assert agrees(collection.scan(), collection)
        for doomed in (range(100, 150), range(0, 300, 2)):
            collection.delete([f"id-{number}" for number in doomed])
            table = collection.scan()
            table.validate(full=True)
            assert agrees(table, collection)
        assert agrees(collection.scan({"n": {"<": 200}}), collection, {"n": {"<": 200}})
        assert collection.scan({"n": -1}).num_rows == 0

    def test_vectors_under_cosine_are_unit_vectors(self, pool: Pool) -> None:
        """A scan shows vectors as they are stored: of length 1 under cosine."""
        collection = pool.collection("c", 2)
        collection.put(["a", "b"], [[3, 4], [0, -2]])
        column = collection.scan(columns=["vector"])["vector"].to_pylist()
        assert np.allclose(np.array(column, np.float32), np.array([[0.6, 0.8], [0, -1]]))

    def test_columns(self, pool: Pool) -> None:
        """The columns come in the order asked for; a collection without vectors has no such column; others are refused."""
        pool.collection("c", 2).put(["a"], [[1, 0]], ["A"])
        plain = pool.collection("plain")
        plain.put(["a"])
        assert pool.collection("c").scan(columns=["text", "id"]).to_pylist() == [{"text": "A", "id": "a"}]
        assert plain.scan().column_names == ["id", "created", "text", "metadata", "key"]
        with pytest.raises(InvalidFilter, match="nonsense"):
            plain.scan(columns=["id", "nonsense"])

    def test_a_table_outlives_what_it_shows(self, pool_path: str) -> None:
        """A table stays as it was while its records are replaced, merged away and dropped, and after the handle closes."""
        with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
            collection = pool.collection("c", 2, "l2")
            fill(collection)
            table = collection.scan()
            before = table.to_pylist()
            for step in range(15):
                collection.put([f"id-{number}" for number in range(300)], texts=[f"{step}" * 150] * 300)
                pool.maintain()
            assert table.to_pylist() == before
            pool.drop("c")
            again = pool.collection("c", 2, "l2")
            fill(again, 500)
            assert pool.maintain().segments_waiting
        assert table.to_pylist() == before
        with Pool.open(pool_path, maintenance=False) as pool:
            assert pool.maintain().segments_waiting
            assert table.to_pylist() == before
            del table
            assert pool.maintain().segments_freed
            assert not pool.maintain().segments_waiting


class TestSegments:
    def test_a_record_larger_than_any_segment_so_far(self, pool: Pool, other: Pool) -> None:
        """A record of many times a segment's usual size gets one to its measure, and small ones go on before and after."""
        collection = pool.collection("c", 2, "l2")
        large = "🌊" * (5 << 18)  # 5 MiB, over the 4 MiB to which segments of this pool grow by themselves
        collection.put(["before"], [[1, 1]], ["small"])
        collection.put(["large"], [[2, 2]], [large], [{"list": list(range(50_000))}])
        collection.put(["after"], [[3, 3]], ["small"])
        found = other.collection("c").get(["before", "large", "after"])
        assert [record and record.text for record in found] == ["small", large, "small"]
        assert found[1] is not None and found[1].metadata == {"list": list(range(50_000))}
        assert [hit.id for hit in other.collection("c").search([0, 0])] == ["before", "large", "after"]
        assert other.collection("c").scan().num_rows == 3
        assert pool.verify().ok

    def test_a_record_larger_than_the_pool(self, pool: Pool) -> None:
        """What cannot fit raises `RecordTooLarge` and leaves everything as it was."""
        collection = pool.collection("c")
        collection.put(["a"])
        version = collection.version
        with pytest.raises(RecordTooLarge):
            collection.put(["b", "c"], texts=["small", "x" * (70 << 20)], delete=["a"])
        assert collection.version == version and "a" in collection and "b" not in collection
        collection.put(["b"])
        assert len(collection) == 2

    def test_grow_with_the_collection(self, pool: Pool) -> None:
        """A collection of one record takes little; one that grows record by record takes few segments, each larger."""
        collection = pool.collection("c", 16)
        pool.collection("small").put(["a"])
        vector = [[1.0] * 16]
        for number in range(6_000):
            collection.put([f"id-{number}"], vector, [f"text of record {number}"])
        small, grown = (next(one for one in pool.info().collections if one.name == name) for name in ("small", "c"))
        assert small.bytes_allocated <= 128 << 10
        assert grown.rows == 6_000 and 2 <= grown.segments_open + grown.segments_sealed <= 8
        extents = [entry.extents for entry in pool.arena.current.manifests[0].entries if entry.visible]
        assert max(extents) >= 4 * min(extents)

    def test_a_wide_batch_between_narrow_ones(self, pool: Pool) -> None:
        """Batches of one record and of thousands share a collection in any order, ids in both counted once."""
        collection = pool.collection("c")
        wide = [f"id-{number}" for number in range(5_000)]
        for step in range(4):
            collection.put([f"id-{step}"], texts=["one"])
            collection.put(wide, texts=[f"wide {step}"] * 5_000)
            collection.put([f"id-{step * 10}"], texts=["one"])
            assert len(collection) == 5_000
            texts = [record.text for record in collection.find()]
            assert texts == [f"wide {step}"] * 4_999 + ["one"]


class TestNodes:
    @pytest.fixture
    def pair(self, pool_path: str) -> Iterator[list[Collection]]:
        """One collection by two handles, each of its own node."""
        with (
            Pool.open(pool_path, create=True, capacity="16 MiB", nodes=2, node=0) as first,
            Pool.open(pool_path, node=1) as second,
        ):
            yield [first.collection("c", 2, "l2"), second.collection("c", 2, "l2")]

    def test_see_each_other(self, pair: list[Collection]) -> None:
        """What either node puts, both find at once, by id, filter, search and scan."""
        for number in range(20):
            pair[number % 2].put([f"id-{number}"], [[number, 0]], [f"{number}"], [{"n": number}])
            for one in pair:
                assert len(one) == number + 1 and one.version == pair[0].version
                assert [record.id for record in one.find({"n": number})] == [f"id-{number}"]
                assert [hit.id for hit in one.search([number, 0], k=1)] == [f"id-{number}"]
                assert one.scan(columns=["id"]).num_rows == number + 1
        for one in pair:
            assert [record.text for record in one.find()] == [str(number) for number in range(20)]
            assert agrees(one.scan(), one)

    def test_the_last_put_counts_wherever_it_came_from(self, pair: list[Collection]) -> None:
        """Nodes replace and delete each other's records, one by one and in large batches."""
        ids = [f"id-{number}" for number in range(200)]
        for step in range(10):
            writer = pair[step % 2]
            if step % 3 == 2:
                assert writer.delete(ids) == 200
                assert [len(one) for one in pair] == [0, 0]
            batch = ids if step % 2 else ids[:1]
            writer.put(batch, texts=[str(step)] * len(batch))
            writer.put(ids, texts=[f"whole {step}"] * 200, delete=ids[:50])
            for one in pair:
                assert len(one) == 200 and {record.text for record in one.find()} == {f"whole {step}"}

    def test_a_drop_is_for_both(self, pair: list[Collection]) -> None:
        """A collection dropped through one node is gone for the other; made anew, it holds only what came after."""
        for one in pair:
            one.put(["a", "b"])
        pair[0].pool.drop("c")
        with pytest.raises(CollectionDropped):
            len(pair[1])
        assert pair[1].pool.collections() == []
        pair[1].pool.collection("c").put(["new"])
        assert [record.id for record in pair[0].pool.collection("c").find()] == ["new"]

    def test_maintenance_of_both_changes_nothing(self, pool_path: str) -> None:
        """Each node merges its own segments while the other's records supersede them; neither loses or revives one."""
        capacity = "4 MiB"
        with (
            Pool.open(pool_path, create=True, capacity=capacity, nodes=2, node=0, maintenance=False) as first,
            Pool.open(pool_path, node=1, maintenance=False) as second,
        ):
            truth: dict[str, str | None] = {}
            merged = 0
            for step in range(24):
                with Pool.open(pool_path, node=step % 2, maintenance=False) as writer:
                    ids = [f"id-{number % 150}" for number in range(step * 37, step * 37 + 90)]
                    writer.collection("c").put(ids, texts=[f"{step} " * 150] * 90)
                    gone = ids[::4]
                    assert writer.collection("c").delete(gone) == len(gone)
                truth |= dict.fromkeys(ids, f"{step} " * 150)
                truth = {one: text for one, text in truth.items() if one not in gone}
                before = first.collection("c").version
                merged += sum(pool.maintain().segments_merged for pool in (first, second))
                for pool in (first, second):
                    assert pool.collection("c").version == before
                    assert {record.id: record.text for record in pool.collection("c").find()} == truth
            assert merged
            assert first.verify().ok


_SCANS = """
import os, sys
import numpy as np
from sharedrag import Pool

def threads():
    return len(os.listdir("/proc/self/task"))

with Pool.open(sys.argv[1], maintenance=False) as pool:
    collection = pool.collection("c", 4, sys.argv[2])
    vectors = np.random.default_rng(0).normal(size=(40_000, 4)).astype(np.float32)
    collection.put([str(row) for row in range(40_000)], vectors)
    before = threads()
    collection.search(vectors[0], k=5)
    collection.search(vectors[:20], k=5)
    print(threads() - before)
    collection.search(vectors[:2000], k=5)
    print(threads() - before)
"""


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_one_question_wakes_no_other_threads(pool: Pool, metric: str) -> None:
    """Threads that share a small scan wait for each other by spinning: among busy workers that took fifty times as long."""
    environment = os.environ | {"OMP_NUM_THREADS": "4"}
    command = [sys.executable, "-c", _SCANS, pool.path, metric]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=True)
    alone, many = map(int, done.stdout.split())
    assert alone == 0
    assert many == 3  # a large batch is worth them
