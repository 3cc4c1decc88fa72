"""Invariant 6, nothing is reused while a pin can see it: the interleavings that a proof must exclude, forced."""

from __future__ import annotations

import gc
import itertools
import os
import signal
import threading
import time
from collections.abc import Sequence

import pytest

from sharedrag import Pool, faults
from sharedrag.arena import manifest as manifests
from sharedrag.arena import session as session_module
from sharedrag.arena.manifest import Manifest, State
from sharedrag.arena.session import Pin, Session
from sharedrag.errors import PoolClosed
from sharedrag.info import MaintenanceReport
from sharedrag.keeper import TICK_S
from sharedrag.memory import layout, order
from sharedrag.memory.layout import Geometry
from sharedrag.memory.region import Region
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import Interrupting, alone, fill_and_decay, reclaimed, until
from tests.crash.launcher import Launcher


def test_invariant_06_a_view_that_changes_hands_while_pins_are_read_is_not_overlooked(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """After the maintainer passed an empty slot, a fork puts a child with an old view there, and its parent moves on."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:hand_a_view_to_a_child", pool_path)
        assert worker.receive() == "ready"
        fill_and_decay(pool)
        changed_hands = []

        def change_hands() -> None:
            worker.conn.send("hand it over")
            changed_hands.append(worker.receive())

        empty = (pool.arena.geometry.session_offset(0, 1) + layout.SESSION_PINS) >> 3
        pool.arena.region.words = Interrupting(pool.arena.region.words, empty, change_hands)  # type: ignore[assignment]
        report = pool.maintain()
        assert report.segments_merged
        assert changed_hands == [2], "the pins were not read, or in another order"
        assert report.segments_waiting == report.segments_merged
        worker.conn.send("look")
        assert worker.receive() is True, "the child's view changed under it"
        until(lambda: reclaimed(pool), "the child is gone")


def test_invariant_06_what_is_retired_after_the_fence_waits_for_the_next(
    pool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A collection dropped between the fence and the look at the pins is not freed by that look: its fence is to come."""
    with (
        Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool,
        Pool.open(pool_path, maintenance=False) as other,
    ):
        pool.collection("kept").put(["x"], texts=["x"])
        pool.collection("passing").put(["x"], texts=["x"])
        other.collection("passing").put(["y"], texts=["y"])
        fill_and_decay(alone(pool))
        alone(other)
        fence = order.fence_all_processes
        fences = []

        def fence_then_drop() -> None:
            fence()
            fences.append("fence")
            if len(fences) == 2:  # the first is the horizon's
                other.drop("passing")
                other.move_pins_on()
                pool.move_pins_on()

        monkeypatch.setattr(order, "fence_all_processes", fence_then_drop)
        report = pool.maintain()
        assert len(fences) == 2
        assert report.segments_freed, "nothing was retired before the fence"
        states = [entry.state for entry in pool.arena.refresh().manifests[0].entries]
        assert states.count(State.RETIRED) == report.segments_waiting == 2, "freed without a fence of its own"
        assert reclaimed(pool)


def pins_at(pool: Pool, slot: int) -> int:
    """Index of the first pin of a session slot in the region's words."""
    return (pool.arena.geometry.session_offset(0, slot) + layout.SESSION_PINS) >> 3


def pinned_by(pool: Pool, slot: int) -> int:
    """The generation that a slot pins."""
    return pool.arena.region.words[pins_at(pool, slot)] & order.VALUE_MASK


def test_invariant_06_a_view_that_went_from_hand_to_hand_is_not_overlooked(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Parent to child in the first pass, child to grandchild in the second, each time into a slot already passed."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:pass_a_view_on", pool_path)
        assert worker.receive() == ("parent", 3)
        fill_and_decay(pool)
        said = []

        def to_the_child() -> None:
            with Pool.open(pool_path, maintenance=False) as passer_by:  # so that the child's slot is not the lowest
                assert passer_by.arena.session.slot == 1
                worker.conn.send("fork")
                said.extend(sorted([worker.receive(), worker.receive()]))

        def to_the_grandchild() -> None:
            worker.conn.send("fork")
            said.append(worker.receive())

        arena = pool.arena
        arena.region.words = Interrupting(arena.region.words, pins_at(pool, 2), to_the_child)  # type: ignore[assignment]
        arena.region.words = Interrupting(arena.region.words, pins_at(pool, 1), to_the_grandchild, nth=2)  # type: ignore[assignment]
        report = pool.maintain()
        assert said == [("child", 2), ("parent", "moved on"), ("grandchild", 1)]
        assert report.segments_merged
        assert report.segments_waiting == report.segments_merged, "the view was overlooked"
        worker.conn.send("look")
        assert worker.receive() is True, "the grandchild's view changed under it"
        worker.conn.send("let go")
        assert worker.receive() == "let go"
        until(lambda: reclaimed(pool), "all let go")
        worker.conn.send("end")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "forgotten"])
def test_invariant_06_a_child_leaves_the_view_of_a_closed_handle_to_its_parent(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
    closed: bool,
) -> None:
    """With only a table left of a handle: a child that lets go of it takes nothing away, one that keeps it is safe."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:keep_a_view_of_a_closed_handle", pool_path, closed)
        assert worker.receive() == "a child let go"
        fill_and_decay(pool)
        for _ in range(2):
            assert not reclaimed(pool), "the parent's view was let go of by its child"
            fill_and_decay(pool)
        worker.conn.send("look")
        assert worker.receive() is True
        worker.conn.send("fork")
        child = worker.receive()
        assert worker.wait() == 0
        assert child in {one.pid for one in pool.info().sessions}
        for _ in range(2):
            assert not reclaimed(pool), "the child's view is not pinned"
            fill_and_decay(pool)
        worker.conn.send("look")
        assert worker.receive() is True
        worker.conn.send("let go")
        assert worker.receive() == "let go"
        until(lambda: reclaimed(pool), "the last view is gone")
        assert {one.pid for one in pool.info().sessions} == {os.getpid()}, "the slot was not given back"
        worker.conn.send("end")


def test_invariant_06_a_child_for_which_no_slot_was_free_is_safe_under_its_parents(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """Its handle is closed, its inherited view stays pinned as long as the parent lives."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:fork_when_no_session_is_free", pool_path)
        assert worker.receive() is True
        for _ in range(3):
            fill_and_decay(pool)
            time.sleep(2 * TICK_S)  # the parent's keeper moves on what it may
            assert not reclaimed(pool), "the parent moved on without its child"
        worker.conn.send("look")
        assert worker.receive() is True
        worker.conn.send("let go")
        assert worker.receive() == "let go"
        worker.conn.send("end")
        worker.signal(signal.SIGKILL)
        worker.wait()
        until(lambda: reclaimed(pool), "the parent is gone")


def test_invariant_06_a_child_stopped_in_the_middle_of_the_fork_is_safe_when_its_parent_dies(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """Its slot was claimed before the fork: nothing has to run in the child for its view to be pinned."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:stop_in_the_fork", pool_path)
        child = worker.receive()
        worker.signal(signal.SIGKILL)
        worker.wait()
        for _ in range(3):
            fill_and_decay(pool)
            assert not reclaimed(pool), "the stopped child's view is not pinned"
        os.kill(child, signal.SIGCONT)
        worker.conn.send("look")
        assert worker.receive() is True
        assert child in {one.pid for one in pool.info().sessions}
        worker.conn.send("let go")
        assert worker.receive() == "let go"
        until(lambda: reclaimed(pool), "the child let go")
        worker.conn.send("end")


def test_invariant_06_letting_go_of_a_view_never_waits(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Another thread lets go in the middle of a fork, holding a lock that the fork waits for; what it let go of is free."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool, rounds=1)
        worker = launcher.start("tests.crash.workers:let_go_of_a_view_during_a_fork", pool_path)
        assert worker.receive() == "forked"
        fill_and_decay(pool)
        until(lambda: reclaimed(pool), "the view is gone")
        worker.conn.send("end")


def test_invariant_06_a_pin_let_go_of_during_a_fork_is_settled_after_it(pool: Pool) -> None:
    """In between, the slot stays as the child's was claimed."""
    fill_and_decay(alone(pool), rounds=1)
    session = pool.arena.session
    table = pool.collection("notes").scan()
    before = pinned_by(pool, session.slot)
    fill_and_decay(pool)
    pool.move_pins_on()
    assert pinned_by(pool, session.slot) == before
    session.before_fork()
    del table
    assert pinned_by(pool, session.slot) == before
    session.after_fork_in_parent()
    assert pinned_by(pool, session.slot) == pool.arena.current.manifests[0].generation > before


def test_invariant_06_what_was_loaded_is_there_when_it_is_pinned(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All that a manifest shows is retired, and would be reclaimed, between its being read and its being pinned."""
    with (
        Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool,
        Pool.open(pool_path, maintenance=False) as reader,
    ):
        fill_and_decay(pool)
        reader.move_pins_on()
        pool.collection("another").put(["x"], texts=["a new generation"])
        pin = Session.pin
        reports: list[MaintenanceReport] = []

        def pin_late(session: Session, manifests: Sequence[Manifest]) -> Pin:
            if session is reader.arena.session and not reports:
                reports.append(pool.maintain())
                reports.append(pool.maintain())
            return pin(session, manifests)

        monkeypatch.setattr(Session, "pin", pin_late)
        snapshot = reader.arena.refresh()
        assert reports[0].segments_merged
        assert [one.segments_freed for one in reports] == [0, 0], "freed under a manifest just read"
        del snapshot
        until(lambda: reclaimed(pool), "the reader moves on")


def test_invariant_06_the_first_pin_is_of_a_generation_that_was_there_when_it_was_stored(
    pool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All that the root's generation shows is reclaimed before the pin of it is stored: it is not what is then promised."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(alone(pool))
        arena = pool.arena
        old = arena.refresh().manifests[0].generation
        store = Session._store

        def store_late(session: Session, generations: tuple[int, ...]) -> None:
            if generations == (old,) and session is not arena.session:
                assert pool.maintain().segments_freed
            store(session, generations)

        monkeypatch.setattr(Session, "_store", store_late)
        session = Session(Region.open(pool.path, arena.geometry.file_size), arena.geometry, 0, "newcomer")
        assert session.pin_newest().generations == (arena.refresh().manifests[0].generation,)
        session.close()
        assert session.dead


def test_invariant_06_who_attaches_pins_before_it_reads_a_manifest(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """At its first look at a manifest the newcomer's slot has a pin that is not newer."""
    with Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False) as pool:
        load, looked = manifests.load, []

        def load_pinned(region: Region, geometry: Geometry, node: int) -> Manifest:
            found = load(region, geometry, node)
            if region is not pool.arena.region:
                looked.append((pinned_by(pool, 1), found.generation))
            return found

        monkeypatch.setattr(manifests, "load", load_pinned)
        Pool.open(pool_path, maintenance=False).close()
        assert looked
        assert all(0 < pin <= generation for pin, generation in looked)


def test_invariant_06_while_pins_will_not_hold_still_nothing_is_freed(
    pool_path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No two looks at the pins agree: the next round will do."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(alone(pool))
        collect = session_module._collect_pins
        looks = itertools.count(1)
        monkeypatch.setattr(session_module, "_collect_pins", lambda *given: {**collect(*given), -1: (next(looks),)})
        report = pool.maintain()
        assert next(looks) > 10
        assert report.segments_merged == report.segments_waiting > 0
        monkeypatch.undo()
        assert pool.maintain().segments_freed


def test_invariant_06_a_childs_slot_is_signed_when_its_pins_are_stored(pool: Pool) -> None:
    """Who finds a slot held since before its first look finds the pins that it was claimed with."""
    arena = alone(pool).arena
    stored: list[int] = []

    class Recording:
        def __init__(self, words: memoryview) -> None:
            self.words = words

        def __getitem__(self, index: int) -> int:
            return self.words[index]

        def __setitem__(self, index: int, value: int) -> None:
            stored.append(index)
            self.words[index] = value

    arena.region.words = Recording(arena.region.words)  # type: ignore[assignment]
    arena.session.crosses = True
    arena.session.before_fork()
    arena.session.after_fork_in_parent()
    pins = pins_at(pool, 1)
    assert pins in stored
    assert stored[-1] == pins + (layout.SESSION_SINCE - layout.SESSION_PINS) // 8
    assert stored.count(stored[-1]) == 1


def test_invariant_06_views_of_each_node_count_in_each(pool_path: str) -> None:
    """A process of node 0 holds a table with rows of node 1, whose generations are far behind: node 1 keeps them."""
    with (
        Pool.open(pool_path, create=True, capacity="32 MiB", nodes=2, maintenance=False) as here,
        Pool.open(pool_path, node=1, maintenance=False) as there,
    ):
        for number in range(30):
            here.collection(f"a generation of node 0 more {number}")
        for holder, keeper in ((here, there), (there, here)):
            fill_and_decay(keeper, rounds=1)
            table = holder.collection("notes").scan()
            content = table.to_pydict()
            fill_and_decay(keeper)
            for _ in range(3):
                assert not reclaimed(keeper, holder), "another node's view was overlooked"
            assert table.to_pydict() == content
            del table
            until(lambda one=keeper, other=holder: reclaimed(one, other), "the table is gone")  # type: ignore[misc]


def test_invariant_06_a_dead_holders_pin_counts_for_nobody_and_its_slot_is_taken_over(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
) -> None:
    """Killed with an old pin in its slot; the next holder, stopped before it has stored its own, does not free too much."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        fill_and_decay(pool)
        dead = launcher.start("tests.crash.remote:serve", pool_path, {"maintenance": False}, fault="attach.pinned:kill")
        dead.wait()
        old = pinned_by(pool, 1)
        assert old
        following = launcher.start("tests.crash.remote:serve", pool_path, {"maintenance": False}, fault="attach.locked:stop")
        following.wait_stopped()
        assert pool.maintain().segments_merged
        assert not reclaimed(pool), "whose pin it is cannot be known: it counts"
        following.signal(signal.SIGCONT)
        assert following.receive() == ("value", "ready")
        until(lambda: reclaimed(pool), "the old pin is overwritten")
        assert pinned_by(pool, 1) > old
        following.end()
        assert pinned_by(pool, 1), "a killed process leaves its pin"
        fill_and_decay(alone(pool), rounds=30)
        assert pool.maintain().segments_freed, "a dead process's pin counts"


@pytest.mark.parametrize("pinned", [False, True], ids=["before the pin", "after it"])
def test_invariant_06_a_handler_that_closes_while_manifests_are_read_leaves_no_unpinned_view(
    pool_path: str, monkeypatch: pytest.MonkeyPatch, pinned: bool
) -> None:
    """Closing let go of the older pin under which the new one was to be taken: that call is PoolClosed and keeps nothing."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as other:
        pool = alone(Pool.open(pool_path, maintenance=False))
        other.collection("notes").put(["x"], texts=["a new generation"])
        pin = Session.pin

        def close_meanwhile(session: Session, manifests: Sequence[Manifest]) -> Pin:
            early = pin(session, manifests) if pinned else None
            monkeypatch.undo()
            pool.close()
            return early or pin(session, manifests)

        monkeypatch.setattr(Session, "pin", close_meanwhile)
        with pytest.raises(PoolClosed):
            pool.collections()
        gc.collect()
        assert pool.arena.session.dead
        assert len(other.info().sessions) == 1


@pytest.mark.parametrize("point", ["merge.building", "horizon.stored", "reclaim.fenced", "reclaim.punching"])
def test_invariant_06_a_round_keeps_its_lock_though_its_handle_is_closed(pool_path: str, point: str) -> None:
    """Closed by another thread that would not wait, a maintainer is still the only one until its round is over."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as other:
        pool = Pool.open(pool_path, maintenance=False, lock_timeout_s=0.1)
        other.collection("notes").put(["kept", *(f"n{number}" for number in range(60))], texts=["x" * 1500] * 61)
        fill_and_decay(other)
        if point.startswith("reclaim"):
            assert pool.maintain().segments_merged
            other.move_pins_on()  # what that round retired, the next one frees
        there, go_on = threading.Event(), threading.Event()

        def wait_there(reached: str) -> None:
            if reached == point and threading.current_thread() is round_of_maintenance:
                there.set()
                go_on.wait()

        outcome = []

        def maintain() -> None:
            try:
                pool.maintain()
                outcome.append("done")
            except PoolClosed:  # not kept: its traceback would keep views
                outcome.append("closed")

        round_of_maintenance = threading.Thread(target=maintain)
        faults.hit = wait_there
        try:
            round_of_maintenance.start()
            assert there.wait(20)
            pool.close()
            assert not other.maintain().elected, "two maintainers at once"
        finally:
            go_on.set()
            round_of_maintenance.join()
            faults.hit = None
        assert outcome == ["closed"]
        assert pool.arena.session.dead, "the session was not given back when the round was over"
        until(lambda: reclaimed(other), "all that was begun is finished")
        assert other.verify().ok
