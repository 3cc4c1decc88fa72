"""Kill workers with SIGKILL while clients write, and check that every acknowledged message is there afterwards.

    python -m tests.server.kills --kills 100 --workers 2

A request that was on a killed worker's connection may fail at the connection; its client sends it again with the same
idempotency key. What must never happen: an acknowledged message that is missing or stored twice, or a 5xx.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter

import httpx

from tests.server.serving import Crowd, Serving

REPLACED_S = 100.0


class Loader:
    """A client that appends messages, one after the other, until it is stopped."""

    def __init__(self, serving: Serving, crowd: Crowd, user: str) -> None:
        """It begins at once, in a thread of its own."""
        self._serving, self._crowd, self._user = serving, crowd, user
        self._key = crowd.key(user)
        self._stop = threading.Event()
        self.acknowledged: list[tuple[str, str]] = []  # (id, text)
        self.statuses: Counter[int] = Counter()
        self.lost_connections = 0
        self.broken = 0  # answers that began and did not end
        self.longest_s = 0.0
        with serving.client(self._key) as client:
            self.conversation = str(client.post("/v1/conversations", json={}).raise_for_status().json()["id"])
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def _run(self) -> None:
        client = self._serving.client(self._key)
        number = 0
        while not self._stop.is_set():
            text = f"{self._user} says {number}"
            started = time.monotonic()
            while not self._stop.is_set():
                try:
                    answer = client.post(
                        f"/v1/conversations/{self.conversation}/items",
                        json={"items": [{"role": "user", "content": text}]},
                        headers={"Idempotency-Key": f"{self._user}-{number}"},
                    )
                except httpx.HTTPError as error:
                    self.lost_connections += 1
                    self.broken += "incomplete" in str(error) or "peer closed connection without sending complete" in str(
                        error
                    )
                    client.close()
                    client = self._serving.client(self._key)
                    self._stop.wait(0.02)
                    continue
                self.statuses[answer.status_code] += 1
                if answer.status_code == 200:
                    self.acknowledged.append((answer.json()["data"][0]["id"], text))
                    self.longest_s = max(self.longest_s, time.monotonic() - started)
                    break
            number += 1
        client.close()

    def stop(self) -> None:
        """Finish."""
        self._stop.set()
        self._thread.join(30)

    def check(self, serving: Serving | None = None) -> None:
        """Every acknowledged message is there, once and in order, and nothing was a 5xx."""
        assert all(status < 500 for status in self.statuses), self.statuses
        stored: list[tuple[str, str]] = []
        after: dict[str, str] = {}
        with (serving or self._serving).client(self._key) as client:
            while True:
                path = f"/v1/conversations/{self.conversation}/items"
                page = client.get(path, params={"limit": "100", "order": "asc", **after}).raise_for_status().json()
                stored += [(one["id"], one["content"][0]["text"]) for one in page["data"]]
                if not page["has_more"]:
                    break
                after = {"after": page["last_id"]}
        known = set(stored)
        missing = [one for one in self.acknowledged if one not in known]
        assert not missing, f"{len(missing)} acknowledged messages are missing: {missing[:3]}"
        assert len(known) == len(stored) == len({text for _, text in stored}), "a message is there twice"
        acknowledged = set(self.acknowledged)
        assert [one for one in stored if one in acknowledged] == self.acknowledged, "order"


def kill_one_worker(serving: Serving) -> float:
    """SIGKILL one worker; returns after how many seconds there are as many as before again."""
    before = serving.worker_pids()
    time.sleep(random.uniform(0.05, 0.3))
    victim = random.choice(before)
    started_before = serving.text.count("Application startup complete")
    os.kill(victim, signal.SIGKILL)
    killed = time.monotonic()
    while time.monotonic() - killed < REPLACED_S:
        if serving.text.count("Application startup complete") > started_before:
            return time.monotonic() - killed
        time.sleep(0.02)
    raise AssertionError(f"no new worker came for {victim}:\n{serving.text[-2000:]}")


def run(kills: int, workers: int, clients: int) -> dict[str, object]:
    """The long form; returns its figures. Raises AssertionError for anything lost."""
    folder = tempfile.mkdtemp(prefix="sharedrag-kills-", dir="/dev/shm" if os.path.isdir("/dev/shm") else None)
    try:
        with Serving(f"{folder}/kills.pool", workers, capacity="512 MiB") as serving:
            crowd = Crowd(serving)
            loaders = [Loader(serving, crowd, f"user-{number}") for number in range(clients)]
            began = time.monotonic()
            replaced = [kill_one_worker(serving) for _ in range(kills)]
            for loader in loaders:
                loader.stop()
            seconds = time.monotonic() - began
            for loader in loaders:
                loader.check()
            return {
                "kills": kills,
                "workers": workers,
                "seconds": round(seconds, 1),
                "acknowledged": sum(len(one.acknowledged) for one in loaders),
                "lost": 0,
                "answers_5xx": sum(count for one in loaders for status, count in one.statuses.items() if status >= 500),
                "connections_lost": sum(one.lost_connections for one in loaders),
                "longest_wait_s": round(max(one.longest_s for one in loaders), 3),
                "worker_replaced_s_p50": round(sorted(replaced)[len(replaced) // 2], 2),
            }
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--clients", type=int, default=4)
    given = parser.parse_args()
    print(json.dumps(run(given.kills, given.workers, given.clients), indent=2))
    return 0


if __name__ == "__main__":
    sys.exit(main())
