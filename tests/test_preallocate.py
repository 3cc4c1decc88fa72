"""Pools that hold all their memory from the start: nothing is taken or given back later, and old bytes are never seen."""

from __future__ import annotations

import os
from contextlib import suppress

import numpy as np
import pytest

from sharedrag import Pool, PoolFull
from sharedrag.memory.layout import MIB

WIDTH = 16


def test_all_memory_is_held_from_creation_on(pool_path: str) -> None:
    """Deleting and reclaiming changes nothing about it; an ordinary pool gives memory back."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", preallocate=True, maintenance=False) as pool:
        assert pool.info().preallocated
        held = os.stat(pool_path).st_blocks * 512
        assert held >= 16 * MIB
        collection = pool.collection("texts")
        for _ in range(3):
            collection.put([str(number) for number in range(200)], texts=["x" * 10_000] * 200)
            collection.delete([str(number) for number in range(200)])
            pool.maintain()
            pool.maintain()
        assert os.stat(pool_path).st_blocks * 512 == held
        assert pool.verify().ok


def test_memory_used_before_is_not_mistaken_for_records(pool_path: str) -> None:
    """Segments are made over what older ones left there: full of valid rows of other collections."""
    rng = np.random.default_rng(3)
    with Pool.open(pool_path, create=True, capacity="8 MiB", preallocate=True, maintenance=False) as pool:
        for round_ in range(12):
            name = f"round {round_}"
            collection = pool.collection(name, dimension=WIDTH)
            ids = [f"{round_}-{number}" for number in range(300)]
            vectors = rng.standard_normal((300, WIDTH)).astype(np.float32)
            collection.put(ids[:150], vectors[:150], ["t" * 900] * 150, [{"round": round_}] * 150)
            collection.put(ids[150:], None, ["u" * 900] * 150)
            with Pool.open(pool_path, maintenance=False) as other:
                seen = other.collection(name)
                assert len(seen) == 300
                assert {hit.id for hit in seen.search(vectors[0], k=300)} == set(ids[:150])
                assert [one.text[0] for one in seen.get(ids) if one and one.text] == ["t"] * 150 + ["u"] * 150
                assert seen.get([f"{round_ - 1}-0"]) == [None]
            pool.drop(name)
            pool.maintain()
            pool.maintain()
        assert pool.verify().ok


def test_a_full_one_can_be_emptied(pool_path: str) -> None:
    """`PoolFull` comes from the pool's own budget alone, and deletes make room again."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", preallocate=True, maintenance=False) as pool:
        collection = pool.collection("texts")
        written = 0
        with suppress(PoolFull):
            for written in range(10_000):
                collection.put([str(written)], texts=["x" * 5000])
        assert 0 < written < 1000
        assert len(collection) == written
        collection.delete([str(number) for number in range(written)])
        for _ in range(4):
            pool.maintain()
        collection.put(["again"], texts=["x" * 5000])
        assert pool.verify().ok


def test_it_is_made_whole_or_not_at_all(pool_path: str) -> None:
    """More than the file system has: `PoolFull` with advice, and no file."""
    system = os.statvfs(os.path.dirname(pool_path))
    with pytest.raises(PoolFull, match="left"):
        Pool.open(pool_path, create=True, capacity=system.f_blocks * system.f_frsize + (64 << 20), preallocate=True)
    assert not os.path.exists(pool_path)
