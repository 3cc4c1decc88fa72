"""`/v1/pool`: a map of the shared memory, once or as it changes."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextlib import aclosing

import orjson
from fastapi import APIRouter, Request
from starlette.responses import Response, StreamingResponse

from server import problems
from server.auth import Calling, Principal
from server.problems import Trouble
from server.watching import Watching
from sharedrag.history import History
from sharedrag.watch import PoolSample

router = APIRouter(prefix="/v1/pool", tags=["pool"])

#: A key that was revoked ends its streams after this long.
_ASK_AGAIN_S = 15.0


def _may_watch(_: History, who: Principal) -> Principal:
    """Members of a group, and the admin."""
    if not who.admin and (who.group is None or who.user is None):
        raise Trouble(problems.NOT_ALLOWED, "The pool is shown to members of a group, and to the admin")
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
    watching: Watching = request.app.state.watching
    headers = {"cache-control": "no-store", "x-accel-buffering": "no"}
    return StreamingResponse(_events(watching, who, call), headers=headers, media_type="text/event-stream")


async def _events(watching: Watching, who: Principal, call: Calling) -> AsyncIterator[bytes]:
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
