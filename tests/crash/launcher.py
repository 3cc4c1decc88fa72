"""A warm parent that forks workers: a worker starts in milliseconds, not in the time that importing FAISS and Arrow takes.

The launcher is a process of its own, started once with everything imported, no thread and no pool open. Each worker is a
child of it, armed with one fault as `SHAREDRAG_FAULT` would arm it, and talks to the test over one pipe. A worker may be
killed and stopped at will; the launcher tells how it ended.
"""

from __future__ import annotations

import importlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from sharedrag import faults

_MESSAGE_MAX = 1 << 16
_POLL_S = 0.0005
_TARGETS = ("script", "workers", "remote", "soak_workers", "overwrite")
REPOSITORY = Path(__file__).resolve().parents[2]


class Worker:
    """One forked process: `conn` is the test's end of its pipe."""

    def __init__(self, launcher: Launcher, pid: int, conn: Connection) -> None:
        self._launcher = launcher
        self.pid = pid
        self.conn = conn
        self.exit_code: int | None = None

    def receive(self, timeout_s: float = 30.0) -> Any:
        """The next message, None at the end of the pipe. Fails the test when nothing comes."""
        if not self.conn.poll(timeout_s):
            raise AssertionError(f"worker {self.pid} said nothing for {timeout_s} s")
        try:
            return self.conn.recv()
        except (EOFError, ConnectionResetError):
            return None

    def wait(self, timeout_s: float = 30.0) -> int:
        """The exit code, minus the signal number for a killed one."""
        found = self._poll(timeout_s, want_stop=False)
        assert self.exit_code is not None, found
        return self.exit_code

    def wait_stopped(self, timeout_s: float = 30.0) -> None:
        """Return when the process is stopped by SIGSTOP."""
        found = self._poll(timeout_s, want_stop=True)
        assert found == "stopped", f"worker {self.pid} ended with {self.exit_code} instead of stopping"

    def is_stopped(self) -> bool:
        """True once, when the process was stopped since this was last asked."""
        state, code = self._launcher._ask(("wait", self.pid))
        if state == "ended":
            self.exit_code = code
        return bool(state == "stopped")

    def _poll(self, timeout_s: float, want_stop: bool) -> str:
        deadline = time.monotonic() + timeout_s
        while self.exit_code is None:
            state, code = self._launcher._ask(("wait", self.pid))
            if state == "ended":
                self.exit_code = code
                return "ended"
            if state == "stopped" and want_stop:
                return "stopped"
            if time.monotonic() > deadline:
                self.signal(signal.SIGKILL)
                raise AssertionError(f"worker {self.pid} did not {'stop' if want_stop else 'end'} in {timeout_s} s")
            time.sleep(_POLL_S)
        return "ended"

    def signal(self, number: signal.Signals) -> None:
        """Send a signal, unless the worker is known to be gone."""
        if self.exit_code is None:
            os.kill(self.pid, number)

    def end(self) -> None:
        """Make sure that it is gone."""
        if self.exit_code is None:
            self.signal(signal.SIGKILL)
            self.wait()
        self.conn.close()


class Launcher:
    """The test's side: starts the warm parent, asks it for workers. Close it in the end."""

    def __init__(self) -> None:
        mine, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        command = [sys.executable, "-m", "tests.crash.launcher", str(theirs.fileno())]
        self._process = subprocess.Popen(command, pass_fds=[theirs.fileno()], cwd=REPOSITORY)
        theirs.close()
        self._socket = mine
        self._workers: list[Worker] = []

    def start(self, target: str, *args: Any, fault: str = "") -> Worker:
        """Fork a worker that runs `module:function(conn, *args)`, armed with a fault ("POINT:action[:N]")."""
        mine, theirs = socket.socketpair()
        message = pickle.dumps(("start", target, args, fault))
        assert len(message) < _MESSAGE_MAX
        socket.send_fds(self._socket, [message], [theirs.fileno()])
        theirs.close()
        _, pid = self._answer()
        worker = Worker(self, pid, Connection(mine.detach()))
        self._workers.append(worker)
        return worker

    def end_workers(self) -> None:
        """Kill whatever worker is left."""
        for worker in self._workers:
            worker.end()
        self._workers.clear()

    def close(self) -> None:
        """End the launcher and all its workers."""
        self.end_workers()
        self._socket.close()
        assert self._process.wait(timeout=30) == 0

    def kill(self) -> None:
        """End everything at once, in whatever state it is; nothing to do after `close`."""
        for worker in self._workers:
            if worker.exit_code is None and self._process.poll() is None:
                worker.signal(signal.SIGKILL)
        self._process.kill()
        self._process.wait()
        self._socket.close()

    def _ask(self, message: object) -> Any:
        self._socket.send(pickle.dumps(message))
        return self._answer()

    def _answer(self) -> Any:
        answer = self._socket.recv(_MESSAGE_MAX)
        assert answer, "the launcher is gone"
        return pickle.loads(answer)


def _serve(control: socket.socket) -> None:
    children: set[int] = set()
    while True:
        message, fds, _, _ = socket.recv_fds(control, _MESSAGE_MAX, 1)
        if not message:
            break
        kind, *rest = pickle.loads(message)
        if kind == "start":
            pid = os.fork()
            if pid == 0:
                control.close()
                _be_worker(Connection(fds[0]), *rest)
            os.close(fds[0])
            children.add(pid)
            answer = ("started", pid)
        else:
            answer = _state_of(rest[0])
            if answer[0] == "ended":
                children.discard(rest[0])
        control.send(pickle.dumps(answer))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def _state_of(pid: int) -> tuple[str, int]:
    found, status = os.waitpid(pid, os.WNOHANG | os.WUNTRACED)
    if not found:
        return "running", 0
    if os.WIFSTOPPED(status):
        return "stopped", 0
    return "ended", os.waitstatus_to_exitcode(status)


def _be_worker(conn: Connection, target: str, args: tuple[Any, ...], fault: str) -> None:
    code = 1
    try:
        if fault:
            os.environ["SHAREDRAG_FAULT"] = fault
            faults.hit = faults._arm(fault)
        module, _, function = target.partition(":")
        getattr(importlib.import_module(module), function)(conn, *args)
        code = 0
    except BaseException:  # noqa: BLE001 (whatever ends a worker is shown, then the process is gone)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


if __name__ == "__main__":
    for warm in ("sharedrag", "numpy", *(f"tests.crash.{name}" for name in _TARGETS)):
        importlib.import_module(warm)
    with socket.socket(fileno=int(sys.argv[1])) as end:
        _serve(end)
