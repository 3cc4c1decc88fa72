"""`/v1/recent`: the newest messages of a group, over all its conversations. What `/v1/events` goes on from."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from server import problems
from server.auth import Calling
from server.openai_shapes import ItemList
from server.reply import reply
from server.routes.conversations import Limit

router = APIRouter(prefix="/v1/recent", tags=["events"])


@router.get("", response_model=ItemList, responses=problems.documented())
async def recent(call: Calling, limit: Limit = 20) -> Response:
    """The newest messages, the newest first."""
    return reply(ItemList.of(await call(lambda history, who: history.messages.recent(*who.place, limit=limit))))
