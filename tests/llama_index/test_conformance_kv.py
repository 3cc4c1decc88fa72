"""What LlamaIndex's key-value and index stores promise, wherever the calls are executed."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from llama_index.core.data_structs.data_structs import IndexDict, IndexList

from tests.llama_index.staging import Alternating

Stores = Callable[[str], Alternating]


@pytest.fixture
def kv(stores: Stores) -> Alternating:
    """A key-value store."""
    return stores("SharedKVStore")


def test_a_value_is_got_back_as_it_was_put(kv: Alternating) -> None:
    """Put, get, and put again: the last value counts."""
    value = {"text": "aloha", "n": 1, "f": 1.5, "b": True, "none": None, "list": [1, {"a": []}], "dict": {"x": {}}}
    kv.put("k", value)
    assert kv.get("k") == value
    kv.put("k", {"n": 2})
    assert kv.get("k") == {"n": 2}
    assert kv.get_all() == {"k": {"n": 2}}


def test_a_missing_key_is_none(kv: Alternating) -> None:
    """Nothing is there before it is put, and nothing in a collection that nobody has used."""
    assert kv.get("k") is None
    assert kv.get("k", collection="other") is None
    assert kv.get_all() == {}
    assert kv.get_all(collection="other") == {}


def test_delete_tells_whether_it_was_there(kv: Alternating) -> None:
    """The first delete of a key is True, the next False, and a deleted key may be put again."""
    assert kv.delete("k") is False
    kv.put("k", {"n": 1})
    assert kv.delete("k") is True
    assert kv.delete("k") is False
    assert kv.get("k") is None
    kv.put("k", {"n": 2})
    assert kv.get("k") == {"n": 2}


def test_collections_do_not_see_each_other(kv: Alternating) -> None:
    """The same key lives once per collection, and names that could be confused are not."""
    places = [("a", "bc"), ("ab", "c"), ("", "abc"), ("abc", ""), ("1:a", "bc"), ("a", "1:bc"), ("data", "k")]
    for number, (collection, key) in enumerate(places):
        kv.put(key, {"n": number}, collection=collection)
    for number, (collection, key) in enumerate(places):
        assert kv.get(key, collection=collection) == {"n": number}
    assert kv.get_all(collection="a") == {"bc": {"n": 0}, "1:bc": {"n": 5}}
    assert kv.delete("bc", collection="a") is True
    assert kv.get("c", collection="ab") == {"n": 1}
    assert kv.get_all(collection="a") == {"1:bc": {"n": 5}}


@pytest.mark.parametrize("key", ["", " ", "a b", "ключ", "鍵", "🌺", "a/b", "a:b", "new\nline", "nul\x00", "x" * 5000])
def test_any_unicode_string_is_a_key(kv: Alternating, key: str) -> None:
    """A key's characters mean nothing to the store."""
    kv.put(key, {"key": key})
    assert kv.get(key) == {"key": key}
    assert list(kv.get_all()) == [key]
    assert kv.delete(key) is True


def test_put_all_stores_every_pair(kv: Alternating) -> None:
    """A list of pairs is stored in its collection; of equal keys the last counts; an empty list is nothing."""
    kv.put_all([("a", {"n": 1}), ("b", {"n": 2}), ("a", {"n": 3})])
    kv.put_all([("a", {"n": 4})], collection="other")
    kv.put_all([])
    assert kv.get_all() == {"a": {"n": 3}, "b": {"n": 2}}
    assert kv.get_all(collection="other") == {"a": {"n": 4}}


@pytest.mark.core_differs("its put_all refuses a batch size")
@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_put_all_takes_any_batch_size(kv: Alternating, batch_size: int) -> None:
    """A batch size, which other stores need, is no reason to fail."""
    pairs = [(f"k{number}", {"n": number}) for number in range(7)]
    kv.put_all(pairs, collection="c", batch_size=batch_size)
    assert kv.get_all(collection="c") == dict(pairs)


@pytest.mark.core_differs("get_all hands out its own dicts")
def test_what_is_returned_is_a_copy(kv: Alternating) -> None:
    """Whoever changes what he was given, or what he gave, changes nothing in the store."""
    value = {"list": [1]}
    kv.put("k", value)
    value["list"].append(2)
    for got in (kv.get("k"), kv.get("k"), kv.get_all()["k"], kv.get_all()["k"]):
        assert got == {"list": [1]}
        got["list"].append(3)


def test_index_structs_are_kept_by_id(stores: Stores) -> None:
    """Index structs of several kinds are stored, replaced, listed and deleted by their ids."""
    indexes = stores("SharedIndexStore")
    assert indexes.index_structs() == []
    assert indexes.get_index_struct("one") is None
    indexes.add_index_struct(IndexDict(index_id="one", nodes_dict={"v": "n"}))
    assert indexes.get_index_struct() == IndexDict(index_id="one", nodes_dict={"v": "n"})
    indexes.add_index_struct(IndexList(index_id="two", nodes=["n1", "n2"]))
    assert indexes.get_index_struct("two").nodes == ["n1", "n2"]
    indexes.add_index_struct(IndexDict(index_id="one", nodes_dict={"v": "m"}))
    assert indexes.get_index_struct("one").nodes_dict == {"v": "m"}
    assert {one.index_id for one in indexes.index_structs()} == {"one", "two"}
    indexes.delete_index_struct("one")
    indexes.delete_index_struct("never was")
    assert indexes.get_index_struct("one") is None
    assert [one.index_id for one in indexes.index_structs()] == ["two"]


@pytest.mark.core_differs("it only asserts")
def test_the_only_index_struct_is_asked_for_by_no_id(stores: Stores) -> None:
    """Without an id there must be exactly one struct, and the error says how many there are."""
    indexes = stores("SharedIndexStore")
    with pytest.raises(ValueError, match="There are 0 indexes"):
        indexes.get_index_struct()
    indexes.add_index_struct(IndexDict(index_id="one"))
    indexes.add_index_struct(IndexDict(index_id="two"))
    with pytest.raises(ValueError, match="There are 2 indexes"):
        indexes.get_index_struct()
