"""Which collections there are: definitions, drops, and handles and objects that outlive them."""

from __future__ import annotations

import pickle
from collections.abc import Iterator

import pytest

from sharedrag import Collection, CollectionDropped, CollectionMismatch, CollectionNotFound, Pool, PoolClosed
from tests.test_collection import ids_of


@pytest.fixture
def other(pool: Pool) -> Iterator[Pool]:
    """A second handle to the same pool, in this process."""
    with Pool.open(pool.path) as opened:
        yield opened


class TestDefinitions:
    def test_the_same_definition_gives_the_same_object(self, pool: Pool, other: Pool) -> None:
        """A collection asked for again, with its definition or just by name, is the one there is."""
        first = pool.collection("c", 3, "ip", "float16", embedding_model="m")
        assert pool.collection("c", 3, "ip", "float16") is pool.collection("c") is first
        same = other.collection("c")
        assert (same.dimension, same.metric, same.dtype, same.embedding_model) == (3, "ip", "float16", "m")
        assert pool.collections() == other.collections() == ["c"]

    def test_another_definition_is_refused(self, pool: Pool, other: Pool) -> None:
        """Another dimension, metric, dtype or embedding model raises and leaves the collection as it is."""
        pool.collection("c", 3, embedding_model="m").put(["a"], [[1, 2, 3]])
        pool.collection("plain")
        for handle in (pool, other):
            for arguments in ((4,), (3, "l2"), (3, "cosine", "float16")):
                with pytest.raises(CollectionMismatch, match="'c'"):
                    handle.collection("c", *arguments)
            with pytest.raises(CollectionMismatch):
                handle.collection("c", 3, embedding_model="another")
            with pytest.raises(CollectionMismatch):
                handle.collection("plain", 3)
            assert len(handle.collection("c", 3, embedding_model="m")) == 1

    def test_drop(self, pool: Pool, other: Pool) -> None:
        """A dropped collection is gone for every handle, and its name is free for another definition."""
        kept, writer = other.collection("c", 2), pool.collection("c", 2)
        writer.put(["a"], [[1, 2]])
        assert len(kept) == 1
        pool.drop("c")
        assert other.collections() == []
        for use in (lambda: len(kept), lambda: kept.put(["b"]), lambda: writer.get(["a"]), lambda: writer.put(["b"])):
            with pytest.raises(CollectionDropped):
                use()
        with pytest.raises(CollectionNotFound):
            other.drop("c")
        anew = pool.collection("c", 3, "l2")
        anew.put(["a"], [[1, 2, 3]])
        for use in (lambda: len(kept), lambda: kept.put(["b"]), lambda: writer.put(["b"])):
            with pytest.raises(CollectionDropped):
                use()
        assert ids_of(other.collection("c").find()) == ["a"]

    def test_made_anew_it_may_have_another_embedding_model(self, pool: Pool, other: Pool) -> None:
        """A handle that knew a dropped collection's embedding model reports that of the new one."""
        assert other.collection("c", 3, embedding_model="old").embedding_model == "old"
        pool.drop("c")
        pool.collection("c", 3, embedding_model="new")
        assert other.collection("c", 3, embedding_model="new").embedding_model == "new"

    def test_a_dropped_collection_holds_no_memory(self, pool_path: str) -> None:
        """A `Collection` kept over a drop, used or not, does not keep the pool from reusing memory."""
        texts = ["x" * 200] * 300
        with Pool.open(pool_path, create=True, capacity="2 MiB", maintenance=False) as pool:
            kept = []
            for dimension in (None, 2, None):
                kept.append(pool.collection("c", dimension))
                kept[-1].put(["a"])
                assert len(kept[-1]) == 1
                pool.drop("c")
            anew = pool.collection("c")
            for _ in range(60):
                anew.put([f"id-{number}" for number in range(300)], texts=texts)
                pool.maintain()
            assert len(kept[0]) == len(kept[2]) == len(anew) == 300
            for _ in range(60):
                anew.put([f"id-{number}" for number in range(300)], texts=texts)
                pool.maintain()

    def test_collections_do_not_mix(self, pool: Pool) -> None:
        """Collections of one pool hold the same ids apart."""
        for number in range(20):
            pool.collection(f"c-{number:02}", 2 if number % 2 else None).put(["a"], texts=[str(number)])
        assert pool.collections() == [f"c-{number:02}" for number in range(20)]
        for number in range(20):
            assert [record.text for record in pool.collection(f"c-{number:02}").find()] == [str(number)]

    def test_a_collection_can_be_pickled(self, pool: Pool) -> None:
        """A pickled collection opens its pool where it is unpickled."""
        collection = pool.collection("c", 2)
        collection.put(["a"], [[1, 2]])
        copy: Collection = pickle.loads(pickle.dumps(collection))
        try:
            assert copy.pool is not pool and copy.dimension == 2 and "a" in copy
        finally:
            copy.pool.close()

    def test_a_closed_handle_says_so(self, pool: Pool) -> None:
        """After `close`, every use of a collection raises `PoolClosed`."""
        collection = pool.collection("c", 2)
        collection.put(["a"], [[1, 2]])
        pool.close()
        for use in (
            lambda: len(collection),
            lambda: collection.get(["a"]),
            lambda: collection.put(["b"]),
            lambda: collection.search([1, 2]),
            collection.scan,
            lambda: pool.collection("c"),
        ):
            with pytest.raises(PoolClosed):
                use()
