"""Several nodes of one pool, and collections dropped under others."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys

import numpy as np
import pytest

from sharedrag import CollectionDropped, Pool
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import fill_and_decay, texts_of
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote

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


# ---------------------------------------------------------------------- containers


def test_a_process_of_another_pid_namespace_is_not_taken_for_one_of_ours(pool_path: str) -> None:
    """In another container pid 1 is another process: `info` says that it is there, and nothing of our pid 1's memory."""
    isolated = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], check=False, capture_output=True).returncode:
        pytest.skip("this system does not let us make a pid namespace")
    script = f"""
import sys
from sharedrag import Pool
with Pool.open({pool_path!r}, name="elsewhere", maintenance=False):
    print("open", flush=True)
    sys.stdin.read()
"""
    with (
        Pool.open(pool_path, create=True, capacity="4 MiB", maintenance=False, name="here") as pool,
        subprocess.Popen([*isolated, sys.executable, "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other,
    ):
        assert other.stdout is not None and other.stdout.readline() == b"open\n"
        sessions = {one.label: one for one in pool.info().sessions}
        assert (sessions["elsewhere"].pid, sessions["elsewhere"].alive, sessions["elsewhere"].memory_private) == (
            1,
            True,
            None,
        )
        assert sessions["here"].memory_private
        other.communicate()
