"""`/healthz`: the process answers. `/readyz`: and its pool can be read. `/metrics`: what it counts."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel
from starlette.responses import Response

from server import problems
from server.auth import Call
from server.metrics import CONTENT_TYPE

router = APIRouter(tags=["health"])


class Health(BaseModel):
    """It is well."""

    status: str = "ok"
    node: str


@router.get("/healthz", response_model=Health)
async def healthz(request: Request) -> Health:
    """This worker runs."""
    return Health(node=request.app.state.node)


@router.get("/readyz", response_model=Health, responses=problems.documented_open(503))
async def readyz(request: Request) -> Health:
    """This worker has room in its queue, and can read its pool."""
    state = request.app.state
    await state.work.run(state.history.pool.collections)
    return Health(node=state.node)


@router.get(
    "/metrics",
    response_class=Response,
    responses=problems.documented_open(401, 403, 503)
    | {200: {"description": "All workers' counts.", "content": {"text/plain": {"schema": {"type": "string"}}}}},
)
async def metrics(request: Request) -> Response:
    """Prometheus' text format: requests, latencies, streams, and the pool. It names no group and no user."""
    state = request.app.state
    if not state.settings.metrics_public:
        await Call(request)(lambda _, who: who.must_be_admin())
    state.metrics.waiting.set(state.work.waiting)
    text = await state.work.run(state.metrics.text, state.history.pool)
    return Response(text, media_type=CONTENT_TYPE)
