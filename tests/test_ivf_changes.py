"""Indexes that grow and thin out without new lists, and that take no memory of their own when opened."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from sharedrag.search import ivf_build
from sharedrag.search.ivf import Index
from sharedrag.search.ivf_rows import Rows
from tests.test_ivf import clustered, exact, payload_of, recall, unit


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_extended_index_finds_old_and_new(dtype: str) -> None:
    """Rows are added to the lists there are; the settings are measured anew."""
    vectors = unit(clustered(6050, 64)).astype(dtype)
    queries = vectors[6000:].astype(np.float32)
    first = payload_of(ivf_build.build(Rows([vectors[:2000]], "cosine")))
    rows = Rows([vectors[:2000], vectors[2000:6000]], "cosine")
    leave_out = np.zeros(6000, np.bool_)
    leave_out[3000:3500] = True
    grown = ivf_build.extended(first, rows, leave_out=leave_out)
    assert (grown.settings.rows, grown.settings.indexed, grown.settings.trained) == (6000, 5500, 2000)
    there = np.flatnonzero(~leave_out)
    right = there[exact(vectors[:6000][there].astype(np.float32), queries, 10, "cosine")]
    assert recall(Index(payload_of(grown)), rows, queries, right) >= 0.93


def test_a_renumbered_index_is_as_if_it_had_been_so() -> None:
    """Rows that are gone are not found; the others have their new ids."""
    vectors = unit(clustered(4050, 64))
    stored, queries = vectors[:4000], vectors[4000:]
    before = payload_of(ivf_build.build(Rows([stored], "cosine")))
    rng = np.random.default_rng(8)
    kept = np.sort(rng.choice(4000, 2500, replace=False))
    new_of_kept = rng.permutation(2600)[:2500]  # some new ids are nobody's
    mapping = np.full(4000, -1, np.int64)
    mapping[kept] = new_of_kept
    moved = np.full((2600, 64), np.nan, np.float32)
    moved[new_of_kept] = stored[kept]
    rows = Rows([moved], "cosine")
    built = ivf_build.renumbered(before, mapping, 2600)
    assert (built.settings.rows, built.settings.indexed) == (2600, 2500)
    index = Index(payload_of(built))
    right = new_of_kept[exact(stored[kept], queries, 10, "cosine")]
    assert recall(index, rows, queries, right) >= 0.93
    every = index.candidates(queries, 2600, nprobe_factor=1000.0)
    assert set(every[0][every[0] >= 0].tolist()) == set(new_of_kept.tolist())


def test_all_rows_may_go_and_others_come() -> None:
    """An index may be emptied, and an empty one extended."""
    vectors = unit(clustered(1000, 64))
    before = payload_of(ivf_build.build(Rows([vectors], "cosine")))
    empty = payload_of(ivf_build.renumbered(before, np.full(1000, -1, np.int64), 0))
    assert len(Index(empty).search(vectors[0], 5, Rows([vectors], "cosine"))[1]) == 0
    rows = Rows([vectors], "cosine")
    again = Index(payload_of(ivf_build.extended(empty, rows)))
    assert recall(again, rows, vectors[:20], exact(vectors, vectors[:20], 5, "cosine")) >= 0.93


def test_what_an_index_has_is_not_changed_by_what_is_made_of_it() -> None:
    """The blob lies in shared memory: it is only read."""
    vectors = unit(clustered(1500, 64))
    before = payload_of(ivf_build.build(Rows([vectors[:1000]], "cosine")))
    before.flags.writeable = False
    copy = before.tobytes()
    ivf_build.extended(before, Rows([vectors], "cosine"))
    ivf_build.renumbered(before, np.arange(1000)[::-1].copy(), 1000)
    Index(before).search(vectors[0], 10, Rows([vectors], "cosine"))
    assert before.tobytes() == copy


def test_lists_are_made_anew_when_they_no_longer_fit() -> None:
    """Four times as many rows as they were made for, or a quarter, or too little recall."""
    built = ivf_build.build(Rows([unit(clustered(1000, 64))], "cosine"))
    assert built is not None
    settings = built.settings
    assert not ivf_build.outgrown(settings, 1000) and not ivf_build.outgrown(settings, 3999)
    assert ivf_build.outgrown(settings, 4001) and ivf_build.outgrown(settings, 200)
    assert ivf_build.outgrown(settings._replace(recall=0.9), 1000)


_OPEN_AND_SEARCH = """
import mmap, sys
import numpy as np
from sharedrag.search.ivf import Index
from sharedrag.search.ivf_rows import Rows

def private_kb():
    lines = open("/proc/self/smaps_rollup").read().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))

def mapped(path, dtype):
    with open(path, "rb") as file:
        return np.frombuffer(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ), dtype)

# The searches themselves are warmed up on a small index first: what FAISS and NumPy keep for themselves is not the blob's.
small = Index(mapped(sys.argv[2], np.uint8))
vectors = mapped(sys.argv[3], np.float32).reshape(-1, 64)
rows = Rows([vectors], "cosine")
def search(index):
    for query in vectors[:200]:
        index.search(query, 10, rows, nprobe_factor=4.0)
search(small)
sum(float(part.sum()) for part in np.array_split(vectors, 50))  # the vectors' pages are mapped before, too
before = private_kb()
index = Index(mapped(sys.argv[1], np.uint8))
search(index)
print(private_kb() - before)
"""


def test_an_open_index_takes_no_memory_of_its_own(pool_path: str) -> None:
    """Opened from a shared mapping and searched 200 times, a blob of 2 MB costs a small part of that."""
    folder = Path(pool_path).parent
    vectors = unit(clustered(30_000, 64))
    vectors.tofile(folder / "vectors")
    for name, count in (("large", 30_000), ("small", 600)):
        payload_of(ivf_build.build(Rows([vectors[:count]], "cosine"), recall_target=0.8)).tofile(folder / name)
    size_kb = (folder / "large").stat().st_size // 1024
    holder = [folder / name for name in ("large", "small", "vectors")]
    held = [np.memmap(path, np.uint8, "r") for path in holder]  # another process has the pages too, as in a pool
    assert sum(int(one[::4096].sum()) for one in held) > 0
    command = [sys.executable, "-c", _OPEN_AND_SEARCH, *map(str, holder)]
    grown_kb = int(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    assert size_kb > 2000 and grown_kb < size_kb // 5


def test_rows_lie_where_they_lie() -> None:
    """Rows of many arrays are gathered, scored and named as if they were one array, of either dtype."""
    whole = clustered(1000, 48)
    for dtype, metric in (("float32", "ip"), ("float16", "ip"), ("float32", "l2"), ("float16", "l2")):
        stored = whole.astype(dtype)
        pieces = [stored[:0], stored[:1].copy(), stored[1:400].copy(), stored[400:400], stored[400:].copy()]
        one, many = Rows([stored], metric), Rows(pieces, metric)
        ids = np.random.default_rng(9).permutation(1000)[:300]
        np.testing.assert_array_equal(many.take(ids), stored[ids].astype(np.float32))
        padded = np.concatenate((ids, np.full(5, -1)))
        for rows in (one, many):
            scores, found = rows.best(whole[3], padded, 20)
            near = stored[ids].astype(np.float32)
            right = -((near - whole[3]) ** 2).sum(axis=1) if metric == "l2" else near @ whole[3]
            np.testing.assert_allclose(scores, np.sort(right)[::-1][:20], rtol=1e-4, atol=1e-3)
            assert set(found.tolist()) <= set(ids.tolist())
            assert len(rows.best(whole[3], padded[295:], 20)[1]) == 5
            assert len(rows.best(whole[3], padded[300:], 20)[1]) == 0
        starts = [(start, len(block)) for start, block in many.blocks(250)]
        assert starts == [(0, 1), (1, 250), (251, 149), (400, 250), (650, 250), (900, 100)]


def test_settings_stay_until_there_are_many_more_rows() -> None:
    """Rows are added with the settings there are; from 1.4 times the rows that were measured on, they are measured again."""
    vectors = unit(clustered(4000, 64))
    before = ivf_build.build(Rows([vectors[:2000]], "cosine"))
    assert before is not None and before.settings.measured == 2000
    few = ivf_build.extended(payload_of(before), Rows([vectors[:2700]], "cosine"))
    same = ("nprobe", "candidates", "recall", "measured")
    assert [getattr(few.settings, one) for one in same] == [getattr(before.settings, one) for one in same]
    many = ivf_build.extended(payload_of(few), Rows([vectors[:2801]], "cosine"))
    assert many.settings.measured == many.settings.indexed == 2801


def test_a_renumbered_index_takes_in_more() -> None:
    """Rows that it did not have are found beside those that it had."""
    vectors = unit(clustered(4050, 64))
    stored, queries = vectors[:4000], vectors[4000:]
    before = payload_of(ivf_build.build(Rows([stored[:3000]], "cosine")))
    mapping = np.arange(3000)
    mapping[:100] = -1
    merged = Rows([stored[1000:]], "cosine")
    more = ivf_build.More(merged, 1000, np.arange(2000, 3000))
    built = ivf_build.renumbered(before, mapping, 4000, more)
    assert (built.settings.rows, built.settings.indexed) == (4000, 3900)
    rows = Rows([stored[:1000], stored[1000:]], "cosine")
    right = 100 + exact(stored[100:], queries, 10, "cosine")
    assert recall(Index(payload_of(built)), rows, queries, right) >= 0.93
    every = Index(payload_of(built)).candidates(queries[:1], 4000, nprobe_factor=1000.0)[0]
    assert set(every[every >= 0].tolist()) == set(range(100, 4000))


@pytest.mark.parametrize("metric", ["cosine", "l2"])
def test_vectors_whole_rows_apart_are_scored_where_they_lie(metric: str) -> None:
    """Arrays in any order of addresses, with gaps of whole rows: the best are those of a copy in one array."""
    memory = unit(clustered(1000, 48))
    arrays = [memory[700:900], memory[0:150], memory[300:301], memory[450:600]]
    rows, copied = Rows(arrays, metric), Rows([np.concatenate(arrays)], metric)
    assert rows._base is not None and rows._back is not None
    rng = np.random.default_rng(3)
    for wanted in (1, 5, 300):
        ids = np.full(wanted + 3, -1, np.int64)
        ids[:wanted] = rng.choice(rows.count, wanted, replace=False)
        for given in (ids, ids[:wanted]):
            scores, best = rows.best(memory[999], given, 10)
            expected_scores, expected = copied.best(memory[999], given, 10)
            assert best.tolist() == expected.tolist() and np.allclose(scores, expected_scores)
