"""Closing a handle, or forgetting it, whatever its threads are at."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import pytest

from sharedrag import Pool, PoolClosed, faults
from sharedrag.memory import layout
from tests.crash import checks
from tests.crash.helpers import fill_and_decay, reclaimed, texts_of, until


def test_close_waits_for_the_puts_of_other_threads(pool_path: str) -> None:
    """Closing while four threads put: each put either returned, and is there, or raised PoolClosed, and is not."""
    pool = Pool.open(pool_path, create=True, capacity="256 MiB")  # more than they can write meanwhile
    collection = pool.collection("notes")
    written: list[list[str]] = [[] for _ in range(4)]

    def write(thread: int) -> None:
        for number in range(1_000_000):
            try:
                collection.put([f"t{thread}-{number}"], texts=["x" * 200])
            except PoolClosed:
                return
            written[thread].append(f"t{thread}-{number}")

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    until(lambda: all(len(ids) > 50 for ids in written), "the threads write")
    pool.close()
    for thread in threads:
        thread.join()
    with Pool.open(pool_path) as again:
        assert set(texts_of(again.collection("notes"))) == {one for ids in written for one in ids}
        assert [lane for lane in again.info().lanes if lane.held] == []
        assert again.verify().ok
    with pytest.raises(PoolClosed):
        collection.put(["late"], texts=["x"])
    with pytest.raises(PoolClosed):
        collection.get(["late"])


def test_a_put_in_the_middle_of_close_takes_no_lane(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the lane was given back, and before the handle is closed, a put of another thread is PoolClosed already."""
    pool = Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False)
    collection = pool.collection("notes")
    collection.put(["a"], texts=["before"])
    refused: list[bool] = []

    def put_meanwhile() -> None:
        with pytest.raises(PoolClosed):
            collection.put(["b"], texts=["meanwhile"])
        refused.append(True)

    monkeypatch.setattr(pool._maintainer, "stop", put_meanwhile)  # the step between the two
    pool.close()
    assert refused
    with Pool.open(pool_path) as again:
        assert set(texts_of(again.collection("notes"))) == {"a"}
        assert [lane for lane in again.info().lanes if lane.held] == []


def _put(pool: Pool, other: Pool) -> None:
    pool.collection("notes").put(["late"], texts=["x"])


def _roll(pool: Pool, other: Pool) -> None:
    pool.collection("rolls").put(["late"], texts=["x"])


def _maintain(pool: Pool, other: Pool) -> None:
    for _ in range(2):  # the second round frees what the first one retired
        pool.maintain()
        other.move_pins_on()


def _drop(pool: Pool, other: Pool) -> None:
    pool.drop("notes")


# Where a handle with its lane, and something to merge and to reclaim, can be; attaching has no handle yet.
_AT_WORK = {
    point: work
    for work, points in (
        (_put, "put.intent put.row_written put.linked put.published lane.locked"),
        (_roll, "roll.locked roll.reserved roll.initialised manifest.written manifest.published"),
        (_maintain, "merge.building merge.copied merge.published deletions.reserved horizon.stored"),
        (_maintain, "reclaim.fenced reclaim.punching reclaim.punched"),
        (_drop, "drop.published"),
    )
    for point in points.split()
}


@pytest.mark.parametrize("point", _AT_WORK)
def test_a_signal_handler_may_close_in_the_middle_of_an_operation(pool_path: str, point: str) -> None:
    """A SIGTERM handler that closes the pool returns, whatever its thread was at; what was at work ends whole or typed."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as other:
        fixed = checks.fixed_memory(other)
        other.collection("notes").put(["before", *(f"n{number}" for number in range(60))], texts=["x" * 1500] * 61)
        fill_and_decay(other)
        pool = Pool.open(pool_path, maintenance=False, lock_timeout_s=0.1)
        if point != "lane.locked":
            pool.collection("notes").put(["acknowledged"], texts=["x"])
        acknowledged = _interrupted_at(point, pool, other)
        assert pool.closed
        with pytest.raises(PoolClosed):
            pool.collection("notes").put(["after"], texts=["never"])
        gc.collect()
        assert pool.arena.session.dead, "the session was not given back"
        assert [one.slot for one in other.info().sessions] == [other.arena.session.slot]
        assert [lane.lane for lane in other.info().lanes if lane.held] == [0]
        if point == "drop.published":
            assert other.collections() == []
        else:
            assert "before" in texts_of(other.collection("notes"))
            assert ("acknowledged" in other.collection("notes")) == (point != "lane.locked")
            assert (
                acknowledged == ("late" in other.collection("notes")) == (_AT_WORK[point] is _put and point != "lane.locked")
            )
        assert other.verify().ok
        other.collection("anything").put(["x"], texts=["the node lock is free"])
        assert other.maintain().elected
        until(lambda: reclaimed(other), "what was begun is finished")
        checks.check_space(other, fixed)


def _interrupted_at(point: str, pool: Pool, other: Pool) -> bool:
    """Work until a signal handler closes the handle at the point, and on; False if that ends in PoolClosed.

    Closing takes no lock away from what is at work.
    """
    area = other.arena.geometry.node_offset(0)
    offsets = [area + layout.ROOT_OFFSET, area + layout.HORIZON_OFFSET]
    if not point.startswith("manifest") and _AT_WORK[point] in (_put, _roll):  # the catalog is changed without a lane
        offsets.append(other.arena.geometry.lane_offset(0, 1))

    def held() -> list[bool]:
        return [other.arena.session.locks.held_elsewhere(offset) for offset in offsets]

    def interrupting(reached: str) -> None:
        if reached == point:
            faults.hit = None
            signal.raise_signal(signal.SIGUSR1)

    def close(*_: object) -> None:
        at_work = held()
        assert any(at_work) or point == "drop.published"
        pool.close()
        assert held() == at_work, "a lock of what is at work went with the handle"

    before = signal.signal(signal.SIGUSR1, close)
    faults.hit = interrupting
    try:
        _AT_WORK[point](pool, other)
    except PoolClosed:
        return False
    finally:
        faults.hit = None
        signal.signal(signal.SIGUSR1, before)
    return True


def test_a_forgotten_handle_is_closed(pool_path: str) -> None:
    """Without `close`, when nobody has it any more: its lane, session, thread and descriptors go like any other object."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as other:
        descriptors = len(os.listdir("/proc/self/fd"))
        threads = threading.active_count()
        pool = Pool.open(pool_path)
        collection = pool.collection("notes")
        collection.put(["a"], texts=["x"])
        assert len(collection) == 1
        pool.maintain()
        forgotten = weakref.ref(pool)
        del pool, collection

        def gone() -> bool:
            gc.collect()
            return forgotten() is None and len(other.info().sessions) == 1

        until(gone, "the handle is closed")
        assert [lane for lane in other.info().lanes if lane.held] == []
        assert threading.active_count() <= threads
        assert len(os.listdir("/proc/self/fd")) == descriptors
        assert texts_of(other.collection("notes")) == {"a": "x"}
