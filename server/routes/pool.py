"""`/v1/pool`: a map of the shared memory, once or as it changes."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import orjson
from fastapi import APIRouter, Request
from starlette.datastructures import State
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server import problems
from server.auth import Calling, Principal
from server.problems import Trouble
from server.watching import Watching
from sharedrag.history import History
from sharedrag.watch import PoolSample

router = APIRouter(prefix="/v1/pool", tags=["pool"])

#: A key that was revoked ends its streams after this long.
_ASK_AGAIN_S = 15.0


def _may_watch(history: History, who: Principal) -> Principal:
    """Members of a group, and the admin."""
    if not who.admin:
        history.groups.member(*who.place)
    return who


@router.get("/map", response_model=PoolSample, responses=problems.documented())
async def pool_map(request: Request, call: Calling) -> Response:
    """The pool now: nodes, extents, lanes, collections. Process ids, paths and other collections' names: the admin only."""
    who = await call(_may_watch)
    watching: Watching = request.app.state.watching
    return Response(await watching.map(who.admin), media_type="application/json")


@router.get(
    "/watch",
    response_class=StreamingResponse,
    responses=problems.documented() | {200: {"content": {"text/event-stream": {}}, "description": "Looks at the pool"}},
)
async def watch(request: Request, call: Calling) -> Response:
    """Server-sent events `pool`, whose data is as that of `/v1/pool/map`, about 2.5 a second while something changes.

    A node's `runs` are left out (an empty list) while its `generation` is that of the event before.
    """
    who = await call(_may_watch)
    state = request.app.state
    if state.streams >= state.settings.streams:
        raise Trouble(problems.BUSY, "This worker has as many streams as it takes", retry_after_s=5)
    return _Stream(state, _looks(state.watching, who, call))


class _Stream(StreamingResponse):
    """Counted among the worker's streams while it runs, and ended with its connection wherever it is."""

    def __init__(self, state: State, looks: AsyncGenerator[bytes, None]) -> None:
        headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
        super().__init__(looks, headers=headers, media_type="text/event-stream")
        self._state, self._looks = state, looks

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send until either side has enough."""
        self._state.streams += 1
        try:
            async with aclosing(self._looks):
                await super().__call__(scope, receive, send)
        finally:
            self._state.streams -= 1


async def _looks(watching: Watching, who: Principal, call: Calling) -> AsyncGenerator[bytes, None]:
    checked = time.monotonic()
    async with aclosing(watching.stream(who.admin)) as looks:
        async for look in looks:
            if time.monotonic() - checked > _ASK_AGAIN_S:
                try:
                    await call(_may_watch)
                except Exception as error:  # noqa: BLE001 (whatever keeps the key from being known again ends its stream)
                    yield b"event: end\ndata: " + orjson.dumps({"reason": problems.of(error).detail}) + b"\n\n"
                    return
                checked = time.monotonic()
            yield b"event: pool\ndata: " + look + b"\n\n"
