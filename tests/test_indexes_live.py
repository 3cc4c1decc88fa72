"""Indexes while others write, delete, merge and rebuild: every hit is live and scored right, and recall holds."""

from __future__ import annotations

import time
from collections import defaultdict
from typing import Any

import numpy as np
import pytest

from sharedrag import Collection, Pool
from sharedrag.maintenance import derive
from sharedrag.search import coverage
from tests.crash.conftest import launcher  # noqa: F401 (a fixture)
from tests.crash.helpers import alone, reclaimed, until
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote
from tests.index_helpers import World, compared, index_entries, settled
from tests.index_workers import FIRST_ROWS, NAME, WIDTH, Asked, Written

RECALL = 0.95
K = 10


class Steps:
    """A collection, written and maintained by several handles at random, beside what should be in it."""

    def __init__(self, pools: list[Pool], remote: Remote, metric: str, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.world = World(16, seed)
        self.pools = pools
        self.remote = remote
        self.collections = [pool.collection("c", dimension=16, metric=metric) for pool in pools]
        self.known: dict[str, bool] = {}  # has it a vector?
        self.next = 0
        self.recalls: list[float] = []
        self.indexes: set[int] = set()

    def any_collection(self) -> Collection:
        """One handle's."""
        return self.collections[self.rng.integers(len(self.collections))]

    def _some(self, share: float) -> list[str]:
        ids = sorted(self.known)
        count = min(len(ids), 1 + int(self.rng.random() * share * len(ids)))
        found: list[str] = self.rng.choice(ids, count, replace=False).tolist() if ids else []
        return found

    def _put(self, ids: list[str]) -> None:
        vectors: list[Any] = list(self.world.draw(len(ids)))
        with_vector = self.rng.random(len(ids)) < 0.9
        metadata = [{"chance": int(one)} for one in self.rng.integers(0, 100, len(ids))]
        given = [one if has else None for one, has in zip(vectors, with_vector.tolist(), strict=True)]
        self.any_collection().put(ids, given, [f"text {one}" for one in ids], metadata)
        self.known.update(zip(ids, with_vector.tolist(), strict=True))

    def put_new(self) -> None:
        """Up to 250 new records."""
        count = int(self.rng.integers(1, 250))
        self._put([str(self.next + number) for number in range(count)])
        self.next += count

    def put_again(self) -> None:
        """Up to a quarter of the records are replaced."""
        self._put(self._some(0.25))

    def delete(self) -> None:
        """Up to a fifth goes."""
        ids = self._some(0.2)
        self.any_collection().delete(ids)
        for one in ids:
            self.known.pop(one, None)

    def maintain(self) -> None:
        """Some handle, or the other process."""
        at = int(self.rng.integers(len(self.pools) + 1))
        if at < len(self.pools):
            self.pools[at].maintain()
        else:
            self.remote.pool("maintain")
        self.indexes.update(entry.uid for entry in index_entries(self.pools[0]))

    def check(self) -> None:
        """A search by some handle, or by the other process, is right."""
        questions = self.world.draw(10)
        wanted: dict[str, Any] | None = None
        ids = None
        match self.rng.integers(4):
            case 0:
                wanted = {"chance": {"<": int(self.rng.choice([1, 10, 50, 200]))}}
            case 1:
                ids = self._some(1.0)
        collection = self.any_collection()
        found = None
        if self.rng.random() < 0.3:
            found = self.remote.on("c", "search", questions, K, wanted, ids=ids)
        self.recalls.append(compared(collection, questions, K, wanted, ids, found))
        assert set(collection.scan(columns=["id"])["id"].to_pylist()) == set(self.known)


@pytest.mark.parametrize(("metric", "nodes"), [("cosine", 1), ("l2", 1), ("ip", 2)])
def test_random_steps(
    launcher: Launcher,  # noqa: F811
    pool_path: str,
    monkeypatch: pytest.MonkeyPatch,
    metric: str,
    nodes: int,
) -> None:
    """Puts, updates, deletes, merges and rebuilds by three handles and another process; searched in between by all.

    Indexes are made of fewer rows than otherwise, so that there are many of them.
    """
    for module, name, value in (
        (derive, "_FIRST_ROWS", 400),
        (derive, "_TAIL_ROWS", 150),
        (derive, "_REWRITTEN_ROWS", 700),
        (derive, "_DERIVED_FROM", 100),
        (coverage, "_EXACT_MAX", 60),
    ):
        monkeypatch.setattr(module, name, value)
    with (
        Pool.open(pool_path, create=True, capacity="32 MiB", nodes=nodes, maintenance=False) as first,
        Pool.open(pool_path, maintenance=False) as second,
        Pool.open(pool_path, node=nodes - 1, maintenance=False) as third,
    ):
        remote = Remote(launcher, pool_path, maintenance=False)
        steps = Steps([alone(first), alone(second), alone(third)], remote, metric, seed=31)
        for _ in range(8):
            steps.put_new()
        weighed = [steps.put_new] * 5 + [steps.put_again] * 3 + [steps.delete] * 2 + [steps.maintain] * 5
        for at in steps.rng.integers(0, len(weighed), 130).tolist():
            weighed[at]()
            steps.check()
        assert len(steps.indexes) >= 10, "there were hardly any rebuilds"
        assert np.mean(steps.recalls) >= RECALL
        for pool in (first, third, first):
            settled(pool)
            steps.check()
        until(lambda: reclaimed(first, second, third), "what was replaced is given back")
        assert len(index_entries(first)) <= 2 * nodes
        with Pool.open(pool_path, maintenance=False) as fresh:
            assert compared(fresh.collection("c"), steps.world.draw(20)) >= 0.9
        assert first.verify().ok


# ---------------------------------------------------------------------- all at once


def wrong_hits(written: list[Written], asked: list[Asked]) -> list[str]:
    """Hits of versions that were at no moment of their search the record's newest."""
    history: dict[str, list[Written]] = defaultdict(list)
    for one in written:
        history[one.id].append(one)
    wrong = []
    for search in asked:
        for name, version in search.found:
            versions = history[name]
            at = next((at for at, one in enumerate(versions) if one.version == version), None)
            if at is None or versions[at].begun_ns > search.done_ns:
                wrong.append(f"{name} version {version} was not written yet")
            elif at + 1 < len(versions) and versions[at + 1].done_ns < search.begun_ns:
                wrong.append(f"{name} version {version} was replaced or deleted before")
        if len({name for name, _ in search.found}) < len(search.found):
            wrong.append(f"{search.found} names a record twice")
    return wrong


def test_searches_while_others_write_and_maintain(launcher: Launcher, pool_path: str) -> None:  # noqa: F811
    """Ten seconds of two writers, a maintainer and two readers: each hit was live at some moment of its search."""
    with Pool.open(pool_path, create=True, capacity="128 MiB", maintenance=False) as pool:
        collection = pool.collection(NAME, dimension=WIDTH)
        writers = [launcher.start("tests.index_workers:write_on", pool_path, seed) for seed in (1, 2)]
        for worker in writers:
            assert worker.receive(60) == "ready"
        maintainer = launcher.start("tests.index_workers:maintain_on", pool_path)
        readers = [launcher.start("tests.index_workers:read_on", pool_path, seed) for seed in (3, 4)]
        for worker in (maintainer, *readers):
            assert worker.receive(60) == "ready"
        time.sleep(10)
        answers = []
        for worker in (*readers, *writers, maintainer):
            worker.conn.send("stop")
            answers.append(worker.receive(60))
            assert worker.wait() == 0
        reads, written = [*answers[:2]], [one for log in answers[2:4] for one in log]
        built, merged = answers[4]
        asked = [one for log, _ in reads for one in log]
        assert not (wrong := wrong_hits(written, asked)), wrong[:10]
        assert all(one.hits == K for one in asked), "fewer hits than there are records"
        assert len(asked) > 30 and len(written) > 2 * FIRST_ROWS + 500 and built >= 3 and merged >= 2
        assert sum(indexed for _, indexed in reads) > len(asked) // 2
        assert 1 - sum(one.missed for one in asked) / sum(one.exact for one in asked) >= 0.93
        assert not wrong_records(collection, written)
        settled(pool, rounds=30)
        assert compared(collection, World(WIDTH, 21).draw(30)) >= 0.93
        until(lambda: reclaimed(pool), "what was replaced is given back")
        assert index_entries(pool)
        assert pool.verify().ok


def wrong_records(collection: Collection, written: list[Written]) -> list[str]:
    """Ids whose newest version is not what is there in the end."""
    newest = {one.id: one.version for one in written}
    there = {record.id: record.metadata["version"] for record in collection.find()}
    return [one for one, version in newest.items() if there.get(one) != version]
