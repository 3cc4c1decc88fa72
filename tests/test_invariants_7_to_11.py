"""One test, or a few, for each of the numbered invariants of the design, on the arena as it is built. Here 7 to 11."""

from __future__ import annotations

import os
import signal
import struct
from pathlib import Path

import numpy as np
import pytest

from sharedrag import Pool, PoolBusy, PoolDamaged, UnsupportedFileSystem
from sharedrag.arena.attachment import Arena
from sharedrag.arena.manifest import Manifest
from sharedrag.memory import layout, locks, order
from sharedrag.memory.layout import clock_of
from tests.crash import checks
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import fill_and_decay, keys_of, notes, segments_of, texts_of
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote

# ---------------------------------------------------------------------- 7  a delete stays deleted


def rows_with(pool: Pool, one: str) -> int:
    """How many rows, live or dead, put or tombstone, the visible segments hold of an id."""
    encoded = one.encode()
    return sum(sum(segment.id_at(row) == encoded for row in range(segment.watermark())) for _, segment in segments_of(pool))


def _roll_and_merge(pool: Pool) -> None:
    for _ in range(3):
        fill_and_decay(pool)
        pool.maintain()


def test_invariant_07_a_put_that_was_stopped_does_not_bring_a_deleted_record_back(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """Stopped with its key chosen; the id is deleted elsewhere, all is merged; it publishes: the record stays deleted."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        collection.put(["x"], texts=["first"])
        writer = Remote(launcher, pool_path, fault="put.linked:stop", maintenance=False)
        writer.begin("notes", "put", ["x"], texts=["late"])
        writer.worker.wait_stopped()
        assert collection.delete(["x"]) == 1
        _roll_and_merge(pool)
        assert rows_with(pool, "x") == 1, "the tombstone, and nothing else, must be left"
        writer.worker.signal(signal.SIGCONT)
        assert writer.finish() is None
        with Pool.open(pool_path, maintenance=False) as fresh:
            for handle in (pool, fresh):
                assert handle.collection("notes").get(["x"]) == [None]
                assert "x" not in texts_of(handle.collection("notes"))
        writer.pool("close")
        _roll_and_merge(pool)
        assert collection.get(["x"]) == [None]
        assert rows_with(pool, "x") == 0, "nobody can bring it back any more: the tombstone may go"


def test_invariant_07_a_put_stopped_before_its_key_comes_after_the_delete(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Stopped with only its intent stored, it chooses a key beyond the horizon: a new put, seen alike by everybody."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        collection.put(["x"], texts=["first"])
        writer = Remote(launcher, pool_path, fault="put.intent:stop", maintenance=False)
        writer.begin("notes", "put", ["x"], texts=["late"])
        writer.worker.wait_stopped()
        collection.delete(["x"])
        _roll_and_merge(pool)
        words, area = pool.arena.region.words, pool.arena.geometry.node_offset(0)
        horizon = words[(area + layout.HORIZON_OFFSET) >> 3] & order.VALUE_MASK
        writer.worker.signal(signal.SIGCONT)
        assert writer.finish() is None
        assert clock_of(keys_of(collection)["x"]) > horizon
        with Pool.open(pool_path, maintenance=False) as fresh:
            assert [record and record.text for record in fresh.collection("notes").get(["x"])] == ["late"]


def test_invariant_07_a_dead_writers_intent_holds_nothing(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Killed with its intent stored, a writer keeps no tombstone alive: the maintainer clears what nobody holds."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        collection.put(["x"], texts=["first"])
        writer = Remote(launcher, pool_path, fault="put.intent:kill", maintenance=False)
        writer.begin("notes", "put", ["y"], texts=["never"])
        assert writer.worker.wait() == -signal.SIGKILL
        collection.delete(["x"])
        _roll_and_merge(pool)
        assert rows_with(pool, "x") == 0
        assert collection.get(["x", "y"]) == [None, None]


def test_invariant_07_a_tombstone_stays_while_its_victim_lies_in_another_node(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Node 0 deletes what node 1 wrote: the tombstone goes only after node 1 merged the record away."""
    with Pool.open(pool_path, create=True, capacity="32 MiB", nodes=2, maintenance=False) as pool:
        other = Remote(launcher, pool_path, node=1, maintenance=False)
        other.on("notes", "put", ["x"], texts=["of node 1"])
        collection = pool.collection("notes")
        assert collection.delete(["x"]) == 1
        _roll_and_merge(pool)
        assert rows_with(pool, "x") == 2
        for number in range(8):  # node 1's segment with the record is sealed and decays
            ids, texts = notes("m", 60)
            other.on("notes", "put", ids, texts=[f"{text} {number} " + "x" * 1500 for text in texts])
        for _ in range(3):
            other.pool("maintain")
        assert rows_with(pool, "x") == 1
        _roll_and_merge(pool)
        assert rows_with(pool, "x") == 0
        assert pool.arena.refresh().manifests[0].relies_on[1] > 0, "node 0 must not be read with an older node 1"
        for handle in (pool, other):
            found = handle.collection("notes").get(["x"]) if isinstance(handle, Pool) else handle.on("notes", "get", ["x"])
            assert found == [None]


# ---------------------------------------------------------------------- 8  one manifest, one truth


def test_invariant_08_a_manifest_is_not_read_with_older_ones_than_it_relies_on(
    pool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A reader that got node 1's manifest from before what node 0's relies on reads again."""
    with (
        Pool.open(pool_path, create=True, capacity="16 MiB", nodes=2, maintenance=False) as pool,
        Pool.open(pool_path, node=1, maintenance=False) as other,
    ):
        old = pool.arena.refresh().manifests[1]
        other.collection("notes").put(["x"], texts=["of node 1"])
        newest = other.arena.refresh().manifests[1].generation
        with pool.arena.node_locked("test") as current:
            assert current is not None
            relies_on = tuple(newest if node == 1 else 0 for node in range(layout.NODES_MAX))
            pool.arena.publish(current.successor(relies_on=relies_on))
        load = Arena._load_node
        stale = [old]

        def slow(arena: Arena, node: int, root: int) -> Manifest:
            return stale.pop() if node == 1 and stale else load(arena, node, root)

        monkeypatch.setattr(Arena, "_load_node", slow)
        snapshot = pool.arena.refresh()
        assert not stale, "the stale manifest was not offered"
        assert snapshot.manifests[1].generation >= newest


def test_invariant_08_every_extent_has_one_owner_through_everything(pool_path: str) -> None:
    """After each of many puts, deletes, drops and rounds, entries do not overlap, and memory stands behind them alone."""
    with Pool.open(pool_path, create=True, capacity="8 MiB", maintenance=False) as pool:
        fixed = checks.fixed_memory(pool)
        chance = np.random.default_rng(5)
        for number in range(60):
            name = f"c{chance.integers(3)}"
            kind = chance.random()
            if kind < 0.6:
                ids = [f"n{one}" for one in chance.choice(80, size=40, replace=False)]
                pool.collection(name).put(ids, texts=["x" * int(chance.integers(2000))] * 40)
            elif kind < 0.75:
                pool.collection(name).delete([f"n{one}" for one in range(0, 80, 3)])
            elif kind < 0.8 and name in pool.collections():
                pool.drop(name)
            else:
                pool.maintain()
            checks.check_map(pool)
            assert pool.arena.region.allocated() == fixed + checks.entry_bytes(pool), f"after step {number}"
        pool.maintain()
        checks.check_space(pool, fixed)
        checks.check_verifies(pool)


# ---------------------------------------------------------------------- 9  the dead hold nothing


def test_invariant_09_kill_frees_every_lock_at_once(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """What a process held is free the moment it is dead: nobody waits for a time-out."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", lock_timeout_s=0.02, maintenance=False) as pool:
        pool.collection("notes")
        worker = launcher.start("tests.crash.workers:hold_everything", pool_path)
        assert worker.receive() == "held"
        with pytest.raises(PoolBusy, match=str(worker.pid)):
            pool.collection("another")
        assert not _elected(pool)
        worker.signal(signal.SIGKILL)
        worker.wait()
        with pool.exclusive("name"):
            pool.collection("another").put(["y"], texts=["node lock"])
        assert _elected(pool)
        assert [lane.lane for lane in pool.info().lanes if lane.held] == [0], "the dead process's lane"
        assert [one.pid for one in pool.info().sessions] == [os.getpid()]


def _elected(pool: Pool) -> bool:
    return pool.maintain().elected


def test_invariant_09_a_wrong_lock_structure_is_found_at_open(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel accepts a wrongly packed `struct flock` and locks other bytes: the self-test at open refuses that."""
    Pool.open(pool_path, create=True, capacity="4 MiB").close()
    monkeypatch.setattr(locks, "_FLOCK", struct.Struct("=hhqqi8x"))  # without the padding before the offset
    with pytest.raises(UnsupportedFileSystem, match="byte-range locks"):
        Pool.open(pool_path)


# ---------------------------------------------------------------------- 10  what is read from the pool is input


def test_invariant_10_damage_is_a_typed_error_that_says_where(pool_path: str) -> None:
    """A changed root, manifest, header, watermark, link, head or row: PoolDamaged with the offset, then fine when undone."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        ids, texts = notes("n", 40)
        pool.collection("notes", 4).put(ids, np.eye(40, 4) + 1, texts)
        ((_, segment),) = segments_of(pool)
        geometry = pool.arena.geometry
        generation = pool.arena.refresh().manifests[0].generation
        start = {name: segment.offset + at for name, (at, _) in segment.columns.items()}
        places = {
            "root": geometry.node_offset(0) + layout.ROOT_OFFSET,
            "manifest header": geometry.manifest_offset(0, generation) + 9,
            "manifest body": geometry.manifest_offset(0, generation) + 200,
            "segment header": segment.offset + 20,
            "watermark": segment.watermark_index << 3,
            "link": start["link"] + 8 * 7,
            "heads": start["heads"] + 8 * int((segment.heads_array & 0xFFFFFF).argmax()),
            "text": start["text_heap"] + 3,
            "vector": start["vectors"] + 5,
            "key": start["key"] + 8 * 9,
            "flags": start["flags"] + 2 * 9,
            "id offsets": start["id_offsets"] + 4 * 9 + 3,
        }
    for what, offset in places.items():
        _flip(pool_path, offset)
        with pytest.raises(PoolDamaged) as raised:
            _look_at_everything(pool_path)
        assert 0 <= raised.value.offset < os.path.getsize(pool_path), what
        assert raised.value.path == os.path.realpath(pool_path), what
        assert raised.value.hint, what
        _flip(pool_path, offset)
        _look_at_everything(pool_path)


def _flip(path: str, offset: int) -> None:
    with Path(path).open("r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x55]))


def _look_at_everything(path: str) -> None:
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection("notes")
        assert all(collection.get([f"n{number}" for number in range(40)]))
        assert len(collection.find()) == 40
        assert len(collection.search(np.ones(4), k=40)) == 40
        problems = pool.verify().problems
        if problems:
            raise PoolDamaged(problems[0].what, offset=problems[0].offset, path=pool.path, hint=problems[0].advice)


def test_invariant_10_rows_beyond_the_watermark_are_skipped(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Rows that a killed writer linked and did not publish do not exist, for any way of reading, before any repair."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        collection = pool.collection("notes", 4)
        writer = Remote(launcher, pool_path, fault="put.linked:kill:2", maintenance=False)
        ids, texts = notes("n", 20)
        writer.on("notes", "put", ids, np.ones((20, 4)), texts)
        writer.begin("notes", "put", [*ids[:5], "new"], np.ones((6, 4)), ["unpublished"] * 6)
        assert writer.worker.wait() == -signal.SIGKILL
        ((_, segment),) = segments_of(pool)
        assert int((segment.heads_array & 0xFFFFFF).max()) > segment.watermark(), "no head leads beyond the watermark"
        assert texts_of(collection) == dict(zip(ids, texts, strict=True))
        assert collection.get(["new"]) == [None]
        assert len(collection.search(np.ones(4), k=50)) == 20
        assert collection.scan().num_rows == len(collection) == 20
        assert pool.verify().ok


# ---------------------------------------------------------------------- 11  no touch beyond reserved memory


def test_invariant_11_reading_reserves_nothing(pool_path: str) -> None:
    """Attaching, getting, finding, searching, scanning, verifying and asking touch no page that was not reserved."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        collection = pool.collection("notes", 16)
        ids, texts = notes("n", 500)
        collection.put(ids, np.ones((500, 16)), texts, [{"room": "hawaii"}] * 500)
        collection.delete(ids[:100])
        pool.maintain()  # gives back what free extents still held: touching one would show
        before = pool.arena.region.allocated()
        with Pool.open(pool_path, maintenance=False) as reader:
            found = reader.collection("notes")
            found.get([*ids, "nobody"])
            found.find({"room": "hawaii"}, limit=10)
            found.search(np.ones((3, 16)), k=600, filter={"room": "hawaii"})
            assert len(found.scan().to_pylist()) == 400
            reader.info()
            assert reader.verify().ok
            assert (len(found), found.version) == (400, collection.version)
            reader.move_pins_on()
        assert pool.arena.region.allocated() == before


def test_invariant_11_writing_reserves_before_it_touches(pool_path: str) -> None:
    """The memory behind the file grows when a segment is made, by its whole size, and by no put into it."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fixed = checks.fixed_memory(pool)
        collection = pool.collection("notes", 16)
        generations = set()
        for number in range(1500):
            collection.put([f"n{number}"], np.ones((1, 16)), ["x" * 500])
            assert pool.arena.region.allocated() == fixed + checks.entry_bytes(pool)
            generations.add(pool.arena.current.manifests[0].generation)
        assert len(generations) > 2, "no segment was made meanwhile"
        assert len(generations) < 30, "segments do not grow"
