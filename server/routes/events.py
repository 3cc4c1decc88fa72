"""`/v1/events`: everything new in a group, from whichever node, as server-sent events."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from fastapi import APIRouter, Header, Request
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from server import problems
from server.auth import Calling, Principal
from server.feed import PAGE, Feed, Listener, encoded, ending
from server.problems import BUSY, Trouble
from sharedrag.history import History
from sharedrag.history.models import Event

router = APIRouter(prefix="/v1/events", tags=["events"])

KEEP_ALIVE = b": still here\n\n"
_HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # a proxy in front must not wait for more
]
_EXAMPLE = 'id: AbC-…\nevent: message\ndata: {"kind":"message","id":"msg_…","group":"grp_…","data":{…}}\n\n'


_STREAM: dict[str, Any] = {"schema": {"type": "string"}, "example": _EXAMPLE}
_RESPONSES: dict[int | str, dict[str, Any]] = {
    200: {"description": "The stream.", "content": {"text/event-stream": _STREAM}},
    **problems.documented(),
}


def _group_of(_: History, who: Principal) -> str | None:
    """The group to listen to; the admin key without one listens to all."""
    return who.group if who.admin else who.in_group


def _start(history: History, who: Principal) -> tuple[str | None, str]:
    group = _group_of(history, who)
    if group is not None and not who.admin:
        history.groups.member(group, who.as_user)
    return group, history.place()


@router.get("", response_class=Response, responses=_RESPONSES)
async def events(
    request: Request,
    call: Calling,
    last_event_id: Annotated[str | None, Header(description="Resume after this event.", max_length=4096)] = None,
) -> Response:
    """Follow the group: messages, comments, votes, confirmations and all else as written, on this node or another.

    Each event's id is a place to resume from: send it back as `Last-Event-ID`, to any node. Without it the stream begins
    now. A comment line comes every few seconds while nothing happens. The last event of a stream that the server ends is
    `end`, whose `reason` is `slow` (too much piled up), `shutdown`, `error` or `unauthorized`.
    """
    group, now = await call(_start)
    state = request.app.state
    if state.streams >= state.settings.streams:
        state.metrics.refused.labels("streams").inc()
        raise Trouble(BUSY, "This worker has as many event streams as it takes", retry_after_s=5)
    first: list[Event] = []
    place = now
    if last_event_id:
        first, place = await call(_page, group, last_event_id)  # a place that means nothing is refused here
    return _Stream(request, call, group, first, place)


def _page(history: History, who: Principal, group: str | None, place: str) -> tuple[list[Event], str]:
    """The next events after `place`, if the caller may still see them."""
    if group is not None and not who.admin:
        history.groups.member(group, who.as_user)
    return history.events(group, place, limit=PAGE)


def _check(history: History, who: Principal, group: str | None) -> None:
    """Raise if the caller may not listen any more."""
    if group is not None and not who.admin:
        history.groups.member(group, who.as_user)


class _Stream(Response):
    """The response: catches up, joins the feed, sends what comes, and ends with a reason."""

    def __init__(self, request: Request, call: Calling, group: str | None, first: list[Event], place: str) -> None:
        super().__init__()
        self._state = request.app.state
        self._call = call
        self._group = group
        self._first, self._place = first, place

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Run until either side has enough."""
        state = self._state
        feed: Feed = state.feed
        listener = Listener(self._group, state.settings.stream_queue)
        gone = asyncio.ensure_future(_disconnected(receive))
        stopping = asyncio.ensure_future(state.stopping.wait())
        gone.add_done_callback(lambda _: listener.end("gone"))
        stopping.add_done_callback(lambda _: listener.end("shutdown"))
        state.streams += 1
        state.metrics.streams.inc()
        try:
            await send({"type": "http.response.start", "status": 200, "headers": _HEADERS})
            await self._write(send, b": hello\nretry: 1000\n\n")
            await self._catch_up(listener, send)
            feed.join(listener, self._place)
            await self._follow(listener, send)
            if listener.ended != "gone":
                await self._write(send, ending(listener.ended or "error"))
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        except TimeoutError:
            pass  # nobody reads: the connection is closed by leaving the answer unfinished
        finally:
            feed.leave(listener)
            gone.cancel()
            stopping.cancel()
            state.streams -= 1
            state.metrics.streams.dec()

    async def _catch_up(self, listener: Listener, send: Send) -> None:
        page = self._first
        while page and listener.ended is None:
            await self._write(send, b"".join(map(encoded, page)))
            self._state.metrics.events.inc(len(page))
            if len(page) < PAGE:
                return
            page, self._place = await self._call(_page, self._group, self._place)

    async def _follow(self, listener: Listener, send: Send) -> None:
        """Send what the feed hands over, keep-alives in between; see now and then whether the key still counts."""
        every_s = self._state.settings.keepalive_s
        checked = time.monotonic()
        while True:
            silent = False
            if not listener.waiting and listener.ended is None:
                listener.wake.clear()
                try:
                    await asyncio.wait_for(listener.wake.wait(), every_s)
                except TimeoutError:
                    silent = True
            if time.monotonic() - checked >= every_s and listener.ended is None:
                checked = time.monotonic()
                await self._check(listener)
            if listener.waiting:
                count = len(listener.waiting)
                chunks = b"".join(listener.waiting)
                listener.waiting.clear()
                await self._write(send, chunks)
                self._state.metrics.events.inc(count)
            elif listener.ended is not None:
                return
            elif silent:
                await self._write(send, KEEP_ALIVE)

    async def _check(self, listener: Listener) -> None:
        try:
            await self._call(_check, self._group)
        except Exception as error:  # noqa: BLE001 (told to the client by its kind)
            status = problems.of(error).kind.status
            if status in (401, 403, 404):
                listener.end("unauthorized")

    async def _write(self, send: Send, chunk: bytes) -> None:
        patience_s = self._state.settings.stream_patience_s
        await asyncio.wait_for(send({"type": "http.response.body", "body": chunk, "more_body": True}), patience_s)


async def _disconnected(receive: Callable[[], Awaitable[object]]) -> None:
    while True:
        message = await receive()
        if isinstance(message, dict) and message.get("type") == "http.disconnect":
            return
