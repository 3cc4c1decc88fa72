"""Each measure of the server's bench: what is run, and what it gives."""

from __future__ import annotations

import os
import shutil
import socket
import statistics
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import orjson
import psutil

from sharedrag import Pool
from sharedrag.info import process_memory
from tests.bench_server import data as corpora
from tests.bench_server.load import Load, load
from tests.server import kills
from tests.server.listening import Listening
from tests.server.serving import Crowd, Serving

CLIENTS = 8
PEERS = {
    "chroma-serve": "Chroma's server behind FastAPI",
    "redisvl": "RedisVL's SemanticCache behind FastAPI",
    "valkey": "a bare vector query to RediSearch behind FastAPI",
}


@contextmanager
def folder() -> Iterator[Path]:
    """A fresh folder on shared memory."""
    made = tempfile.mkdtemp(prefix="sharedrag-bench-server-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        yield Path(made)
    finally:
        shutil.rmtree(made, ignore_errors=True)


def asked(pool: str, group: str, data: corpora.Corpus, workers: int, rounds: int, seconds: float) -> dict[str, Any]:
    """`/v1/ask` with the vector given, by keep-alive clients."""
    with Serving(pool, workers, maintenance=0) as serving:
        key = _key(serving, group)
        port = int(serving.url.rsplit(":", 1)[1])
        requests = corpora.requests(data, key, f"127.0.0.1:{port}")
        _warm(port, requests, workers)
        return _loaded(port, requests, serving.process.pid, rounds, seconds)


def _warm(port: int, requests: list[bytes], workers: int) -> None:
    """Every worker has opened its blocks and folded what there is: that is paid once, not by each request."""
    load(port, requests, CLIENTS * workers, seconds=3.0, warm_s=1.0)


def _middle(runs: list[Load]) -> dict[str, Any]:
    ordered = sorted(runs, key=lambda one: one.per_second)
    middle = ordered[len(ordered) // 2]
    return middle._asdict() | {"rounds": [one.per_second for one in runs], "rounds_p99_ms": [one.p99_ms for one in runs]}


def _key(serving: Serving, group: str, user: str = "user-1") -> str:
    with serving.client() as admin:
        made = admin.post(f"/v1/groups/{group}/members", json={"user": user}).raise_for_status()
    return str(made.json()["key"])


def _processor_s(root: int) -> float:
    """What a process and all below it have had of the processors so far."""
    tree = [psutil.Process(root), *psutil.Process(root).children(recursive=True)]
    return sum(sum(one.cpu_times()[:2]) for one in tree)


def _loaded(port: int, requests: list[bytes], root: int, rounds: int, seconds: float) -> dict[str, Any]:
    """Rounds of load on the server below the process `root`: the middle one, and the processor time of a request."""
    before = _processor_s(root)
    runs = [load(port, requests, CLIENTS, seconds, warm_s=0.0) for _ in range(rounds)]
    used = _processor_s(root) - before
    return {**_middle(runs), "processor_ms": round(1e3 * used / sum(one.requests for one in runs), 3)}


def peer(name: str, python: Path, data: corpora.Corpus, data_folder: Path, rounds: int, seconds: float) -> dict[str, Any]:
    """The same load on a peer, behind FastAPI, in its own environment."""
    with folder() as place:
        port = _free_port()
        command = [str(python), "-m", "tests.bench_server.peer", name, str(place), str(port)]
        process = subprocess.Popen(
            [*command, str(len(data.questions)), str(data_folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        assert process.stdin is not None and process.stdout is not None
        try:
            said = orjson.loads(process.stdout.readline() or b'{"failed": true}')
            if "failed" in said:
                return {"failed": "it did not start"}
            _wait_for(port)
            requests = corpora.requests(data, "none", f"127.0.0.1:{port}")
            load(port, requests, CLIENTS, seconds=2.0, warm_s=1.0)
            return {**_loaded(port, requests, process.pid, rounds, seconds), **said}
        finally:
            process.stdin.close()
            process.wait(30)


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def _wait_for(port: int) -> None:
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline:
        with socket.socket() as one:
            if one.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.1)
    raise AssertionError(f"nobody listens on {port}")


def memory(pool: str, group: str | None, data: corpora.Corpus) -> dict[str, int]:
    """Bytes: what each of two workers alone holds after both have answered, and the pool's data that they share."""
    with Serving(pool, 2, maintenance=0) as serving:
        port = int(serving.url.rsplit(":", 1)[1])
        key = Crowd(serving, "nobody's").key("user-1") if group is None else _key(serving, group)
        load(port, corpora.requests(data, key, f"127.0.0.1:{port}"), CLIENTS * 2, seconds=4.0, warm_s=1.0)
        inode = os.stat(pool).st_ino
        private = sorted(process_memory(pid, inode)[0] or 0 for pid in serving.worker_pids())
        with Pool.open(pool, maintenance=False) as opened:
            used = sum(one.bytes_allocated for one in opened.info().collections)
    return {"data": used, "first_private": private[-1], "second_private": private[0]}


def events(messages: int) -> dict[str, Any]:
    """From sending a message to worker A until worker B's stream has the event; and from A's answer until then."""
    with (
        folder() as place,
        Serving(f"{place}/events.pool", 1, label="a") as one,
        Serving(f"{place}/events.pool", 1) as other,
    ):
        crowd = Crowd(one)
        with crowd.as_user("ann") as ann, Listening(other, crowd.key("ann")) as listening:
            conversation = ann.post("/v1/conversations", json={}).raise_for_status().json()["id"]
            from_sent, from_answer = [], []
            for number in range(messages + 20):
                body = {"items": [{"role": "user", "content": f"message {number}"}]}
                sent = time.monotonic()
                ann.post(f"/v1/conversations/{conversation}/items", json=body).raise_for_status()
                answered = time.monotonic()
                heard = listening.until("message")
                if number >= 20:
                    from_sent.append((heard.at - sent) * 1e3)
                    from_answer.append((heard.at - answered) * 1e3)
                time.sleep(0.003 * (number % 7))
    return {
        "messages": messages,
        "p50_ms": round(statistics.median(from_sent), 2),
        "p99_ms": round(statistics.quantiles(from_sent, n=100)[98], 2),
        "after_answer_p50_ms": round(statistics.median(from_answer), 2),
    }


def killed(count: int) -> dict[str, object]:
    """SIGKILL of a worker under load, again and again."""
    return kills.run(count, 2, 4)
