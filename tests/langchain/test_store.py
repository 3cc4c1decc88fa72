"""The LangChain key-value stores: LangChain's own suites in one process and over two, then what they do beyond."""

from __future__ import annotations

import pickle
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from datetime import UTC, datetime
from itertools import cycle
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.stores import BaseStore
from langchain_tests.integration_tests.base_store import BaseStoreAsyncTests, BaseStoreSyncTests

from sharedrag import InvalidRecord, Pool
from sharedrag.langchain import SharedRagByteStore, SharedRagStore
from tests.langchain.conftest import Elsewhere

BYTES = (b"text", bytes(range(256)), "gr\u00fc\u00df dich".encode())
VALUES = ("text", [1, None, {"a": 2.5}], False)


def _keys(store: BaseStore[str, Any], prefix: str | None) -> list[str]:
    return list(store.yield_keys(prefix=prefix))


class Alternating(BaseStore[str, Any]):
    """A store whose calls are done here and in another process by turns."""

    def __init__(self, store: SharedRagByteStore | SharedRagStore, elsewhere: Elsewhere) -> None:
        self.store = store
        self.places: cycle[Callable[..., Any]] = cycle([elsewhere, lambda function, *args: function(*args)])

    def mget(self, keys: Sequence[str]) -> list[Any]:
        """By turns."""
        found: list[Any] = next(self.places)(self.store.mget, keys)
        return found

    def mset(self, key_value_pairs: Sequence[tuple[str, Any]]) -> None:
        """By turns."""
        next(self.places)(self.store.mset, key_value_pairs)

    def mdelete(self, keys: Sequence[str]) -> None:
        """By turns."""
        next(self.places)(self.store.mdelete, keys)

    def yield_keys(self, *, prefix: str | None = None) -> Iterator[str]:
        """By turns."""
        yield from next(self.places)(_keys, self.store, prefix)

    async def ayield_keys(self, *, prefix: str | None = None) -> AsyncIterator[str]:
        """Here: an asynchronous iterator does not cross processes."""
        async for key in self.store.ayield_keys(prefix=prefix):
            yield key


class Stores:
    """The stores that LangChain's suites are run over: of bytes and of JSON values, in one process and over two."""

    @pytest.fixture(params=["bytes", "JSON"])
    def kind(self, request: pytest.FixtureRequest) -> str:
        """What is stored."""
        return str(request.param)

    @pytest.fixture(params=["one process", "two processes"])
    def kv_store(self, request: pytest.FixtureRequest, kind: str, pool: Pool) -> BaseStore[str, Any]:
        """An empty store."""
        store = SharedRagByteStore(pool, "standard") if kind == "bytes" else SharedRagStore(pool, "standard")
        return store if request.param == "one process" else Alternating(store, request.getfixturevalue("elsewhere"))

    @pytest.fixture
    def three_values(self, kind: str) -> tuple[Any, Any, Any]:
        """Text, bytes that are no text, text beyond ASCII; or a text, a nested list, a falsy value."""
        return BYTES if kind == "bytes" else VALUES


class TestStandardSuite(Stores, BaseStoreSyncTests[Any]):
    """LangChain's standard suite."""


class TestStandardSuiteAsync(Stores, BaseStoreAsyncTests[Any]):
    """LangChain's standard suite of the asynchronous forms."""


_in_one_pool = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=100)


@_in_one_pool
@given(values=st.lists(st.binary(max_size=200) | st.text().map(lambda text: text.encode(errors="replace")), min_size=1))
def test_any_bytes_come_back_as_they_were(pool: Pool, values: list[bytes]) -> None:
    """Whatever bytes are set, text or not, empty or with zeros, `mget` returns exactly them."""
    store = SharedRagByteStore(pool)
    pairs = [(f"key {number}", value) for number, value in enumerate(values)]
    store.mset(pairs)
    assert store.mget([key for key, _ in pairs]) == values


_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(st.characters(codec=None)),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=20,
)


@_in_one_pool
@given(value=_json)
def test_any_json_value_comes_back_as_it_was(pool: Pool, value: Any) -> None:
    """Whatever JSON value is set, with huge integers, infinities or lone surrogates, `mget` returns an equal one."""
    store = SharedRagStore(pool)
    store.mset([("key", value)])
    assert store.mget(["key"]) == [value]


def test_texts_are_stored_as_they_are(pool: Pool) -> None:
    """Bytes that are UTF-8 stand in the pool as that text, readable and without overhead."""
    SharedRagByteStore(pool, "cache").mset([("key", b'{"vector": [1, 2]}')])
    [record] = pool.collection("cache.bytes").get(["key"])
    assert record is not None
    assert (record.text, record.metadata) == ('{"vector": [1, 2]}', {})


def test_what_json_lacks_is_written_as_pydantic_does_or_refused(pool: Pool) -> None:
    """Datetimes come back as text and tuples as lists; an object of no known kind is refused, and nothing is set."""
    store = SharedRagStore(pool)
    moment = datetime(2026, 1, 2, tzinfo=UTC)
    store.mset([("a", {"at": moment, "pair": (1, 2)})])
    assert store.mget(["a"]) == [{"at": "2026-01-02T00:00:00Z", "pair": [1, 2]}]
    with pytest.raises(InvalidRecord, match="not JSON"):
        store.mset([("b", 1), ("c", object())])
    assert store.mget(["b", "c"]) == [None, None]


def test_values_are_fresh_copies(pool: Pool) -> None:
    """A caller who changes a value that was returned changes nothing in the store."""
    store = SharedRagStore(pool)
    store.mset([("a", {"list": []})])
    [value] = store.mget(["a"])
    assert value is not None
    value["list"].append("changed")
    assert store.mget(["a"]) == [{"list": []}]


def test_a_value_of_none_is_there(pool: Pool) -> None:
    """None is a value like others: its key is listed, though `mget` cannot tell it from a missing one."""
    store = SharedRagStore(pool)
    store.mset([("a", None)])
    assert store.mget(["a"]) == [None]
    assert list(store.yield_keys()) == ["a"]


async def test_keys_in_the_order_of_their_values(pool: Pool) -> None:
    """Keys come oldest value first, narrowed by a prefix that is taken literally, the asynchronous form alike."""
    store = SharedRagByteStore(pool)
    store.mset([("b%1", b""), ("a", b""), ("b.2", b"")])
    store.mset([("b%1", b"again")])
    assert list(store.yield_keys()) == ["a", "b.2", "b%1"]
    assert list(store.yield_keys(prefix="b%")) == ["b%1"]
    assert [key async for key in store.ayield_keys(prefix="b")] == ["b.2", "b%1"]
    assert list(store.yield_keys(prefix="c")) == []


def test_of_equal_keys_the_last_counts(pool: Pool) -> None:
    """A key that is set twice in one call has the later value."""
    store = SharedRagByteStore(pool)
    store.mset([("a", b"first"), ("a", b"second")])
    assert store.mget(["a", "a"]) == [b"second", b"second"]


def test_stores_of_one_name_do_not_disturb_each_other(pool: Pool) -> None:
    """Bytes and JSON values under one collection name and key are two things."""
    SharedRagByteStore(pool, "name").mset([("key", b"bytes")])
    SharedRagStore(pool, "name").mset([("key", "json")])
    assert SharedRagByteStore(pool, "name").mget(["key"]) == [b"bytes"]
    assert SharedRagStore(pool, "name").mget(["key"]) == ["json"]


def test_a_path_is_enough_and_pickling_keeps_the_place(pool_path: str) -> None:
    """A store given a path makes the pool, shares the process's handle, and finds its values when unpickled."""
    store = SharedRagByteStore(pool_path, "cache")
    store.mset([("a", b"value")])
    back: SharedRagByteStore = pickle.loads(pickle.dumps(store))
    assert back.mget(["a"]) == [b"value"]
    assert back.pool is store.pool
    store.pool.close()


def _set_one_by_one(store: SharedRagByteStore, name: str, count: int) -> None:
    for number in range(count):
        store.mset([(f"{name}-{number}", name.encode())])


def test_two_processes_that_set_at_once_lose_nothing(pool: Pool, elsewhere: Elsewhere) -> None:
    """Of two times 500 keys, set one by one by two processes at once, all are there."""
    store = SharedRagByteStore(pool)
    theirs = elsewhere.start(_set_one_by_one, store, "theirs", 500)
    _set_one_by_one(store, "ours", 500)
    theirs.result(60)
    for name in ("ours", "theirs"):
        assert set(store.yield_keys(prefix=name)) == {f"{name}-{number}" for number in range(500)}
