"""What workers of the process tests do; in a module of their own, which imports nothing that a worker does not need."""

from __future__ import annotations

import gc
import logging
import os
import signal
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any

import numpy as np

from sharedrag import Pool, PoolFull, Where
from sharedrag.arena.session import Session
from sharedrag.memory import layout
from tests.crash.helpers import alone


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
    notes.scan()  # the view was handed out, and is held by nobody but the reading thread
    reading, go_on = threading.Event(), threading.Event()

    class Slow(Where):
        def matches(self, metadata: Mapping[str, Any], created_us: int | None = None) -> bool:
            reading.set()
            go_on.wait()
            return True

        def needles(self) -> list[bytes]:
            return []

    thread = threading.Thread(target=lambda: notes.find(Slow("x", "==", 1), limit=1))
    thread.start()
    reading.wait()
    conn.send("reading")
    conn.recv()
    pid = os.fork()
    if pid == 0:
        conn.send(os.getpid())
        conn.recv()
        os._exit(0)
    go_on.set()
    thread.join()
    pool.close()
    os.waitpid(pid, 0)


def fork_while_opening(conn: Connection, path: str, forks: int) -> None:
    """Fork again and again while other threads open and close handles; the children live on."""
    going_on = True

    def open_and_close() -> None:
        while going_on:
            with Pool.open(path, maintenance=False) as pool:
                pool.collections()

    threads = [threading.Thread(target=open_and_close) for _ in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(forks):
        time.sleep(0.002)
        if os.fork() == 0:
            conn.send(os.getpid())
            with suppress(EOFError):  # all read the same pipe: its end ends them all
                conn.recv()
            os._exit(0)
    going_on = False
    for thread in threads:
        thread.join()
    conn.send("forked")
    conn.recv()


def inherit_a_view(conn: Connection, path: str) -> None:
    """Scan, fork; the parent is gone, the child keeps the table and says whether it still reads as it did."""
    pool = Pool.open(path, name="parent", maintenance=False)
    tables, content = _a_view(pool)
    if os.fork():
        os._exit(0)
    conn.send(os.getpid())
    _look_when_told(conn, tables, content)


def hand_a_view_to_a_child(conn: Connection, path: str) -> None:
    """When told, fork a child that keeps a view, in a lower session slot, and let go of it oneself."""
    lower = Pool.open(path, maintenance=False)
    pool = alone(Pool.open(path, maintenance=False))
    tables, content = _a_view(pool)
    lower.close()  # its slot is the first free one
    conn.send("ready")
    conn.recv()
    if os.fork() == 0:
        conn.recv()
        conn.send(tables[0].to_pydict() == content)
        os._exit(0)
    tables.clear()
    pool.move_pins_on()
    conn.send(pool.arena.session.slot)
    signal.pause()


def pass_a_view_on(conn: Connection, path: str) -> None:
    """When told, fork a child that keeps a view, and let go of it; told again, the child forks one, and is gone."""
    lower = [Pool.open(path, maintenance=False) for _ in range(2)]
    pool = alone(Pool.open(path, maintenance=False))
    tables, content = _a_view(pool)
    for one in lower:
        one.close()
    conn.send(("parent", pool.arena.session.slot))
    conn.recv()
    if os.fork():
        tables.clear()
        pool.move_pins_on()
        conn.send(("parent", "moved on"))
        signal.pause()
    conn.send(("child", pool.arena.session.slot))
    conn.recv()
    child = os.getpid()
    if os.fork():
        os._exit(0)
    while os.getppid() == child:
        time.sleep(0.001)
    conn.send(("grandchild", pool.arena.session.slot))
    _look_when_told(conn, tables, content)


def _a_view(pool: Pool) -> tuple[list[Any], object]:
    """A table, in a list so that one can let go of it, and what it reads."""
    table = pool.collection("notes").scan()
    return [table], table.to_pydict()


def _look_when_told(conn: Connection, tables: list[Any], content: object) -> None:
    """Say whether the table still reads as it did, as often as asked; at another word, let go of it, and end at the next."""
    with suppress(EOFError):
        while conn.recv() == "look":
            conn.send(tables[0].to_pydict() == content)
        tables.clear()
        conn.send("let go")
        conn.recv()
    os._exit(0)


def keep_a_view_of_a_closed_handle(conn: Connection, path: str, closed: bool) -> None:
    """Fork, with only a table left of a handle, a child that lets go of it, then one that keeps it and outlives us."""
    pool = Pool.open(path, maintenance=False)
    tables, content = _a_view(pool)
    if closed:
        pool.close()
    del pool  # or forget it
    gc.collect()
    child = os.fork()
    if child == 0:
        tables.clear()
        gc.collect()
        os._exit(0)
    os.waitpid(child, 0)
    conn.send("a child let go")
    assert conn.recv() == "look"
    conn.send(tables[0].to_pydict() == content)
    assert conn.recv() == "fork"
    if os.fork():
        os._exit(0)
    conn.send(os.getpid())
    _look_when_told(conn, tables, content)


def fork_when_no_session_is_free(conn: Connection, path: str) -> None:
    """Fork a child that keeps a view when there is no slot for it; let go of it oneself."""
    pool = Pool.open(path, maintenance=False)
    tables, content = _a_view(pool)
    layout.SESSIONS_PER_NODE = pool.arena.session.slot + 1  # for us, from now on
    if os.fork() == 0:
        conn.send(pool.closed)
        _look_when_told(conn, tables, content)
    tables.clear()
    pool.move_pins_on()
    signal.pause()


def stop_in_the_fork(conn: Connection, path: str) -> None:
    """Fork a child that is stopped before it has done anything about its session."""
    pool = Pool.open(path, maintenance=False)
    tables, content = _a_view(pool)
    go_on = Session.after_fork_in_child

    def stop_first(session: Session) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
        go_on(session)

    Session.after_fork_in_child = stop_first  # type: ignore[assignment,method-assign]
    child = os.fork()
    if child == 0:
        _look_when_told(conn, tables, content)
    conn.send(child)
    signal.pause()


def let_go_of_a_view_during_a_fork(conn: Connection, path: str) -> None:
    """While the main thread forks, another lets go of a view, and holds a lock that the fork waits for."""
    pool = Pool.open(path, maintenance=False)
    tables, _ = _a_view(pool)
    holding, forking = threading.Event(), threading.Event()
    os.register_at_fork(before=forking.set)  # the last one registered comes first

    def let_go() -> None:
        with logging._lock:  # type: ignore[attr-defined]
            holding.set()
            forking.wait()
            time.sleep(0.2)  # by then the fork has come to the logging module's own hook
            tables.clear()

    thread = threading.Thread(target=let_go)
    thread.start()
    holding.wait()
    child = os.fork()
    if child == 0:
        os._exit(0)
    thread.join()
    os.waitpid(child, 0)
    conn.send("forked")
    conn.recv()
    os._exit(0)


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


def spin(conn: Connection, path: str, lane_of: str) -> None:
    """Put without pause, one record or a few at a time, until told to stop."""
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection("notes", 16)
        number = 0
        while not conn.poll(0):
            ids = [f"{lane_of}{index}" for index in range(number % 3000, number % 3000 + 1 + number % 4)]
            vectors = np.full((len(ids), 16), 1.0 + number)
            collection.put(
                ids, vectors, [f"{one} {number} " + "y" * (number % 300) for one in ids], [{"n": number}] * len(ids)
            )
            number += 1
        conn.send(number)


def play_chain(conn: Connection, path: str, mine: str, others: str) -> None:
    """Put link n of one's own side as soon as the other side's link before it is seen, until told to stop."""
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection("chain")
        number = 0
        while not conn.poll(0):
            needed = f"{others}{number - 1 if mine == 'a' else number}"
            if (mine == "a" and number == 0) or needed in collection:
                collection.put([f"{mine}{number}"], texts=[str(number)])
                number += 1
        conn.send(number)


def write_groups(conn: Connection, path: str) -> None:
    """Overwrite ten records again and again in one batch; with every third one, delete and insert them in one batch."""
    with Pool.open(path, maintenance=False) as pool:
        collection = pool.collection("groups", 4)
        ids = [f"g{number}" for number in range(10)]
        number = 0
        while not conn.poll(0):
            collection.put(ids, np.ones((10, 4)), [str(number)] * 10, delete=ids if number % 3 == 0 else ())
            number += 1


def write_with_clock(conn: Connection, path: str, ahead_us: int) -> None:
    """Write two records with a clock that is ahead, and leave when told."""
    now = time.time_ns
    time.time_ns = lambda: now() + ahead_us * 1000
    with Pool.open(path, maintenance=False) as pool:
        pool.collection("notes").put(["by the fast clock", "contested"], texts=["ahead", "ahead"])
        conn.send("written")
        conn.recv()


def hold_everything(conn: Connection, path: str) -> None:
    """Hold a name, a lane, a session, the maintenance lock and the node lock, all at once, for good."""
    pool = Pool.open(path, maintenance=False)
    pool.collection("notes").put(["x"], texts=["takes a lane"])
    area = pool.arena.geometry.node_offset(0)
    with pool.exclusive("name"), pool.arena.node_locked("test"):
        assert pool.arena.session.locks.try_lock(area + layout.HORIZON_OFFSET)
        conn.send("held")
        conn.recv()
