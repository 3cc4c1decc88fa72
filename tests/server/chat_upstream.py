"""A scripted upstream with OpenAI's API: the model's name says how it behaves, and every request is kept to be looked at.

| model | does |
| --- | --- |
| `echo` (the first in its list) | says "Answer N.", N counting up, in four chunks |
| `status:CODE` | fails with that status, OpenAI's error object and `Retry-After: 7` |
| `plain:CODE` | fails with that status and a page of HTML |
| `flaky:COUNT` | fails so many times with 503, then as `echo` |
| `gate` | says one chunk, then waits for `opened` before the rest |
| `silent` | never answers |
| `broken` | says one chunk and closes the connection |
| `cut` | says two chunks and ends without a finish reason or `[DONE]` |
| `bad:TEXT` | an event, or a body, of TEXT |
| `tool` | calls a tool |
| `filtered` | finishes with `content_filter` |
| `lines` | says characters that Unicode takes for line ends, unescaped |
"""

from __future__ import annotations

import asyncio
import itertools
import socket
import threading
from collections.abc import AsyncIterator
from typing import Any

import orjson
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

KEY = "sk-upstream"
LINES = "one\u2028two\x85three\u2029four"
TOOL_CALL = {"id": "call_1", "type": "function", "function": {"name": "look_up", "arguments": "{}"}}


class ScriptedUpstream:
    """The server, in a thread of this process."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []
        self.headers: list[dict[str, str]] = []
        self.opened = threading.Event()
        self.left = threading.Event()  # a client went away before its answer was complete
        self._count = itertools.count(1)
        self._failures: dict[str, int] = {}
        routes = [
            Route("/v1/models", self._models),
            Route("/v1/chat/completions", self._complete, methods=["POST"]),
        ]
        self._socket = socket.socket()
        self._socket.bind(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._socket.getsockname()[1]}/v1"
        config = uvicorn.Config(Starlette(routes=routes), log_level="error", lifespan="off", timeout_graceful_shutdown=1)
        self._server = uvicorn.Server(config)
        self._thread = threading.Thread(target=self._server.run, kwargs={"sockets": [self._socket]}, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End it, with whatever it is still answering."""
        self.opened.set()
        self._server.should_exit = True
        self._thread.join(10)

    @property
    def last(self) -> dict[str, Any]:
        """The newest request's body."""
        return self.requests[-1]

    async def _models(self, request: Request) -> Response:
        return JSONResponse(
            {"object": "list", "data": [{"id": "echo", "object": "model"}, {"id": "org/gate", "object": "model"}]}
        )

    async def _complete(self, request: Request) -> Response:
        body = orjson.loads(await request.body())
        self.requests.append(body)
        self.headers.append(dict(request.headers))
        if request.headers.get("authorization") != f"Bearer {KEY}":
            return JSONResponse(
                {"error": {"message": "Incorrect API key provided", "type": "x", "code": "invalid_api_key"}}, 401
            )
        how, _, what = body["model"].partition(":")
        if how == "status":
            error = {"message": f"scripted {what}", "type": "scripted", "param": "model", "code": "script"}
            return JSONResponse({"error": error}, int(what), {"Retry-After": "7"})
        if how == "plain":
            return Response("<h1>It broke</h1>", int(what), media_type="text/html")
        if how == "flaky":
            failed = self._failures.setdefault(body["model"], 0)
            if failed < int(what):
                self._failures[body["model"]] += 1
                return JSONResponse({"error": {"message": "not yet"}}, 503)
        if how == "bad":
            if body.get("stream"):
                return Response(f"data: {what}\n\n", media_type="text/event-stream")
            return Response(what, media_type="application/json")
        if how == "silent" or (how == "gate" and not body.get("stream")):
            await self._wait(request)
        words = self._words(how)
        if body.get("stream"):
            return StreamingResponse(self._stream(request, how, body, words), media_type="text/event-stream")
        return JSONResponse(self._whole(how, body, words))

    def _words(self, how: str) -> list[str]:
        if how == "lines":
            return [LINES]
        return ["Ans", "wer ", f"{next(self._count)}", "."]

    def _whole(self, how: str, body: dict[str, Any], words: list[str]) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": "".join(words)}
        finish = {"tool": "tool_calls", "filtered": "content_filter"}.get(how, "stop")
        if how == "tool":
            message = {"role": "assistant", "content": None, "tool_calls": [TOOL_CALL]}
        choices = [{"index": n, "message": dict(message), "finish_reason": finish} for n in range(body.get("n") or 1)]
        usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
        return _head(body) | {"object": "chat.completion", "choices": choices, "usage": usage, "extra": {"kept": True}}

    async def _stream(self, request: Request, how: str, body: dict[str, Any], words: list[str]) -> AsyncIterator[bytes]:
        head = _head(body) | {"object": "chat.completion.chunk"}
        try:
            for number, word in enumerate(words):
                if how == "tool":
                    break
                for index in range(body.get("n") or 1):
                    yield _event(head | {"choices": [{"index": index, "delta": {"content": word}, "finish_reason": None}]})
                if how == "gate" and number == 0:
                    await self._wait(request)
                if how == "broken" and number == 0:
                    raise ConnectionResetError("scripted")
                if how == "cut" and number == 1:
                    return
        except asyncio.CancelledError:
            self.left.set()
            raise
        delta = {"tool_calls": [{"index": 0, **TOOL_CALL}]} if how == "tool" else {}
        finish = {"tool": "tool_calls", "filtered": "content_filter"}.get(how, "stop")
        for index in range(body.get("n") or 1):
            yield _event(head | {"choices": [{"index": index, "delta": delta, "finish_reason": finish}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            usage = {"prompt_tokens": 11, "completion_tokens": 4, "total_tokens": 15}
            yield _event(head | {"choices": [], "usage": usage})
        yield b"data: [DONE]\n\n"

    async def _wait(self, request: Request) -> None:
        """Until `opened`, or until the client has gone, which is noted."""
        while not self.opened.is_set():
            if await request.is_disconnected():
                self.left.set()
                return
            await asyncio.sleep(0.02)


def _head(body: dict[str, Any]) -> dict[str, Any]:
    return {"id": "chatcmpl-scripted", "created": 1_700_000_000, "model": body["model"]}


def _event(content: dict[str, Any]) -> bytes:
    return b"data: " + orjson.dumps(content) + b"\n\n"
