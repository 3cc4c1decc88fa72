"""Several workers are one server: their counts add up, a killed one is replaced, nothing acknowledged is lost."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest

from sharedrag import Pool
from tests.server.kills import Loader, kill_one_worker
from tests.server.serving import Crowd, Serving, said

Found = TypeVar("Found")


def _count(text: str, route: str, status: str) -> float:
    found = re.findall(
        rf'^sharedrag_http_requests_total{{.*route="{re.escape(route)}",status="{status}"}} (\S+)$', text, re.M
    )
    return sum(map(float, found))


def test_metrics_are_those_of_all_workers(crowd: Crowd, serving: Serving) -> None:
    """Whichever worker answers the scrape, every request is counted once, under its route's template."""
    with crowd.as_user("ann") as ann:
        conversation, _ = said(ann, "Hello")
        route = "/v1/conversations/{conversation}"
        with serving.client(None) as anybody:
            before = _count(anybody.get("/metrics").text, route, "200")
        for _ in range(40):
            with serving.client(crowd.key("ann")) as fresh:
                fresh.get(f"/v1/conversations/{conversation}").raise_for_status()
        texts = []
        for _ in range(10):
            with serving.client(None) as anybody:
                texts.append(anybody.get("/metrics").text)
    assert {_count(text, route, "200") for text in texts} == {before + 40}
    assert conversation not in texts[0] and crowd.group not in texts[0]
    assert re.search(r'^sharedrag_collection_rows{collection="history",state="live"} [1-9]', texts[0], re.M)
    assert re.search(r'^sharedrag_pool_bytes{node="0",state="free"} \d', texts[0], re.M)


@pytest.mark.slow
def test_killed_workers_lose_nothing_and_others_go_on(server_pool_folder: object) -> None:
    """SIGKILL of a worker under load, three times: each acknowledged message is there, no other worker answers a 5xx.

    The long form is `python -m tests.server.kills`.
    """
    with Serving(f"{server_pool_folder}/kills.pool", 2) as server:
        crowd = Crowd(server)
        loaders = [Loader(server, crowd, f"user-{number}") for number in range(3)]
        for _ in range(3):
            kill_one_worker(server)
        for loader in loaders:
            loader.stop()
        for loader in loaders:
            loader.check()
        assert sum(len(loader.acknowledged) for loader in loaders) > 20
        with server.client(None) as anybody:
            text = anybody.get("/metrics").text
        counted = _count(text, "/v1/conversations/{conversation}/items", "200")
        assert counted >= sum(len(one.acknowledged) for one in loaders) * 0.9, "a successor goes on counting"


@pytest.mark.slow
def test_an_answer_in_flight_is_given_at_sigterm(server_pool_folder: object) -> None:
    """Each worker is told to stop while it works: who was being served gets a whole answer, and no message is lost."""
    with Serving(f"{server_pool_folder}/term.pool", 2) as server:
        crowd = Crowd(server)
        loaders = [Loader(server, crowd, f"user-{number}") for number in range(3)]
        time.sleep(1.0)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(40) == 0
        for loader in loaders:
            loader.stop()
        assert "Traceback" not in server.text
        assert all(not loader.broken for loader in loaders), "an answer was cut off"
    with Serving(f"{server_pool_folder}/term.pool", 1) as server:
        for loader in loaders:
            loader.check(server)


@pytest.mark.slow
def test_more_than_it_can_do_is_refused_at_once(server_pool_folder: object) -> None:
    """With one thread and a queue of one, a crowd of callers gets 503 with Retry-After, or an answer; nobody waits long."""
    with Serving(f"{server_pool_folder}/busy.pool", 1, threads=1, queue=1) as server:
        crowd = Crowd(server)
        with crowd.as_user("ann") as ann:
            conversation, _ = said(ann, *["word " * 200] * 20)
        statuses: list[int] = []
        retry_after: list[str] = []

        def ask() -> None:
            with crowd.as_user("ann") as client:
                for number in range(15):
                    answer = client.post("/v1/ask", json={"question": f"What about number {number}?"})
                    statuses.append(answer.status_code)
                    if answer.status_code == 503:
                        retry_after.append(answer.headers["retry-after"])

        threads = [threading.Thread(target=ask) for _ in range(8)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        assert set(statuses) == {200, 503} and len(retry_after) == statuses.count(503)
        with crowd.as_user("ann") as ann:
            assert ann.get(f"/v1/conversations/{conversation}").status_code == 200


@pytest.mark.slow
def test_workers_end_with_their_parent(server_pool_folder: object) -> None:
    """A parent that is killed leaves no orphans that keep the port: another can start."""
    with Serving(f"{server_pool_folder}/parent.pool", 2) as server:
        pids = server.worker_pids()
        server.process.kill()
        deadline = time.monotonic() + 60
        while any(_runs(pid) for pid in pids) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert len(pids) == 2 and not any(_runs(pid) for pid in pids)


@pytest.mark.slow
def test_the_server_goes_on_when_what_forks_its_workers_is_killed(server_pool_folder: object) -> None:
    """Also when the next one is killed while it imports: as many workers as before serve again, and no others."""
    with Serving(f"{server_pool_folder}/forker.pool", 2) as server:
        first, workers = server.forker_pids(), server.worker_pids()
        os.kill(first[0], signal.SIGKILL)
        second = _wait_for(lambda: [pid for pid in server.forker_pids() if pid not in first])
        os.kill(second[0], signal.SIGKILL)
        known = {*first, *second}
        _wait_for(lambda: [pid for pid in server.forker_pids() if pid not in known] and len(server.worker_pids()) == 2)
        _wait_for(lambda: not any(_runs(pid) for pid in workers))
        assert len(server.worker_pids()) == 2
        with server.client() as client:
            _wait_for(lambda: client.get("/readyz").status_code == 200)
        assert server.stop() == 0


def _wait_for(what: Callable[[], Found], seconds: float = 60.0) -> Found:
    deadline = time.monotonic() + seconds
    while not (found := what()):
        assert time.monotonic() < deadline, "it did not come about"
        time.sleep(0.05)
    return found


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False


def test_workers_that_cannot_start_end_the_server(server_pool_folder: object) -> None:
    """The parent tells by its exit code, instead of starting them for ever."""
    environment = os.environ | {"SHAREDRAG_METRICS_FOLDER": "/proc/none", "SHAREDRAG_ADMIN_KEY": "a key of the tests"}
    command = [sys.executable, "-m", "sharedrag", "serve", "--pool", f"{server_pool_folder}/none.pool", "--port", "0"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=200)
    assert done.returncode == 1 and "cannot start" in done.stderr


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("NODE", "5", "has nodes 0 to 0"),
        ("CAPACITY", "much", "SHAREDRAG_CAPACITY: .*512 MiB"),
        ("HISTORY", "", "SHAREDRAG_HISTORY: .*at least 1"),
        ("MAINTENANCE", "2", "SHAREDRAG_MAINTENANCE: .*less than or equal to 1"),
        ("EMBED_THREADS", "x", "SHAREDRAG_EMBED_THREADS='x': want how many cores"),
        ("EMBEDDER", "none", "'none'"),
        ("UPSTREAM_URL", "llm", "SHAREDRAG_UPSTREAM_URL: .*http://llm:8000/v1"),
        ("CORS_ORIGINS", "chat.org", "SHAREDRAG_CORS_ORIGINS: .*https://chat.example.org"),
        ("ADMIN_KEY", "short", "SHAREDRAG_ADMIN_KEY: .*at least 12"),
    ],
)
def test_settings_that_mean_nothing_end_it_at_once(server_pool_folder: object, name: str, value: str, says: str) -> None:
    """Before there is a worker; the message names the setting."""
    pool = f"{server_pool_folder}/settings.pool"
    Pool.open(pool, create=True, capacity="64 MiB").close()
    environment = os.environ | {"SHAREDRAG_ADMIN_KEY": "a key of the tests", f"SHAREDRAG_{name}": value}
    command = [sys.executable, "-m", "sharedrag", "serve", "--pool", pool, "--port", "0"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=60)
    told = " ".join(done.stderr.replace("\u2502", " ").split())
    assert done.returncode in (1, 2) and re.search(says, told) and "Traceback" not in told


@pytest.mark.parametrize("kind", ["server.py", "server/__init__.py"])
def test_a_module_of_the_users_own_is_not_taken_for_ours(
    server_pool_folder: object, tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder with a `server` of another kind the command serves; where that is found first, it says so."""
    own = tmp_path / kind
    own.parent.mkdir(exist_ok=True)
    own.write_text("raise SystemExit('not mine')\n")
    monkeypatch.chdir(tmp_path)
    with Serving(f"{server_pool_folder}/own.pool", 1) as server, server.client(None) as client:
        assert client.get("/readyz").status_code == 200
    done = subprocess.run([sys.executable, "-m", "sharedrag", "serve"], check=False, capture_output=True, text=True)
    told = " ".join(done.stderr.replace("\u2502", " ").split())
    assert done.returncode == 1 and "another module `server` is found first" in told and "Traceback" not in told


def test_workers_that_end_by_themselves_as_they_start_end_the_server(server_pool_folder: object, tmp_path: Path) -> None:
    """Whatever breaks them, before they can say that they cannot start."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, sys\nif 'forkserver' in ' '.join(sys.orig_argv):\n    sys.modules['server.app'] = None\n"
    )
    environment = os.environ | {"PYTHONPATH": str(tmp_path), "SHAREDRAG_ADMIN_KEY": "a key of the tests"}
    command = [sys.executable, "-m", "sharedrag", "serve", "--pool", f"{server_pool_folder}/end.pool", "--port", "0"]
    done = subprocess.run(command, check=False, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1 and "cannot start: see above" in done.stderr


def test_a_port_that_is_taken_is_named(server_pool_folder: object) -> None:
    """Uvicorn says only that an address is in use."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        command = [sys.executable, "-m", "sharedrag", "serve", "--pool", f"{server_pool_folder}/taken.pool", "--port", port]
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and f"cannot listen on 127.0.0.1, port {port}" in done.stderr
