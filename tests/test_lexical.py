"""BM25 against a plain one, over random puts, updates and deletes by two handles, with and without blocks."""

from __future__ import annotations

import functools
import math
import multiprocessing
from collections import Counter
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from sharedrag import Collection, Pool
from sharedrag.search import terms, words
from sharedrag.search.knn import Found, Mask
from sharedrag.search.lexical import Lexicon
from sharedrag.search.terms import Terms
from sharedrag.segments.live import Part

WORDS = ("aloha", "beach", "beaches", "hotel", "Hawaiʻi", "the", "the", "and", "ramen", "東京タワー", "ไทย", "2024")


class Plain:
    """BM25 as a textbook has it, over texts in a dict."""

    def __init__(self, texts: dict[str, str | None]) -> None:
        self.terms = {one: Counter(words.of_text(text or "").tolist()) for one, text in texts.items()}
        self.lengths = {one: sum(counts.values()) for one, counts in self.terms.items() if counts}
        self.average = sum(self.lengths.values()) / max(1, len(self.lengths))

    def weight(self, term: int) -> float:
        """Lucene's idf."""
        holding = sum(term in counts for counts in self.terms.values())
        return math.log(1 + (len(self.lengths) - holding + 0.5) / (holding + 0.5))

    def scores(self, question: str) -> dict[str, float]:
        """The score of each text that has a term of the question."""
        asked = dict(zip(*(one.tolist() for one in words.of_question(question)), strict=True))
        weights = {term: count * self.weight(term) for term, count in asked.items()}
        scores = {}
        for one, counts in self.terms.items():
            norm = 1.2 * (0.25 + 0.75 * self.lengths.get(one, 0) / self.average) if counts else 1.0
            shared = [weight * counts[term] / (counts[term] + norm) for term, weight in weights.items() if term in counts]
            if shared:
                scores[one] = math.fsum(shared)
        return scores


def blocks_of(collection: Collection, sealed_only: bool = True) -> Callable[[Part], Terms | None]:
    """Blocks of the segments that the collection has now, built and opened."""
    opened: dict[int, Terms | None] = {}
    with collection._view() as view:
        for part in view.parts:
            if part.sealed or not sealed_only:
                opened[part.segment.uid] = Terms.open(np.frombuffer(terms.build(part.segment, part.rows), np.uint8))
    return lambda part: opened.get(part.segment.uid)


def ask(
    collection: Collection, lexicon: Lexicon, question: str, k: int, filter: Callable[[Part], Mask] | None = None
) -> list[tuple[str, float]]:
    """(id, score) as a lexicon finds them."""
    with collection._view() as view:
        masks: list[Mask | None] = [None if filter is None else filter(part) for part in view.parts]
        found = lexicon.search(view.parts, masks, question, k)
        return [
            (view.parts[part].segment.id_at(row).decode(), score)
            for score, part, row in zip(found.scores, found.parts, found.rows, strict=True)
        ]


def check(found: list[tuple[str, float]], expected: dict[str, float], k: int) -> None:
    """The k best of the expected, with their scores; which of those that score alike does not matter here."""
    best = sorted(expected.values(), reverse=True)[:k]
    assert [score for _, score in found] == pytest.approx(best, rel=1e-4)
    assert len({one for one, _ in found}) == len(found)
    for one, score in found:
        assert score == pytest.approx(expected[one], rel=1e-4)


# ---------------------------------------------------------------------- random histories

ids = st.sampled_from([f"id-{number}" for number in range(14)])
texts = st.one_of(
    st.none(),
    st.just(""),
    st.lists(st.sampled_from(WORDS), max_size=9).map(" ".join),
    st.lists(st.sampled_from(WORDS), max_size=4).map(lambda chosen: " ".join(chosen * 100)),
    st.text(max_size=12),
)
puts = st.tuples(st.just("put"), st.lists(st.tuples(ids, texts), min_size=1, max_size=12))
deletes = st.tuples(st.just("delete"), st.lists(ids, min_size=1, max_size=3))
maintains = st.tuples(st.just("maintain"), st.none())
questions = st.lists(st.sampled_from([*WORDS, "unknown", "東", "京タ"]), max_size=7).map(" ".join)
steps = st.lists(st.tuples(st.integers(0, 1), st.one_of(puts, puts, deletes, maintains), questions), min_size=1, max_size=8)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(steps, st.integers(1, 8), st.sampled_from(["tail", "sealed", "all"]))
def test_any_history_answers_as_a_plain_one(
    pool: Pool, steps: list[tuple[int, tuple[str, Any], str]], k: int, blocks: str
) -> None:
    """After each put, update, delete and merge, by either handle, both find what plain BM25 over the live texts finds."""
    with Pool.open(pool.path) as other:
        handles = (pool.collection("notes"), other.collection("notes"))
        lexicons = (Lexicon(), Lexicon())
        truth: dict[str, str | None] = {}
        for side, (what, given_rows), question in steps:
            if what == "put":
                handles[side].put([one for one, _ in given_rows], texts=[text for _, text in given_rows])
                truth |= dict(given_rows)
            elif what == "delete":
                handles[side].delete(given_rows)
                truth = {one: text for one, text in truth.items() if one not in given_rows}
            else:
                pool.maintain()
            expected = Plain(truth).scores(question)
            for handle, lexicon in zip(handles, lexicons, strict=True):
                if blocks != "tail":
                    lexicon._blocks = blocks_of(handle, blocks == "sealed")
                check(ask(handle, lexicon, question, k), expected, k)
        pool.drop("notes")


@pytest.mark.parametrize("blocks", [False, True], ids=["tail", "blocks"])
def test_many_rows_answer_as_a_plain_bm25(pool: Pool, blocks: bool) -> None:
    """Some thousand rows of real-looking word frequencies, updated and deleted, filtered and not, for many questions.

    Here most terms are skipped or only looked up, and postings are frozen and joined.
    """
    random = np.random.default_rng(3)
    vocabulary = [f"word{number}" for number in range(800)]
    common = 1 / np.arange(1, 801)

    def some(count: int) -> str:
        return " ".join(random.choice(vocabulary, count, p=common / common.sum()))

    collection = pool.collection("notes")
    lexicon = Lexicon()
    truth: dict[str, str | None] = {}
    for start in range(0, 7000, 700):
        batch = {f"{number}": some(int(random.integers(0, 60))) for number in range(start, start + 700)}
        batch |= {one: some(20) for one in random.choice(list(truth), 50).tolist()} if truth else {}
        for one in [*batch] if start == 2100 else []:
            collection.put([one], texts=[batch[one]])
            ask(collection, lexicon, "word1", 1)
        collection.put(list(batch), texts=list(batch.values()))
        truth |= batch
        gone = random.choice(list(truth), 60, replace=False).tolist()
        collection.delete(gone)
        truth = {one: text for one, text in truth.items() if one not in gone}
        ask(collection, lexicon, "word1", 1)
    if blocks:
        lexicon = Lexicon(blocks_of(collection))
    plain = Plain(truth)
    for number in range(40):
        question, k = some(int(random.integers(1, 12))), int(random.choice([1, 10, 200]))
        expected = plain.scores(question)
        check(ask(collection, lexicon, question, k), expected, k)
        if number % 4 == 0:
            admitted = {one for one in truth if int(one) % 17 == number % 17}
            found = ask(collection, lexicon, question, k, functools.partial(_named, admitted))
            check(found, {one: score for one, score in expected.items() if one in admitted}, k)


def _named(admitted: set[str], part: Part) -> Mask:
    return np.array([part.segment.id_at(row).decode() in admitted for row in range(part.rows)])


# ---------------------------------------------------------------------- what is found at all


def test_a_put_is_found_by_the_very_next_search_of_another_handle(pool: Pool) -> None:
    """Put, update and delete, record by record."""
    with Pool.open(pool.path) as other:
        ours, theirs = pool.collection("notes"), other.collection("notes")
        for number in range(700):
            ours.put([f"n{number}"], texts=[f"number{number} and more"])
            assert [hit.id for hit in theirs.search(text=f"number{number}")] == [f"n{number}"]
        ours.put(["n5"], texts=["otherwise"])
        assert theirs.search(text="number5") == []
        assert [hit.id for hit in theirs.search(text="otherwise")] == ["n5"]
        theirs.delete(["n5"])
        assert ours.search(text="otherwise") == []


def test_of_equal_scores_the_newer_is_first(pool: Pool) -> None:
    """However many are equal, and wherever they lie."""
    collection = pool.collection("notes")
    for start in range(0, 3000, 300):
        collection.put([f"{number}" for number in range(start, start + 300)], texts=["the same words"] * 300)
    newest = [f"{number}" for number in range(2999, 2899, -1)]
    assert [hit.id for hit in collection.search(text="words", k=100)] == newest
    pool.maintain()
    assert [hit.id for hit in collection.search(text="same words", k=100)] == newest
    assert [hit.id for hit in collection.search(text="words", k=5000)][:100] == newest


def test_scores_do_not_depend_on_where_rows_lie(pool: Pool) -> None:
    """The same floats from the tail, from blocks, in many segments and in one."""
    collection = pool.collection("notes")
    random = np.random.default_rng(5)
    for start in range(0, 2000, 100):
        some = [" ".join(random.choice(WORDS, 12)) for _ in range(100)]
        collection.put([f"{number}" for number in range(start, start + 100)], texts=some)
        collection.delete([f"{number}" for number in range(start, start + 30)])
    first = [(hit.id, hit.score) for hit in collection.search(text="ramen on the beach in hawaii", k=50)]
    assert ask(collection, Lexicon(blocks_of(collection, sealed_only=False)), "ramen on the beach in hawaii", 50) == first
    for _ in range(3):
        pool.maintain()
    with Pool.open(pool.path) as other:
        again = other.collection("notes").search(text="ramen on the beach in hawaii", k=50)
        assert [(hit.id, hit.score) for hit in again] == first


def test_nothing_is_found_where_nothing_is_shared(pool: Pool) -> None:
    """No words asked for, none known, no records, no texts, everything deleted or filtered away."""
    collection = pool.collection("notes")
    assert collection.search(text="beach") == []
    collection.put(["a", "b", "c"], texts=[None, "", " \n?! "])
    assert collection.search(text="beach") == []
    collection.put(["d"], texts=["on the beach"], metadata=[{"room": "maui"}])
    for nothing in ("", "  ", "?!", "\x00", "mountain"):
        assert collection.search(text=nothing) == []
    assert collection.search(text="beach", filter={"room": "oahu"}) == []
    assert collection.search(text="beach", ids=["a", "unknown"]) == []
    assert [hit.id for hit in collection.search(text="beach", ids=["a", "d"], filter={"room": "maui"})] == ["d"]
    collection.delete(["d"])
    assert collection.search(text="beach") == []


def test_a_question_may_be_a_book(pool: Pool) -> None:
    """Of very many words those of greatest weight count; words asked for twice count twice."""
    collection = pool.collection("notes")
    collection.put(["a", "b", "c"], texts=["beach", "hotel", "the the the"])
    assert [hit.id for hit in collection.search(text="hotel hotel beach the")] == ["b", "c", "a"]
    collection.put([f"{n}" for n in range(400)], texts=[f"w{n} common" for n in range(400)])
    book = " ".join(["common " * 3, *(f"w{n}" for n in range(400))])
    assert len(collection.search(text=book, k=1000)) >= 256
    assert len(collection.search(text="beach " + "unknown " * 100_000)) == 1


def test_several_questions_at_once(pool: Pool) -> None:
    """A list of texts has a list of answers, of one view."""
    collection = pool.collection("notes")
    collection.put(["a", "b"], texts=["beach", "hotel"])
    assert [[hit.id for hit in hits] for hits in collection.search(text=["hotel", "beach", "?"])] == [["b"], ["a"], []]
    assert collection.search(text=[]) == []


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.text(max_size=40), min_size=1, max_size=10), st.text(max_size=20))
def test_any_unicode_can_be_put_and_asked_for(pool: Pool, given_texts: list[str], question: str) -> None:
    """Nothing that a string can hold makes a search fail, and a text is found by itself."""
    collection = pool.collection("notes")
    collection.put([f"{number}" for number in range(len(given_texts))], texts=given_texts)
    collection.search(text=question)
    for number, text in enumerate(given_texts):
        if len(words.of_text(text)):
            assert f"{number}" in {hit.id for hit in collection.search(text=text, k=100)}
    pool.drop("notes")


def test_a_forked_child_searches_what_its_parent_tokenised(pool: Pool) -> None:
    """Also where another thread of the parent was in the middle of a search."""
    collection = pool.collection("notes")
    collection.put(["a", "b"], texts=["beach", "hotel"])
    collection.search(text="beach")
    (grown,) = collection.lexicon._tails.values()
    context = multiprocessing.get_context("fork")
    mine, theirs = context.Pipe()

    def child() -> None:
        collection.put(["c"], texts=["beach again"])
        theirs.send(sorted(hit.id for hit in collection.search(text="beach")))

    process = context.Process(target=child)
    with grown._lock, collection.lexicon._lock:
        process.start()
    assert mine.poll(30) and mine.recv() == ["a", "c"]
    process.join(30)
    assert process.exitcode == 0
    assert sorted(hit.id for hit in collection.search(text="beach")) == ["a", "c"]


def test_a_view_that_is_kept_is_searched_as_it_was(pool: Pool) -> None:
    """Rows that came later, and that the lexicon has taken in for others, neither count nor are found."""
    collection = pool.collection("notes")
    lexicon = Lexicon()
    collection.put(["a", "b"], texts=["beach", "beach hotel"])
    with collection._view() as view:

        def old() -> Found:
            return lexicon.search(view.parts, [None] * len(view.parts), "beach hotel", 10)

        before = old()
        for number in range(600):  # so many that some are frozen
            collection.put([f"{number}"], texts=["beach beach hotel"])
            if number in (0, 50, 300):
                lexicon_found = ask(collection, lexicon, "beach", 1000)
                assert len(lexicon_found) == number + 3
                assert old() == before
        ask(collection, lexicon, "beach", 10)
        assert old() == before
