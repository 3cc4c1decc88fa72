"""Responses made from models in one step, in Rust: nothing is validated twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import orjson
from pydantic import BaseModel
from starlette.responses import Response


def reply(content: BaseModel | Mapping[str, object], status: int = 200, headers: dict[str, str] | None = None) -> Response:
    """JSON of a model, or of a mapping whose values may be models."""
    body = content.model_dump_json().encode() if isinstance(content, BaseModel) else orjson.dumps(content, default=_plain)
    return Response(body, status, headers, "application/json")


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    raise TypeError(f"{type(value).__name__} has no JSON")


def listing(items: Sequence[BaseModel], has_more: bool = False) -> Response:
    """A list as all native routes give it: `{"object": "list", "data": [...], "has_more": ...}`."""
    body = b",".join(one.model_dump_json().encode() for one in items)
    more = b"true" if has_more else b"false"
    return Response(b'{"object":"list","data":[' + body + b'],"has_more":' + more + b"}", media_type="application/json")
