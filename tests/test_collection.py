"""The public API's plain behaviour: every call of `Collection`, checked against what was put or against NumPy."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sharedrag import Hit, InvalidRecord, Pool, Record, Where
from sharedrag.arena.segment import Segment
from sharedrag.search import masks

Floats = npt.NDArray[np.float32]


def vectors_of(count: int, dimension: int, seed: int = 1) -> Floats:
    """Random vectors of many lengths, (count, dimension) float32."""
    random = np.random.default_rng(seed)
    lengths = random.uniform(0.5, 3, (count, 1))
    return (random.standard_normal((count, dimension)) * lengths).astype(np.float32)


def scores_of(metric: str, vectors: Floats, query: Floats) -> npt.NDArray[np.float64]:
    """Every vector's score for one query, in double precision."""
    wide, asked = vectors.astype(np.float64), query.astype(np.float64)
    if metric == "l2":
        return -np.linalg.norm(wide - asked, axis=1)  # type: ignore[no-any-return]
    products: npt.NDArray[np.float64] = wide @ asked
    return products / (np.linalg.norm(wide, axis=1) * np.linalg.norm(asked)) if metric == "cosine" else products


def ids_of(found: list[Any]) -> list[str]:
    """The ids of records or hits."""
    return [one.id for one in found]


@pytest.fixture
def other(pool: Pool) -> Any:
    """A second handle to the same pool, in this process."""
    with Pool.open(pool.path) as opened:
        yield opened


class TestRecords:
    def test_a_record_comes_back_as_it_was_put(self, pool: Pool, other: Pool) -> None:
        """Id, text, metadata, time and vector of a record are the same from the writing and from another handle."""
        metadata = {"room": "oʻahu", "n": 3, "deep": {"list": [1, 2.5, None, True, "x"]}, "": "empty key"}
        created = datetime(2024, 5, 6, 7, 8, 9, 123456, tzinfo=UTC)
        pool.collection("c", 3, "l2").put(["ʻō 🌺"], [[1, -2, 0.5]], ["line\nline\x00end"], [metadata], created=created)
        for handle in (pool, other):
            record = handle.collection("c").get(["ʻō 🌺"])[0]
            assert isinstance(record, Record)
            assert (record.id, record.text, record.metadata) == ("ʻō 🌺", "line\nline\x00end", metadata)
            assert record.created == created and record.created.tzinfo is UTC
            assert record.vector is not None and record.vector.dtype == np.float32
            assert record.vector.tolist() == [1, -2, 0.5]

    def test_everything_but_the_id_is_optional(self, pool: Pool) -> None:
        """A bare id is a record without text or vector, with empty metadata; an empty text is not a missing one."""
        collection = pool.collection("c", 2)
        collection.put(["bare"])
        collection.put(["none", "empty"], [None, [3, 4]], [None, ""], [None, {}])
        bare, none, empty = collection.get(["bare", "none", "empty"])
        for record in (bare, none):
            assert record is not None
            assert (record.text, record.metadata, record.vector) == (None, {}, None)
        assert empty is not None and empty.vector is not None
        assert (empty.text, empty.metadata, empty.vector.tolist()) == ("", {}, [3, 4])

    def test_get_keeps_the_order_that_was_asked_for(self, pool: Pool) -> None:
        """`get` answers id by id, None for unknown ones, a repeated id twice, and nothing for no ids."""
        collection = pool.collection("c")
        collection.put(["a", "b"], texts=["A", "B"])
        assert [record and record.text for record in collection.get(["b", "?", "a", "b"])] == ["B", None, "A", "B"]
        assert collection.get([]) == []

    def test_a_put_replaces_the_whole_record(self, pool: Pool, other: Pool) -> None:
        """What a later put of the same id leaves out is gone, from whichever handle it came."""
        pool.collection("c", 2).put(["a"], [[1, 2]], ["old"], [{"old": 1}])
        other.collection("c").put(["a"], texts=["new"])
        record = pool.collection("c").get(["a"])[0]
        assert record is not None and (record.text, record.metadata, record.vector) == ("new", {}, None)
        assert len(pool.collection("c")) == 1

    def test_of_equal_ids_in_one_batch_the_last_counts(self, pool: Pool) -> None:
        """Duplicates within a batch leave one record, the last, in small batches and in large ones."""
        collection = pool.collection("c")
        for size in (3, 300):
            ids = [f"{size}-{number % (size // 3)}" for number in range(size)]
            collection.put(ids, texts=[str(number) for number in range(size)])
            records = [record for record in collection.find() if record.id.startswith(f"{size}-")]
            assert [record.text for record in records] == [str(number) for number in range(size - size // 3, size)]

    def test_len_and_contains(self, pool: Pool, other: Pool) -> None:
        """`len` counts live records and `in` knows live ids; what is no id is in no collection."""
        collection, same = pool.collection("c"), other.collection("c")
        collection.put(["a", "b", "c"])
        assert same.delete(["b"]) == 1
        assert len(collection) == len(same) == 2
        assert "a" in collection and "b" not in collection and "b" not in same
        assert 7 not in collection and "" not in collection and None not in collection

    def test_delete_counts_what_was_there(self, pool: Pool) -> None:
        """`delete` returns how many records it removed, counting an id once; a deleted id can be put again."""
        collection = pool.collection("c")
        collection.put(["a", "b", "c"])
        assert collection.delete(["a", "a", "?", "b"]) == 2
        assert collection.delete(["a"]) == collection.delete([]) == 0
        collection.put(["a"], texts=["again"])
        assert {record.id: record.text for record in collection.find()} == {"c": None, "a": "again"}

    def test_put_with_delete(self, pool: Pool) -> None:
        """`delete=` comes before the puts of its batch, so an id in both is put; alone it only deletes."""
        collection = pool.collection("c", 2)
        collection.put(["a", "b", "c"], [[1, 1]] * 3, texts=["1"] * 3)
        collection.put(
            ["b", "d"], [[2, 2], None], ["2", "2"], created=datetime(2020, 1, 1, tzinfo=UTC), delete=["a", "b", "?"]
        )
        assert [(record.id, record.text) for record in collection.find()] == [("c", "1"), ("b", "2"), ("d", "2")]
        assert collection.find()[1].vector is not None and collection.find()[2].vector is None
        collection.put([], delete=["c"])
        assert ids_of(collection.find()) == ["b", "d"]

    def test_one_vector_needs_no_row_axis(self, pool: Pool) -> None:
        """A single record's vector may be (dimension,); for several records, bare numbers are refused."""
        collection = pool.collection("c", 2, "l2")
        collection.put(["a"], np.array([1, 2], np.float64))
        collection.put(["b"], (3, 4))
        found = [record.vector.tolist() for record in collection.find() if record.vector is not None]
        assert found == [[1, 2], [3, 4]]
        for vectors in ([1.0, 2.0], [1.0, None], [[1.0, 2.0]]):
            with pytest.raises(InvalidRecord):
                collection.put(["c", "d"], vectors)
        with pytest.raises(InvalidRecord):
            collection.put(["c", "d", "e"], [1.0, None, 2.0])  # not (1, 2) for both c and e
        assert len(collection) == 2

    def test_created(self, pool: Pool) -> None:
        """`created` is now by default, one moment for all or one for each; any zone becomes UTC, and none means UTC."""
        collection = pool.collection("c")
        before = datetime.now(UTC)
        collection.put(["now"])
        hawaii = timezone(timedelta(hours=-10))
        moment = datetime(1893, 1, 17, 12, tzinfo=hawaii)
        collection.put(["all-1", "all-2"], created=moment)
        collection.put(["each-1", "each-2"], created=[datetime(2024, 1, 1), moment])  # noqa: DTZ001 (none means UTC)
        created = {record.id: record.created for record in collection.find()}
        assert before - timedelta(milliseconds=1) <= created["now"] <= datetime.now(UTC)
        assert created["all-1"] == created["all-2"] == created["each-2"] == moment
        assert created["each-1"] == datetime(2024, 1, 1, tzinfo=UTC)
        assert {one.utcoffset() for one in created.values()} == {timedelta(0)}

    @pytest.mark.parametrize("count", [1, 10, 1_000, 100_000])
    def test_from_one_row_to_many(self, pool: Pool, other: Pool, count: int) -> None:
        """Any number of records, in batches of up to 10,000, is counted, found by id, scanned and searched by another."""
        vectors = vectors_of(count, 8)
        ids = [f"id-{number}" for number in range(count)]
        collection = pool.collection("c", 8, "l2")
        for start in range(0, count, 10_000):
            stop = start + 10_000
            collection.put(ids[start:stop], vectors[start:stop], [one.upper() for one in ids[start:stop]])
        same = other.collection("c")
        assert len(same) == count == same.scan(columns=["id"]).num_rows
        some = ids[:: max(1, count // 50)]
        assert [record and record.text for record in same.get(some)] == [one.upper() for one in some]
        scores = scores_of("l2", vectors, vectors[count // 2])
        hits = same.search(vectors[count // 2], k=5)
        assert ids_of(hits) == [ids[at] for at in np.argsort(-scores)[:5]]
        assert ids_of(same.find(limit=3, newest_first=True)) == ids[::-1][:3]


class TestFind:
    def test_oldest_first_by_the_last_put(self, pool: Pool, other: Pool) -> None:
        """`find` gives records in the order of their last put over all handles, or the reverse, up to the limit."""
        for number in range(6):
            (pool, other)[number % 2].collection("c").put([f"id-{number}"])
        other.collection("c").put(["id-1"])
        order = ["id-0", "id-2", "id-3", "id-4", "id-5", "id-1"]
        collection = pool.collection("c")
        assert ids_of(collection.find()) == order
        assert ids_of(collection.find(newest_first=True, limit=2)) == ["id-1", "id-5"]
        assert ids_of(collection.find(limit=2)) == order[:2]
        assert ids_of(collection.find(limit=100)) == order and collection.find(limit=0) == []

    def test_filters_are_dicts_or_objects(self, pool: Pool) -> None:
        """A dict filter, its object form, and Python over the metadata say the same."""
        collection = pool.collection("c")
        metadata: list[dict[str, Any]] = [{"room": "abc"[n % 3], "n": n} if n % 5 else {"n": n} for n in range(40)]
        collection.put([str(n) for n in range(40)], metadata=metadata)
        cases: list[tuple[Any, Callable[[dict[str, Any]], bool]]] = [
            ({"room": "a", "n": {"<": 20}}, lambda one: one.get("room") == "a" and one["n"] < 20),
            ({"$or": [{"room": "b"}, {"n": 0}]}, lambda one: one.get("room") == "b" or one["n"] == 0),
            ({"$not": {"room": "c"}}, lambda one: one.get("room") != "c"),
            (Where("n", "in", (3, 4, 99)), lambda one: one["n"] in (3, 4, 99)),
        ]
        for asked, wanted in cases:
            expected = [str(one["n"]) for one in metadata if wanted(one)]
            assert expected and ids_of(collection.find(asked)) == expected
        assert collection.find({"room": "nowhere"}) == []

    def test_masks_grow_with_the_collection(self, pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
        """A filter asked again sees new, replaced and deleted records, and decodes only the metadata that is new."""
        decoded: list[int] = []
        real = masks.decode

        def counted(segment: Segment, row: int) -> dict[str, object]:
            decoded.append(row)
            return real(segment, row)

        monkeypatch.setattr(masks, "decode", counted)
        collection = pool.collection("c", 2, "ip")
        truth: dict[str, int] = {}
        for step in range(12):
            batch = {f"id-{(step * 7 + number) % 50}": (step + number) % 4 for number in range(10)}
            truth = {one: room for one, room in truth.items() if one not in batch} | batch
            metadata: list[dict[str, Any] | None] = [{"room": room} for room in batch.values()]
            collection.put(list(batch), [[1, 1]] * 10, metadata=metadata)
            gone = next(iter(truth))
            del truth[gone]
            assert collection.delete([gone]) == 1
            wanted = [one for one, room in truth.items() if room >= 2]
            decoded.clear()
            assert ids_of(collection.find({"room": {">=": 2}})) == wanted
            assert len(decoded) <= 11
            assert sorted(ids_of(collection.search([1, 1], 99, {"room": {">=": 2}}))) == sorted(wanted)
            assert len(decoded) <= 11


class TestSearch:
    @pytest.mark.parametrize("dtype", ["float32", "float16"])
    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_agrees_with_numpy(self, pool: Pool, metric: str, dtype: str) -> None:
        """The best k, their order and their scores are those of comparing all vectors, over several segments."""
        vectors = vectors_of(9_000, 24)
        queries = vectors_of(7, 24, seed=2)
        collection = pool.collection("c", 24, metric, dtype)
        for start in range(0, 9_000, 900):
            collection.put([str(n) for n in range(start, start + 900)], vectors[start : start + 900])
        collection.delete([str(n) for n in range(0, 9_000, 3)])
        tolerance = 1e-4 if dtype == "float32" else 2e-2
        for query, hits in zip(queries, collection.search(queries, k=20), strict=True):
            scores = scores_of(metric, vectors, query)
            live = np.array([n for n in range(9_000) if n % 3])
            best = np.sort(scores[live])[::-1][:20]
            assert np.allclose([hit.score for hit in hits], best, atol=tolerance)
            assert np.allclose([hit.score for hit in hits], scores[[int(hit.id) for hit in hits]], atol=tolerance)
            assert len({hit.id for hit in hits}) == 20 and not any(int(hit.id) % 3 == 0 for hit in hits)
            assert [hit.score for hit in hits] == sorted((hit.score for hit in hits), reverse=True)

    @pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
    def test_vectors_come_back_as_given(self, pool: Pool, metric: str) -> None:
        """`get` returns the vector that was put, to float32 rounding, though cosine stores unit vectors."""
        vectors = vectors_of(50, 16) * np.float32(100)
        for dtype, tolerance in (("float32", 1e-6), ("float16", 1e-3)):
            collection = pool.collection(dtype, 16, metric, dtype)
            collection.put([str(n) for n in range(50)], vectors)
            found = np.array([record.vector for record in collection.find()])
            assert np.allclose(found, vectors, rtol=tolerance, atol=tolerance * 300)

    def test_one_query_or_many(self, pool: Pool) -> None:
        """A (dimension,) query gives hits, (n, dimension) queries a list of hits each, none an empty list."""
        collection = pool.collection("c", 2)
        collection.put(["x", "y"], [[1, 0], [0, 2]], ["X", "Y"], [{"n": 1}, None], created=datetime(2024, 1, 1, tzinfo=UTC))
        hits = collection.search([5, 1])
        assert hits[0] == Hit("x", hits[0].score, "X", {"n": 1}, datetime(2024, 1, 1, tzinfo=UTC))
        assert hits[0].score == pytest.approx(5 / 26**0.5)
        assert ids_of(hits) == ["x", "y"]
        assert [ids_of(one) for one in collection.search([[5, 1], [0, 1]], k=1)] == [["x"], ["y"]]
        assert collection.search(np.zeros((0, 2), np.float32)) == []

    def test_nothing_to_find(self, pool: Pool) -> None:
        """An empty collection, a filter that admits nothing, and records without vectors give no hits."""
        collection = pool.collection("c", 2)
        assert collection.search([1, 0]) == [] and collection.search([[1, 0]] * 2) == [[], []]
        collection.put(["plain"], texts=["no vector"], metadata=[{"n": 1}])
        assert collection.search([1, 0]) == []
        collection.put(["with", "without"], [[1, 0], None])
        assert ids_of(collection.search([-1, 0])) == ["with"]
        assert collection.search([1, 0], filter={"n": 1}) == []

    def test_only_among_ids(self, pool: Pool) -> None:
        """`ids=` restricts hits to live records of these ids, together with a filter; unknown ids are passed over."""
        collection = pool.collection("c", 2, "ip")
        collection.put(
            [str(n) for n in range(10)], [[n, 1] for n in range(10)], metadata=[{"odd": n % 2} for n in range(10)]
        )
        collection.delete(["8"])
        assert ids_of(collection.search([1, 0], ids=["3", "8", "5", "?", "5", "4"])) == ["5", "4", "3"]
        assert ids_of(collection.search([1, 0], filter={"odd": 1}, ids=["3", "4", "5"], k=1)) == ["5"]
        assert collection.search([1, 0], ids=[]) == []


class TestVersion:
    def test_rises_with_what_is_new_and_only_then(self, pool: Pool, other: Pool) -> None:
        """Every put and delete raises the version for all handles alike; what changes nothing does not."""
        collection, same = pool.collection("c"), other.collection("c")
        seen = [collection.version]
        for change in (
            lambda: collection.put(["a"]),
            lambda: same.put(["a"]),
            lambda: same.delete(["a"]),
            lambda: collection.put(["b", "c"], delete=["a"]),
            lambda: collection.put([], delete=["c"]),
        ):
            change()
            assert collection.version == same.version > seen[-1]
            seen.append(same.version)
        collection.put([])
        collection.put([], delete=["?"])
        assert collection.delete(["?"]) == 0
        assert other.collection("c").version == pool.collection("c").version == seen[-1]

    def test_maintenance_is_not_seen(self, pool_path: str) -> None:
        """Seals, merges and reclaimed segments change neither version nor content."""
        merged = freed = sealed = 0
        with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
            collection = pool.collection("c")
            for step in range(12):
                with Pool.open(pool_path, maintenance=False) as other:
                    for part in range(4):
                        ids = [f"id-{number}" for number in range(part * 50, part * 50 + 100)]
                        other.collection("c").put(ids, texts=[f"{step} " * 200] * 100)
                before = (collection.version, len(collection), collection.find())
                report = pool.maintain()
                merged, freed = merged + report.segments_merged, freed + report.segments_freed
                sealed += report.segments_sealed
                assert (collection.version, len(collection), collection.find()) == before
        assert merged and freed and sealed

    def test_a_collection_made_anew_has_another_version(self, pool: Pool, other: Pool) -> None:
        """Who kept a version over a drop does not take a new collection with as many records for the old one."""
        pool.collection("c").put(["old"])
        kept = other.collection("c")
        before = kept.version
        pool.drop("c")
        pool.collection("c").put(["new"])
        assert kept.version == pool.collection("c").version != before
        assert ids_of(kept.find()) == ["new"]


class TestBatches:
    def test_are_seen_whole_or_not_at_all(self, pool: Pool, other: Pool) -> None:
        """While one handle replaces a set of records by another in one batch, a second never sees a mixture."""
        sets = [[f"{side}-{number}" for number in range(40)] for side in "ab"]
        writer, reader = pool.collection("c", 2, "l2"), other.collection("c")
        writer.put(sets[0], [[0, 0]] * 40, ["0"] * 40)
        stop = threading.Event()

        def write() -> None:
            step = 0
            while not stop.is_set():
                step += 1
                writer.put(sets[step % 2], [[step, 0]] * 40, [str(step)] * 40, delete=sets[(step + 1) % 2])

        thread = threading.Thread(target=write)
        thread.start()
        try:
            seen = set()
            deadline = time.monotonic() + 1.5
            while time.monotonic() < deadline:
                records = reader.find()
                found = [record for record in reader.get(sets[0] + sets[1]) if record is not None]
                hits = reader.search([0, 0], k=100)
                for group in (records, found, hits):
                    assert sorted(ids_of(group)) in (sorted(sets[0]), sorted(sets[1]))
                    assert len({one.text for one in group}) == 1
                assert reader.scan(columns=["id"]).num_rows == len(reader) == 40
                seen.add(records[0].text)
        finally:
            stop.set()
            thread.join()
        assert len(seen) > 3

    def test_threads_share_a_collection(self, pool: Pool) -> None:
        """Each thread reads what it just wrote by every way of reading, while others write and maintenance runs."""
        collection = pool.collection("c", 2, "l2")

        def work(number: int) -> int:
            for step in range(40):
                mine = [f"{number}-{(step + offset) % 60}" for offset in range(20)]
                batch: list[dict[str, Any] | None] = [{"thread": number, "step": step}] * 20
                collection.put(mine, [[number, step]] * 20, [str(step)] * 20, batch)
                wanted = {"thread": number, "step": step}
                assert [record and record.text for record in collection.get(mine)] == [str(step)] * 20
                assert ids_of(collection.find(wanted)) == mine
                assert sorted(ids_of(collection.search([number, step], 20, {"thread": number}))) == sorted(mine)
                assert sorted(collection.scan(wanted, ["id"])["id"].to_pylist()) == sorted(mine)
                if step % 10 == number:
                    pool.maintain()
            return number

        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(work, range(4))) == [0, 1, 2, 3]
        assert len(collection) == 4 * 59 and pool.verify().ok

    def test_an_invalid_record_leaves_the_whole_batch_out(self, pool: Pool) -> None:
        """A batch of which one record cannot be stored changes nothing, nor does its `delete=`."""
        collection = pool.collection("c", 2)
        collection.put(["a"], [[1, 1]])
        version = collection.version
        for arguments in (
            {"ids": ["b", ""]},
            {"ids": ["b", "c"], "vectors": [[1, 1], [0, 0]]},
            {"ids": ["b", "c"], "texts": ["x"]},
            {"ids": ["b", "c"], "metadata": [{"x": 1}, {"x": object()}]},
        ):
            with pytest.raises(InvalidRecord):
                collection.put(**arguments, delete=["a"])
        assert collection.version == version and ids_of(collection.find()) == ["a"]
