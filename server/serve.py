"""`sharedrag serve`: one parent that binds the port, and workers that it starts anew when they die.

All workers accept from one socket, so a connection that waits is lost with no worker. The parent keeps nothing that a
request needs; it makes the pool and the admin key before there are workers, and shows a key that it made this once.
"""

from __future__ import annotations

import copy
import logging
import multiprocessing
import os
import shutil
import socket
import sys
import tempfile
import time
from typing import Any

import uvicorn
import uvicorn._subprocess
import uvicorn.config
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors.multiprocess import Multiprocess, Process

from server.app import create_app, open_history
from server.process import PARENT_VARIABLE
from server.protocol import BoundedHead
from server.settings import Settings
from sharedrag.history.keys import AdminKey

_BACKLOG = 2048
_KEEP_ALIVE_S = 75
_START_FAILURES_MAX = 10  # in a row
_STARTING_S = 30.0  # a worker that ends by itself within this time could not start
_log = logging.getLogger("uvicorn.error")


def prepare(settings: Settings) -> AdminKey:
    """Make what is not there yet, the pool and its admin key.

    Raises what `open_history` does: ValueError for settings that do not fit the pool.
    """
    given = settings.admin_key.get_secret_value() if settings.admin_key is not None else None
    history = open_history(settings, maintenance=False)
    try:
        return history.keys.ensure_admin(given)
    finally:
        history.pool.close()


def serve(settings: Settings, host: str, port: int, workers: int, access_log: bool) -> int:
    """Serve what was prepared until SIGTERM or SIGINT; answers in flight are finished first.

    Returns the exit code: 1 if workers could not start.
    """
    folder = tempfile.mkdtemp(prefix="sharedrag-metrics-") if settings.metrics_folder is None else None
    try:
        os.environ.update(_environment(settings, folder, workers))
        os.environ.pop("SHAREDRAG_ADMIN_KEY", None)  # its hash is in the pool: no worker needs the key
        config = uvicorn.Config(
            "server.serve:application",
            factory=True,
            host=host,
            port=port,
            workers=workers,
            loop="uvloop",
            http=BoundedHead,
            ws="none",
            backlog=_BACKLOG,
            access_log=access_log,
            log_config=_logging(),
            server_header=False,
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=settings.shutdown_s,
        )
        _fork_workers()
        try:
            listening = config.bind_socket()
        except SystemExit:  # uvicorn has told what the system says, but not of what
            _log.error("cannot listen on %s, port %s: choose others with --host and --port", host, port)
            return 1
        supervisor = Supervisor(config, sockets=[listening])
        supervisor.run()
        return 1 if supervisor.failed else 0
    finally:
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)


def _fork_workers() -> None:
    """Have uvicorn fork its workers from a process in which everything is imported, rather than start each from nothing.

    So a worker serves after a fraction of the time, and has for itself only the memory that it writes to.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["server.preloaded"])
    uvicorn._subprocess.spawn = context  # type: ignore[assignment]  # it has no setting for it


class Supervisor(Multiprocess):
    """Uvicorn's own, but that it only asks whether workers live, and goes on when the process that forks them is killed.

    Uvicorn's pings each worker and waits for its answer: one that is only starting keeps it from seeing that others died,
    and on a busy machine is killed for starting slowly.
    """

    failed = False
    _failures = 0
    _ended = 0  # workers in a row that could not start

    def __init__(self, config: uvicorn.Config, sockets: list[socket.socket]) -> None:
        """Of uvicorn's configuration, and sockets that listen."""
        super().__init__(config, sockets=sockets)
        self._begun: dict[int | None, float] = {}

    def init_processes(self) -> None:
        """Start the workers, unless told to stop meanwhile."""
        while len(self.processes) < self.processes_num and not self.signal_queue and not self.should_exit.is_set():
            if worker := self._started():
                self.processes.append(worker)

    def keep_subprocess_alive(self) -> None:
        """Start a worker for each that died; end with those that cannot start at all."""
        for index, worker in enumerate(self.processes):
            if self.should_exit.is_set() or worker.process.is_alive():
                continue
            worker.kill()  # closes its pipes
            worker.process.join()
            early = time.monotonic() - self._begun.pop(worker.pid, 0.0) < _STARTING_S
            self._ended = self._ended + 1 if early and 0 < (worker.exitcode or 0) < 255 else 0  # by itself, and seen
            if worker.exitcode == STARTUP_FAILURE or self._ended >= _START_FAILURES_MAX:
                _log.error("worker %s cannot start: see above", worker.pid)
                self._give_up()
                return
            _log.warning("worker %s died; another one starts", worker.pid)
            self.processes[index] = self._started() or worker  # if not now, in the next round

    def handle_signals(self) -> None:
        """As uvicorn does; some of it starts workers."""
        try:
            super().handle_signals()
        except (EOFError, OSError) as error:
            _log.warning("workers were not replaced: %r", error)

    def _started(self) -> Process | None:
        """A new worker; None if the process that forks them died just then. The next attempt starts that anew too."""
        worker = Process(self.config, self.sockets)
        try:
            worker.start()
        except (EOFError, OSError) as error:
            self._failures += 1
            if not self.signal_queue:
                _log.warning("a worker could not be forked: %r", error)
            if self._failures >= _START_FAILURES_MAX:
                _log.error("no worker can be forked: see above")
                self._give_up()
            return None
        self._failures = 0
        self._begun[worker.pid] = time.monotonic()
        return worker

    def _give_up(self) -> None:
        self.failed = True
        self.should_exit.set()


def application() -> FastAPI:
    """A worker's application. What keeps it from being made keeps the next worker's too: the exit code says so."""
    try:
        return create_app()
    except Exception:  # noqa: BLE001 (whatever it is, it is told in the log and by the exit code)
        _log.exception("this worker cannot start")
        sys.exit(STARTUP_FAILURE)


class WithoutQuery(logging.Filter):
    """Takes the query off the access log's paths: what a client puts there by mistake, a key too, is not written down."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Change the record's path (the third of uvicorn's arguments); let every record through."""
        if isinstance(record.args, tuple) and len(record.args) == 5:
            client, method, path, *rest = record.args
            record.args = (client, method, str(path).partition("?")[0], *rest)
        return True


def _logging() -> dict[str, Any]:
    """Uvicorn's own configuration, with that filter."""
    configuration = copy.deepcopy(uvicorn.config.LOGGING_CONFIG)
    configuration["filters"] = {"without_query": {"()": "server.serve.WithoutQuery"}}
    configuration["handlers"]["access"]["filters"] = ["without_query"]
    return configuration


def _environment(settings: Settings, folder: str | None, workers: int) -> dict[str, str]:
    """What the workers are told: these settings, how many cores one of them may take, and how Arrow finds memory."""
    told = {
        f"SHAREDRAG_{name.upper()}": str(value)
        for name, value in settings.model_dump(include=settings.model_fields_set).items()
        if isinstance(value, (str, int, float, os.PathLike)) and not isinstance(value, bool)
    }
    told[PARENT_VARIABLE] = str(os.getpid())
    told["PYTHONSAFEPATH"] = "1"  # the process that forks workers would look for modules in the current folder first
    if folder is not None:
        told["SHAREDRAG_METRICS_FOLDER"] = folder
    cores = max(1, len(os.sched_getaffinity(0)) // workers)
    for name in ("SHAREDRAG_EMBED_THREADS", "OMP_NUM_THREADS"):
        told[name] = os.environ.get(name, str(cores))
    # Arrow's own allocator takes memory in advance, some 20 MiB in each worker for the little that it does there, and the
    # system's keeps what was freed by each thread for that thread.
    for name, value in (("ARROW_DEFAULT_MEMORY_POOL", "system"), ("MALLOC_ARENA_MAX", "2")):
        told[name] = os.environ.get(name, value)
    return told
