"""`POST /v1/chat/completions`: OpenAI's, over the group's history."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Coroutine
from typing import Annotated, Any, Literal, TypeVar

import anyio
from fastapi import APIRouter, Header, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from server import problems, shapes
from server.auth import Calling
from server.completions import Asked, Completions, Plan, prepare
from server.reply import reply
from server.upstream import Upstream, UpstreamError

T = TypeVar("T")

router = APIRouter(prefix="/v1/chat", tags=["openai"])

CONVERSATION_HEADER = "X-Sharedrag-Conversation"
LEASE_HEADER = "X-Sharedrag-Lease"
TASK_HEADER = "X-Sharedrag-Task"
#: The client is gone; nobody reads this.
CLIENT_CLOSED = 499


EXAMPLE: dict[str, Any] = {"model": "sharedrag", "messages": [{"role": "user", "content": "Is there a ferry to Maui?"}]}


class ChatMessage(BaseModel):
    """A message of the client's transcript. Fields beyond these are passed on."""

    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[dict[str, Any]] | None = Field(
        default=None, description="Text, or content parts: their texts are searched for, all are passed on and kept."
    )


class StreamOptions(BaseModel):
    """What a stream carries beside its text."""

    model_config = ConfigDict(extra="allow")

    include_usage: bool | None = None


class ChatRequest(BaseModel):
    """OpenAI's request for a completion. Fields beyond these (tools, stop, ...) are passed on to the upstream."""

    model_config = ConfigDict(extra="allow", json_schema_extra={"examples": [EXAMPLE]})

    model: str | None = Field(default=shapes.MODEL, max_length=512, description="sharedrag, or one of the upstream's own.")
    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096)]
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: Annotated[int, Field(ge=1, le=128)] | None = None


class Events(StreamingResponse):
    """A stream that is closed with its connection, whether the client had begun to read it or not."""

    media_type = "text/event-stream"

    def __init__(self, first: bytes, events: AsyncGenerator[bytes, None], headers: dict[str, str]) -> None:
        """`first` has been taken from `events` already."""
        self._events = events

        async def all_events() -> AsyncGenerator[bytes, None]:
            yield first
            async for one in events:
                yield one

        super().__init__(all_events(), headers=headers | {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it all, or as much as the client takes."""
        try:
            await super().__call__(scope, receive, send)
        finally:
            with anyio.CancelScope(shield=True):
                await self._events.aclose()


@router.post(
    "/completions",
    summary="Chat completion",
    responses=problems.documented(409, 423, 502, 504, openai=True)
    | {
        200: {
            "description": "A completion, or with `stream` its chunks as server-sent events",
            "content": {"text/event-stream": {}},
        }
    },
    response_model=None,
)
async def complete(
    request: Request,
    body: ChatRequest,
    call: Calling,
    conversation: Annotated[str | None, Header(alias=CONVERSATION_HEADER, max_length=256)] = None,
    chat: Annotated[str | None, Header(alias="X-OpenWebUI-Chat-Id", max_length=256)] = None,
    task: Annotated[
        str | None,
        Header(alias=TASK_HEADER, max_length=256, description="What the client wants for itself (a title): never stored."),
    ] = None,
    lease: Annotated[int | None, Header(alias=LEASE_HEADER)] = None,
    idempotency_key: Annotated[str | None, Header(alias="Idempotency-Key", max_length=256)] = None,
    retry_count: Annotated[str | None, Header(alias="X-Stainless-Retry-Count", include_in_schema=False)] = None,
) -> Response:
    """Retrieve from the group's history, ask the upstream with it (or answer from it), store the exchange.

    The reply carries the conversation in `X-Sharedrag-Conversation`, and beside OpenAI's fields the object `sharedrag`
    with the crowd's answers; a stream carries it in its last chunk.
    """
    asked = Asked(
        body.model_dump(exclude_unset=True, exclude_none=False),
        conversation=conversation or None,
        chat=chat or None,
        task=task or None,
        lease_token=lease,
        idempotency_key=idempotency_key or None,
        repeated=(retry_count or "0") != "0",
    )
    state = request.app.state
    upstream: Upstream | None = state.upstream
    completions = Completions(state.history, state.work, upstream)
    plan = await call(prepare, asked, upstream is not None)
    try:
        if asked.streamed:
            events = completions.streamed(plan)
            first = await _while_connected(request, anext(events))
            return Response(status_code=CLIENT_CLOSED) if first is None else Events(first, events, _headers(plan))
        whole = await _while_connected(request, completions.whole(plan))
        return Response(status_code=CLIENT_CLOSED) if whole is None else reply(whole, headers=_headers(plan))
    except UpstreamError as error:
        return reply(error.body, error.status, error.headers)


def _headers(plan: Plan) -> dict[str, str]:
    return {CONVERSATION_HEADER: plan.conversation} if plan.conversation else {}


async def _while_connected(request: Request, job: Coroutine[Any, Any, T]) -> T | None:
    """What the job returns; None if the client goes away before, which ends the job where it stands."""
    working, gone = asyncio.ensure_future(job), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        return working.result() if working.done() else None
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
