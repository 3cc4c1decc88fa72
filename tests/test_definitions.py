"""Which collections there are: definitions, drops, and handles and objects that outlive them."""

from __future__ import annotations

import multiprocessing
import pickle
from collections.abc import Iterator
from multiprocessing.queues import SimpleQueue
from multiprocessing.synchronize import Barrier

import pytest

from sharedrag import (
    Collection,
    CollectionDropped,
    CollectionMismatch,
    CollectionNotFound,
    InvalidRecord,
    Pool,
    PoolClosed,
)
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
        pool.collection("plain").put(["a"])
        for handle in (pool, other):
            for arguments in ((4,), (3, "l2"), (3, "cosine", "float16")):
                with pytest.raises(CollectionMismatch, match="'c'"):
                    handle.collection("c", *arguments)
            with pytest.raises(CollectionMismatch):
                handle.collection("c", 3, embedding_model="another")
            with pytest.raises(CollectionMismatch):
                handle.collection("plain", 3)
            assert len(handle.collection("c", 3, embedding_model="m")) == 1

    def test_a_reader_who_comes_first_decides_nothing(self, pool: Pool, other: Pool) -> None:
        """Asked for by name only, a new collection has no vectors until somebody who knows them asks, or writes."""
        reader = other.collection("c")
        with pytest.raises(InvalidRecord, match="no vectors"):
            reader.search([1, 2, 3])
        pool.collection("c", 3, "ip", embedding_model="m").put(["a"], [[1, 2, 3]])
        with pytest.raises(CollectionDropped):
            reader.put(["b"])
        assert ids_of(other.collection("c").search([1, 2, 3])) == ["a"]
        for handle in (pool, other):
            with pytest.raises(CollectionMismatch):
                handle.collection("c", 4)

    def test_on_any_node_what_was_written_decides(self, pool_path: str) -> None:
        """Two nodes know a collection without vectors: one row in one of them, and it stays as it is for both."""
        with (
            Pool.open(pool_path, create=True, capacity="16 MiB", nodes=2) as first,
            Pool.open(pool_path, node=1) as second,
        ):
            first.collection("c").put(["a"])
            assert second.collection("c").delete(["a"]) == 1
            second.collection("d")
            first.collection("d")
            for handle in (first, second):
                with pytest.raises(CollectionMismatch):
                    handle.collection("c", 3)
                assert handle.collection("d", 3).dimension == 3
            first.collection("c").put(["b"])
            second.collection("c").put(["c"])
            assert ids_of(first.collection("c").find()) == ["b", "c"]

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


_RACES = 150


def _define_and_put(path: str, node: int, barrier: Barrier, acknowledged: SimpleQueue[list[str]]) -> None:
    """By turns with vectors and by name only, at the same moment as the other node the other way."""
    done = []
    with Pool.open(path, node=node, maintenance=False) as pool:
        for number in range(_RACES):
            with_vectors = number % 2 == node
            barrier.wait(60)
            try:
                collection = pool.collection(f"c{number}", 3 if with_vectors else None)
                collection.put([f"{number}/{node}"], [[1, 2, 3]] if with_vectors else None)
            except (CollectionMismatch, CollectionDropped):
                continue
            done.append(f"{number}/{node}")
    acknowledged.put(done)


def test_nodes_that_define_at_once_agree(pool_path: str) -> None:
    """Whoever comes first decides, on every node; what was acknowledged is there, and the other is told."""
    Pool.open(pool_path, create=True, capacity="128 MiB", nodes=2).close()
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.SimpleQueue()
    processes = [context.Process(target=_define_and_put, args=(pool_path, node, barrier, results)) for node in range(2)]
    for process in processes:
        process.start()
    acknowledged = {identity for _ in processes for identity in results.get()}
    for process in processes:
        process.join()
    with Pool.open(pool_path) as pool:
        manifests = pool.arena.refresh().manifests
        for number in range(_RACES):
            name = f"c{number}"
            definitions = {found.dimension for one in manifests if (found := one.collection(name))}
            assert len(definitions) == 1
            there = {one for one in (f"{number}/0", f"{number}/1") if one in pool.collection(name)}
            assert there == {one for one in acknowledged if one.startswith(f"{number}/")}
            assert there, "one of the two comes first"
