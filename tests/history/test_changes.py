from __future__ import annotations

import random
import shutil
import signal
import tempfile
from functools import partial
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedrag import Collection, InvalidFilter, InvalidRecord, Pool
from sharedrag.collection import Changes
from tests.crash.helpers import fill_and_decay
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote


class Follower:
    """Somebody who keeps a copy of a collection by its changes alone."""

    def __init__(self, wanted: dict[str, Any] | None = None) -> None:
        self.wanted = wanted
        self.place: str | None = None
        self.copy: dict[str, str | None] = {}

    def page(self, changes_of: Any, limit: int | None) -> Changes:
        """Take a page of what is new."""
        fresh: Changes = changes_of(self.place, limit, self.wanted)
        assert [one.key for one in fresh.changes] == sorted(one.key for one in fresh.changes)
        assert limit is None or len(fresh.changes) <= limit
        for one in fresh.changes:
            if one.record is None:
                self.copy.pop(one.id, None)
            else:
                self.copy[one.id] = one.record.text
        self.place = fresh.place
        return fresh

    def follow(self, changes_of: Any, limit: int | None = None) -> None:
        """Take all that is new; start over where a tombstone was cleared away before it was read."""
        fresh = self.page(changes_of, limit)
        while fresh.more:
            fresh = self.page(changes_of, limit)
        if fresh.live is not None and fresh.live != len(self.copy):
            self.check_nothing_missed(self.start_over(changes_of))

    def start_over(self, changes_of: Any) -> dict[str, str | None]:
        """Read all; returns the copy that was kept until now."""
        kept, self.place, self.copy = self.copy, None, {}
        fresh = self.page(changes_of, None)
        assert fresh.live == len(self.copy)
        return kept

    def check_nothing_missed(self, kept: dict[str, str | None]) -> None:
        """What was kept may have had too much, where tombstones were cleared away, but nothing too little."""
        assert self.copy.items() <= kept.items()


def texts(collection: Collection, wanted: dict[str, Any] | None = None) -> dict[str, str | None]:
    """A collection as a plain dict."""
    return {one.id: one.text for one in collection.find(wanted)}


def ids(changes: Changes) -> list[tuple[str, bool]]:
    """What changed: id, and whether it is still there."""
    return [(one.id, one.record is not None) for one in changes.changes]


def test_what_is_new_comes_in_order_and_once(pool: Pool) -> None:
    """From each place only what came later is given: puts with their record, deletes without."""
    notes = pool.collection("notes")
    notes.put(["a", "b"], texts=["1", "2"])
    first = notes.changes()
    assert ids(first) == [("a", True), ("b", True)] and first.live == 2 and not first.more
    notes.delete(["a"])
    notes.put(["b", "c"], texts=["2'", "3"], metadata=[{"x": 1}, None])
    second = notes.changes(first.place)
    assert ids(second) == [("a", False), ("b", True), ("c", True)] and second.live == 2
    assert second.changes[1].record is not None and second.changes[1].record.metadata == {"x": 1}
    nothing = notes.changes(second.place)
    assert nothing.changes == [] and nothing.place == second.place and nothing.live is None
    assert notes.changes(notes.place()).changes == []


def test_an_empty_collection_has_a_place(pool: Pool) -> None:
    """Whoever begins with nothing misses nothing."""
    notes = pool.collection("notes")
    place = notes.place()
    assert notes.changes().changes == []
    notes.put(["a"])
    assert ids(notes.changes(place)) == [("a", True)]


def test_a_limit_cuts_and_the_place_goes_on(pool: Pool) -> None:
    """Pages of any size, one after the other, are the whole."""
    notes = pool.collection("notes")
    notes.put([str(number) for number in range(25)])
    notes.delete(["3", "24"])
    whole = ids(notes.changes())
    for limit in (1, 2, 7, 24, 25, 26):
        place, found = None, []
        while True:
            page = notes.changes(place, limit)
            found += ids(page)
            place = page.place
            if not page.more:
                break
        assert found == whole, limit


def test_a_filter_narrows_records_but_not_deletes(pool: Pool) -> None:
    """Of records those that match, of deleted ids all: what they were is not known any more."""
    notes = pool.collection("notes")
    notes.put(["a", "b", "c"], metadata=[{"kind": "x"}, {"kind": "y"}, {"kind": "x"}])
    notes.delete(["b"])
    found = notes.changes(filter={"kind": "x"})
    assert ids(found) == [("a", True), ("c", True), ("b", False)] and found.live == 2


def test_an_id_that_lives_again_is_not_deleted(pool_path: str) -> None:
    """A tombstone older than the record that came after it, in another lane, is passed over."""
    with Pool.open(pool_path, create=True, capacity="16 MiB") as one, Pool.open(pool_path) as other:
        mine, theirs = one.collection("notes"), other.collection("notes")
        mine.put(["a"], texts=["old"])
        place = mine.changes().place
        theirs.delete(["a"])
        mine.put(["a"], texts=["new"])
        assert ids(mine.changes(place)) == [("a", True)]


@pytest.mark.parametrize("place", ["x", "AAAA", "not base64!", "é", 7, b"\xff", "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA="])
def test_a_text_that_is_no_place_is_refused(pool: Pool, place: Any) -> None:
    """Whatever a client sends back as a place, it gets a clear error."""
    with pytest.raises(InvalidRecord, match="place"):
        pool.collection("notes").changes(place)


@pytest.mark.parametrize("limit", [0, -1, 1.5, True, "3"])
def test_a_limit_that_is_none_is_refused(pool: Pool, limit: Any) -> None:
    """A limit is a whole number from 1 on."""
    with pytest.raises(InvalidFilter, match="limit"):
        pool.collection("notes").changes(None, limit)


def test_merging_changes_nothing(pool: Pool) -> None:
    """A place from before segments were merged is as good after it, and nothing is told twice."""
    notes = pool.collection("notes")
    notes.put(["kept"], texts=["first"])
    early = notes.place()
    fill_and_decay(pool)
    late = notes.place()
    expected = {f"n{number}" for number in range(60)}
    assert pool.maintain().segments_merged
    assert {one.id for one in notes.changes(early).changes} == expected
    assert notes.changes(late).changes == []
    notes.put(["z"])
    assert ids(notes.changes(late)) == [("z", True)]
    assert len(notes.changes(early).changes) == 61


def test_a_lane_that_publishes_an_older_key_later_is_not_missed(pool: Pool, launcher: Launcher) -> None:
    """A writer that is stopped between choosing its key and publishing it, while others go on, is heard in the end."""
    notes = pool.collection("notes")
    notes.put(["first"])
    slow = Remote(launcher, pool.path, fault="put.linked:stop", maintenance=False)
    slow.begin("notes", "put", ["slow"])
    slow.worker.wait_stopped()
    notes.put(["fast"])
    seen = notes.changes()
    assert ids(seen) == [("first", True), ("fast", True)]
    slow.worker.signal(signal.SIGCONT)
    slow.finish()
    late = notes.changes(seen.place)
    assert ids(late) == [("slow", True)] and late.changes[0].key < seen.changes[1].key
    assert notes.changes(late.place).changes == []


def test_what_one_process_gave_another_understands(pool: Pool, launcher: Launcher) -> None:
    """A place is resumed from in any process, of any node."""
    notes = pool.collection("notes")
    notes.put(["a"])
    place = notes.place()
    other = Remote(launcher, pool.path, maintenance=False)
    other.on("notes", "put", ["b"])
    assert ids(other.on("notes", "changes", place)) == [("b", True)]
    assert ids(notes.changes(place)) == [("b", True)]
    assert other.on("notes", "changes", notes.place()).changes == []


_STEPS = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "delete", "maintain", "follow", "page"]),
        st.integers(0, 2),
        st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=6),
        st.integers(1, 5),
    ),
    max_size=40,
)


@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(steps=_STEPS)
def test_any_steps_of_three_handles_of_two_nodes(steps: list[Any]) -> None:
    """Whatever is written, deleted and merged wherever, followers of all and of some end with what is there."""
    folder = tempfile.mkdtemp(prefix="sharedrag-test-", dir="/dev/shm")
    path = f"{folder}/p.pool"
    try:
        with (
            Pool.open(path, create=True, capacity="16 MiB", nodes=2, maintenance=False) as one,
            Pool.open(path, node=1, maintenance=False) as two,
            Pool.open(path, maintenance=False) as three,
        ):
            pools = (one, two, three)
            followers = [Follower(), Follower({"odd": True}), Follower()]
            for number, (what, which, names, limit) in enumerate(steps):
                notes = pools[which].collection("notes")
                if what == "put":
                    odd = [{"odd": (number + at) % 2 == 1} for at in range(len(names))]
                    notes.put(names, texts=[f"{number} " + "x" * 3000] * len(names), metadata=odd)
                elif what == "delete":
                    notes.delete(names)
                elif what == "maintain":
                    pools[which].maintain()
                elif what == "follow":
                    followers[which].follow(notes.changes)
                    assert followers[which].copy == texts(notes, followers[which].wanted)
                else:
                    followers[which].follow(notes.changes, limit)
                    assert followers[which].copy == texts(notes, followers[which].wanted)
            for pool, follower in zip(pools, followers, strict=True):
                follower.follow(pool.collection("notes").changes)
                assert follower.copy == texts(one.collection("notes"), follower.wanted)
    finally:
        shutil.rmtree(folder)


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_followers_of_several_writing_processes_miss_nothing(pool_path: str, launcher: Launcher, seed: int) -> None:
    """Several processes of two nodes write and merge at once; who follows, in whichever process, ends with what is there.

    Every id is put once or deleted later, so a record that was passed over would be missing in the end.
    """
    rng = random.Random(seed)
    with Pool.open(pool_path, create=True, capacity="64 MiB", nodes=2, maintenance=False) as pool:
        pool.collection("notes")
        writers = [Remote(launcher, pool_path, maintenance=False, node=number % 2) for number in range(3)]
        readers = [Remote(launcher, pool_path, maintenance=False, node=number) for number in range(2)]
        carers = [Remote(launcher, pool_path, maintenance=False, node=number) for number in range(2)]
        followers = [Follower() for _ in range(3)]
        written: list[str] = []
        for turn in range(120):
            fresh_now: list[str] = []
            for number, writer in enumerate(writers):
                fresh = [f"{turn}-{number}-{at}" for at in range(rng.randint(1, 12))]
                gone = [written.pop(rng.randrange(len(written))) for _ in range(min(len(written), rng.randint(0, 6)))]
                writer.begin("notes", "put", fresh, texts=["x" * 800] * len(fresh), delete=gone)
                fresh_now += fresh
            if turn % 10 == 5:
                for carer in carers:
                    carer.worker.conn.send(("", "maintain", (), {}))
            for follower in followers:
                reader = rng.choice(readers)
                follower.page(partial(reader.on, "notes", "changes"), rng.choice([None, 3, 50]))
            for writer in writers:
                writer.finish()
            written += fresh_now
            if turn % 10 == 5:
                for carer in carers:
                    carer.finish()
        notes = pool.collection("notes")
        expected = texts(notes)
        assert set(expected) == set(written)
        for follower in followers:
            reader = rng.choice(readers)
            follower.follow(partial(reader.on, "notes", "changes"), rng.choice([None, 7]))
            assert follower.copy == expected
