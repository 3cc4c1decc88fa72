"""What the demo asks of the nodes, over HTTP as any client would."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import httpx

READY_S = 180.0
_TRIES = 20
_PAUSE_S = 0.25
_MANY_REQUESTS = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.SERVICE_UNAVAILABLE)


class NodesGone(RuntimeError):
    """No node took a request, however often it was tried."""


class Nodes:
    """Some nodes of one pool. What one cannot take now goes to the next, under the same idempotency key: stored once."""

    def __init__(self, urls: Sequence[str]) -> None:
        self.urls = list(urls)
        self.client = httpx.Client(timeout=30)
        self.retried = 0

    def name(self, at: int) -> str:
        """Of a node: its host, as the compose file calls it."""
        return httpx.URL(self.urls[at % len(self.urls)]).host

    def wait_until_ready(self) -> None:
        """Return when every node is ready. Raises `NodesGone` after three minutes."""
        deadline = time.monotonic() + READY_S
        for url in self.urls:
            while not self._ready(url):
                if time.monotonic() > deadline:
                    raise NodesGone(f"{url} did not get ready within {READY_S:.0f} s")
                time.sleep(_PAUSE_S)

    def _ready(self, url: str) -> bool:
        try:
            return self.client.get(f"{url}/readyz", timeout=2).is_success
        except httpx.TransportError:
            return False

    def call(
        self, at: int, method: str, path: str, key: str, body: Any = None, *, once: str | None = None
    ) -> tuple[dict[str, Any], int]:
        """The answer of node `at`, or of the next one that can; and which that was."""
        headers = {"Authorization": f"Bearer {key}"} | ({"Idempotency-Key": once} if once else {})
        for number in range(at, at + _TRIES):
            url = self.urls[number % len(self.urls)]
            try:
                answer = self.client.request(method, url + path, headers=headers, json=body)
            except httpx.TransportError:
                self.retried += 1
            else:
                if answer.status_code not in _MANY_REQUESTS:
                    answer.raise_for_status()
                    return answer.json(), number % len(self.urls)
            time.sleep(_PAUSE_S if number - at >= len(self.urls) else 0)
        raise NodesGone(f"no node took {method} {path}")
