"""A listener to `/v1/events` for tests: a thread that reads the stream and notes when each event came."""

from __future__ import annotations

import json
import queue
import threading
import time
from types import TracebackType
from typing import Any, NamedTuple, Self

import httpx

from tests.server.serving import Serving

WAIT_S = 20.0


class Heard(NamedTuple):
    """One server-sent event; `at` is when it came, by the monotonic clock."""

    id: str
    event: str
    data: dict[str, Any]
    at: float


class Listening:
    """`with Listening(serving, key) as events: events.next()`."""

    def __init__(self, serving: Serving, key: str, last_event_id: str | None = None, group: str | None = None) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        if last_event_id is not None:
            headers["Last-Event-ID"] = last_event_id
        if group is not None:
            headers["X-Sharedrag-Group"] = group
        self._client = httpx.Client(base_url=serving.url, headers=headers, timeout=60)
        self._heard: queue.Queue[Heard | None] = queue.Queue()
        self.comments: list[str] = []
        self._open = threading.Event()
        self._thread = threading.Thread(target=self._read, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._open.wait(WAIT_S), "the stream did not open"
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._client.close()

    def _read(self) -> None:
        fields: dict[str, str] = {}
        try:
            with self._client.stream("GET", "/v1/events") as response:
                response.raise_for_status()
                for line in response.iter_lines():
                    name, _, value = line.partition(":")
                    if line and not name:
                        self.comments.append(value.strip())
                        self._open.set()
                    elif line:
                        fields[name] = value.strip()
                    elif "data" in fields:
                        at = time.monotonic()
                        data = json.loads(fields["data"])
                        self._heard.put(Heard(fields.get("id", ""), fields.get("event", ""), data, at))
                        fields = {}
        except (httpx.HTTPError, OSError):
            pass  # closed from either side
        finally:
            self._heard.put(None)

    def next(self, wait_s: float = WAIT_S) -> Heard:
        """The next event."""
        heard = self._heard.get(timeout=wait_s)
        assert heard is not None, "the stream ended"
        return heard

    def until(self, kind: str, wait_s: float = WAIT_S) -> Heard:
        """The next event of a kind."""
        while True:
            heard = self.next(wait_s)
            if heard.event == kind:
                return heard

    def silent_for(self, seconds: float) -> bool:
        """True if nothing comes for so long."""
        try:
            return self._heard.get(timeout=seconds) is None
        except queue.Empty:
            return True
