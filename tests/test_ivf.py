"""The index kernel: recall for every metric, dtype and dimension, odd data, selectors, damage."""

from __future__ import annotations

import threading
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt
import pytest

from sharedrag.search import ivf_build, ivf_layout
from sharedrag.search.ivf import Allowed, Index
from sharedrag.search.ivf_layout import IndexInvalid
from sharedrag.search.ivf_rows import Rows

F32 = npt.NDArray[np.float32]
I64 = npt.NDArray[np.int64]
Payload = npt.NDArray[np.uint8]


def payload_of(built: ivf_build.Built | None) -> Payload:
    """The blob as the arena would hold it."""
    assert built is not None
    return np.frombuffer(b"".join(built.payload), np.uint8)


def unit(vectors: npt.NDArray[Any]) -> F32:
    """Rows of length one."""
    lengths: F32 = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(lengths, 1e-30)).astype(np.float32)


def clustered(rows: int, dimension: int, seed: int = 0) -> F32:
    """Vectors as embeddings lie: around centres of a few dimensions of their own, some clusters larger than others."""
    rng = np.random.default_rng(seed)
    basis = rng.standard_normal((min(dimension, 24), dimension))
    centres = rng.standard_normal((60, len(basis)))
    which = (60 * rng.random(rows) ** 2).astype(int)
    inner = centres[which] + 0.7 * rng.standard_normal((rows, len(basis)))
    vectors = inner @ basis / len(basis) ** 0.5 + 0.3 * rng.standard_normal((rows, dimension))
    found: F32 = vectors.astype(np.float32)
    return found


def exact(vectors: F32, queries: F32, k: int, metric: str) -> I64:
    """The best k by looking at all."""
    found: I64 = faiss.knn(queries, vectors, k, metric=ivf_layout.METRICS[metric])[1]
    return found


def recall(index: Index, rows: Rows, queries: F32, right: I64) -> float:
    """The share of the right answers that the index finds."""
    k = right.shape[1]
    hits = [int(np.isin(index.search(query, k, rows)[1], best).sum()) for query, best in zip(queries, right, strict=True)]
    return sum(hits) / right.size


@pytest.mark.parametrize("dtype", ["float32", "float16"])
@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize(("dimension", "count"), [(64, 4000), (100, 3000), (384, 3000), (1536, 1200), (4096, 500)])
def test_recall_reaches_the_target(dimension: int, count: int, metric: str, dtype: str) -> None:
    """Questions that are not rows find what an exact search finds, and scores are exact."""
    vectors = clustered(count + 50, dimension)
    if metric == "cosine":
        vectors = unit(vectors)
    if metric == "ip":  # lengths differ, and nothing is centred
        vectors = vectors * np.exp(0.3 * np.random.default_rng(1).standard_normal((len(vectors), 1))).astype("f4") + 0.5
    stored, queries = vectors[:count].astype(dtype), vectors[count:]
    rows = Rows([stored[: count // 3], stored[count // 3 :]], metric)
    built = ivf_build.build(rows)
    assert built is not None and built.settings.recall >= 0.95
    index = Index(payload_of(built))
    right = exact(stored.astype(np.float32), queries, 10, metric)
    assert recall(index, rows, queries, right) >= 0.93  # fifty questions tell no more
    scores, found = index.search(queries[0], 10, rows)
    near = stored[found].astype(np.float32)
    wanted = -((near - queries[0]) ** 2).sum(axis=1) if metric == "l2" else near @ queries[0]
    np.testing.assert_allclose(scores, wanted, rtol=1e-4, atol=1e-4)
    assert (np.diff(scores) <= 0).all()


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
@pytest.mark.parametrize("dimension", [64, 100, 384])
def test_random_vectors_too(dimension: int, metric: str) -> None:
    """Where there is no structure, more lists and candidates make up for it."""
    vectors = np.random.default_rng(2).standard_normal((2040, dimension)).astype(np.float32)
    if metric == "cosine":
        vectors = unit(vectors)
    rows = Rows([vectors[:2000]], metric)
    index = Index(payload_of(ivf_build.build(rows)))
    assert recall(index, rows, vectors[2000:], exact(vectors[:2000], vectors[2000:], 10, metric)) >= 0.9


@pytest.mark.parametrize("dimension", [1, 2, 3, 7, 9, 33, 48, 257])
def test_any_dimension(dimension: int) -> None:
    """No dimension is refused."""
    vectors = np.random.default_rng(3).standard_normal((620, dimension)).astype(np.float32)
    rows = Rows([vectors[:600]], "l2")
    index = Index(payload_of(ivf_build.build(rows)))
    assert recall(index, rows, vectors[600:], exact(vectors[:600], vectors[600:], 5, "l2")) >= 0.9


def test_an_index_is_small() -> None:
    """Less than a hundred bytes a row at the common dimension, as the header says."""
    built = ivf_build.build(Rows([unit(clustered(2000, 384))], "cosine"))
    assert built is not None and built.size < 100 * 2000
    assert built.size == len(payload_of(built))


@pytest.mark.parametrize("count", [0, 1, ivf_build.ROWS_MIN - 1])
def test_few_rows_want_no_index(count: int) -> None:
    """Of few rows, or few that are not left out, none is made."""
    vectors = clustered(1000, 32)
    assert ivf_build.build(Rows([vectors[:count]], "l2")) is None
    leave_out = np.ones(1000, np.bool_)
    leave_out[:count] = False
    assert ivf_build.build(Rows([vectors], "l2"), leave_out=leave_out) is None


@pytest.mark.parametrize("metric", ["cosine", "ip", "l2"])
def test_equal_rows(metric: str) -> None:
    """All rows equal, or zero, or each there many times: any of the equals is right."""
    one = unit(np.random.default_rng(4).standard_normal((1, 48)))
    for vectors in (
        np.repeat(one, 700, axis=0),
        np.zeros((700, 48), np.float32),
        np.repeat(unit(clustered(70, 48)), 10, axis=0),
    ):
        rows = Rows([vectors], metric)
        scores, found = Index(payload_of(ivf_build.build(rows))).search(vectors[0], 10, rows)
        assert len(set(found.tolist())) == 10 and np.isfinite(scores).all()
        best = np.sort(-((vectors - vectors[0]) ** 2).sum(axis=1) if metric == "l2" else vectors @ vectors[0])[::-1]
        np.testing.assert_allclose(scores, best[:10], atol=1e-5)


def test_rows_left_out_are_not_found_and_not_read() -> None:
    """They keep their internal ids; what lies there does not matter."""
    vectors = unit(clustered(3000, 64))
    leave_out = np.random.default_rng(5).random(3000) < 0.4
    vectors[leave_out] = np.nan
    rows = Rows([vectors[:1000], vectors[1000:]], "cosine")
    built = ivf_build.build(rows, leave_out=leave_out)
    assert built is not None and (built.settings.rows, built.settings.indexed) == (3000, int((~leave_out).sum()))
    index = Index(payload_of(built))
    for query in vectors[~leave_out][:20]:
        scores, found = index.search(query, 30, rows)
        assert not leave_out[found].any() and np.isfinite(scores).all()


@pytest.mark.parametrize("share", [0.001, 0.01, 0.1, 0.5, 1.0])
def test_a_selector_lets_only_the_allowed_through(share: float) -> None:
    """Whatever is allowed, nothing else is found, and of what is allowed the best."""
    vectors = unit(clustered(6050, 96))
    stored, queries = vectors[:6000], vectors[6000:]
    rows = Rows([stored], "cosine")
    index = Index(payload_of(ivf_build.build(rows)))
    mask = np.random.default_rng(6).random(6000) < share
    mask[17] = True
    allowed = Allowed(mask)
    names = np.flatnonzero(mask)
    hits = total = 0
    for query in queries:
        found = index.search(query, 10, rows, allowed=allowed)[1]
        assert mask[found].all() and len(set(found.tolist())) == len(found) <= allowed.count
        right = names[exact(stored[mask], query[None], min(10, len(names)), "cosine")[0]]
        hits += int(np.isin(right, found).sum())
        total += len(right)
    assert hits / total >= 0.9
    batch = index.candidates(queries, 10, allowed=allowed)
    assert mask[batch[batch >= 0]].all()
    nothing = Allowed(np.zeros(6000, np.bool_))
    assert len(index.search(queries[0], 10, rows, allowed=nothing)[1]) == 0


def test_more_than_was_measured_for() -> None:
    """A larger k than the settings were measured at asks for more candidates; one beyond all rows gives those there are."""
    vectors = unit(clustered(3050, 64))
    rows = Rows([vectors[:3000]], "cosine")
    index = Index(payload_of(ivf_build.build(rows)))
    assert recall(index, rows, vectors[3000:], exact(vectors[:3000], vectors[3000:], 100, "cosine")) >= 0.9
    assert 1 <= len(index.search(vectors[0], 5000, rows)[1]) <= 3000
    assert len(index.search(vectors[0], 1, rows)[1]) == 1


def test_candidates_of_many_queries_are_those_of_each() -> None:
    """One call for many queries names what one call for each does."""
    vectors = unit(clustered(3000, 64))
    index = Index(payload_of(ivf_build.build(Rows([vectors], "cosine"))))
    together = index.candidates(vectors[:20], 10)
    for query, row in zip(vectors[:20], together, strict=True):
        assert set(index.candidates(query[None], 10)[0].tolist()) == set(row.tolist())


def test_a_graph_over_many_lists(monkeypatch: pytest.MonkeyPatch) -> None:
    """With many lists the nearest are found by HNSW, and the lists are split from fewer: recall holds."""
    from sharedrag.search import ivf_train

    monkeypatch.setattr(ivf_train, "HNSW_LISTS_MIN", 40)
    monkeypatch.setattr(ivf_train, "_SPLIT_LISTS_MIN", 20)
    vectors = unit(clustered(12_060, 64))
    rows = Rows([vectors[:12_000]], "cosine")
    built = ivf_build.build(rows, threads=2)
    assert built is not None and built.settings.hnsw and built.settings.ef > 0
    index = Index(payload_of(built))
    assert recall(index, rows, vectors[12_000:], exact(vectors[:12_000], vectors[12_000:], 10, "cosine")) >= 0.93


def test_the_same_rows_and_seed_give_the_same_index() -> None:
    """Nothing in a build is left to chance or to the clock."""
    rows = Rows([unit(clustered(1500, 64))], "cosine")
    assert payload_of(ivf_build.build(rows, seed=7)).tobytes() == payload_of(ivf_build.build(rows, seed=7)).tobytes()


def test_building_leaves_the_threads_of_its_caller_as_they_were() -> None:
    """OpenMP's setting is the thread's own, and is put back."""
    before = faiss.omp_get_max_threads()
    ivf_build.build(Rows([unit(clustered(600, 64))], "cosine"), threads=before + 1)
    assert faiss.omp_get_max_threads() == before


def test_threads_share_an_index() -> None:
    """Searches at once, with and without selectors, in float16 with its scratch memory, disturb nothing."""
    vectors = unit(clustered(4000, 64)).astype(np.float16)
    rows = Rows([vectors], "cosine")
    index = Index(payload_of(ivf_build.build(rows)))
    queries = vectors[:200].astype(np.float32)
    allowed = Allowed(np.arange(4000) % 2 == 0)
    wanted = [
        (index.search(query, 10, rows)[1].tolist(), index.search(query, 10, rows, allowed=allowed)[1].tolist())
        for query in queries
    ]
    wrong: list[int] = []

    def work() -> None:
        for number, query in enumerate(queries):
            one = index.search(query, 10, rows)[1].tolist()
            if (one, index.search(query, 10, rows, allowed=allowed)[1].tolist()) != wanted[number]:
                wrong.append(number)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.fixture(scope="module")
def payload() -> Payload:
    """A sound blob of 600 rows."""
    return payload_of(ivf_build.build(Rows([unit(clustered(600, 64))], "cosine")))


class TestDamage:
    @pytest.mark.parametrize("size", [0, 1, 127, 128, 400])
    def test_a_short_payload(self, payload: Payload, size: int) -> None:
        """Cut anywhere, it is refused by a typed error."""
        with pytest.raises(IndexInvalid):
            Index(payload[:size])
        with pytest.raises(IndexInvalid):
            ivf_build.renumbered(payload[:size], np.arange(600), 600)

    @pytest.mark.parametrize("at", [0, 7, 8, 9, 11, 12, 16, 20, 24, 32, 79, 80, 96, 104])
    def test_a_damaged_header(self, payload: Payload, at: int) -> None:
        """A field that cannot be, or that is not what FAISS's own bytes say, is refused."""
        damaged = payload.copy()
        damaged[at : at + 4 if at in (12, 16, 20, 24, 32, 104) else at + 1] = 0xFF
        if at == 24:
            damaged[24:28] = 0
        with pytest.raises(IndexInvalid):
            Index(damaged)

    def test_bytes_that_faiss_cannot_read(self, payload: Payload) -> None:
        """FAISS's own complaint becomes ours."""
        damaged = payload.copy()
        damaged[ivf_layout.HEADER_SIZE : ivf_layout.HEADER_SIZE + 4] = 0
        with pytest.raises(IndexInvalid):
            Index(damaged)
