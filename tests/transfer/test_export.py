"""Exporting records: files that others open, in the order of writing, and back into a pool as they were."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from sharedrag import Pool
from sharedrag.collection import Record
from sharedrag.errors import CollectionMismatch, CollectionNotFound, PoolDamaged
from sharedrag.filters import Where
from sharedrag.transfer import exporting, restoring
from sharedrag.transfer.exporting import export
from sharedrag.transfer.layout import UnreadableExport
from sharedrag.transfer.restoring import restore

SUFFIXES = (".arrow", ".parquet")
LONG_AGO = datetime(2005, 12, 4, 9, 1, tzinfo=UTC)


def fill(pool: Pool, rows: int = 500) -> None:
    """Two collections with records of every kind, some superseded, some deleted, in segments sealed and open."""
    vectors = np.random.default_rng(1).standard_normal((rows, 8)).astype(np.float32)
    chat, notes = pool.collection("chat", 8, embedding_model="toy", dtype="float32"), pool.collection("chat.notes")
    for start in range(0, rows, 50):
        ids = [f"m{number}" for number in range(start, start + 50)]
        metadata = [{"user": "ann" if number % 3 else "bob", "number": number} for number in range(start, start + 50)]
        chat.put(ids, vectors[start : start + 50], [f"text {one}\n¿é😀" for one in ids], metadata, created=LONG_AGO)
        notes.put([f"n{start}", f"empty{start}"], None, ["a note", None], [{"kind": "note"}, None])
    chat.put(["m3"], vectors[:1], ["newer"], [{"user": "cid"}])
    chat.delete([f"m{number}" for number in range(0, rows, 7)])
    chat.put(["bare"], [None], [None], [None])


def records(pool: Pool, name: str) -> list[Record]:
    """All records, in the order of writing."""
    return pool.collection(name).find()


def assert_same(one: Record, other: Record) -> None:
    """Everything, and of the vectors the direction."""
    assert (one.id, one.text, one.metadata, one.created) == (other.id, other.text, other.metadata, other.created)
    assert (one.vector is None) == (other.vector is None)
    if one.vector is not None and other.vector is not None:
        unit = one.vector / np.linalg.norm(one.vector)
        assert np.allclose(unit, other.vector, atol=1e-6)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_back_into_another_pool(pool: Pool, tmp_path: Path, suffix: str) -> None:
    """All live records come back with ids, texts, metadata, times and directions, in their order; the second time none."""
    fill(pool)
    told = export(pool, tmp_path / f"all{suffix}")
    assert told.collections == {"chat.notes": 20, "chat": len(pool.collection("chat"))}
    with Pool.open(pool.path + ".other", create=True, capacity="64 MiB") as other:
        first = restore(other, told.path)
        assert first.put == told.collections
        for name in told.collections:
            for one, two in zip(records(pool, name), records(other, name), strict=True):
                assert_same(one, two)
        restored = other.collection("chat")
        assert (restored.dimension, restored.metric, restored.embedding_model) == (8, "cosine", "toy")
        again = restore(other, told.path)
        assert (sum(again.put.values()), again.already_there) == (0, told.rows)


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_others_open_it(pool: Pool, tmp_path: Path, suffix: str) -> None:
    """Pyarrow reads it, and DuckDB asks it questions: by SQL over metadata, times and vectors."""
    fill(pool)
    path = tmp_path / f"all{suffix}"
    export(pool, path)
    table = pq.read_table(path) if suffix == ".parquet" else pa.ipc.open_file(pa.memory_map(str(path))).read_all()
    table.validate(full=True)
    assert table.num_rows == len(pool.collection("chat")) + 20
    assert json.loads(table.schema.metadata[b"sharedrag"])["version"] == 1
    source = f"'{path}'" if suffix == ".parquet" else "exported"
    with duckdb.connect() as database:
        database.register("exported", table)
        found = database.sql(
            f"""select metadata->>'user' as who, count(*), epoch_us(min(created)) from {source}
                where collection = 'chat' and len(vector) = 8 group by who order by who"""
        ).fetchall()
    wanted = {who: len(pool.collection("chat").find({"user": who})) for who in ("ann", "bob", "cid")}
    assert {who: count for who, count, _ in found} == wanted
    assert found[0][2] == LONG_AGO.timestamp() * 1e6


def test_only_some(pool: Pool, tmp_path: Path) -> None:
    """Some collections, what a filter admits, without vectors."""
    fill(pool)
    path = tmp_path / "some.parquet"
    told = export(pool, path, ["chat"], Where("user", "==", "bob"), vectors=False)
    table = pq.read_table(path)
    assert told.collections == {"chat": len(pool.collection("chat").find({"user": "bob"}))}
    assert table["vector"].null_count == table.num_rows
    assert {json.loads(one)["user"] for one in table["metadata"].to_pylist()} == {"bob"}


def test_float16_and_other_metrics(pool: Pool, tmp_path: Path) -> None:
    """Vectors of a collection that stores halves, or lengths, come back as they were stored."""
    vectors = np.random.default_rng(2).standard_normal((40, 4)).astype(np.float32)
    pool.collection("halves", 4, "l2", "float16").put([str(row) for row in range(40)], vectors)
    export(pool, tmp_path / "halves.arrow")
    with Pool.open(pool.path + ".other", create=True, capacity="16 MiB") as other:
        restore(other, tmp_path / "halves.arrow")
        before, after = pool.collection("halves").find(), other.collection("halves").find()
        assert other.collection("halves").dtype == "float16"
        assert all((one.vector == two.vector).all() for one, two in zip(before, after, strict=True))  # type: ignore[union-attr]


def test_an_empty_pool(pool: Pool, tmp_path: Path) -> None:
    """Nothing is a file too."""
    pool.collection("empty", 8)
    told = export(pool, tmp_path / "nothing.parquet")
    assert (told.rows, told.collections) == (0, {"empty": 0})
    with Pool.open(pool.path + ".other", create=True, capacity="16 MiB") as other:
        assert restore(other, told.path).put == {"empty": 0}
        assert other.collection("empty").dimension == 8


def test_rows_of_several_writers_come_in_the_order_of_writing(pool: Pool, tmp_path: Path) -> None:
    """Two lanes' segments are merged by their keys, whatever the size of a batch."""
    with Pool.open(pool.path, maintenance=False) as other:
        for number in range(60):
            (pool, other)[number % 2].collection("chat").put([f"m{number}"], texts=[str(number)])
    rows = exporting._rows(pool.collection("chat"), None, vectors=False)
    for size in (1, 7, 1000):
        ids = [one for batch in rows.batches(size, 1 << 20) for one in batch.column("id").to_pylist()]
        assert ids == [f"m{number}" for number in range(60)]
    by_bytes = list(rows.batches(1000, 10))
    assert len(by_bytes) > 5
    assert sum(batch.num_rows for batch in by_bytes) == 60


def test_what_is_there_is_left_alone(pool: Pool, tmp_path: Path) -> None:
    """A record that was changed since the export is newer than what is restored over it."""
    fill(pool)
    export(pool, tmp_path / "all.arrow")
    pool.collection("chat").put(["m1"], np.ones((1, 8)), ["changed"])
    pool.collection("chat").delete(["m2"])
    told = restore(pool, tmp_path / "all.arrow")
    assert told.put == {"chat.notes": 0, "chat": 1}
    assert pool.collection("chat").get(["m1"])[0].text == "changed"  # type: ignore[union-attr]
    assert pool.collection("chat").get(["m2"])[0].text == "text m2\n¿é😀"  # type: ignore[union-attr]


@pytest.mark.parametrize("suffix", [".csv", "", ".arrow.gz"])
def test_another_suffix_is_refused(pool: Pool, tmp_path: Path, suffix: str) -> None:
    """What it cannot write it does not begin."""
    with pytest.raises(ValueError, match=r"\.parquet"):
        export(pool, tmp_path / f"out{suffix}")
    assert not list(tmp_path.iterdir())


def test_a_collection_that_is_not_there_is_not_made(pool: Pool, tmp_path: Path) -> None:
    """Asking for a wrong name leaves neither a file nor a collection."""
    with pytest.raises(CollectionNotFound):
        export(pool, tmp_path / "out.arrow", ["typo"])
    assert pool.collections() == []
    assert not list(tmp_path.iterdir())


def test_damage_is_not_exported(pool: Pool, tmp_path: Path) -> None:
    """A changed byte of a text is found, and the older file of that name stays."""
    fill(pool)
    path = tmp_path / "out.parquet"
    path.write_text("older")
    segment = pool.collection("chat").live.acquire().parts[0].segment
    start = segment.offset + segment.columns["text_heap"][0]
    pool.arena.region.bytes[start + 20] ^= 1  # of m1, which lives
    with pytest.raises(PoolDamaged):
        export(pool, path)
    assert path.read_text() == "older"
    assert [one.name for one in tmp_path.iterdir()] == ["out.parquet"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_damaged_files_are_told(pool: Pool, tmp_path: Path, suffix: str) -> None:
    """Cut short or with bytes changed, a file is refused or restored in part; never anything but an error of ours."""
    fill(pool, 200)
    path = tmp_path / f"whole{suffix}"
    export(pool, path)
    whole = path.read_bytes()
    broken = tmp_path / f"broken{suffix}"
    random = np.random.default_rng(3)
    for number in range(40):
        data = bytearray(whole[: int(random.integers(8, len(whole)))] if number % 4 == 0 else whole)
        for at in random.integers(0, len(data), 3):
            data[at] ^= int(random.integers(1, 256))
        broken.write_bytes(data)
        with Pool.open(f"{pool.path}.{number}", create=True, capacity="4 MiB", maintenance=False) as other:
            try:
                restore(other, broken)
            except (UnreadableExport, CollectionMismatch, ValueError):
                continue
        os.unlink(f"{pool.path}.{number}")


def test_files_of_others_are_refused_with_what_to_do(pool: Pool, tmp_path: Path) -> None:
    """Neither some other Parquet file, nor one without vectors, nor one of a later version is restored."""
    pq.write_table(pa.table({"text": ["hello"]}), tmp_path / "chat.parquet")
    with pytest.raises(UnreadableExport, match="--group"):
        restore(pool, tmp_path / "chat.parquet")
    fill(pool, 50)
    export(pool, tmp_path / "bare.parquet", vectors=False)
    with pytest.raises(UnreadableExport, match="without vectors"):
        restore(pool, tmp_path / "bare.parquet")
    table = pq.read_table(tmp_path / "bare.parquet")
    told = json.loads(table.schema.metadata[b"sharedrag"]) | {"version": 2}
    pq.write_table(table.replace_schema_metadata({"sharedrag": json.dumps(told)}), tmp_path / "later.parquet")
    with pytest.raises(UnreadableExport, match="another version"):
        restore(pool, tmp_path / "later.parquet")


WRITING = """
import sys
from sharedrag import Pool
from sharedrag.transfer import exporting
exporting.BATCH_ROWS = 1
with Pool.open(sys.argv[1], maintenance=False) as pool:
    exporting.export(pool, sys.argv[2], progress=lambda done, total: print(done, flush=True))
"""


def test_killed_midway_no_file_appears(pool: Pool, tmp_path: Path) -> None:
    """The name is given to whole files only."""
    fill(pool)
    path = tmp_path / "out.arrow"
    with subprocess.Popen([sys.executable, "-c", WRITING, pool.path, str(path)], stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None
        writer.stdout.readline()
        writer.send_signal(signal.SIGKILL)
    assert not path.exists()


def test_memory_is_bounded(pool: Pool, tmp_path: Path) -> None:
    """20 MB of texts are written and restored without ever holding 8 MB of Arrow's memory."""
    texts = [f"{number} " + "x" * 20_000 for number in range(1000)]
    for start in range(0, 1000, 100):
        pool.collection("long").put([f"m{one}" for one in range(start, start + 100)], texts=texts[start : start + 100])
    exporting.BATCH_BYTES, before = 1 << 20, exporting.BATCH_BYTES
    try:
        held = pa.default_memory_pool()
        start_bytes = held.bytes_allocated()
        peak = 0

        def look(done: int, total: int) -> None:
            nonlocal peak
            peak = max(peak, held.bytes_allocated() - start_bytes)

        export(pool, tmp_path / "long.arrow", progress=look)
        with Pool.open(pool.path + ".other", create=True, capacity="64 MiB") as other:
            restore(other, tmp_path / "long.arrow", progress=look)
            assert len(other.collection("long")) == 1000
    finally:
        exporting.BATCH_BYTES = before
    assert peak < 8 << 20
    assert restoring.BATCH_ROWS <= 4096


def test_others_write_on_meanwhile(pool: Pool, tmp_path: Path) -> None:
    """A file is of one moment: what is put while it is written is not in it, and what is deleted still is."""
    fill(pool)
    chat = pool.collection("chat")
    before = [one.id for one in chat.find()]
    rows = exporting._rows(chat, None, vectors=True)
    chat.put(["late"], np.ones((1, 8)), ["late"])
    chat.delete(before[:50])
    for _ in range(3):
        pool.maintain()
        time.sleep(0.01)
    assert [one for batch in rows.batches(64, 1 << 20) for one in batch.column("id").to_pylist()] == before
