"""What outlives its pool, who is stopped, who holds a name, what runs out, several nodes, drops."""

from __future__ import annotations

import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sharedrag import CollectionDropped, Pool, PoolBusy, PoolClosed
from sharedrag.arena.manifest import State
from sharedrag.memory import layout
from sharedrag.memory.locks import LockFile
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import fill_and_decay, notes, reclaimed, stopped, texts_of, until
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote

# ---------------------------------------------------------------------- views that outlive things


def test_an_arrow_table_outlives_merges_of_its_segments(pool_path: str) -> None:
    """While a table from `scan` is held, its segments are merged and retired, but not one of its bytes changes."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool)
        collection = pool.collection("notes")
        table = collection.scan()
        content = table.to_pydict()
        report = pool.maintain()
        assert report.segments_merged
        assert report.segments_freed == 0
        assert report.segments_waiting
        fill_and_decay(pool)
        pool.maintain()
        assert not reclaimed(pool)
        assert table.to_pydict() == content
        del table
        assert reclaimed(pool), "the table is gone, its memory is still held"


def test_an_arrow_table_outlives_its_pool(pool_path: str) -> None:
    """A table is good after `close`, holds its memory against others' maintenance, and gives it back when it goes."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as other:
        fill_and_decay(other)
        pool = Pool.open(pool_path, maintenance=False)
        table = pool.collection("notes").scan()
        content = table.to_pydict()
        pool.close()
        assert other.maintain().segments_merged
        fill_and_decay(other)
        assert not reclaimed(other)
        assert table.to_pydict() == content
        column = table["text"].combine_chunks()
        del table
        assert column.to_pylist() == content["text"]
        del column
        assert reclaimed(other)
        assert len(other.info().sessions) == 1


def test_a_collection_that_outlives_its_pool_pins_nothing(pool_path: str) -> None:
    """After `close`, a Collection still in somebody's variable holds neither a session nor memory."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as other:
        fill_and_decay(other)
        with Pool.open(pool_path, maintenance=False) as pool:
            collection = pool.collection("notes")
            assert len(collection) == 60
        assert len(other.info().sessions) == 1
        assert other.maintain().segments_merged
        assert reclaimed(other)
        with pytest.raises(PoolClosed):
            len(collection)


def test_an_idle_writer_pins_nothing(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """A process that wrote once and does nothing since does not keep what others retire."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        idle = Remote(launcher, pool_path, maintenance=False)
        idle.on("other", "put", ["x"], texts=["once"])
        fill_and_decay(pool)
        assert pool.maintain().segments_merged
        until(lambda: reclaimed(pool), "an idle writer holds memory")
        assert idle.on("other", "get", ["x"])[0].text == "once"


def test_the_background_reclaims_when_the_last_view_goes(pool_path: str) -> None:
    """Nothing is written any more when a table goes: its memory is reclaimed by the background all the same."""
    with Pool.open(pool_path, create=True, capacity="16 MiB") as pool:
        table = None
        fill_and_decay(pool)
        table = pool.collection("notes").scan()

        def states() -> set[int]:
            return {entry.state for entry in pool.arena.refresh().manifests[0].entries}

        fill_and_decay(pool)
        until(lambda: State.RETIRED in states(), "the background merges")
        time.sleep(1.0)
        del table
        until(lambda: State.RETIRED not in states(), "the background reclaims")


# ---------------------------------------------------------------------- the stopped are named


def test_a_stopped_session_holds_memory_and_info_names_it(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """A process stopped with an old view keeps what it sees; `info` says who it is; continued, it lets go."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool)
        reader = Remote(launcher, pool_path, maintenance=False, name="sleepy reader")
        assert reader.on("notes", "__len__") == 60
        with stopped(reader):
            report = pool.maintain()
            assert report.segments_merged
            for _ in range(3):
                assert not reclaimed(pool)
            (session,) = [one for one in pool.info().sessions if one.stopped]
            assert (session.pid, session.label) == (reader.pid, "sleepy reader")
            assert session.generations_behind > 0
            waiting = pool.info().nodes[0].retired
            assert waiting > 0
        until(lambda: reclaimed(pool), "the continued process moves its pin on")
        assert not any(one.stopped for one in pool.info().sessions)
        assert reader.on("notes", "__len__") == 60


def test_a_stopped_holder_of_the_node_lock_is_named(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """A process stopped in the middle of a roll keeps the node lock: who needs it is told its pid; killed, it lets go."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", lock_timeout_s=0.1, maintenance=False) as pool:
        collection = pool.collection("notes")
        collection.put(["a"], texts=["needs no lock from now on"])
        roller = Remote(launcher, pool_path, fault="roll.locked:stop", maintenance=False)
        roller.begin("notes", "put", ["b"], texts=["by the other"])
        roller.worker.wait_stopped()
        with pytest.raises(PoolBusy, match=f"held by process {roller.pid} for [0-9.]+ s") as raised:
            pool.collection("another")
        assert "continue or kill it" in raised.value.hint
        assert pool.info().nodes[0].lock_holder_pid == roller.pid
        collection.put(["c"], texts=["into the open segment"])
        assert set(texts_of(collection)) == {"a", "c"}
        roller.worker.signal(signal.SIGKILL)
        roller.worker.wait()
        pool.collection("another").put(["x"], texts=["free at once"])


def test_time_in_which_the_machine_was_stopped_is_not_waiting(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock jumps by minutes in the middle of a wait for a lock: the holder gets its chance to let go."""
    other = LockFile(pool.path)
    offset = pool.arena.geometry.node_offset(0) + layout.ROOT_OFFSET
    assert other.try_lock(offset)
    jumped, polls = [0.0], [0]
    monotonic, sleep = time.monotonic, time.sleep

    def jumping(seconds: float) -> None:
        if seconds < 0.01:  # the wait for the lock, not the keeper's tick
            polls[0] += 1
            jumped[0] += 200.0 if polls[0] == 1 else 0.0
            if polls[0] == 4:
                other.close()
        sleep(seconds)

    monkeypatch.setattr(time, "sleep", jumping)
    monkeypatch.setattr(time, "monotonic", lambda: monotonic() + jumped[0])
    pool.arena.lock_timeout_s = 60.0
    with pool.arena.node_locked("test") as current:
        assert current is not None
    assert polls[0] >= 4


# ---------------------------------------------------------------------- exclusive


def test_exclusive_keeps_processes_and_threads_apart(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Three processes and three threads count up one record under one name: no count is lost."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", lock_timeout_s=60.0) as pool:
        collection = pool.collection("counters")
        workers = [launcher.start("tests.crash.workers:count_up", pool_path, 60) for _ in range(3)]
        for worker in workers:
            assert worker.receive() == "ready"
        for worker in workers:
            worker.conn.send("go")

        def count() -> None:
            for _ in range(60):
                with pool.exclusive("counter"):
                    found = collection.get(["n"])[0]
                    collection.put(["n"], metadata=[{"value": (found.metadata["value"] if found else 0) + 1}])

        with ThreadPoolExecutor(3) as executor:
            for done in [executor.submit(count) for _ in range(3)]:
                done.result()
        for worker in workers:
            assert worker.wait(60.0) == 0
        record = collection.get(["n"])[0]
        assert record is not None
        assert record.metadata == {"value": 6 * 60}


def test_exclusive_is_bounded_and_released_by_kill(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """A held name is PoolBusy after the time-out, others are free, an error lets go, and kill -9 lets go at once."""
    with Pool.open(pool_path, create=True, capacity="16 MiB") as pool:
        worker = launcher.start("tests.crash.workers:hold", pool_path, "taken")
        assert worker.receive() == "held"
        with pytest.raises(PoolBusy, match="'taken' is held by another process"), pool.exclusive("taken", timeout_s=0.05):
            pass
        not_reentrant = pytest.raises(PoolBusy, match="another thread")
        with pool.exclusive("free", timeout_s=0.05), not_reentrant, pool.exclusive("free", timeout_s=0.05):
            pass
        with pytest.raises(KeyError), pool.exclusive("free"):
            raise KeyError("inside")
        with pool.exclusive("free", timeout_s=0.05):
            pass
        worker.signal(signal.SIGKILL)
        worker.wait()
        with pool.exclusive("taken", timeout_s=0.05):
            pass


def test_exclusive_across_a_fork_stays_the_parents(pool: Pool) -> None:
    """Forked inside `exclusive`, the child leaves the block without giving the parent's lock away."""
    with pool.exclusive("mine"):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                with pool.exclusive("mine", timeout_s=0.05):
                    code = 2  # both inside
            except PoolBusy:
                code = 0
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        with Pool.open(pool.path) as other, pytest.raises(PoolBusy), other.exclusive("mine", timeout_s=0.05):
            pass
    with Pool.open(pool.path) as other, other.exclusive("mine", timeout_s=0.05):
        pass


# ---------------------------------------------------------------------- running out, and succession


def test_all_lanes_taken_is_a_typed_error(pool: Pool) -> None:
    """The sixty-fifth writer of a node is told that all lanes are held, by whom, and what to do; reading goes on."""
    others = LockFile(pool.path)
    lanes = [pool.arena.geometry.lane_offset(0, lane) for lane in range(layout.LANES_PER_NODE)]
    collection = pool.collection("notes")
    assert all(others.try_lock(offset) for offset in lanes)
    with pytest.raises(PoolBusy, match=r"all 64 lanes of node 0 are held, by processes .*Close writers"):
        collection.put(["a"], texts=["no lane"])
    assert len(collection) == 0
    others.unlock(lanes[7])
    collection.put(["a"], texts=["the one that was freed"])
    assert [lane.lane for lane in pool.info().lanes if lane.pid == os.getpid()] == [7]
    others.close()


def test_all_sessions_taken_is_a_typed_error_and_leaks_nothing(pool: Pool) -> None:
    """With all 512 session slots taken, attaching is PoolBusy, and leaves no descriptor behind."""
    others = LockFile(pool.path)
    for slot in range(layout.SESSIONS_PER_NODE):
        others.try_lock(pool.arena.geometry.session_offset(0, slot))
    descriptors = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        with pytest.raises(PoolBusy, match=r"all 512 sessions of node 0 are taken\. Close handles"):
            Pool.open(pool.path)
    assert len(os.listdir("/proc/self/fd")) == descriptors
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            pool.collection("notes")
        except PoolClosed:
            code = 0
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "a child without a session must not use the pool"
    others.close()
    Pool.open(pool.path).close()


def test_a_dead_writers_lane_goes_on_in_the_same_segment(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """The next writer takes the lane that kill -9 freed, and appends behind the dead one's rows: no new segment."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        first = Remote(launcher, pool_path, maintenance=False)
        first.on("notes", "put", *notes("a", 5)[:1], texts=notes("a", 5)[1])
        first.worker.signal(signal.SIGKILL)
        first.worker.wait()
        (before,) = pool.arena.refresh().manifests[0].entries
        second = Remote(launcher, pool_path, maintenance=False)
        second.on("notes", "put", *notes("b", 5)[:1], texts=notes("b", 5)[1])
        (after,) = pool.arena.refresh().manifests[0].entries
        assert before == after
        assert [lane.lane for lane in pool.info().lanes if lane.held] == [before.lane]
        assert set(texts_of(pool.collection("notes"))) == {*notes("a", 5)[0], *notes("b", 5)[0]}


# ---------------------------------------------------------------------- several nodes


class FourNodes:
    """Four processes, each of its own node, and what must be in their collection."""

    def __init__(self, launcher: Launcher, path: str) -> None:  # noqa: F811
        Pool.open(path, create=True, capacity="32 MiB", nodes=4).close()
        self.nodes = [Remote(launcher, path, node=number, maintenance=False) for number in range(4)]
        self.nodes[0].pool("collection", "notes", 4)
        self.expected: dict[str, str] = {}

    def put(self, node: int, ids: list[str], text: str) -> None:
        """Write under these ids from a node."""
        self.nodes[node].on("notes", "put", ids, np.full((len(ids), 4), node + 1.0), [f"{text} {one}" for one in ids])
        self.expected.update({one: f"{text} {one}" for one in ids})

    def delete(self, node: int, ids: list[str]) -> None:
        """Delete these ids from a node."""
        assert self.nodes[node].on("notes", "delete", ids) == len(ids)
        for one in ids:
            del self.expected[one]

    def check(self) -> None:
        """Every node finds what is expected."""
        for number, node in enumerate(self.nodes):
            found = {record.id: record.text for record in node.on("notes", "find")}
            assert found == self.expected, f"node {number}"
            hits = node.on("notes", "search", [1.0, 1, 1, 1], k=1000)
            assert sorted(hit.id for hit in hits) == sorted(self.expected), f"node {number}"

    def versions(self) -> set[int]:
        """What each node says is the collection's version."""
        return {node.on("notes", "version") for node in self.nodes}


def test_four_nodes_see_each_others_puts_updates_and_deletes(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Four processes, each of its own node: every write of each is seen by all, also after each node's maintenance."""
    four = FourNodes(launcher, pool_path)
    for number in range(4):
        four.put(number, [f"n{number}-{record}" for record in range(10)], "first")
        four.check()
    for number in range(4):  # each updates what the next node wrote, and deletes what the one after that wrote
        four.put(number, [f"n{(number + 1) % 4}-{record}" for record in range(3)], f"by node {number}")
        four.delete(number, [f"n{(number + 2) % 4}-{record}" for record in (7, 8)])
        four.check()
    assert len(four.versions()) == 1
    for number in (0, 1, 2, 3, 0, 1, 2, 3):
        for round_number in range(6):  # enough to roll, so that there is something to merge
            four.put(number, [f"big{number}-{record}" for record in range(40)], f"{round_number} " + "x" * 1500)
        report = four.nodes[number].pool("maintain")
        assert report.elected
        assert report.segments_merged, f"node {number} had nothing to merge"
        four.check()
    before = four.versions()
    for _ in range(3):
        for node in four.nodes:
            node.pool("move_pins_on")
        for node in four.nodes:
            node.pool("maintain")
            four.check()
    assert four.versions() == before, "maintenance changed the version"
    assert four.nodes[3].pool("verify").ok
    waiting = [one.retired for one in four.nodes[1].pool("info").nodes]
    assert waiting == [0, 0, 0, 0], "memory that nobody sees is still held"


def test_one_nodes_maintenance_needs_no_other_nodes_lock(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """A stopped holder of node 1's lock keeps neither node 0's writers nor its maintainer waiting."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", nodes=2, lock_timeout_s=0.1, maintenance=False) as pool:
        pool.collection("notes")
        other = Remote(launcher, pool_path, fault="roll.locked:stop", node=1, maintenance=False)
        other.begin("notes", "put", ["b"], texts=["by node 1"])
        other.worker.wait_stopped()
        fill_and_decay(pool)
        assert pool.maintain().segments_merged
        other.worker.signal(signal.SIGCONT)
        other.finish()
        assert pool.collection("notes").get(["b"])[0] is not None


# ---------------------------------------------------------------------- dropping under others


def test_a_drop_is_seen_by_readers_and_writers_of_other_processes(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Others' next call says CollectionDropped; made anew with another shape, their old handles do not touch it."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("vectors", dimension=4)
        collection.put(["a"], np.ones((1, 4)), ["four"])
        other = Remote(launcher, pool_path, maintenance=False)
        other.on("vectors", "put", ["b"], np.ones((1, 4)), ["four"])
        other.pool("drop", "vectors")
        for use in (
            lambda: collection.get(["a"]),
            lambda: collection.search(np.ones(4)),
            lambda: collection.put(["c"], np.ones((1, 4)), ["gone"]),
            lambda: len(collection),
        ):
            with pytest.raises(CollectionDropped, match="'vectors' was dropped"):
                use()
        other.pool("collection", "vectors", 64)
        other.on("vectors", "put", ["a"], np.ones((1, 64)), ["sixty-four"])
        for use in (
            lambda: collection.get(["a"]),
            lambda: collection.search(np.ones(4)),
            lambda: collection.put(["c"], np.ones((1, 4)), ["of the old shape"]),
        ):
            with pytest.raises(CollectionDropped):
                use()
        anew = pool.collection("vectors")
        assert texts_of(anew) == {"a": "sixty-four"}
        for _ in range(2):
            pool.maintain()
        assert other.pool("maintain").elected
        assert pool.verify().ok
