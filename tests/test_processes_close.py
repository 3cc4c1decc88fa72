"""Closing a handle, or forgetting it, whatever its threads are at."""

from __future__ import annotations

import gc
import os
import signal
import threading
import weakref

import pytest

from sharedrag import Pool, PoolClosed, faults
from tests.crash.helpers import fill_and_decay, texts_of, until


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


@pytest.mark.parametrize(
    "point", ["put.intent", "put.linked", "put.published", "roll.locked", "roll.initialised", "merge.published"]
)
def test_a_signal_handler_may_close_in_the_middle_of_an_operation(pool_path: str, point: str) -> None:
    """A SIGTERM handler that closes the pool returns, whatever its thread was at; what was at work ends whole or typed."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as other:
        pool = Pool.open(pool_path, maintenance=False, lock_timeout_s=0.1)
        pool.collection("notes").put(["before"], texts=["acknowledged"])
        fill_and_decay(other)
        before = signal.signal(signal.SIGUSR1, lambda *_: pool.close())

        def interrupting(reached: str) -> None:
            if reached == point:
                faults.hit = None
                signal.raise_signal(signal.SIGUSR1)

        def work() -> bool:
            faults.hit = interrupting
            try:
                if point.startswith("merge"):
                    pool.maintain()
                else:
                    pool.collection("rolls" if point.startswith("roll") else "notes").put(["late"], texts=["x"])
            except PoolClosed:
                return False
            finally:
                faults.hit = None
            return True

        try:
            acknowledged = work()
        finally:
            signal.signal(signal.SIGUSR1, before)
        assert pool.closed
        with pytest.raises(PoolClosed):
            pool.collection("notes").put(["after"], texts=["never"])
        gc.collect()
        assert "before" in texts_of(other.collection("notes"))
        if point.startswith("put"):
            assert acknowledged
            assert other.collection("notes").get(["late"])[0] is not None
        assert other.verify().ok
        other.collection("anything").put(["x"], texts=["the node lock is free"])
        assert other.maintain().elected


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
