"""A user's data: take it along, or have it erased everywhere."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.problems import NOT_ALLOWED, Trouble
from server.reply import reply
from sharedrag.history import History

router = APIRouter(prefix="/v1/users", tags=["users"])


class Export(BaseModel):
    """Everything that a history holds of a user."""

    user: str
    data: dict[str, Any]


class Erased(BaseModel):
    """How much was erased, by kind of record."""

    user: str
    erased: dict[str, int]


def _scope(who: Principal, user: str) -> str | None:
    """The group that the call is about, None for all. Only the admin key speaks for others."""
    if not who.admin and who.as_user != user:
        raise Trouble(NOT_ALLOWED, "Only the user's own key or the admin key may do that")
    return who.group


@router.get("/{user:path}/export", response_model=Export, responses=problems.documented())
async def export(user: str, call: Calling) -> Response:
    """Everything of this user: in the key's or the named group, or with the admin key and no group, in all."""

    def job(history: History, who: Principal) -> dict[str, Any]:
        return history.users.export(user, group=_scope(who, user))

    return reply({"user": user, "data": await call(job)})


@router.delete("/{user:path}", response_model=Erased, responses=problems.documented())
async def erase(user: str, call: Calling) -> Response:
    """Erase this user: messages, exchanges, votes, comments, confirmations, flags, memberships and keys, for good.

    In the key's or the named group, or with the admin key and no group, everywhere. It may be called again: what a crash
    left undone is then done.
    """

    def job(history: History, who: Principal) -> dict[str, int]:
        return dict(history.users.erase(user, group=_scope(who, user)))

    return reply({"user": user, "erased": await call(job)})
