"""What outlives its pool, who is stopped, who holds a name, what runs out, what maintenance gets over."""

from __future__ import annotations

import gc
import os
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from sharedrag import Pool, PoolBusy, PoolClosed, PoolDamaged
from sharedrag.arena.manifest import State
from sharedrag.errors import PoolReplaced
from sharedrag.maintenance.maintainer import Maintainer
from sharedrag.memory import layout, locks, superblock
from sharedrag.memory.layout import Geometry
from sharedrag.memory.locks import LockFile
from sharedrag.segments.live import Part
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import alone, fill_and_decay, notes, reclaimed, segments_of, stopped, texts_of, until
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
        until(lambda: reclaimed(pool), "the table is gone")


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
        until(lambda: reclaimed(other), "the column is gone")
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
        until(lambda: reclaimed(other), "the pool is closed")
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


def test_exclusive_outlasts_a_close(pool_path: str) -> None:
    """Closed by somebody while one is inside, nobody else gets in until one is out."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as other:
        pool = Pool.open(pool_path, maintenance=False)
        with pool.exclusive("name"):
            pool.close()
            with pytest.raises(PoolBusy), other.exclusive("name", timeout_s=0.05):
                raise AssertionError("two inside at once")
        with other.exclusive("name", timeout_s=1.0):
            assert [one.slot for one in other.info().sessions] == [other.arena.session.slot]


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


# ---------------------------------------------------------------------- care for one is not harmed by another


def test_one_round_reclaims_what_it_retired(pool_path: str) -> None:
    """Alone in the pool, with views of two collections kept, one round of maintenance merges and frees at once."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        for name in ("one", "two"):
            fill_and_decay(alone(pool), name)
            assert len(pool.collection(name)) == 60
        report = pool.maintain()
        assert report.segments_merged >= 2
        assert report.segments_freed >= 2
        assert report.segments_waiting == 0


def test_a_round_first_frees_what_earlier_ones_retired(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A round that is long, or ends before it is through, does not keep what nobody sees any more."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(alone(pool))
        table = pool.collection("notes").scan()
        assert pool.maintain().segments_waiting
        before = pool.arena.region.allocated()
        del table
        pool.move_pins_on()

        def interrupted(*_: object) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(Maintainer, "_tend", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pool.maintain()
        assert pool.arena.region.allocated() < before
        assert not any(entry.state == State.RETIRED for entry in pool.arena.refresh().manifests[0].entries)


def test_a_drop_in_the_middle_of_a_round_ends_nothing(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another process drops a collection that the round has yet to come to: the round goes on with the next."""
    with (
        Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool,
        Pool.open(pool_path, maintenance=False) as other,
    ):
        for name in ("first", "second", "third"):
            fill_and_decay(pool, name)
        tend, tended = Maintainer._tend, []

        def tend_and_drop(maintainer: Maintainer, name: str, *given: Any) -> None:
            tended.append(name)
            tend(maintainer, name, *given)
            if name == "first":
                other.drop("second")

        monkeypatch.setattr(Maintainer, "_tend", tend_and_drop)
        assert pool.maintain().segments_merged
        assert tended == ["first", "second", "third"]
        monkeypatch.undo()
        other.move_pins_on()
        until(lambda: reclaimed(pool), "nobody sees what was dropped")
        assert sorted(pool.collections()) == ["first", "third"]


def test_damage_in_one_collection_does_not_keep_the_others_memory(pool_path: str) -> None:
    """A round says PoolDamaged for the one, but has merged and reclaimed the others."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        for name in ("hurt", "sound"):
            fill_and_decay(alone(pool), name)
        ((_, segment), *_rest) = segments_of(pool, "hurt")
        region = pool.arena.region
        region.words[(segment.offset + segment.columns["link"][0]) >> 3] ^= 1 << 30
        before = region.allocated()
        with pytest.raises(PoolDamaged):
            pool.maintain()
        assert region.allocated() < before
        assert not any(part.dead for part in _parts(pool, "sound") if part.sealed), "the sound one was not tended"
        assert len(pool.collection("sound")) == 60


def _parts(pool: Pool, name: str) -> tuple[Part, ...]:
    live = pool.collection(name).live
    try:
        return live.acquire().parts
    finally:
        live.release()


@pytest.mark.parametrize("step", ["the superblock was read", "the file was mapped"])
def test_a_file_replaced_in_the_middle_of_opening_is_noticed(
    pool_path: str, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Opening looks at the path several times; if another pool is there in between, that is PoolReplaced, not a mixture."""
    Pool.open(pool_path, create=True, capacity="4 MiB").close()

    def replace() -> None:
        monkeypatch.undo()
        Pool.open(pool_path + ".other", create=True, capacity="8 MiB").close()
        os.rename(pool_path + ".other", pool_path)

    if step == "the superblock was read":
        read = superblock.read

        def read_then_replace(path: str) -> Geometry:
            found = read(path)
            replace()
            return found

        monkeypatch.setattr(superblock, "read", read_then_replace)
    else:
        check = locks.check_locks_work

        def replace_then_check(path: str, offset: int) -> None:
            replace()
            check(path, offset)

        monkeypatch.setattr(locks, "check_locks_work", replace_then_check)
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PoolReplaced):
        Pool.open(pool_path)
    gc.collect()  # the mapping goes with the error's traceback
    assert len(os.listdir("/proc/self/fd")) == descriptors
    with Pool.open(pool_path) as pool:
        assert pool.info().capacity == 8 << 20
