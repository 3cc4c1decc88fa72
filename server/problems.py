"""Every error as the client of its route expects it: RFC 9457 on native routes, OpenAI's shape on OpenAI's.

One table says which error of the library is which problem. What is in no table is a 500 that tells nothing but where to
look: its text may hold what others wrote.
"""

from __future__ import annotations

import logging
from typing import Any, NamedTuple, TypeVar

import orjson
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, ValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from server.work import Overloaded
from sharedrag import errors
from sharedrag.embed import EmbedderUnavailable
from sharedrag.history import errors as history_errors

Body = TypeVar("Body", bound=BaseModel)
_log = logging.getLogger("sharedrag.server")
#: Paths whose clients expect OpenAI's error shape.
OPENAI_PATHS = ("/v1/chat/", "/v1/models", "/v1/conversations")


class Kind(NamedTuple):
    """What a kind of problem is called: `name` ends its type's URN, `title` is the same for all of its kind."""

    status: int
    name: str
    title: str
    retry_after_s: int = 0


class Trouble(Exception):
    """A problem that the server itself finds; `kind` says which."""

    def __init__(self, kind: Kind, detail: str, *, retry_after_s: int | None = None, param: str | None = None) -> None:
        super().__init__(detail)
        self.kind = kind
        self.detail = detail
        self.param = param
        self.retry_after_s = kind.retry_after_s if retry_after_s is None else retry_after_s


BAD_REQUEST = Kind(400, "invalid-request", "The request means nothing")
UNAUTHORIZED = Kind(401, "unauthorized", "A valid key is wanted")
NOT_ALLOWED = Kind(403, "not-allowed", "This key has not that right")
NOT_FOUND = Kind(404, "not-found", "There is no such thing, or none for this key")
METHOD = Kind(405, "method-not-allowed", "The path is there, but not for this method")
CONFLICT = Kind(409, "conflict", "Somebody else was first")
CHANGED = Kind(412, "changed", "It has changed since you read it")
TOO_LARGE = Kind(413, "too-large", "More than is taken at once")
UNPROCESSABLE = Kind(422, "invalid-request", "The request means nothing")
WHEEL_TAKEN = Kind(423, "wheel-taken", "Somebody else has the wheel of this conversation")
TOO_MANY = Kind(429, "too-many-requests", "Slower, please", 1)
INTERNAL = Kind(500, "internal", "A mistake of ours")
UPSTREAM = Kind(502, "upstream", "The model's server failed")
BUSY = Kind(503, "busy", "Too much to do right now", 1)
FULL = Kind(507, "pool-full", "The pool has no room")

#: The first that fits counts: subclasses stand before their bases.
KINDS: tuple[tuple[type[Exception], Kind], ...] = (
    (history_errors.NotFound, NOT_FOUND),
    (history_errors.NotAllowed, NOT_ALLOWED),
    (history_errors.LeaseHeld, WHEEL_TAKEN),
    (history_errors.LeaseLost, Kind(409, "wheel-lost", "Somebody else has taken the wheel since")),
    (history_errors.Conflict, CONFLICT),
    (history_errors.InvalidRequest, UNPROCESSABLE),
    (errors.RecordTooLarge, TOO_LARGE),
    (errors.InvalidRecord, UNPROCESSABLE),
    (errors.InvalidFilter, UNPROCESSABLE),
    (errors.PoolFull, FULL),
    (errors.PoolBusy, BUSY),
    (errors.PoolDamaged, Kind(500, "pool-damaged", "Bytes of the pool fail their check")),
    (errors.PoolClosed, Kind(503, "shutting-down", "This worker is closing", 1)),
    (errors.PoolReplaced, Kind(503, "pool-replaced", "The pool's file is no longer the one that is open", 5)),
    (errors.CollectionDropped, Kind(503, "pool-replaced", "The history was dropped while it was in use", 5)),
    (EmbedderUnavailable, Kind(503, "no-embedder", "The embedding model is not installed", 60)),
    (Overloaded, BUSY),
)
_HTTP_KINDS = {one.status: one for one in (BAD_REQUEST, UNAUTHORIZED, NOT_ALLOWED, NOT_FOUND, METHOD, CONFLICT, TOO_LARGE)}
_TITLES = {
    one.status: one.title for one in (*(kind for _, kind in KINDS), *_HTTP_KINDS.values(), TOO_MANY, CHANGED, INTERNAL)
}
_OPENAI_TYPES = {401: "authentication_error", 403: "permission_error", 429: "rate_limit_error"}


class FieldProblem(BaseModel):
    """One field of a request that is wrong."""

    field: str
    problem: str


class Problem(BaseModel):
    """RFC 9457 problem details."""

    type: str = Field(examples=["urn:sharedrag:problem:not-found"])
    title: str
    status: int
    detail: str = Field(description="What happened here, and what to do about it.")
    instance: str = Field(default="", description="The path that was asked.")
    fields: list[FieldProblem] | None = Field(default=None, description="Which fields are wrong, where that is the problem.")


class OpenAIErrorBody(BaseModel):
    """OpenAI's error object."""

    message: str
    type: str
    param: str | None = None
    code: str | None = None


class OpenAIError(BaseModel):
    """The envelope of OpenAI's errors."""

    error: OpenAIErrorBody


def is_openai(path: str) -> bool:
    """True where clients expect OpenAI's error shape."""
    return path.startswith(OPENAI_PATHS)


def answer(path: str, trouble: Trouble, fields: list[dict[str, str]] | None = None) -> Response:
    """The response for a trouble on this path."""
    kind, status = trouble.kind, trouble.kind.status
    headers = {"retry-after": str(trouble.retry_after_s)} if trouble.retry_after_s else {}
    if status == 401:
        headers["www-authenticate"] = "Bearer"
    content: dict[str, Any]
    if is_openai(path):
        status = 400 if status == 422 else status
        default = "server_error" if status >= 500 else "invalid_request_error"
        error_type = _OPENAI_TYPES.get(status, default)
        body = {"message": trouble.detail, "type": error_type, "param": trouble.param, "code": kind.name.replace("-", "_")}
        content = {"error": body}
        media_type = "application/json"
    else:
        content = {
            "type": f"urn:sharedrag:problem:{kind.name}",
            "title": kind.title,
            "status": status,
            "detail": trouble.detail,
            "instance": path,
        }
        if fields is not None:
            content["fields"] = fields
        media_type = "application/problem+json"
    return Response(orjson.dumps(content), status, headers, media_type)


def of(error: Exception) -> Trouble:
    """What an error of the library means to a client; a mistake of ours is logged, and tells only its type."""
    if isinstance(error, Trouble):
        return error
    for cls, kind in KINDS:
        if isinstance(error, cls):
            what = str(getattr(error, "what", error))
            hint = str(getattr(error, "hint", ""))
            retry_after_s = getattr(error, "retry_after_s", None)
            detail = f"{what}. {hint}" if hint else what
            if kind.status >= 500:
                _log.warning("%s: %s", kind.name, error)
            return Trouble(kind, detail, retry_after_s=retry_after_s)
    if isinstance(error, ValidationError):
        return Trouble(UNPROCESSABLE, "; ".join(f"{_place(one['loc'])}: {one['msg']}" for one in error.errors()[:5]))
    _log.error("a mistake of ours", exc_info=error)
    return _mistake(error)


def _mistake(error: Exception) -> Trouble:
    return Trouble(INTERNAL, f"{type(error).__name__}: the server's log says more")


def _place(location: tuple[int | str, ...]) -> str:
    return ".".join(str(one) for one in location if one != "body") or "body"


async def _on_error(request: Request, error: Exception) -> Response:
    return answer(request.url.path, of(error))


async def _on_mistake(request: Request, error: Exception) -> Response:
    return answer(request.url.path, _mistake(error))  # it is raised again behind us, and uvicorn logs it


def parsed(model: type[Body], body: bytes) -> Body:
    """A request's body as a model. Raises what FastAPI raises where it parses the body."""
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise RequestValidationError([{**one, "loc": ("body", *one["loc"])} for one in error.errors()]) from None


async def _on_invalid(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    fields = [{"field": _place(one["loc"]), "problem": str(one["msg"])} for one in error.errors()[:20]]
    detail = "; ".join(f"{one['field']}: {one['problem']}" for one in fields)
    not_json = any(one["type"] == "json_invalid" for one in error.errors())
    trouble = Trouble(BAD_REQUEST if not_json else UNPROCESSABLE, detail, param=fields[0]["field"] if fields else None)
    return answer(request.url.path, trouble, fields)


def of_http(path: str, error: HTTPException) -> Response:
    """The response for an error of Starlette's or FastAPI's own, such as a path that is not there."""
    kind = _HTTP_KINDS.get(error.status_code) or Kind(error.status_code, "http", str(error.detail))
    response = answer(path, Trouble(kind, str(error.detail)))
    for name, value in (error.headers or {}).items():
        response.headers[name] = value
    return response


def install(app: FastAPI) -> None:
    """Answer every error of the app by the tables above."""
    app.add_exception_handler(RequestValidationError, _on_invalid)
    app.add_exception_handler(Trouble, _on_error)
    for cls, _ in KINDS:
        app.add_exception_handler(cls, _on_error)
    app.add_exception_handler(ValidationError, _on_error)
    app.add_exception_handler(Exception, _on_mistake)


def documented(*statuses: int, openai: bool = False) -> dict[int | str, dict[str, Any]]:
    """These statuses for a route's `responses`, with those of every route that wants a key and asks the pool."""
    common = {400, 401, 403, 404, 413, 429, 500, 503, 507}
    return _documented({*statuses, *common, *(() if openai else (422,))}, openai)


def documented_open(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """These statuses only, for a route that wants no key."""
    return _documented(set(statuses), False)


def _documented(statuses: set[int], openai: bool) -> dict[int | str, dict[str, Any]]:
    model: type[BaseModel] = OpenAIError if openai else Problem
    media = "application/json" if openai else "application/problem+json"
    content = {media: {"schema": {"$ref": f"#/components/schemas/{model.__name__}"}}}
    return {status: {"description": _TITLES.get(status, "Not done"), "content": content} for status in sorted(statuses)}
