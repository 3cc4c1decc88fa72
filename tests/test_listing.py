"""Records in the order in which they were written: right whatever was merged, and without looking at all segments."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from sharedrag import Collection, Pool
from sharedrag.search import listing
from sharedrag.segments import live
from sharedrag.segments.live import Part
from tests.crash.helpers import alone

BORN = datetime(2026, 1, 1, tzinfo=UTC)


def ids_of(found: list[Any]) -> list[str]:
    """Their ids, in order."""
    return [one.id for one in found]


def record(number: int) -> dict[str, Any]:
    """Metadata."""
    return {"third": number % 3, "number": number}


@pytest.mark.parametrize("joined", [False, True])
def test_any_history_is_listed_in_the_order_of_writing(
    pool_path: str, monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    """Two writers, replacing, deletes and merges; each list is that of a plain one, from both ends and with any limit.

    With `joined`, each look at new rows sorts all hashes, as a first look at many rows does.
    """
    if joined:
        monkeypatch.setattr(live, "_JOINED_FROM", 1)
        monkeypatch.setattr(live, "_JOINED_SHARE", 1 << 40)
    choice = random.Random(7)
    model: dict[str, int] = {}
    with (
        Pool.open(pool_path, create=True, capacity="32 MiB", maintenance=False) as first,
        Pool.open(pool_path, maintenance=False) as second,
    ):
        handles = [alone(first), alone(second)]
        collections = [one.collection("c") for one in handles]
        for number in range(60):
            collection = choice.choice(collections)
            ids = [f"id{choice.randrange(150)}" for _ in range(choice.choice((1, 3, 40)))]
            if choice.random() < 0.25:
                collection.delete(ids)
                for one in ids:
                    model.pop(one, None)
            else:
                collection.put(ids, metadata=[record(number)] * len(ids), created=BORN + timedelta(hours=number))
                for one in ids:
                    model.pop(one, None)
                    model[one] = number
            if choice.random() < 0.2:
                choice.choice(handles).maintain()
            _compare(choice.choice(collections), model, choice)
        with Pool.open(pool_path, maintenance=False) as third:
            _compare(third.collection("c"), model, choice)


def _compare(collection: Collection, model: dict[str, int], choice: random.Random) -> None:
    hour = choice.randrange(60)
    wanted: list[tuple[dict[str, Any] | None, list[str]]] = [
        (None, list(model)),
        ({"third": 1}, [one for one, number in model.items() if number % 3 == 1]),
        ({"$created": {">=": BORN + timedelta(hours=hour)}}, [one for one, number in model.items() if number >= hour]),
    ]
    for condition, expected in wanted:
        assert ids_of(collection.find(condition)) == expected
        assert ids_of(collection.find(condition, newest_first=True)) == expected[::-1]
        limit = choice.choice((0, 1, 2, 7, 1000))
        assert ids_of(collection.find(condition, limit)) == expected[:limit]
        assert ids_of(collection.find(condition, limit, newest_first=True)) == expected[::-1][:limit]
    if model:
        keys = [key for key in collection.order_keys(list(model)) if key is not None]
        after, until = sorted(choice.choices(keys, k=2))
        between = [one for one, key in zip(model, keys, strict=True) if after < key <= until]
        assert ids_of(collection.find(after=after, until=until)) == between
        assert ids_of(collection.find(after=after, until=until, limit=3, newest_first=True)) == between[::-1][:3]


def test_only_the_nearest_segments_are_looked_at(pool_path: str) -> None:
    """The newest few of many segments' records are found by a look at the last segment, the oldest by one at the first."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        collection = pool.collection("c")
        for start in range(0, 30_000, 500):
            numbers = range(start, start + 500)
            collection.put([f"m{one}" for one in numbers], texts=["x" * 60] * 500, metadata=[record(one) for one in numbers])
        with collection._view() as view:
            assert len(view.parts) > 3
            asked: list[int] = []

            def mask_of(part: Part) -> npt.NDArray[np.bool_] | None:
                asked.append(part.segment.uid)
                return None

            newest = listing.listed(view, mask_of, 20, newest_first=True)
            assert [segment.read(row).id for segment, row in newest] == [b"m%d" % one for one in range(29_999, 29_979, -1)]
            assert len(asked) == 1
            oldest = listing.listed(view, mask_of, 20)
            assert [segment.read(row).id for segment, row in oldest] == [b"m%d" % one for one in range(20)]
            assert len(asked) == 2


def test_segments_outside_a_range_of_times_are_passed_over(pool_path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """`$created` of a sealed segment decides by its first and last time: no row of the others is compared."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        collection = pool.collection("c")
        for start in range(0, 30_000, 500):
            created = [BORN + timedelta(seconds=one) for one in range(start, start + 500)]
            collection.put([f"m{one}" for one in range(start, start + 500)], texts=["x" * 60] * 500, created=created)
        wanted = {"$created": {">=": BORN + timedelta(seconds=29_900)}}
        collection.find(wanted)
        compared: list[int] = []
        of_timed = collection.masks._of_timed

        def counted(part: Part, *rest: Any) -> npt.NDArray[np.bool_]:
            compared.append(part.segment.uid)
            return of_timed(part, *rest)

        monkeypatch.setattr(collection.masks, "_of_timed", counted)
        assert ids_of(collection.find(wanted, limit=2, newest_first=True)) == ["m29999", "m29998"]
        assert len(collection.find(wanted)) == 100
        with collection._view() as view:
            assert len(view.parts) > 3 and len(set(compared)) <= 2


def test_a_last_hour_is_found_beside_a_filter(pool: Pool) -> None:
    """Times and metadata together, newest first, with a limit."""
    collection = pool.collection("c", dimension=8)
    now = datetime.now(UTC)
    created = [now - timedelta(minutes=one) for one in range(200, 0, -1)]
    ids = [f"m{one}" for one in range(200)]
    vectors = np.eye(8, dtype=np.float32)[np.arange(200) % 8]
    collection.put(ids, vectors, metadata=[record(one) for one in range(200)], created=created)
    wanted = {"$and": [{"$created": {">=": now - timedelta(hours=1)}}, {"third": 0}]}
    expected = [one for one in range(140, 200) if one % 3 == 0][::-1]
    found = collection.find(wanted, limit=5, newest_first=True)
    assert ids_of(found) == [f"m{one}" for one in expected[:5]]
    assert {hit.id for hit in collection.search(vectors[0], k=100, filter=wanted)} == {f"m{one}" for one in expected}
    assert ids_of(collection.find(wanted)) == [f"m{one}" for one in expected[::-1]]
