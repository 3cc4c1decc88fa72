"""The model behind the door: any server with OpenAI's API, asked over one pool of connections of this worker.

What can be asked again safely is asked again, a few times: no connection, or a gateway's 502, 503 or 504, before any
byte of a reply. A model that is only slow is not asked twice. Every failure is an `UpstreamError`, which carries what the
client is to see in OpenAI's shape. A caller that is cancelled closes its connection, which tells the upstream to stop.
"""

from __future__ import annotations

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self

import httpx
import orjson

from server.settings import Settings

RETRIES = 2
CONNECT_TIMEOUT_S = 5.0
#: Between two attempts, doubled for each, and up to as much again by chance.
PAUSE_S = 0.2
MODELS_KEPT_S = 60.0
#: Of one event of a stream, and of what is shown of a failure that is not JSON.
EVENT_BYTES_MAX = 16 << 20
MESSAGE_CHARACTERS_MAX = 500

_GATEWAY = frozenset({502, 503, 504})
#: Nothing of a reply has come: the connection was refused, or an idle one had been closed.
_UNREACHED = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout, httpx.WriteError, httpx.RemoteProtocolError)


class UpstreamError(Exception):
    """The upstream gave no answer: `status` and `body` (`{"error": {...}}`, OpenAI's shape) are for the client."""

    def __init__(self, status: int, error: dict[str, Any], retry_after: str | None = None) -> None:
        super().__init__(str(error.get("message")))
        self.status = status
        self.body = {"error": error}
        self.retry_after = retry_after

    @property
    def headers(self) -> dict[str, str]:
        """What goes with `body`. A failure that was tried again here need not be tried again by the client's SDK at once."""
        headers = {"Retry-After": self.retry_after} if self.retry_after else {}
        return headers | ({"X-Should-Retry": "false"} if self.status in _GATEWAY and not self.retry_after else {})


class Upstream:
    """One upstream: `url` is its API's base (`http://llm:8000/v1`), `model` what is asked where the client names none."""

    def __init__(self, url: str, key: str | None = None, model: str | None = None, *, timeout_s: float = 120.0) -> None:
        self.model = model
        self._models: tuple[float, list[dict[str, Any]]] | None = None
        self._client = httpx.AsyncClient(
            base_url=url.rstrip("/") + "/",
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(timeout_s, connect=CONNECT_TIMEOUT_S),
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=64),
        )

    @classmethod
    def of(cls, settings: Settings) -> Self | None:
        """The upstream that the settings name; None if they name none."""
        if not settings.upstream_url:
            return None
        key = settings.upstream_key.get_secret_value() if settings.upstream_key else None
        return cls(settings.upstream_url, key, settings.upstream_model, timeout_s=settings.upstream_timeout_s)

    async def aclose(self) -> None:
        """Close its connections."""
        await self._client.aclose()

    async def complete(self, body: dict[str, Any]) -> dict[str, Any]:
        """The upstream's completion of `body`, whole. Raises `UpstreamError`."""
        response = await self._send("POST", "chat/completions", body)
        return await _json(response)

    @asynccontextmanager
    async def stream(self, body: dict[str, Any]) -> AsyncIterator[AsyncIterator[dict[str, Any]]]:
        """The chunks of a streamed completion, as they come, without the closing `[DONE]`.

        Raises `UpstreamError`, also from the iteration: a stream that breaks off without `[DONE]` or a finish reason.
        Leaving the context closes the connection, wherever the stream stands.
        """
        response = await self._send("POST", "chat/completions", body)
        try:
            kind = response.headers.get("content-type", "")
            if kind.startswith("application/json"):
                raise _failure("the upstream answered without a stream")
            yield _chunks(response)
        finally:
            await response.aclose()

    async def models(self) -> list[dict[str, Any]]:
        """The upstream's own list of models, at most a minute old. Raises `UpstreamError`."""
        if self._models is None or time.monotonic() - self._models[0] > MODELS_KEPT_S:
            listed = (await _json(await self._send("GET", "models"))).get("data")
            models = [one for one in listed or () if isinstance(one, dict) and isinstance(one.get("id"), str)]
            self._models = time.monotonic(), models
        return self._models[1]

    async def model_default(self) -> str:
        """The model that is asked where the client names only us: the settings', else the upstream's first."""
        if self.model:
            return self.model
        models = await self.models()
        if not models:
            raise _failure("the upstream has no models, and no default is set")
        return str(models[0]["id"])

    async def _send(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        """A response whose status says success, its body not yet read; its reader closes it."""
        content = None if body is None else as_json(body)
        for attempt in range(RETRIES + 1):
            last = attempt == RETRIES
            request = self._client.build_request(
                method, path, content=content, headers={"Content-Type": "application/json", "Accept-Encoding": "identity"}
            )
            try:
                response = await self._client.send(request, stream=True)
            except _UNREACHED as error:
                if last:
                    raise _failure(f"the upstream cannot be reached ({type(error).__name__})") from error
            except httpx.TimeoutException as error:
                raise _failure("the upstream did not answer in time", "upstream_timeout", 504) from error
            except httpx.HTTPError as error:
                raise _failure(f"the upstream failed ({type(error).__name__})") from error
            else:
                if response.is_success:
                    return response
                refused = await _refused(response)
                if last or response.status_code not in _GATEWAY:
                    raise refused
            await asyncio.sleep(PAUSE_S * 2**attempt * (1 + random.random()))
        raise AssertionError("the last attempt returns or raises")


def as_json(body: Any, sort_keys: bool = False) -> bytes:
    """A client's JSON as it is passed on. Raises ValueError for what no JSON can hold, such as a lone surrogate."""
    try:
        return orjson.dumps(body, option=orjson.OPT_SORT_KEYS if sort_keys else 0)
    except TypeError:  # also a whole number of more than 64 bits
        return json.dumps(body, ensure_ascii=False, allow_nan=False, sort_keys=sort_keys).encode()


async def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        found = orjson.loads(await response.aread())
    except httpx.TimeoutException as error:
        raise _failure("the upstream did not answer in time", "upstream_timeout", 504) from error
    except (httpx.HTTPError, orjson.JSONDecodeError) as error:
        raise _failure(f"the upstream's answer cannot be read ({type(error).__name__})") from error
    finally:
        await response.aclose()
    if not isinstance(found, dict):
        raise _failure("the upstream's answer is no JSON object")
    return found


async def _chunks(response: httpx.Response) -> AsyncIterator[dict[str, Any]]:
    finished = False
    try:
        async for data in _events(response.aiter_bytes()):
            if data == b"[DONE]":
                return
            chunk = _chunk(data)
            finished = finished or any(one.get("finish_reason") for one in chunk.get("choices") or ())
            yield chunk
    except httpx.TimeoutException as error:
        raise _failure("the upstream fell silent", "upstream_timeout", 504) from error
    except httpx.HTTPError as error:
        raise _failure(f"the upstream broke off ({type(error).__name__})") from error
    if not finished:
        raise _failure("the upstream broke off")


def _chunk(data: bytes) -> dict[str, Any]:
    """One chunk. Raises what it says that went wrong."""
    try:
        chunk = orjson.loads(data)
    except orjson.JSONDecodeError as error:
        raise _failure("the upstream's stream cannot be read") from error
    if not isinstance(chunk, dict):
        raise _failure("the upstream's stream cannot be read")
    if chunk.get("error"):
        raise UpstreamError(502, _error_of(chunk, "the upstream broke off"))
    return chunk


async def _events(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The data of each server-sent event. Split at bytes: text may hold characters that Unicode calls line ends."""
    rest, data = b"", []
    async for piece in pieces:
        *lines, rest = (rest + piece).split(b"\n")
        if len(rest) > EVENT_BYTES_MAX:
            raise _failure("the upstream's stream cannot be read: one event is too long")
        for line in lines:
            line = line.removesuffix(b"\r")
            if line.startswith(b"data:"):
                data.append(line[5:].removeprefix(b" "))
            elif not line and data:
                yield b"\n".join(data)
                data = []
    if data:
        yield b"\n".join(data)


async def _refused(response: httpx.Response) -> UpstreamError:
    """What a status that is no success means for our client."""
    status, retry_after = response.status_code, response.headers.get("retry-after")
    try:
        content = (await response.aread())[: 1 << 20]
    except httpx.HTTPError:
        content = b""
    finally:
        await response.aclose()
    if status in (401, 403):
        # The client's key is good: it is ours that the upstream refuses.
        return _failure("the upstream refused this server's key: see SHAREDRAG_UPSTREAM_KEY", "upstream_refused_key")
    try:
        found = orjson.loads(content)
    except orjson.JSONDecodeError:
        found = content.decode("utf-8", "replace").strip()[:MESSAGE_CHARACTERS_MAX]
    error = _error_of(found, f"the upstream answered with status {status}")
    passed_on = status in _GATEWAY or 400 <= status < 500
    return UpstreamError(status if passed_on else 502, error, retry_after)


def _error_of(found: Any, otherwise: str) -> dict[str, Any]:
    """OpenAI's error object from whatever an upstream says went wrong."""
    inner = found.get("error", found) if isinstance(found, dict) else found
    if isinstance(inner, dict):
        message = inner.get("message") or inner.get("detail")
        fields = {key: inner[key] for key in ("type", "param", "code") if key in inner}
    else:
        message, fields = inner, {}
    text = message if isinstance(message, str) and message else otherwise
    return {"message": text, "type": "upstream_error", "param": None, "code": None} | fields


def _failure(message: str, code: str = "upstream_error", status: int = 502) -> UpstreamError:
    return UpstreamError(status, {"message": message, "type": "upstream_error", "param": None, "code": code})
