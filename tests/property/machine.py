"""A pool under random calls, compared after every call with a plain dict.

The machine does not know where its handles live: `test_machine` runs it over handles of one process, and over
processes. Segments are small, so that the calls make segments roll, seal, merge and be reclaimed.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from sharedrag import Pool, PoolFull
from tests.property.handles import DEFINITIONS, DIMENSION, Elsewhere, Handle, Here, Row

HANDLES_MAX = 3
_START = datetime(2025, 1, 1, tzinfo=UTC)
_ROOMS = ("oʻahu", "maui", "kauaʻi")

ids = st.sampled_from([*(f"id-{number}" for number in range(12)), "ʻōlelo", "x" * 300, "a\x00b", " "])
names = st.sampled_from(sorted(DEFINITIONS))
texts = st.one_of(
    st.none(),
    st.text(max_size=20),
    st.integers(0, 4000).map(lambda length: "aloha " * (length // 6)),
)
metadata: st.SearchStrategy[dict[str, Any]] = st.one_of(
    st.just({}),
    st.fixed_dictionaries(
        {"room": st.sampled_from(_ROOMS)}, optional={"n": st.integers(-5, 5), "note": st.text(max_size=9)}
    ),
)
coordinates = st.lists(st.integers(-8, 8).map(float), min_size=DIMENSION, max_size=DIMENSION)
rows = st.builds(
    Row,
    ids,
    texts,
    metadata,
    st.integers(0, 10**12).map(lambda us: _START + timedelta(microseconds=us)),
    st.one_of(st.none(), coordinates.map(tuple)),
)
batches = st.lists(rows, min_size=1, max_size=20)
filters = st.one_of(
    st.none(),
    st.sampled_from(_ROOMS).map(lambda room: {"room": room}),
    st.integers(-5, 5).map(lambda least: {"n": {">=": least}}),
    st.sampled_from(_ROOMS).map(lambda room: {"room": {"!=": room}}),
)
pick = st.integers(0, 1000)  # which handle, held table, ...


def matches(where: dict[str, Any] | None, metadata: dict[str, Any]) -> bool:
    """What the filters that this machine uses mean."""
    if where is None:
        return True
    ((key, wanted),) = where.items()
    if not isinstance(wanted, dict):
        return bool(metadata.get(key) == wanted)
    ((op, value),) = wanted.items()
    if op == "!=":
        return bool(metadata.get(key) != value)
    return bool(key in metadata and metadata[key] >= value)


def _doomed(index: int) -> list[str]:
    return [f"{index}-id-0", f"{index}-id-1"]


def _was_full(answer: Callable[[], Any]) -> bool:
    try:
        answer()
    except PoolFull:
        return True
    return False


class PoolMachine(RuleBasedStateMachine):
    """Rules and checks; `kind` says where handles live."""

    kind: ClassVar[type[Here] | type[Elsewhere]] = Here

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="sharedrag-test-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
        self.path = f"{self.folder}/test.pool"
        self.nodes = 1
        self.handles: list[Handle] = []
        self.truth: dict[str, dict[str, Row]] = {name: {} for name in DEFINITIONS}  # in the order of their last put
        self.versions: dict[str, int] = {}
        self.held: list[tuple[Handle, int, list[tuple[str, str | None]]]] = []
        self.holds = 0
        self.bulk = 0

    @initialize(nodes=st.sampled_from((1, 2)), maintenance=st.booleans())
    def create(self, nodes: int, maintenance: bool) -> None:
        """A pool of 2 MiB for each node, and its first handle."""
        self.nodes = nodes
        Pool.open(self.path, create=True, capacity=nodes * (2 << 20), nodes=nodes, maintenance=False).close()
        self._open(0, maintenance)
        self._open(nodes - 1, False)

    def teardown(self) -> None:
        """Verify, close, remove."""
        try:
            for handle in self.handles[:1]:
                assert handle.ask("verify") == []
            for handle in self.handles:
                handle.close()
        finally:
            shutil.rmtree(self.folder)

    def _open(self, node: int, maintenance: bool) -> None:
        handle = self.kind(self.path, node, maintenance)
        handle.ask("declare")
        self.handles.append(handle)

    def _handle(self, which: int) -> Handle:
        return self.handles[which % len(self.handles)]

    # ------------------------------------------------------------------ writing

    def _wrote(self, name: str, put: list[Row], deleted: list[str]) -> None:
        truth = self.truth[name]
        for one in deleted:
            truth.pop(one, None)
        for row in put:
            truth.pop(row.id, None)
            truth[row.id] = row if name == "vectors" else row._replace(vector=None)
        self.versions.pop(name, None)

    def _put(self, which: int, name: str, rows: list[Row], delete: list[str]) -> None:
        """Put; what is live always fits, but tables that are held may keep too much of what is dead."""
        handle = self._handle(which)
        try:
            handle.ask("put", name, rows, delete)
        except PoolFull:
            assert self.held, handle.ask("space")
            while self.held:
                self.look_again(0)
            handle.ask("put", name, rows, delete)
        self._wrote(name, rows, delete)

    @rule(which=pick, name=names, rows=batches, delete=st.lists(ids, max_size=3))
    def put(self, which: int, name: str, rows: list[Row], delete: list[str]) -> None:
        """Put a batch, with duplicates in it, and delete in the same batch."""
        before = self._count(name)
        self._put(which, name, rows, delete)
        assert self._count(name)[1] > before[1]

    @rule(which=pick, name=names, count=st.integers(30, 100), size=st.integers(0, 500))
    def put_many(self, which: int, name: str, count: int, size: int) -> None:
        """Put a batch of records with ids in a row, some of them known."""
        first = max(0, self.bulk - count // 3)
        many = [
            Row(f"bulk-{number}", "b" * size, {"n": number % 7}, _START, (float(number % 5), 1.0, 2.0, 3.0))
            for number in range(first, first + count)
        ]
        self.bulk = (first + count) % 150  # so that space is wanted again and again
        self._put(which, name, many, [])

    @rule(which=pick, name=names, rounds=st.integers(3, 9), size=st.integers(100, 700))
    def churn(self, which: int, name: str, rounds: int, size: int) -> None:
        """Overwrite the same records again and again, from one handle after the other."""
        for turn in range(rounds):
            text = f"{turn}" * size
            again = [Row(f"bulk-{number}", text, {}, _START, (1.0, 2.0, 3.0, float(turn))) for number in range(100)]
            self._put(which + turn, name, again, [])

    @rule(which=pick, name=names, wanted=st.lists(ids, max_size=6))
    def delete(self, which: int, name: str, wanted: list[str]) -> None:
        """Delete some ids, known or not."""
        before = self._count(name)
        deleted = self._handle(which).ask("delete", name, wanted)
        assert deleted == len(set(wanted) & self.truth[name].keys())
        if deleted:
            self._wrote(name, [], wanted)
            assert self._count(name)[1] > before[1]

    @rule(which=pick, name=names, share=st.integers(2, 5))
    def delete_many(self, which: int, name: str, share: int) -> None:
        """Delete every n-th of all records."""
        doomed = list(self.truth[name])[::share]
        assert self._handle(which).ask("delete", name, doomed) == len(doomed)
        if doomed:
            self._wrote(name, [], doomed)

    @rule(name=names, shares=st.lists(batches, min_size=HANDLES_MAX, max_size=HANDLES_MAX), maintainer=pick)
    def put_at_once(self, name: str, shares: list[list[Row]], maintainer: int) -> None:
        """All handles put at once, each its own ids, while one maintains; nothing is lost, and batches keep their order."""
        mine = [
            [row._replace(id=f"{index}-{row.id}", text=None if row.text is None else row.text[:200]) for row in share]
            for index, share in enumerate(shares[: len(self.handles)])
        ]
        idle = maintainer % (len(mine) + 1)
        answers = [
            handle.begin("maintain") if index == idle else handle.begin("put", name, rows, _doomed(index))
            for index, (handle, rows) in enumerate(zip(self.handles, mine, strict=True))
        ]
        full = [index for index, answer in enumerate(answers) if _was_full(answer)]
        for index, rows in enumerate(mine):
            if index in full:
                self._put(index, name, rows, _doomed(index))
            elif index != idle:
                self._wrote(name, rows, _doomed(index))
        wrote = [rows for index, rows in enumerate(mine) if index != idle]
        found = self.handles[0].ask("find", name, None, None, False)
        assert {row.id: row for row in found} == self.truth[name] and len(found) == len(self.truth[name])
        touched = {row.id for rows in wrote for row in rows}
        assert [row.id for row in found if row.id not in touched] == [one for one in self.truth[name] if one not in touched]
        for ours in ({row.id for row in rows} for rows in wrote):
            assert [row.id for row in found if row.id in ours] == [one for one in self.truth[name] if one in ours]
        self.truth[name] = {row.id: row for row in found}  # the order in which they happened to come

    # ------------------------------------------------------------------ reading

    def _count(self, name: str) -> tuple[int, int]:
        counts: tuple[int, int] = self.handles[0].ask("counts", name)
        return counts

    @rule(which=pick, name=names, wanted=st.lists(ids, max_size=6))
    def get(self, which: int, name: str, wanted: list[str]) -> None:
        """Records by id."""
        handle = self._handle(which)
        found = handle.ask("get", name, wanted)
        assert found == [self.truth[name].get(one) for one in wanted]
        for one in wanted[:1]:
            assert handle.ask("contains", name, one) == (one in self.truth[name])

    @rule(which=pick, name=names, where=filters, newest_first=st.booleans(), limit=st.one_of(st.none(), st.integers(0, 5)))
    def find(self, which: int, name: str, where: dict[str, Any] | None, newest_first: bool, limit: int | None) -> None:
        """Records by filter, in the order of their last put."""
        wanted = [row for row in self.truth[name].values() if matches(where, row.metadata)]
        if newest_first:
            wanted.reverse()
        assert self._handle(which).ask("find", name, where, limit, newest_first) == wanted[:limit]

    @rule(
        which=pick,
        query=coordinates,
        k=st.integers(1, 30),
        where=filters,
        among=st.one_of(st.none(), st.lists(ids, max_size=6)),
    )
    def search(self, which: int, query: list[float], k: int, where: dict[str, Any] | None, among: list[str] | None) -> None:
        """The best hits, compared with every distance."""
        hits = self._handle(which).ask("search", query, k, where, among)
        scores = {
            row.id: -(sum((one - other) ** 2 for one, other in zip(query, row.vector, strict=True)) ** 0.5)
            for row in self.truth["vectors"].values()
            if row.vector is not None and matches(where, row.metadata) and (among is None or row.id in among)
        }
        best = sorted(scores.values(), reverse=True)[:k]
        assert len(hits) == len(best) == len({hit[0] for hit in hits})
        for (found, score, text), wanted in zip(hits, best, strict=True):
            assert abs(score - wanted) < 1e-3
            assert abs(score - scores[found]) < 1e-3
            assert text == self.truth["vectors"][found].text

    @rule(which=pick, name=names)
    def scan(self, which: int, name: str) -> None:
        """All records as Arrow."""
        assert self._handle(which).ask("scan", name) == self._plain(name)

    def _plain(self, name: str) -> list[tuple[str, str | None]]:
        return sorted((row.id, row.text) for row in self.truth[name].values())

    @rule(which=pick, name=names)
    def hold(self, which: int, name: str) -> None:
        """Keep an Arrow table of the pool's memory over whatever happens next."""
        if len(self.held) < 3:
            handle = self._handle(which)
            self.holds += 1
            rows = handle.ask("hold", name, self.holds)
            assert rows == self._plain(name)
            self.held.append((handle, self.holds, rows))

    @rule(which=pick)
    def look_again(self, which: int) -> None:
        """What a kept table showed, it shows still."""
        if (
            not self.held
        ):  # no precondition: how many are held depends on when the pool was full, which Hypothesis cannot replay
            return
        handle, key, rows = self.held.pop(which % len(self.held))
        assert handle.ask("look_again", key) == rows

    @invariant()
    def everybody_sees_everything(self) -> None:
        """All handles agree on the count and on the version, which stands still where nobody wrote."""
        for name in DEFINITIONS:
            for handle in self.handles:
                count, version = handle.ask("counts", name)
                assert count == len(self.truth[name])
                assert version == self.versions.setdefault(name, version)

    # ------------------------------------------------------------------ life

    @rule(which=pick)
    def maintain(self, which: int) -> None:
        """A round of maintenance, which nobody may notice."""
        self._handle(which).ask("maintain")

    @rule(which=pick)
    def get_everything(self, which: int) -> None:
        """Every record, by id, from one handle."""
        for name, truth in self.truth.items():
            assert self._handle(which).ask("get", name, list(truth)) == list(truth.values())

    @precondition(lambda self: len(self.handles) < HANDLES_MAX)
    @rule(node=st.integers(0, 1), maintenance=st.booleans())
    def open_another(self, node: int, maintenance: bool) -> None:
        """Attach once more."""
        self._open(min(node, self.nodes - 1), maintenance)

    @precondition(lambda self: len(self.handles) > 1)
    @rule(which=pick)
    def close_one(self, which: int) -> None:
        """Detach; tables it handed out are let go first."""
        handle = self.handles.pop(which % len(self.handles))
        self.held = [held for held in self.held if held[0] is not handle]
        handle.close()

    @rule(which=pick, by=pick, name=names)
    def drop(self, which: int, by: int, name: str) -> None:
        """Drop a collection and make it anew."""
        self._handle(which).ask("drop", name)
        for handle in (self._handle(by), *self.handles):
            handle.ask("declare")
        self.truth[name] = {}
        self.versions.pop(name, None)


class ProcessMachine(PoolMachine):
    """The same over processes, of which one may die."""

    kind = Elsewhere

    @precondition(lambda self: len(self.handles) > 1)
    @rule(which=pick)
    def kill_one(self, which: int) -> None:
        """A process dies without closing anything."""
        handle = self.handles.pop(which % len(self.handles))
        self.held = [held for held in self.held if held[0] is not handle]
        assert isinstance(handle, Elsewhere)
        handle.kill()
