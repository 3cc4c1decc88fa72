"""A pool full of collections: the next is refused with figures, and those that are there go on."""

from __future__ import annotations

import time

import pytest

from sharedrag import Pool, PoolFull, writer
from sharedrag.info import MaintenanceReport
from sharedrag.maintenance.maintainer import Maintainer


def _declare(pool: Pool, names: list[str]) -> None:
    for name in names:
        pool.collection(name)


def _idle_round(_: object) -> MaintenanceReport:
    time.sleep(0.01)
    return MaintenanceReport(elected=True, bytes_freed=1)


def test_too_many_collections_are_refused_while_there_is_room_for_records(pool_path: str) -> None:
    """Declaring collections ends in PoolFull with figures and advice; each of them still takes records, maintenance
    works, and after a drop there is room for another.
    """
    with Pool.open(pool_path, create=True, capacity="2 MiB", maintenance=False) as pool:
        names = [f"{number:03}" + "x" * 200 for number in range(1000)]
        with pytest.raises(PoolFull, match=r"collections need [\d,]+ bytes of the manifest.*Drop collections"):
            _declare(pool, names)
        names = pool.collections()
        assert len(names) > 100
        for name in names[:10]:
            pool.collection(name).put(["a"], None, [name])
        pool.maintain()
        assert [pool.collection(name).find()[0].text for name in names[:10]] == names[:10]
        pool.drop(names.pop())
        pool.collection("another").put(["a"], None, ["b"])
        assert pool.collections() == sorted([*names, "another"])


def test_a_put_gives_up_when_what_maintenance_frees_does_not_help(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A put waits for room within bounds, even if every round of maintenance claims to have freed something."""

    def no_room(*_: object, **__: object) -> None:
        raise PoolFull("none", operation="put", path=pool_path)

    with Pool.open(pool_path, create=True, capacity="2 MiB", maintenance=False) as pool:
        collection = pool.collection("notes")
        monkeypatch.setattr(writer, "roll", no_room)
        monkeypatch.setattr(writer, "_FULL_WAIT_S", 0.1)
        monkeypatch.setattr(Maintainer, "run", _idle_round)
        with pytest.raises(PoolFull):
            collection.put(["a"], None, ["b"])
