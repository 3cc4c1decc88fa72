"""One look at the pool for all listeners of a worker: what any node writes reaches every stream of its group at once.

A thread looks every 10 ms, while anybody listens. Looking costs a compare of versions where nothing is new. What is new is
encoded once and handed to each stream's queue. A stream first catches up by itself, page by page at its reader's pace, and
then joins: in one step of the thread it reads the rest, so that nothing falls between the two or comes twice.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections import deque
from collections.abc import Iterable

import orjson

from sharedrag.history import History
from sharedrag.history.models import Event

POLL_S = 0.01
PAGE = 200  # events that a stream reads at a time while it catches up
_log = logging.getLogger("sharedrag.server")


class Listener:
    """One stream's queue. Only the event loop touches it, but for `group`, `place` and `seen`, which are the thread's."""

    def __init__(self, group: str | None, queue_max: int) -> None:
        self.group = group
        self._queue_max = queue_max
        self.place: str | None = None  # where it joins
        self.seen: set[object] | None = None  # what it read when it joined, until the next look has passed
        self.waiting: deque[bytes] = deque()
        self.wake = asyncio.Event()
        self.ended: str | None = None  # why there will be no more

    def hand(self, chunks: list[bytes]) -> None:
        """More to send. A reader that lets too much pile up is told so and has to come back."""
        if len(self.waiting) > self._queue_max and self.ended is None:  # before these: one look may bring any number
            self.waiting.clear()
            self.ended = "slow"
        if self.ended is None:
            self.waiting.extend(chunks)
        self.wake.set()

    def end(self, why: str) -> None:
        """No more will come."""
        self.ended = self.ended or why
        self.wake.set()


class Feed:
    """The thread and its listeners."""

    def __init__(self, history: History, loop: asyncio.AbstractEventLoop) -> None:
        """It looks only while somebody listens."""
        self._history = history
        self._loop = loop
        self._guard = threading.Lock()
        self._joining: list[Listener] = []
        self._listeners: list[Listener] = []
        self._somebody = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._version = -1  # of what the last look saw

    def join(self, listener: Listener, place: str) -> None:
        """From the next look on it gets everything that came after `place`."""
        listener.place = place
        with self._guard:
            self._joining.append(listener)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="sharedrag-feed", daemon=True)
                self._thread.start()
        self._somebody.set()

    def leave(self, listener: Listener) -> None:
        """It gets nothing more."""
        with self._guard:
            self._joining = [one for one in self._joining if one is not listener]
            self._listeners = [one for one in self._listeners if one is not listener]
            if not self._joining and not self._listeners:
                self._somebody.clear()

    def close(self) -> None:
        """End the thread."""
        self._stop.set()
        self._somebody.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        place: str | None = None
        while not self._stop.is_set():
            if not self._somebody.is_set():
                place = None  # nobody listened: what passes is nobody's
                self._somebody.wait()
                continue
            try:
                place = self._look(place)
            except Exception as error:  # noqa: BLE001 (whatever it is, listeners are told and come back)
                _log.warning("events: %s", error)
                self._end_all("error")
                place = None
            self._stop.wait(POLL_S)

    def _look(self, place: str | None) -> str:
        """Hand out what is new since `place`, then let in who waits."""
        with self._guard:
            listeners = list(self._listeners)
        events: list[Event] = []
        version = self._history.store.records.version  # to ask for the events costs more, also where there are none
        if place is None:
            place = self._history.place()
        elif version != self._version:
            events, place = self._history.events(None, place)
        self._version = version
        if events:
            self._hand_out(listeners, events)
        for one in listeners:
            one.seen = None
        with self._guard:
            joining, self._joining = self._joining, []
            self._listeners += joining
        for one in joining:
            rest, _ = self._history.events(one.group, one.place)
            one.seen = {_identity(event) for event in rest}
            self._hand(one, [encoded(event) for event in rest])
        return place

    def _hand_out(self, listeners: Iterable[Listener], events: list[Event]) -> None:
        chunks = [(event, encoded(event)) for event in events]
        for one in listeners:
            seen = one.seen or ()
            self._hand(
                one,
                [
                    chunk
                    for event, chunk in chunks
                    if one.group in (None, event.group) and not (seen and _identity(event) in seen)
                ],
            )

    def _hand(self, listener: Listener, chunks: list[bytes]) -> None:
        if chunks and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(listener.hand, chunks)

    def _end_all(self, why: str) -> None:
        with self._guard:
            everybody = self._listeners + self._joining
            self._listeners, self._joining = [], []
            self._somebody.clear()
        for one in everybody:
            if not self._loop.is_closed():
                self._loop.call_soon_threadsafe(one.end, why)


def _identity(event: Event) -> object:
    return event.kind, event.id, event.deleted, event.created


def encoded(event: Event) -> bytes:
    """An event as server-sent events have it; its id is where to resume."""
    return b"id: %b\nevent: %b\ndata: %b\n\n" % (event.place.encode(), event.kind.encode(), event.model_dump_json().encode())


def ending(why: str) -> bytes:
    """The last event of a stream: why it ends. The client comes back with its Last-Event-ID."""
    return b"event: end\ndata: %b\n\n" % orjson.dumps({"reason": why})
