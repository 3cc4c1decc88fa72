"""What a fold works on: rows in pieces beside busy threads, and ids compared eight bytes at a time."""

from __future__ import annotations

import multiprocessing
import threading
import time
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sharedrag import Pool, turns
from sharedrag.arena.segment import Segment
from sharedrag.segments import probe
from sharedrag.segments.fresh import Folded, Run, in_pieces


class TestPieces:
    @given(st.lists(st.tuples(st.integers(0, 5000), st.integers(1, 3000)), max_size=6), st.booleans())
    def test_hold_each_row_once_and_in_order(self, spans: list[tuple[int, int]], busy: bool) -> None:
        """Whatever other threads do, the pieces together are the rows."""
        states = [cast("Folded", object()) for _ in spans]
        runs: list[Run] = [(state, at, at + rows) for state, (at, rows) in zip(states, spans, strict=True)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(turns, "others_are_busy", lambda: busy)
            pieces = list(in_pieces(runs))
        seen = [(id(state), row) for piece, _ in pieces for state, start, stop in piece for row in range(start, stop)]
        assert seen == [(id(state), row) for state, start, stop in runs for row in range(start, stop)]
        if busy:
            assert all(large or sum(stop - start for _, start, stop in piece) <= 480 for piece, large in pieces)
            assert sum(large for _, large in pieces) <= 1  # what is left over is small too


class TestSameIds:
    @given(st.lists(st.tuples(st.text(max_size=30), st.text(max_size=30), st.booleans()), min_size=1, max_size=40))
    def test_is_equality_of_bytes(self, pairs: list[tuple[str, str, bool]]) -> None:
        """Also of ids that are prefixes of each other, and of a heap shorter than eight bytes."""
        ones = [one.encode() for one, _, _ in pairs]
        others = [one.encode() if equal else other.encode() for one, other, equal in pairs]
        rows = np.arange(len(pairs))
        same = probe.same_ids(_with_ids(ones), rows, _with_ids(others), rows)
        assert same.tolist() == [one == other for one, other in zip(ones, others, strict=True)]


def _with_ids(ids: list[bytes]) -> Segment:
    """What `same_ids` reads of a segment."""
    heap = np.frombuffer(b"".join(ids), np.uint8)
    offsets = np.concatenate([[0], np.cumsum([len(one) for one in ids])]).astype(np.int32)

    class Fake:
        shape = type("Shape", (), {"id_bytes": len(heap)})

        def array(self, name: str, _: object) -> object:
            return heap if name == "id_heap" else offsets

    return cast("Segment", Fake())


class TestThreads:
    @pytest.fixture(autouse=True)
    def _knows_nothing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(turns, "_crowded_until", 0.0)
        monkeypatch.setattr(turns, "_starved_until", 0.0)

    @pytest.mark.parametrize("seen", [True, False])
    def test_a_busy_writer_does_not_starve_a_reader(self, pool: Pool, seen: bool, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beside a thread that writes without a pause, another reads what is new again and again.

        A look may show nothing, since the writer's thread does not wake up within it, as on a crowded machine.
        """
        if not seen:
            monkeypatch.setattr(turns, "_look", lambda: False)
        writer = pool.collection("c", 2, "l2")
        stop = threading.Event()

        def write() -> None:
            step = 0
            while not stop.is_set():
                step += 1
                ids = [f"{step % 2}-{number}" for number in range(40)]
                writer.put(ids, [[step, 0]] * 40, delete=[f"{(step + 1) % 2}-{number}" for number in range(40)])

        thread = threading.Thread(target=write)
        thread.start()
        try:
            with Pool.open(pool.path) as other:
                reader = other.collection("c")
                time.sleep(0.5)  # so much to take in that NumPy gives the interpreter up
                reads, until = 0, time.monotonic() + 8.0
                while reads < 10 and time.monotonic() < until and thread.is_alive():  # not after its pool is full
                    assert len(reader.find()) in (0, 40)
                    reads += 1
                    assert len(reader.search([0, 0], k=100)) in (0, 40)
        finally:
            stop.set()
            thread.join()
        assert reads >= 10  # without turns one read took up to ten seconds; with them 10 to 40 ms, the first up to 2 s


class _Counted:
    """A lock that tells how many wait for it or hold it."""

    def __init__(self) -> None:
        self._lock, self._guard = threading.RLock(), threading.Lock()
        self.entered = 0

    def __enter__(self) -> None:
        with self._guard:
            self.entered += 1
        self._lock.acquire()

    def __exit__(self, *_: object) -> None:
        self._lock.release()


def test_threads_that_wait_share_one_fold(pool: Pool, monkeypatch: pytest.MonkeyPatch) -> None:
    """All have called before it begins, so that it shows them all they may ask for; who has read does not wait at all."""
    collection = pool.collection("c")
    live, lock = collection.live, _Counted()
    folds: list[int] = []
    original = live._catch_up

    def counted() -> None:
        folds.append(1)
        original()

    live.acquire()
    monkeypatch.setattr(live, "lock", lock)
    monkeypatch.setattr(live, "_catch_up", counted)
    seen: list[int] = []
    threads = [threading.Thread(target=lambda: seen.append(live.counts()[0])) for _ in range(5)]
    with lock:
        for thread in threads:
            thread.start()
        until = time.monotonic() + 30
        while lock.entered < 6 and time.monotonic() < until:
            time.sleep(0.001)
        other = threading.Thread(target=live.release)
        other.start()
        other.join(30)
        assert not other.is_alive()
        collection.put(["a"])
        folds.clear()
    for thread in threads:
        thread.join(30)
    assert seen == [1] * 5
    assert len(folds) == 1


def _write_one_id(path: str, written: Synchronized[int], stop: Event) -> None:
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection("c")
        while not stop.is_set():
            for _ in range(200):
                collection.put(["hot"], texts=["again"])
            written.value += 200


def test_an_id_written_again_and_again_does_not_hold_up_a_reader(pool_path: str) -> None:
    """Two processes rewrite one record; a reader that was away takes all of it in while they go on.

    Each of its rows is in one chain: walked anew for each row, past all that was written since, the reader never came back.
    """
    context = multiprocessing.get_context("spawn")
    stop, counts = context.Event(), [context.Value("q", 0) for _ in range(2)]
    with Pool.open(pool_path, create=True, capacity="1 GiB", maintenance=False) as pool:
        reader = pool.collection("c")
        writers = [context.Process(target=_write_one_id, args=(pool_path, one, stop)) for one in counts]
        for writer in writers:
            writer.start()
        try:
            until = time.monotonic() + 60
            while min(one.value for one in counts) < 40_000 and time.monotonic() < until:
                time.sleep(0.05)  # away
            started = time.monotonic()
            assert len(reader) == 1
            assert time.monotonic() - started < 30, "half a second, or never"
            assert all(writer.is_alive() for writer in writers)
        finally:
            stop.set()
            for writer in writers:
                writer.join(30)
        assert all(writer.exitcode == 0 for writer in writers)
        assert [one.text for one in reader.get(["hot"]) if one] == ["again"]
