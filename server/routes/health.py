"""`/healthz`: the process answers. `/readyz`: and its pool can be read."""

from __future__ import annotations

from fastapi import APIRouter, Request

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """This worker runs."""
    return {"status": "ok"}


@router.get("/readyz")
async def readyz(request: Request) -> dict[str, str]:
    """This worker can read its pool, and has room in its queue."""
    state = request.app.state
    await state.work.run(lambda: state.history.pool.collections())
    return {"status": "ok"}
