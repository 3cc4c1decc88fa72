"""`GET /v1/models`: the crowd under the name `sharedrag`, and the upstream's own models under theirs."""

from __future__ import annotations

import logging
from typing import Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from server import problems, shapes
from server.auth import Caller
from server.problems import NOT_FOUND, Trouble
from server.reply import reply
from server.upstream import Upstream, UpstreamError

router = APIRouter(prefix="/v1/models", tags=["openai"])

#: The crowd; where there is an upstream, the crowd and the upstream's default model.
OURS = {"id": shapes.MODEL, "object": "model", "created": 0, "owned_by": "sharedrag"}
_log = logging.getLogger("sharedrag.server")


@router.get("", summary="List models", response_model=None, responses=problems.documented(openai=True))
async def list_models(request: Request, caller: Caller) -> Response:
    """What a completion may name as its model. An upstream that cannot be asked adds none."""
    return reply({"object": "list", "data": await _models(request.app.state.upstream)})


@router.get("/{model:path}", summary="Retrieve a model", response_model=None, responses=problems.documented(openai=True))
async def get_model(request: Request, model: str, caller: Caller) -> Response:
    """One of them."""
    for one in await _models(request.app.state.upstream):
        if one["id"] == model:
            return reply(one)
    raise Trouble(NOT_FOUND, f"There is no model {model!r} here; see /v1/models", param="model")


async def _models(upstream: Upstream | None) -> list[dict[str, Any]]:
    theirs: list[dict[str, Any]] = []
    if upstream is not None:
        try:
            theirs = await upstream.models()
        except UpstreamError as error:
            _log.warning("the upstream's models are not known: %s", error)
    return [
        OURS,
        *({"object": "model", "created": 0, "owned_by": "upstream"} | one for one in theirs if one["id"] != shapes.MODEL),
    ]
