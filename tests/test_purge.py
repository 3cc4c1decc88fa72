from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from sharedrag import Pool
from tests.crash.helpers import reclaimed, texts_of, until
from tests.crash.launcher import Launcher
from tests.crash.remote import Remote

SECRET = "xylophone"


@pytest.fixture(scope="module")
def started() -> Iterator[Launcher]:
    """The warm parent of all workers of these tests."""
    launcher = Launcher()
    yield launcher
    launcher.close()


@pytest.fixture
def launcher(started: Launcher) -> Iterator[Launcher]:
    """The same; no worker outlives its test."""
    yield started
    started.end_workers()


def in_the_file(path: str) -> bool:
    """Whether the pool's bytes hold the secret anywhere."""
    return SECRET.encode() in Path(path).read_bytes()


def forgotten(path: str, *pools: Pool) -> bool:
    """Maintain with each of these; True once the secret is in no byte of the pool."""
    return reclaimed(*pools) and not in_the_file(path)


def fill(pool_or_remote: Pool | Remote, prefix: str) -> None:
    """A hundred notes, of which one is secret."""
    ids = [f"{prefix}{number}" for number in range(100)]
    texts = ["plain " * 20] * 99 + [SECRET]
    if isinstance(pool_or_remote, Pool):
        pool_or_remote.collection("notes").put(ids, texts=texts)
    else:
        pool_or_remote.on("notes", "put", ids, texts=texts)


def test_a_single_dead_row_leaves_when_asked_for(pool_path: str) -> None:
    """One deleted record among many stays in memory, whatever maintenance does, until a purge: then its bytes go."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        notes = pool.collection("notes")
        for number in range(5):
            fill(pool, f"{number}-")
        notes.delete([f"{number}-99" for number in range(5)])
        expected = texts_of(notes)
        for _ in range(4):
            reclaimed(pool)
        assert in_the_file(pool_path)
        notes.purge()
        until(lambda: forgotten(pool_path, pool), "the deleted leave")
        assert texts_of(notes) == expected and len(expected) == 495
        assert pool.verify().ok
        notes.purge()
        assert not any(entry.of == entry.uid and entry.rows for entry in pool.arena.refresh().manifests[0].entries)


def test_an_idle_process_gives_up_the_segment_that_it_fills(pool_path: str, launcher: Launcher) -> None:
    """Within a tick, though it writes nothing more; what it writes later goes on in a new one."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        idle = Remote(launcher, pool_path, maintenance=False)
        fill(idle, "a")
        notes = pool.collection("notes")
        notes.delete(["a99"])
        notes.purge()
        until(lambda: forgotten(pool_path, pool), "the deleted leave")
        idle.on("notes", "put", ["later"], texts=["x"])
        assert len(notes) == 100 and pool.verify().ok


def test_other_nodes_are_asked_too(pool_path: str, launcher: Launcher) -> None:
    """A purge marks the segments of every node; each node's own maintenance rewrites them."""
    with (
        Pool.open(pool_path, create=True, capacity="32 MiB", nodes=2, maintenance=False) as pool,
        Pool.open(pool_path, node=1, maintenance=False) as second,
    ):
        other = Remote(launcher, pool_path, node=1, maintenance=False)
        fill(other, "a")
        fill(pool, "b")
        notes = pool.collection("notes")
        notes.delete(["a99", "b99"])
        notes.purge()
        until(lambda: forgotten(pool_path, pool, second), "the deleted leave")
        assert len(notes) == 198 and pool.verify().ok


@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGSTOP])
def test_the_dead_and_the_stopped_are_purged_when_they_can_be(
    pool_path: str, launcher: Launcher, signal_number: signal.Signals
) -> None:
    """A killed holder's segment is closed by maintenance, a stopped one's when it goes on; nobody waits meanwhile."""
    with Pool.open(pool_path, create=True, capacity="16 MiB", maintenance=False) as pool:
        holder = Remote(launcher, pool_path, maintenance=False)
        fill(holder, "a")
        notes = pool.collection("notes")
        holder.worker.signal(signal_number)
        if signal_number == signal.SIGSTOP:
            holder.worker.wait_stopped()
        else:
            holder.worker.wait()
        notes.delete(["a99"])
        notes.purge()
        fill(pool, "b")
        notes.delete(["b99"])
        notes.purge()
        if signal_number == signal.SIGSTOP:
            reclaimed(pool)
            assert in_the_file(pool_path)
            holder.worker.signal(signal.SIGCONT)
        until(lambda: forgotten(pool_path, pool), "the deleted leave")
        assert len(notes) == 198 and pool.verify().ok


def test_purges_while_others_write_lose_nothing(pool_path: str, launcher: Launcher) -> None:
    """Two processes write, one deletes and purges, one maintains: in the end there is what was put and not deleted."""
    with Pool.open(pool_path, create=True, capacity="64 MiB", maintenance=False) as pool:
        notes = pool.collection("notes")
        writers = [Remote(launcher, pool_path, maintenance=False) for _ in range(2)]
        kept: set[str] = set()
        stop = threading.Event()

        def care() -> None:
            while not stop.is_set():
                pool.maintain()

        carer = threading.Thread(target=care)
        carer.start()
        try:
            for turn in range(60):
                for number, writer in enumerate(writers):
                    ids = [f"{turn}-{number}-{at}" for at in range(10)]
                    writer.begin("notes", "put", ids, texts=["x" * 200] * 9 + [SECRET])
                    kept |= set(ids[:9])
                for writer in writers:
                    writer.finish()
                notes.delete([f"{turn}-{number}-9" for number in range(2)])
                notes.purge()
        finally:
            stop.set()
            carer.join()
        assert set(texts_of(notes)) == kept
        until(lambda: forgotten(pool_path, pool), "the deleted leave")
        assert set(texts_of(notes)) == kept and pool.verify().ok
