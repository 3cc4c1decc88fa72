"""Real servers for tests and benches: `sharedrag serve` in processes of its own, spoken to over HTTP."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import httpx

ADMIN_KEY = "admin-key-of-the-tests"
COMMAND = Path(sys.executable).with_name("sharedrag")
START_S = 100.0


class Serving:
    """One `sharedrag serve` and its workers. What it prints is in `log`."""

    def __init__(self, pool: str, workers: int = 2, *, arguments: tuple[str, ...] = (), **settings: Any) -> None:
        """`settings` are SHAREDRAG_ variables by their names in small letters; rates are unlimited unless they say so."""
        told = {"admin_key": ADMIN_KEY, "rate": 0, "capacity": "128 MiB"} | settings
        self.environment = {key: value for key, value in os.environ.items() if not key.startswith("SHAREDRAG_")}
        self.environment |= {f"SHAREDRAG_{key.upper()}": str(value) for key, value in told.items() if value is not None}
        descriptor, name = tempfile.mkstemp(prefix="sharedrag-serve-", suffix=".log")
        os.close(descriptor)
        self.log = Path(name)
        command = [str(COMMAND), "serve", "--pool", pool, "--workers", str(workers), "--port", "0"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, *arguments],
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self.environment,
                start_new_session=True,  # a signal to the tests' group is not for it
            )
        self.workers = workers
        self.url = ""

    def __enter__(self) -> Self:
        """Wait until every worker answers."""
        deadline = time.monotonic() + START_S
        while time.monotonic() < deadline and self.process.poll() is None:
            found = re.search(r"running on (http://\S+)", self.text)
            if found and self.text.count("Application startup complete") >= self.workers:
                self.url = found[1]
                return self
            time.sleep(0.05)
        self.kill()
        raise AssertionError(f"the server did not start:\n{self.text}")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Stop it as an operator would, and clean up."""
        self.stop()
        self.log.unlink(missing_ok=True)

    @property
    def text(self) -> str:
        """What it has printed so far."""
        return self.log.read_text(errors="replace")

    def forker_pids(self) -> list[int]:
        """The process that forks the workers, if it runs now."""
        return [pid for pid in _children(self.process.pid) if b"forkserver" in _command_line(pid)]

    def worker_pids(self) -> list[int]:
        """The workers that run now."""
        return [pid for forker in self.forker_pids() for pid in _children(forker)]

    def client(self, key: str | None = ADMIN_KEY, **options: Any) -> httpx.Client:
        """A client with this key."""
        headers = {"Authorization": f"Bearer {key}"} if key is not None else {}
        return httpx.Client(base_url=self.url, headers=headers | options.pop("headers", {}), timeout=30, **options)

    def stop(self, wait_s: float = 40.0) -> int:
        """SIGTERM, then wait; the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(wait_s)
            except subprocess.TimeoutExpired:
                self.kill()
        return self.process.wait()

    def kill(self) -> None:
        """SIGKILL for the parent and its workers, which are a session of their own."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()


def _children(pid: int) -> list[int]:
    try:
        return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


class Crowd:
    """A group on a server, with members and their keys."""

    def __init__(self, serving: Serving, name: str = "Hawaii 2026") -> None:
        self.serving = serving
        with serving.client() as admin:
            self.group = str(admin.post("/v1/groups", json={"name": name}).raise_for_status().json()["id"])
        self.keys: dict[str, str] = {}

    def key(self, user: str, role: str = "member") -> str:
        """The key of a member, who joins with the first call."""
        if user not in self.keys:
            with self.serving.client() as admin:
                asked = admin.post(f"/v1/groups/{self.group}/members", json={"user": user, "role": role})
            self.keys[user] = str(asked.raise_for_status().json()["key"])
        return self.keys[user]

    @contextmanager
    def as_user(self, user: str, role: str = "member", at: Serving | None = None) -> Iterator[httpx.Client]:
        """A client that acts as a member, at this or another server."""
        with (at or self.serving).client(self.key(user, role)) as client:
            yield client


def said(client: httpx.Client, *texts: str, conversation: str | None = None) -> tuple[str, list[str]]:
    """A conversation in which user and assistant say these texts in turns; its id and those of its messages."""
    if conversation is None:
        conversation = str(client.post("/v1/conversations", json={}).raise_for_status().json()["id"])
    roles = ("user", "assistant")
    items = [{"role": roles[number % 2], "content": text} for number, text in enumerate(texts)]
    stored = client.post(f"/v1/conversations/{conversation}/items", json={"items": items}).raise_for_status().json()
    return conversation, [one["id"] for one in stored["data"]]
