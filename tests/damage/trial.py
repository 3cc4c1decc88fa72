"""What a damaged pool must still do: every answer right, or a `SharedRagError`.

Known and documented limits, the only ones that are let through, and only when `verify` reports the damage:
- search compares vectors without looking at their checksums: a damaged vector of a row that is not returned, or a row that
  damage hides from a filter, can be missing from the hits. What is returned is checked whole.
- scan() hands out the columns as they lie.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np

from sharedrag import Collection, Pool, PoolDamaged, SharedRagError
from sharedrag.collection import Record
from tests.damage.sample import METRICS, Expected, Sample

_FILTER = {"room": "room-2"}
_K = 10


@dataclass
class Outcome:
    """What came of one run."""

    opened: bool = False
    verify_found: bool = False
    errors: int = 0
    untyped: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    missed: list[str] = field(default_factory=list)  # only allowed if `verify` found the damage

    @property
    def failures(self) -> list[str]:
        """What must not be."""
        return [*self.untyped, *self.wrong, *([] if self.verify_found else self.missed)]


class Trial:
    """One damaged pool and what is asked of it."""

    def __init__(self, path: str, sample: Sample) -> None:
        self.path = path
        self.sample = sample
        self.outcome = Outcome()
        self.live = {name: dict(records) for name, records in sample.live.items()}
        self.gone = {name: set(ids) for name, ids in sample.gone.items()}
        self.order = {name: list(ids) for name, ids in sample.order.items()}

    def run(self, strike: Callable[[], None] | None = None) -> Outcome:
        """Open, look at everything, write, maintain, look again; `strike` does its damage once all has been seen."""
        pool = self._try("open", lambda: Pool.open(self.path, maintenance=False, lock_timeout_s=0.5))
        if not isinstance(pool, Pool):
            self.outcome.verify_found = True  # an error at open is as good
            return self.outcome
        self.outcome.opened = True
        try:
            if strike is not None:
                for name in METRICS:
                    self._read(pool, name, every=50)
                assert not self.outcome.failures
                assert not self.outcome.missed
                strike()
            report = self._try("verify", pool.verify)
            self.outcome.verify_found = report is None or not report.ok
            for name in METRICS:
                self._read(pool, name)
            for name in METRICS:
                self._write(pool, name)
            self._try("info", pool.info)
            self._try("maintain", pool.maintain)
            for name in METRICS:
                self._read(pool, name, every=4)
        finally:
            self._try("close", pool.close)
        if not self.outcome.verify_found and self.outcome.errors:
            self.outcome.wrong.append("reading fails, yet verify finds nothing wrong")
        return self.outcome

    def _try(self, what: str, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except SharedRagError as error:
            self.outcome.errors += isinstance(error, PoolDamaged)
        except Exception:  # noqa: BLE001 - whatever else comes out is the finding
            self.outcome.untyped.append(f"{what}: {traceback.format_exc()}")
        return None

    # ------------------------------------------------------------------ reading

    def _read(self, pool: Pool, name: str, every: int = 1) -> None:
        """Ask in every way; by id for the n-th record only, but in the first look for each."""
        metric, dtype, dimension = METRICS[name]
        collection = self._try("collection", lambda: pool.collection(name, dimension, metric, dtype))
        if not isinstance(collection, Collection):
            return
        live = self.live[name]
        count = self._try("len", lambda: len(collection))
        if count is not None and count != len(live):
            self.outcome.wrong.append(f"len({name}) is {count}, not {len(live)}")
        # where not even the count is to be had, every answer takes long to fail: a few will do
        for one in [*live, *self.gone[name], "never-there"][:: every if count is not None else 20]:
            found = self._try(f"get {one}", partial(collection.get, [one]))
            if found is not None:
                self._compare(f"get {name} {one}", found[0], live.get(one))
        together = self._try("get all", lambda: collection.get(list(live)))
        for one, record in zip(live, together or (), strict=False):
            self._compare(f"get all {name} {one}", record, live[one])
        self._find(collection, name)
        if dimension:
            self._search(collection, name)
        self._scan(collection, name)

    def _compare(self, what: str, record: Record | None, wanted: Expected | None) -> None:
        if record is None or wanted is None:
            if record is not None or wanted is not None:
                self.outcome.wrong.append(f"{what}: {record!r:.200} instead of {wanted!r:.200}")
            return
        right = (record.text, record.metadata, record.created) == (wanted.text, wanted.metadata, wanted.created)
        if right and (record.vector is None) == (wanted.vector is None):
            pairs = zip(() if record.vector is None else record.vector.tolist(), wanted.vector or (), strict=True)
            if all(abs(one - other) <= 2e-3 for one, other in pairs):
                return
        self.outcome.wrong.append(f"{what}: {record!r:.300} instead of {wanted!r:.300}")

    def _find(self, collection: Collection, name: str) -> None:
        live = self.live[name]
        found = self._try("find", collection.find)
        if found is not None:
            if [record.id for record in found] != self.order[name]:
                self.outcome.wrong.append(f"find in {name}: other records, or in another order")
            for record in found:
                self._compare(f"find {name} {record.id}", record, live.get(record.id))
        matching = [one for one in self.order[name] if live[one].metadata.get("room") == "room-2"]
        found = self._try("find filtered", lambda: collection.find(_FILTER))
        if found is not None:
            for record in found:
                self._compare(f"find filtered {name} {record.id}", record, live.get(record.id))
            if not {record.id for record in found} <= set(matching):
                self.outcome.wrong.append(f"find filtered in {name}: a record that does not match")
            elif [record.id for record in found] != matching:
                self.outcome.missed.append(f"find filtered in {name}: a record is missing")

    def _search(self, collection: Collection, name: str) -> None:
        scores = {one: values for one, values in self.sample.scores[name].items() if one in self.live[name]}
        for number, query in enumerate(self.sample.queries[name]):
            for where in (None, _FILTER):
                hits = self._try("search", partial(collection.search, query, _K, where))
                if hits is None:
                    continue
                allowed = {
                    one: float(values[number])
                    for one, values in scores.items()
                    if where is None or self.live[name][one].metadata.get("room") == "room-2"
                }
                self._judge(name, hits, allowed)

    def _judge(self, name: str, hits: list[Any], allowed: dict[str, float]) -> None:
        for hit in hits:
            wanted = self.live[name].get(hit.id)
            if wanted is None or (hit.text, hit.metadata, hit.created) != (wanted.text, wanted.metadata, wanted.created):
                self.outcome.wrong.append(f"search in {name}: {hit!r:.300} instead of {wanted!r:.300}")
            elif hit.id not in allowed:
                self.outcome.wrong.append(f"search in {name}: {hit.id} should not be found")
            elif abs(hit.score - allowed[hit.id]) > 4e-3:
                self.outcome.wrong.append(f"search in {name}: {hit.id} scores {hit.score}, not {allowed[hit.id]}")
        best = sorted(allowed.values(), reverse=True)[:_K]
        scores = [hit.score for hit in hits]
        if scores != sorted(scores, reverse=True):
            self.outcome.wrong.append(f"search in {name}: hits out of order")
        if len(scores) != len(best) or not np.allclose(scores, best, atol=4e-3):
            self.outcome.missed.append(f"search in {name}: not the best hits")

    def _scan(self, collection: Collection, name: str) -> None:
        table = self._try("scan", collection.scan)
        if table is None or self.outcome.verify_found:
            return
        texts = dict(zip(table["id"].to_pylist(), table["text"].to_pylist(), strict=True))
        if texts != {one: record.text for one, record in self.live[name].items()}:
            self.outcome.wrong.append(f"scan of {name}: other records, and verify finds nothing wrong")

    # ------------------------------------------------------------------ writing

    def _write(self, pool: Pool, name: str) -> None:
        metric, dtype, dimension = METRICS[name]
        collection = self._try("collection", lambda: pool.collection(name, dimension, metric, dtype))
        if not isinstance(collection, Collection):
            return
        live, order = self.live[name], self.order[name]
        kept, dying = order[5], order[7]
        fresh = f"{name}-fresh"
        created = live[kept].created
        new = Expected("written after the damage", {"room": "room-none"}, created, None)
        put = self._try("put", partial(self._put, collection, [fresh, kept], new))
        if put:
            for one in (fresh, kept):
                if one in order:
                    order.remove(one)
                order.append(one)
                live[one] = new
        deleted = self._try("delete", lambda: collection.delete([dying, "never-there"]))
        if deleted is not None:
            if deleted != 1:
                self.outcome.wrong.append(f"delete in {name}: {deleted} records instead of 1")
            del live[dying]
            order.remove(dying)
            self.gone[name].add(dying)

    def _put(self, collection: Collection, ids: list[str], record: Expected) -> bool:
        texts, metadata = [record.text] * len(ids), [record.metadata] * len(ids)
        collection.put(ids, None, texts, metadata, created=record.created)
        return True
