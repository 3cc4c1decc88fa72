"""What cannot be stored or asked is refused with a typed error that says what to do, and nothing is written."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from typing import Any

import numpy as np
import pytest

import sharedrag as sr

DIMENSION = 4
ONE = np.eye(DIMENSION, dtype=np.float32)[:1]
ID_BYTES_MAX = 64 * 1024


@dataclass
class Measured:
    """Metadata may hold dataclasses; orjson writes them as objects."""

    value: float


def nested(depth: int) -> dict[str, Any]:
    """A dict in a dict in a dict ..."""
    found: dict[str, Any] = {}
    for _ in range(depth):
        found = {"in": found}
    return found


@pytest.fixture
def records(pool: sr.Pool) -> sr.Collection:
    """A collection with two records, of dimension 4 under cosine."""
    collection = pool.collection("records", dimension=DIMENSION)
    collection.put(["a", "b"], np.eye(DIMENSION)[:2], ["first", "second"], [{"room": "x"}, None])
    return collection


@contextmanager
def refused(collection: sr.Collection, kind: type[sr.SharedRagError], what: str = "") -> Iterator[None]:
    """Inside, this error with a hint is raised, and outside nothing has changed."""
    before = (len(collection), collection.version, collection.scan().to_pylist())
    with pytest.raises(kind, match=what) as caught:
        yield
    assert caught.value.hint and caught.value.hint in str(caught.value), "the message says what to do"
    assert caught.value.operation, "the message says what was done"
    assert (len(collection), collection.version, collection.scan().to_pylist()) == before
    collection.put(["after"], ONE)  # and the next good one gets in
    assert len(collection) == before[0] + 1


VECTORS: dict[str, tuple[Any, str]] = {
    "NaN": ([[np.nan, 0, 0, 1]], "NaN or infinity"),
    "infinity": ([[np.inf, 0, 0, 1]], "NaN or infinity"),
    "beyond float32": ([[1e300, 0, 0, 1]], "NaN or infinity"),
    "an int beyond any float": ([[10**400, 0, 0, 1]], "not numbers"),
    "zero": (np.zeros((1, DIMENSION)), "zero"),
    "too many numbers": (np.ones((1, DIMENSION + 1)), "shape"),
    "too few numbers": (np.ones((1, DIMENSION - 1)), "shape"),
    "three axes": (np.ones((1, 1, DIMENSION)), "shape"),
    "one number": (3.0, "shape"),
    "more rows than ids": (np.ones((2, DIMENSION)), "1 ids, but 2 vectors"),
    "ragged": ([[1.0, 2.0], [3.0]], "not numbers"),
    "strings": ([["1", "2", "3", "4"]], "not numbers"),
    "an array of strings": (np.array([["1", "2", "3", "4"]]), "not numbers"),
    "complex": (np.ones((1, DIMENSION), np.complex64), "not numbers"),
    "objects": (np.ones((1, DIMENSION), object), "not numbers"),
    "dates": (np.ones((1, DIMENSION), "M8[s]"), "not numbers"),
    "a text": ("abcd", "a text where a vector belongs"),
    "a dict": ({"a": 1.0}, "not numbers"),
    "None among numbers": ([[None, 1, 0, 0]], "not numbers"),
}


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", VECTORS)
def test_vectors_that_are_none_are_refused(records: sr.Collection, name: str) -> None:
    """A put of impossible vectors raises InvalidRecord, names the reason, and stores none of the batch."""
    vectors, what = VECTORS[name]
    with refused(records, sr.InvalidRecord, what):
        records.put(["new"], vectors)


@pytest.mark.filterwarnings("ignore:overflow")
@pytest.mark.parametrize("name", sorted(VECTORS.keys() - {"more rows than ids"}))
def test_queries_that_are_no_vectors_are_refused(records: sr.Collection, name: str) -> None:
    """A search for impossible vectors raises InvalidRecord with the same reason as a put."""
    vectors, what = VECTORS[name]
    with refused(records, sr.InvalidRecord, what):
        records.search(vectors)


def test_one_bad_row_refuses_the_whole_batch(records: sr.Collection) -> None:
    """The rows before a bad one are not stored either, and the message says which row it is."""
    vectors = np.ones((100, DIMENSION), np.float32)
    vectors[71, 2] = np.nan
    with refused(records, sr.InvalidRecord, "vector 71 holds NaN"):
        records.put([f"row {row}" for row in range(100)], vectors)


def test_zero_vectors_are_refused_only_where_they_have_no_meaning(pool: sr.Pool) -> None:
    """Under inner product and L2 a zero vector is a point like any other; half floats refuse what they cannot hold."""
    for metric in ("ip", "l2"):
        collection = pool.collection(metric, dimension=DIMENSION, metric=metric)
        collection.put(["zero"], np.zeros((1, DIMENSION)))
        assert [hit.id for hit in collection.search(np.zeros(DIMENSION))] == ["zero"]
    halves = pool.collection("halves", dimension=DIMENSION, metric="ip", dtype="float16")
    with refused(halves, sr.InvalidRecord, "float16"):
        halves.put(["large"], np.full((1, DIMENSION), 70_000.0))


def test_vectors_for_a_collection_without_them_are_refused(pool: sr.Pool) -> None:
    """A key-value collection takes no vectors and answers no search, and says how to get one that does."""
    plain = pool.collection("plain")
    with pytest.raises(sr.InvalidRecord, match="dimension="):
        plain.put(["a"], ONE)
    with pytest.raises(sr.InvalidRecord, match="dimension="):
        plain.search(ONE[0])
    assert len(plain) == 0


PUTS: dict[str, tuple[Callable[[sr.Collection], object], str]] = {
    "ids: a str": (lambda c: c.put("abc", ONE), "ids is a str"),
    "ids: None": (lambda c: c.put(None, ONE), "ids is a NoneType"),  # type: ignore[arg-type]
    "ids: a generator": (lambda c: c.put((one for one in "a"), ONE), "ids is a generator"),  # type: ignore[arg-type]
    "ids: a set has no order": (lambda c: c.put({"c"}, ONE), "ids is a set"),  # type: ignore[arg-type]
    "ids: a dict": (lambda c: c.put({"c": 1}, ONE), "ids is a dict"),  # type: ignore[arg-type]
    "id: an int": (lambda c: c.put([5], ONE), "id 5 is a int"),  # type: ignore[list-item]
    "id: bytes": (lambda c: c.put([b"c"], ONE), "is a bytes"),  # type: ignore[list-item]
    "id: empty": (lambda c: c.put([""], ONE), "an id is empty"),
    "id: lone surrogate": (lambda c: c.put(["a\ud800"], ONE), "not valid Unicode"),
    "id: 64 KiB and a byte": (lambda c: c.put(["x" * (ID_BYTES_MAX + 1)], ONE), "65,537 bytes"),
    "id: 64 KiB in characters, more in bytes": (lambda c: c.put(["é" * ID_BYTES_MAX], ONE), "131,072 bytes"),
    "text: bytes": (lambda c: c.put(["c"], ONE, [b"text"]), "a text is a bytes"),  # type: ignore[list-item]
    "text: an int": (lambda c: c.put(["c"], ONE, [5]), "a text is a int"),  # type: ignore[list-item]
    "text: lone surrogate": (lambda c: c.put(["c"], ONE, ["\udfff"]), "not valid Unicode"),
    "texts: a str": (lambda c: c.put(["c"], ONE, "t"), "texts is a str"),
    "texts: too many": (lambda c: c.put(["c"], ONE, ["t", "u"]), "1 ids, but 2 texts"),
    "texts: without ids": (lambda c: c.put([], None, ["t"]), "0 ids, but 1 texts"),
    "vectors: without ids": (lambda c: c.put([], ONE), "0 ids, but 1 vectors"),
    "vectors: too few, with None": (lambda c: c.put(["c", "d", "e"], [None, ONE[0]]), "3 ids, but 2 vectors"),
    "metadata: one dict": (lambda c: c.put(["c"], ONE, None, {"k": 1}), "metadata is a dict"),  # type: ignore[arg-type]
    "metadata: too few": (lambda c: c.put(["c", "d"], None, None, [{}]), "2 ids, but 1 metadata"),
    "metadata: a list": (lambda c: c.put(["c"], ONE, None, [[1]]), "metadata is a list"),  # type: ignore[list-item]
    "metadata: JSON as text": (lambda c: c.put(["c"], ONE, None, ["{}"]), "metadata is a str"),  # type: ignore[list-item]
    "metadata: a set": (lambda c: c.put(["c"], ONE, None, [{"k": {1}}]), "not JSON"),
    "metadata: an object": (lambda c: c.put(["c"], ONE, None, [{"k": object()}]), "not JSON"),
    "metadata: int keys": (lambda c: c.put(["c"], ONE, None, [{1: 2}]), "not JSON"),  # type: ignore[dict-item]
    "metadata: lone surrogate": (lambda c: c.put(["c"], ONE, None, [{"k": "\ud800"}]), "not JSON"),
    "metadata: surrogate key": (lambda c: c.put(["c"], ONE, None, [{"\ud800": 1}]), "not JSON"),
    "metadata: beyond 64 bits": (lambda c: c.put(["c"], ONE, None, [{"k": 1 << 64}]), "64-bit"),
    "metadata: endless": (lambda c: c.put(["c"], ONE, None, [nested(100_000)]), "not JSON"),
    "metadata: NaN": (lambda c: c.put(["c"], ONE, None, [{"k": [1, {"l": float("nan")}]}]), "NaN"),
    "metadata: infinity": (lambda c: c.put(["c"], ONE, None, [{"k": float("-inf")}]), "NaN"),
    "metadata: NaN in a dataclass": (lambda c: c.put(["c"], ONE, None, [{"k": Measured(float("nan"))}]), "NaN"),
    "created: text": (lambda c: c.put(["c"], ONE, created="2020-01-01"), "created is a str"),  # type: ignore[arg-type]
    "created: a number": (lambda c: c.put(["c"], ONE, created=[1.5]), "created is a float"),  # type: ignore[list-item]
    "created: too few": (lambda c: c.put(["c", "d"], created=[datetime.now(UTC)]), "2 ids, but 1 created"),
    "delete: a str": (lambda c: c.put(["c"], ONE, delete="a"), "ids is a str"),
    "delete: None": (lambda c: c.put(["c"], ONE, delete=None), "ids is a NoneType"),  # type: ignore[arg-type]
    "delete: an int": (lambda c: c.put(["c"], ONE, delete=["a", 5]), "id 5"),  # type: ignore[list-item]
    "delete: a list": (lambda c: c.delete([["a"]]), "is a list"),  # type: ignore[list-item]
    "get: a str": (lambda c: c.get("a"), "ids is a str"),
    "get: None": (lambda c: c.get([None]), "is a NoneType"),  # type: ignore[list-item]
}


@pytest.mark.parametrize("name", PUTS)
def test_records_that_cannot_be_stored_are_refused(records: sr.Collection, name: str) -> None:
    """Ids, texts, metadata and times of the wrong kind or number raise InvalidRecord and leave everything as it was."""
    do, what = PUTS[name]
    with refused(records, sr.InvalidRecord, what):
        do(records)


def test_a_moment_that_utc_cannot_name_is_refused(records: sr.Collection) -> None:
    """A created time before year 1 or after 9999 in UTC would make the record unreadable; the very ends are kept."""
    for moment, hours in ((datetime.min.replace(tzinfo=UTC), 14), (datetime.max.replace(tzinfo=UTC), -14)):
        with refused(records, sr.InvalidRecord, "years 1 to 9999"):
            records.put(["c"], ONE, created=moment.replace(tzinfo=timezone(timedelta(hours=hours))))
        records.delete(["after"])
        records.put(["end"], ONE, created=moment)
        assert records.get(["end"])[0].created == moment  # type: ignore[union-attr]


def test_nothing_is_written_by_an_empty_batch(records: sr.Collection) -> None:
    """No ids, with or without empty companions, is no change, not even of the version."""
    before = records.version
    records.put([])
    records.put([], np.zeros((0, DIMENSION)), [], [], created=[], delete=[])
    records.put([], delete=["not there"])
    assert records.delete([]) == 0 and records.get([]) == []
    assert records.version == before


def test_of_equal_ids_in_a_batch_the_last_counts(records: sr.Collection) -> None:
    """An id given three times in one batch is one record, with the vector, text and metadata given last."""
    records.put(["c", "c", "c"], np.eye(DIMENSION)[:3], ["1", "2", "3"], [{"n": 1}, {"n": 2}, {"n": 3}])
    (found,) = records.get(["c"])
    assert found is not None and found.text == "3" and found.metadata == {"n": 3}
    assert len(records) == 3 and [hit.id for hit in records.search(np.eye(DIMENSION)[2], k=1)] == ["c"]


def test_the_largest_ids_and_texts_come_back(pool: sr.Pool) -> None:
    """An id of exactly 64 KiB and a text of 50 MB are stored, read and deleted like any other."""
    collection = pool.collection("large")
    longest, text = "é" * (ID_BYTES_MAX // 2), "0123456789" * 5_000_000
    collection.put([longest], None, [text])
    assert longest in collection
    assert collection.get([longest])[0].text == text  # type: ignore[union-attr]
    assert pool.verify().ok
    assert collection.delete([longest]) == 1 and len(collection) == 0


def test_a_batch_larger_than_the_pool_is_too_large(pool: sr.Pool) -> None:
    """What no emptying of the pool could make room for says so, and advises to split it or make a larger pool."""
    collection = pool.collection("large", dimension=DIMENSION)
    with refused(collection, sr.RecordTooLarge, "Split the batch"):
        collection.put(["a"], None, ["x" * (65 << 20)])


def test_impossible_ids_are_in_no_collection(records: sr.Collection) -> None:
    """`in` says no to whatever cannot be an id, as it does to an id that is not there."""
    for impossible in ("", "\ud800", "x" * (ID_BYTES_MAX + 1), None, 5, b"a", ["a"]):
        assert impossible not in records
    assert "a" in records


def test_one_record_with_a_million_keys(pool: sr.Pool) -> None:
    """Metadata with a million keys is stored, filtered by and read back whole."""
    collection = pool.collection("keys")
    many = {f"key {number}": number for number in range(1_000_000)}
    collection.put(["many", "few"], None, None, [many, {"key 7": 8}])
    assert collection.get(["many"])[0].metadata == many  # type: ignore[union-attr]
    assert [one.id for one in collection.find({"key 999999": 999_999})] == ["many"]
    assert [one.id for one in collection.find({"key 7": {">": 7}})] == ["few"]


def test_many_records_with_a_key_of_their_own_each(pool: sr.Pool) -> None:
    """Twenty thousand records with as many different keys are no schema: each is found by its own."""
    collection = pool.collection("keys")
    numbers = range(20_000)
    collection.put([f"{one}" for one in numbers], None, None, [{f"own {one}": one} for one in numbers])
    for one in (0, 777, 19_999):
        assert [record.id for record in collection.find({f"own {one}": one})] == [f"{one}"]
    assert len(collection.find({"own 5": {"is_empty": None}})) == 19_999


def test_numbers_at_the_ends_of_64_bits_come_back(records: sr.Collection) -> None:
    """The greatest and least integers that JSON metadata may hold survive, and so do the floats' extremes."""
    ends = {"max": (1 << 64) - 1, "min": -(1 << 63), "large": 1.7976931348623157e308, "small": 5e-324, "zero": -0.0}
    records.put(["ends"], None, None, [ends])
    assert records.get(["ends"])[0].metadata == ends  # type: ignore[union-attr]
    assert [one.id for one in records.find({"max": (1 << 64) - 1})] == ["ends"]


@pytest.mark.parametrize("k", [0, -1, True, False, 1.5, None, "3"])
def test_a_k_that_is_no_count_is_refused(records: sr.Collection, k: Any) -> None:
    """The k must be a whole number of at least 1; True is none."""
    with refused(records, sr.InvalidRecord, "k is"):
        records.search(ONE[0], k)


def test_a_k_larger_than_the_collection_gives_all_there_is(records: sr.Collection) -> None:
    """However large k is, there are as many hits as records with a vector, and none in an empty collection."""
    records.put(["no vector"])
    counts: list[Any] = [3, 10_000, 1 << 70, np.int64(5)]
    for k in counts:
        assert [hit.id for hit in records.search(ONE[0], k)] == ["a", "b"]
    assert [len(hits) for hits in records.search(np.eye(DIMENSION), 1 << 40)] == [2] * DIMENSION
    assert records.pool.collection("empty", dimension=DIMENSION).search(ONE[0], 5) == []


ASKS: dict[str, tuple[Callable[[sr.Collection], object], str]] = {
    "unknown operator": (lambda c: c.search(ONE[0], filter={"room": {"~=": 1}}), "no operator '~='"),
    "unknown operator in find": (lambda c: c.find({"room": {"$regex": "x"}}), "operator"),
    "a list": (lambda c: c.find([1]), "a filter is a list"),  # type: ignore[arg-type]
    "a key that is no str": (lambda c: c.find({1: 2}), "Keys are strings"),  # type: ignore[dict-item]
    "$and of no list": (lambda c: c.find({"$and": 5}), r"\$and"),
    "unknown column": (lambda c: c.scan(columns=["id", "nope"]), "nope"),
    "negative limit": (lambda c: c.find(limit=-1), "limit is -1"),
    "limit of no count": (lambda c: c.find(limit=1.5), "limit is 1.5"),  # type: ignore[arg-type]
    "limit: True": (lambda c: c.find(limit=True), "limit is True"),
}


@pytest.mark.parametrize("name", ASKS)
def test_filters_and_limits_that_mean_nothing_are_refused(records: sr.Collection, name: str) -> None:
    """A question that cannot be meant raises InvalidFilter with the operators, columns or form there are."""
    do, what = ASKS[name]
    with refused(records, sr.InvalidFilter, what):
        do(records)


@pytest.mark.parametrize(
    "definition",
    [
        {"name": ""},
        {"name": None},
        {"name": 5},
        {"name": "x" * 256},
        {"name": "\ud800"},
        {"dimension": 0},
        {"dimension": -1},
        {"dimension": True},
        {"dimension": 1.5},
        {"dimension": 65_537},
        {"metric": "manhattan"},
        {"dtype": "int8"},
        {"embedding_model": 5},
        {"embedding_model": "\ud800"},
        {"embedding_model": "x" * 256},
    ],
    ids=repr,
)
def test_impossible_collections_are_refused(pool: sr.Pool, definition: dict[str, Any]) -> None:
    """A definition that cannot be raises ValueError saying what is wanted, and the catalog stays as it is."""
    pool.collection("there")
    with pytest.raises(ValueError, match="want"):
        pool.collection(**{"name": "new", **definition})
    assert pool.collections() == ["there"]
    with pytest.raises(ValueError, match="want a str"):
        pool.exclusive(5).__enter__()  # type: ignore[arg-type]
