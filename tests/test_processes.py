"""Several processes and threads on one pool: creating, forking, spawning, threads, closing."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from sharedrag import Collection, Pool
from sharedrag.errors import PoolReplaced
from sharedrag.keeper import TICK_S
from sharedrag.memory import layout
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import fill_and_decay, reclaimed, texts_of, until
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote

# ---------------------------------------------------------------------- creating and finding


def test_of_many_processes_that_create_at_once_one_makes_the_pool(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Eight processes open with `create` at the same time: all are on the same pool, nothing of any is lost."""
    for attempt in range(3):
        path = f"{pool_path}.{attempt}"
        workers = [launcher.start("tests.crash.workers:create_when_told", path, number) for number in range(8)]
        for worker in workers:
            assert worker.receive() == "ready"
        for worker in workers:
            worker.conn.send("go")
        pools = {worker.receive() for worker in workers}
        assert len(pools) == 1
        with Pool.open(path) as pool:
            assert texts_of(pool.collection("notes")) == {f"n{number}": f"by {number}" for number in range(8)}
        for worker in workers:
            worker.conn.send("end")
            assert worker.wait() == 0
    assert len(os.listdir(Path(pool_path).parent)) == 3, "creating left other files"


def test_a_pool_replaced_at_its_path_is_noticed(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Delete the file and make another: the old handle says PoolReplaced soon, a new one sees the new pool."""
    with Pool.open(pool_path, create=True, capacity="4 MiB") as old:
        old.collection("notes").put(["a"], texts=["in the old file"])
        other = Remote(launcher, pool_path)
        os.unlink(pool_path)
        with Pool.open(pool_path, create=True, capacity="4 MiB") as new:
            assert new.collections() == []

            def refuses(use: Callable[[], object]) -> bool:
                try:
                    use()
                except PoolReplaced as error:
                    return "Close this handle and open the pool again" in error.hint
                return False

            until(lambda: refuses(lambda: old.collection("notes").put(["b"], texts=["into what?"])), "old writes on")
            until(lambda: refuses(lambda: other.on("notes", "get", ["a"])), "another process reads on")
            assert refuses(lambda: old.collection("notes").get(["a"]))
            assert new.collections() == []


# ---------------------------------------------------------------------- fork


def test_a_forked_child_reads_and_writes_and_so_does_its_parent(pool: Pool) -> None:
    """A pool opened before `fork` works on both sides, each with a session and a lane of its own."""
    history = pool.collection("history", dimension=8)
    history.put(["before"], np.ones((1, 8)), ["written before the fork"])
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def child() -> None:
        history.put(["child"], np.ones((1, 8)), ["written by the child"])
        found = [hit.id for hit in history.search(np.ones(8), k=10)]
        lanes = [lane.lane for lane in pool.info().lanes if lane.pid == os.getpid()]
        theirs.send((found, lanes, len(pool.info().sessions)))
        theirs.recv()
        theirs.send(texts_of(history))

    process = context.Process(target=child)
    process.start()
    found, lanes, sessions = mine.recv()
    assert sorted(found) == ["before", "child"]
    assert lanes == [1], "the child took the parent's lane"
    assert sessions == 2
    history.put(["parent"], np.ones((1, 8)), ["written by the parent"])
    mine.send("look")
    expected = {
        "before": "written before the fork",
        "child": "written by the child",
        "parent": "written by the parent",
    }
    assert mine.recv() == expected
    process.join()
    assert process.exitcode == 0
    assert texts_of(history) == expected
    assert len(pool.info().sessions) == 1
    assert pool.verify().ok


def test_a_master_opens_the_pool_and_its_forked_workers_serve(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Four forked workers write and search on the handle that their master opened, and leave by `os._exit`."""
    with Pool.open(pool_path, create=True, capacity="16 MiB") as pool:
        worker = launcher.start("tests.crash.workers:prefork", pool_path, 4)
        codes, count, sessions = worker.receive(60.0)
        assert codes == [0, 0, 0, 0]
        assert count == 2 + 4 * 20
        assert sessions == 2, "the workers' sessions were not given back"
        assert worker.wait() == 0
        assert len(pool.collection("history")) == count
        assert pool.verify().ok


def test_fork_while_other_threads_write_and_read(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Forty forks in the middle of three threads' writes: children work, nobody hangs, every record is the last written."""
    with Pool.open(pool_path, create=True, capacity="16 MiB") as pool:
        worker = launcher.start("tests.crash.workers:fork_while_writing", pool_path, 40)
        codes, written, failed = worker.receive(90.0)
        assert failed == []
        assert codes == [0] * 40
        assert worker.wait() == 0
        expected: dict[str, str | None] = {f"child{number}": "of a child" for number in range(40)}
        for thread, count in enumerate(written):
            expected |= {f"t{thread}-{number % 50}": f"{number}" for number in range(max(0, count - 50), count)}
        assert texts_of(pool.collection("history")) == expected
        assert pool.verify().ok


def test_a_dead_parents_lane_and_session_are_free_while_its_child_lives(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """Kill -9 the parent: its child, which inherited its descriptors, keeps neither its lane nor its session."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        worker = launcher.start("tests.crash.workers:fork_and_wait", pool_path)
        _, child = worker.receive()
        assert {one.pid for one in pool.info().sessions} == {os.getpid(), worker.pid, child}
        assert [lane.pid for lane in pool.info().lanes if lane.held] == [worker.pid]
        worker.signal(signal.SIGKILL)
        worker.wait()
        assert {one.pid for one in pool.info().sessions} == {os.getpid(), child}
        assert [lane for lane in pool.info().lanes if lane.held] == []
        collection.put(["q"], texts=["of the successor"])
        assert [lane.lane for lane in pool.info().lanes if lane.held] == [0]
        worker.conn.send("write")
        until(lambda: collection.get(["c"])[0] is not None, "the orphan writes")
        assert set(texts_of(collection)) == {"p", "q", "c"}


@pytest.mark.parametrize("retired", ["before the fork", "after the fork"])
def test_a_child_inherits_no_pin_of_a_thread_that_was_reading(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
    retired: str,
) -> None:
    """The forked child has no such thread: what it would pin for ever is reclaimed while it lives."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool)
        worker = launcher.start("tests.crash.workers:read_during_fork", pool_path)
        assert worker.receive() == "reading"
        if retired == "before the fork":
            assert pool.maintain().segments_merged
            time.sleep(2 * TICK_S)  # the parent's keeper moves on what it may; what the thread reads, it may not
            assert not reclaimed(pool)
        worker.conn.send("fork")
        child = worker.receive()
        assert child in {one.pid for one in pool.info().sessions}
        if retired == "after the fork":
            assert pool.maintain().segments_merged
        until(lambda: reclaimed(pool), "the child holds what a thread of its parent was reading")
        assert child in {one.pid for one in pool.info().sessions}
        worker.conn.send("end")
        assert worker.wait() == 0


def test_forks_while_other_threads_open_and_close(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """No child inherits a lock of a handle that another thread was just opening: with the parent dead, all are free."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        worker = launcher.start("tests.crash.workers:fork_while_opening", pool_path, 60)
        said = [worker.receive() for _ in range(60 + 1)]  # by the children, each when it comes to it, and by their parent
        children = {one for one in said if one != "forked"}
        assert len(children) == 60
        worker.signal(signal.SIGKILL)
        worker.wait()
        held = pool.arena.session.locks.held_elsewhere
        geometry, words = pool.arena.geometry, pool.arena.region.words
        slots = [geometry.session_offset(0, slot) for slot in range(layout.SESSIONS_PER_NODE)]
        holders = {words[offset >> 3] for offset in slots if held(offset)}
        assert holders <= children, "a dead process's session is held by a child that does not know of it"
        worker.conn.close()
        until(lambda: not any(held(offset) for offset in slots), "the children end")


def test_a_child_keeps_the_view_that_it_inherited(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """An Arrow table made before the fork is good in the child, holds its memory there, and gives it back."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool)
        worker = launcher.start("tests.crash.workers:inherit_a_view", pool_path)
        child = worker.receive()
        assert worker.wait() == 0
        assert pool.maintain().segments_merged
        for _ in range(4):
            time.sleep(TICK_S)  # the child's keeper moves on what it may
            fill_and_decay(pool)
            assert not reclaimed(pool)
            worker.conn.send("look")
            assert worker.receive() is True
        worker.conn.send("let go")
        assert worker.receive() == "let go"
        until(lambda: reclaimed(pool), "the child let go of its table")
        assert child in {one.pid for one in pool.info().sessions}
        worker.conn.send("end")
        until(lambda: len(pool.info().sessions) == 1, "the child ends")


def test_forks_while_a_put_waits_for_room_do_not_hang(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """A put in a full pool maintains while it waits; a fork at that moment gets through, and the put ends in PoolFull."""
    with Pool.open(pool_path, create=True, capacity="2 MiB", maintenance=False):
        worker = launcher.start("tests.crash.workers:fork_when_full", pool_path)
        assert worker.receive(60.0) is True
        assert worker.wait() == 0


# ---------------------------------------------------------------------- spawn and pickling


def put_through(collection: Collection, number: int) -> None:
    """Write through a handle that came by pickling."""
    collection.put([f"spawned{number}"], np.ones((1, 8)), [f"by process {number}"])
    assert collection.pool.collection("history").get(["before"])[0] is not None


def test_handles_cross_to_spawned_processes(pool: Pool) -> None:
    """A Collection (and its Pool) passed to spawned processes opens there, and what they write is found here."""
    history = pool.collection("history", dimension=8)
    history.put(["before"], np.ones((1, 8)), ["here"])
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=put_through, args=(history, number)) for number in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert set(texts_of(history)) == {"before", "spawned0", "spawned1"}


def test_unpickling_in_one_process_shares_one_handle(pool: Pool) -> None:
    """Many unpickled copies in one process are one attachment, not a session each."""
    history = pool.collection("history", dimension=8)
    copies = [pickle.loads(pickle.dumps(history)) for _ in range(5)]
    copies[0].put(["x"], np.ones((1, 8)), ["through a copy"])
    assert history.get(["x"])[0] is not None
    assert len({id(copy.pool) for copy in copies}) == 1
    assert len(pool.info().sessions) == 2
    copies[0].pool.close()
    again = pickle.loads(pickle.dumps(pool))
    assert not again.closed
    again.close()


# ---------------------------------------------------------------------- threads


def test_eight_threads_on_one_handle(pool: Pool) -> None:
    """Eight threads put, search, get and delete through one handle; in the end every record is what its thread left."""
    history = pool.collection("history", dimension=16)
    rounds, own = 120, 12

    def work(thread: int) -> dict[str, str]:
        random = np.random.default_rng(thread)
        left: dict[str, str] = {}
        for number in range(rounds):
            one = f"t{thread}-{random.integers(own)}"
            if random.random() < 0.7:
                vector = random.standard_normal((1, 16)).astype(np.float32)
                history.put([one], vector, [f"{one} {number}"], [{"thread": thread}])
                left[one] = f"{one} {number}"
                assert history.search(vector[0], k=1, ids=[one])[0].text == left[one]
            else:
                assert history.delete([one]) == (one in left)
                left.pop(one, None)
            found = history.get([one])[0]
            assert (found.text if found else None) == left.get(one)
            if number % 20 == 0:
                hits = history.search(random.standard_normal(16), k=50, filter={"thread": thread})
                assert sorted(hit.id for hit in hits) == sorted(left)
        return left

    with ThreadPoolExecutor(8) as executor:
        expected: dict[str, str] = {}
        for left in executor.map(work, range(8)):
            expected |= left
    assert texts_of(history) == expected
    assert len(history) == len(expected)
    assert pool.verify().ok
