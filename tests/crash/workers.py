"""What workers of the process tests do; in a module of their own, which imports nothing that a worker does not need."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sharedrag import Pool, PoolFull, Where


def create_when_told(conn: Connection, path: str, number: int) -> None:
    """Open with `create` at the same moment as others, write one record, say which pool it is."""
    conn.send("ready")
    conn.recv()
    with Pool.open(path, create=True, capacity="4 MiB", maintenance=False) as pool:
        pool.collection("notes").put([f"n{number}"], texts=[f"by {number}"])
        conn.send(pool.arena.geometry.uuid)
        conn.recv()


def prefork(conn: Connection, path: str, workers: int) -> None:
    """A master that opens the pool and forks its workers, as gunicorn with `preload_app` does."""
    pool = Pool.open(path, name="master")
    history = pool.collection("history", dimension=8)
    history.put(["m"], np.ones((1, 8)), ["of the master"])
    history.search(np.ones(8))  # FAISS has run its threads in the master: the hang to avoid
    children = []
    for number in range(workers):
        pid = os.fork()
        if pid == 0:
            for record in range(20):
                history.put([f"w{number}-{record}"], np.full((1, 8), number + 1.0), [f"of worker {number}"])
                assert len(history.search(np.ones((2, 8)), k=5)[0]) >= 1
            pool.maintain()
            os._exit(0 if history.get(["m"])[0] is not None else 3)
        children.append(pid)
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]
    history.put(["m2"], np.ones((1, 8)), ["of the master, after its workers"])
    conn.send((codes, len(history), len(pool.info().sessions)))
    pool.close()


def fork_while_writing(conn: Connection, path: str, forks: int) -> None:
    """Threads write and read without pause while the main thread forks; each child writes, reads and goes."""
    pool = Pool.open(path, name="busy")
    history = pool.collection("history", dimension=8)
    going_on = True
    written = [0, 0, 0]
    failed: list[BaseException] = []

    def write(thread: int) -> None:
        try:
            while going_on:
                number = written[thread]
                history.put([f"t{thread}-{number % 50}"], np.ones((1, 8)), [f"{number}"])
                written[thread] += 1
        except BaseException as error:  # noqa: BLE001 (shown by the main thread)
            failed.append(error)

    def read() -> None:
        try:
            while going_on:
                history.search(np.ones(8), k=3, filter={"room": "none"})
                history.find(limit=3)
        except BaseException as error:  # noqa: BLE001 (shown by the main thread)
            failed.append(error)

    threads = [threading.Thread(target=write, args=(number,)) for number in range(3)] + [threading.Thread(target=read)]
    for thread in threads:
        thread.start()
    codes = []
    for number in range(forks):
        pid = os.fork()
        if pid == 0:
            history.put([f"child{number}"], np.ones((1, 8)), ["of a child"])
            os._exit(0 if history.get([f"child{number}"])[0] is not None else 3)
        codes.append(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
    going_on = False
    for thread in threads:
        thread.join()
    conn.send((codes, written, [repr(error) for error in failed]))
    pool.close()


def fork_and_wait(conn: Connection, path: str) -> None:
    """Write, fork a child that only waits, say both process ids."""
    pool = Pool.open(path, name="parent", maintenance=False)
    pool.collection("notes").put(["p"], texts=["of the parent"])
    pid = os.fork()
    if pid == 0:
        conn.send(("child", os.getpid()))
        conn.recv()
        pool.collection("notes").put(["c"], texts=["of the orphan"])
        os._exit(0)
    conn.recv()  # never comes
    os._exit(1)


def read_during_fork(conn: Connection, path: str) -> None:
    """Fork while another thread is in the middle of reading; the child lives on and follows what others do."""
    pool = Pool.open(path, name="forker", maintenance=False)
    notes = pool.collection("notes")
    reading, go_on = threading.Event(), threading.Event()

    class Slow(Where):
        def matches(self, metadata: Mapping[str, Any]) -> bool:
            reading.set()
            go_on.wait()
            return True

        def needles(self) -> list[bytes]:
            return []

    thread = threading.Thread(target=lambda: notes.find(Slow("x", "==", 1), limit=1))
    thread.start()
    reading.wait()
    pid = os.fork()
    if pid == 0:
        conn.send(os.getpid())
        conn.recv()
        os._exit(0)
    go_on.set()
    thread.join()
    pool.close()
    os.waitpid(pid, 0)


def fork_when_full(conn: Connection, path: str) -> None:
    """Fork again and again while another thread's put waits for room in a full pool."""
    pool = Pool.open(path, maintenance=False)
    notes = pool.collection("notes")
    full = threading.Event()

    def fill() -> None:
        number = 0
        while True:
            try:
                notes.put([f"n{number}"], texts=["x" * 60_000])
            except PoolFull:
                full.set()
                if number > 10_000:
                    return
                number = 10_000
            number += 1

    thread = threading.Thread(target=fill)
    thread.start()
    while thread.is_alive():
        pid = os.fork()
        if pid == 0:
            os._exit(0 if len(notes) else 3)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        time.sleep(0.01)
    thread.join()
    conn.send(full.is_set())
    os._exit(0)


def count_up(conn: Connection, path: str, rounds: int) -> None:
    """Read, change and put back a counter, each time with the lock."""
    with Pool.open(path, maintenance=False, lock_timeout_s=60.0) as pool:
        collection = pool.collection("counters")
        conn.send("ready")
        conn.recv()
        for _ in range(rounds):
            with pool.exclusive("counter"):
                found = collection.get(["n"])[0]
                collection.put(["n"], metadata=[{"value": (found.metadata["value"] if found else 0) + 1}])


def hold(conn: Connection, path: str, name: str) -> None:
    """Take a name and keep it."""
    with Pool.open(path) as pool, pool.exclusive(name):
        conn.send("held")
        conn.recv()
