"""Search with indexes over most of the rows: what is found is live, scored right, and nearly all that belongs in.

What is compared with is NumPy over a scan (`index_helpers.compared`), never another path of search.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from sharedrag import Collection, Pool
from sharedrag.filters import Filter
from sharedrag.search import coverage
from sharedrag.search.masks import Mask, Masks
from sharedrag.segments.live import Part
from tests.index_helpers import World, compared, counted_uses, covered_rows, index_entries, put_all, settled

ROWS = 2600  # enough for an index
WIDTH = 32
TOPICS = 40
RECALL = 0.95


@pytest.fixture
def kept(pool_path: str) -> Iterator[Pool]:
    """A new pool without care in the background: what is maintained is maintained by the test."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as opened:
        yield opened


# ---------------------------------------------------------------------- what is found


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dimension", [64, 384, 1536])
def test_nearly_all_that_belongs_in_is_found(kept: Pool, dimension: int, metric: str, dtype: str) -> None:
    """Of the true best ten of questions that are no rows, more than 95 of 100; all rows are indexed, all scores exact."""
    world = World(dimension, seed=dimension)
    collection = kept.collection("c", dimension=dimension, metric=metric, dtype=dtype)
    put_all(collection, world.draw(ROWS))
    settled(kept)
    assert covered_rows(kept) == ROWS and sum(entry.rows for entry in index_entries(kept)) == ROWS
    with counted_uses() as uses:
        found = compared(collection, world.draw(100))
    assert uses == [100]
    assert found >= RECALL
    assert kept.verify().ok


@pytest.fixture(scope="module")
def topics(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Collection, World]]:
    """8,000 records of 40 topics, with metadata, all in an index; nobody writes."""
    folder = "/dev/shm" if os.path.isdir("/dev/shm") else str(tmp_path_factory.mktemp("pools"))
    path = f"{folder}/sharedrag-test-topics-{os.getpid()}.pool"
    try:
        with Pool.open(path, create=True, capacity="64 MiB", maintenance=False) as pool:
            collection = pool.collection("topics", dimension=WIDTH)
            world = World(WIDTH, seed=5, clusters=TOPICS)
            world.spread_out(3.0)
            rng = np.random.default_rng(6)
            topic = np.arange(8000) % TOPICS
            metadata = [
                {"topic": int(one), "chance": int(chance), "room": f"room {chance % 7}"}
                for one, chance in zip(topic, rng.integers(0, 1000, 8000), strict=True)
            ]
            put_all(collection, world.of(topic), metadata=metadata, batch=1000)
            settled(pool)
            assert covered_rows(pool) == 8000
            yield collection, world
    finally:
        os.unlink(path)


@pytest.mark.parametrize("share", [0, 1, 10, 100, 250, 500, 990])
def test_filters_find_as_much(topics: tuple[Collection, World], share: int) -> None:
    """Filters that admit from nothing to nearly all of the rows, wherever they lie."""
    collection, world = topics
    with counted_uses() as uses:
        assert compared(collection, world.draw(40), filter={"chance": {"<": share}}) >= RECALL
    assert uses == [40]


@pytest.mark.parametrize("admitted", [2, 10, 20, 36])
def test_a_filter_to_other_topics_than_the_questions(topics: tuple[Collection, World], admitted: int) -> None:
    """The lists that are nearest to a question may hold nothing that the filter admits: k are found all the same.

    Of those that belong in fewer are found than elsewhere: how many lists are probed was measured without filters.
    """
    collection, world = topics
    far = world.of(np.arange(40) % (TOPICS - admitted) + admitted)
    near = world.of(np.arange(40) % admitted)
    for k in (1, 10, 100):
        assert compared(collection, far, k, filter={"topic": {"<": admitted}}) >= 0.55
        assert compared(collection, near, k, filter={"topic": {"<": admitted}}) >= RECALL


def test_filters_of_every_kind_with_an_index(topics: tuple[Collection, World]) -> None:
    """Combined, negated, over text and lists of values; the same question twice, and questions that alternate."""
    collection, world = topics
    questions = world.draw(15)
    filters: list[dict[str, Any]] = [
        {"$and": [{"room": "room 3"}, {"topic": {">=": 20}}]},
        {"$not": {"room": "room 3"}},
        {"$or": [{"topic": 3}, {"topic": 4}, {"chance": {"<": 100}}]},
        {"room": {"in": ["room 1", "room 2", "room 5"]}},
        {"unknown": 3},
        {"$created": {">": "2020-01-01T00:00:00Z"}},
    ]
    for one in (*filters, *filters):
        assert compared(collection, questions, filter=one) >= RECALL


def test_what_a_filter_admits_is_remembered(topics: tuple[Collection, World], monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked again no row's metadata is looked at, in few rows or in many; another filter is another question."""
    collection, world = topics
    looked: list[str] = []
    evaluate = Masks.of

    def counted(masks: Masks, part: Part, wanted: Filter) -> Mask:
        looked.append(wanted.key())
        return evaluate(masks, part, wanted)

    monkeypatch.setattr(Masks, "of", counted)
    for one in ({"chance": {"<": 57}}, {"chance": {">=": 57}}):
        collection.search(world.draw(1)[0], filter=one)
        assert len(set(looked)) == 1, "the first question looks"
        looked.clear()
        assert all(len(collection.search(question, filter=one)) == 10 for question in world.draw(5))
        assert not looked


def test_no_more_filters_are_remembered_than_there_is_room_for(
    topics: tuple[Collection, World], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that came first are forgotten, and answered all the same."""
    collection, world = topics
    monkeypatch.setattr(coverage, "_ALLOWED_BYTES", 64_000)
    questions = world.draw(2)
    for bound in (*range(100, 140), *range(600, 640), *range(100, 110)):
        assert compared(collection, questions, filter={"chance": {"<": bound}}) >= 0.9
    with collection._view() as view:
        (index,) = collection._planner._plan(view).indexes
    assert 5 < len(index._allowed) < 12
    assert index._allowed_bytes == sum(size for _, size in index._allowed.values()) <= 64_000
    long = {"chance": {"in": list(range(9_000))}}  # what says the filter counts, too
    assert compared(collection, questions, filter=long) >= 0.9
    collection.search(questions[0], filter={"chance": {"<": 50}})
    assert len(index._allowed) < 5


def test_ids_narrow_what_an_index_finds(topics: tuple[Collection, World]) -> None:
    """Few and many ids, some that no record has, with and without a filter."""
    collection, world = topics
    questions = world.draw(15)
    chance = np.random.default_rng(8)
    for count in (4000, 160, 2):
        ids = [str(number) for number in chance.choice(9000, count, replace=False)]
        assert compared(collection, questions, ids=ids) >= RECALL
        assert compared(collection, questions, ids=ids, filter={"chance": {"<": 500}}) >= RECALL
    assert collection.search(questions[0], ids=[]) == collection.search(questions[0], ids=["nobody"]) == []


@pytest.mark.parametrize("k", [1, 3, 100, 999, 1000, 1001, 20_000])
def test_as_many_hits_as_were_asked_for(topics: tuple[Collection, World], k: int) -> None:
    """Few and very many, and more than there are records. (Recall is measured for ten: for many it is about as good.)"""
    collection, world = topics
    assert compared(collection, world.draw(4), k) >= 0.9
    assert compared(collection, world.draw(4), k, filter={"chance": {"<": 400}}) >= 0.85


def test_many_questions_at_once_are_answered_as_one_by_one(topics: tuple[Collection, World]) -> None:
    """(n, dimension) questions, none, and one as a row; with a filter too."""
    collection, world = topics
    questions = world.draw(30)
    for wanted in (None, {"chance": {"<": 500}}):
        at_once = collection.search(questions, 10, wanted)
        assert at_once == [collection.search(one, 10, wanted) for one in questions]
        assert collection.search(questions[:1], 10, wanted) == at_once[:1]
    assert collection.search(questions[:0]) == []


def test_hybrid_search_takes_the_vectors_half_from_an_index(topics: tuple[Collection, World]) -> None:
    """Fused with words by rank and by score, it names nearly the same records as with all vectors compared."""
    collection, world = topics
    questions = world.draw(15)
    texts = [f"text of {number}" for number in range(100, 115)]
    for alpha in (None, 0.7):
        with counted_uses() as uses:
            ours = collection.search(questions, 10, text=texts, alpha=alpha)
        assert uses == [15]
        exact = collection.search(questions, 10, text=texts, alpha=alpha, exact=True)
        same = sum(len({hit.id for hit in one} & {hit.id for hit in other}) for one, other in zip(ours, exact, strict=True))
        assert same >= RECALL * 150
    one = collection.search(questions[0], 10, {"topic": {"<": 20}}, text=texts[0])
    assert len(one) == 10 and all(hit.metadata["topic"] < 20 for hit in one)


def test_exact_asks_no_index(topics: tuple[Collection, World]) -> None:
    """With `exact` all rows are compared, and every hit that belongs in is found."""
    collection, world = topics
    questions = world.draw(20)
    with counted_uses() as uses:
        hits = collection.search(questions, 10, exact=True)
    assert uses == [0]
    assert compared(collection, questions, found=hits) == 1.0


def test_threads_share_an_index(topics: tuple[Collection, World]) -> None:
    """Eight threads with filters of their own get what one gets alone."""
    collection, world = topics
    questions = world.draw(10)
    filters: list[dict[str, Any] | None] = [None, *({"chance": {"<": 300 + number}} for number in range(7))]
    alone = [collection.search(questions, 10, wanted) for wanted in filters]
    wrong: list[int] = []

    def ask(number: int) -> None:
        answers = [collection.search(questions, 10, filters[number]) for _ in range(10)]
        wrong.extend(number for one in answers if one != alone[number])

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


# ---------------------------------------------------------------------- what is written beside an index


def test_the_newest_rows_are_found_at_once(kept: Pool) -> None:
    """A record beside an index is found in the next query, moved in the one after an update, and gone after a delete."""
    world = World(WIDTH, seed=1)
    collection = kept.collection("c", dimension=WIDTH)
    ids = put_all(collection, world.draw(ROWS))
    settled(kept)
    for number, vector in enumerate(world.draw(40)):
        name = f"new {number}" if number % 2 else ids[number]
        collection.put([name], vector[None])
        assert collection.search(vector, 1)[0].id == name
        elsewhere = -vector
        collection.put([name], elsewhere[None])
        assert collection.search(elsewhere, 1)[0].id == name
        assert name not in [hit.id for hit in collection.search(vector, 100)]
        if number % 4 < 2:
            collection.delete([name])
            assert name not in [hit.id for hit in collection.search(elsewhere, 100)]
    assert covered_rows(kept) == ROWS, "somebody maintained"
    assert compared(collection, world.draw(50)) >= RECALL


def test_records_without_vectors_lie_between_those_in_an_index(kept: Pool) -> None:
    """They are never found by vector, and a record that loses its vector is no longer; one that gets one is."""
    world = World(WIDTH, seed=2)
    collection = kept.collection("c", dimension=WIDTH)
    vectors = world.draw(2 * ROWS)
    for start in range(0, 2 * ROWS, 400):
        part = range(start, start + 400)
        given = [vectors[number] if number % 2 else None for number in part]
        collection.put([str(number) for number in part], given, metadata=[{"number": number} for number in part])
    settled(kept)
    assert sum(entry.rows for entry in index_entries(kept)) == ROWS
    assert compared(collection, world.draw(40)) >= RECALL
    assert compared(collection, world.draw(40), filter={"number": {"<": 3600}}) >= RECALL
    collection.put([str(number) for number in range(1, 801, 2)], None, texts=["no vector now"] * 400)
    collection.put([str(number) for number in range(0, 800, 2)], vectors[:800:2], metadata=[{"number": 1}] * 400)
    for _ in range(2):
        assert compared(collection, world.draw(40)) >= RECALL
        assert compared(collection, world.draw(40), filter={"number": {"<": 3600}}) >= RECALL
        settled(kept)
    assert collection.search(vectors[1], 10, ids=["1", "3"]) == []


def test_only_records_without_vectors(kept: Pool) -> None:
    """There is nothing to index, maintenance finds an end, and nothing is found by vector."""
    collection = kept.collection("c", dimension=WIDTH)
    for start in range(0, 6000, 1000):
        collection.put([str(number) for number in range(start, start + 1000)], texts=["text"] * 1000)
    settled(kept)
    assert not index_entries(kept)
    assert collection.search(np.ones(WIDTH), 10) == []
    assert len(collection.search(text="text", k=10)) == 10


def test_vectors_that_are_no_cloud(kept: Pool) -> None:
    """All alike, of five kinds, on a line, one far off, zeros: each builds an index that answers."""
    rng = np.random.default_rng(3)
    cases = {
        "alike": np.repeat(rng.standard_normal((1, WIDTH)), ROWS, 0),
        "five": rng.standard_normal((5, WIDTH))[np.arange(ROWS) % 5],
        "line": np.linspace(-1, 1, ROWS)[:, None] * rng.standard_normal((1, WIDTH)) + 3.0,
        "far": np.concatenate([rng.standard_normal((ROWS - 1, WIDTH)), np.full((1, WIDTH), 1e6)]),
        "zeros": np.zeros((ROWS, WIDTH)),
        "great": rng.standard_normal((ROWS, WIDTH)) * 1e15,
    }
    for name, vectors in cases.items():
        for metric in ("ip", "l2"):
            collection = kept.collection(f"{name} {metric}", dimension=WIDTH, metric=metric)
            put_all(collection, vectors.astype(np.float32), batch=ROWS)
            settled(kept)
            assert len(index_entries(kept)) == 1
            assert compared(collection, rng.standard_normal((20, WIDTH)).astype(np.float32)) >= 0.85
            kept.drop(collection.name)
            settled(kept)
