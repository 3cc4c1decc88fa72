"""`/v1/me`: what a key is, told to who holds it. A page asks it first."""

from __future__ import annotations

from fastapi import APIRouter, Request
from pydantic import BaseModel, Field
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.reply import reply
from sharedrag.history import History
from sharedrag.history.errors import NotFound
from sharedrag.history.models import Group, MemberRole

router = APIRouter(prefix="/v1", tags=["keys"])


class Me(BaseModel):
    """Whom the key of this request acts as."""

    user: str | None = Field(description="Null: an admin or trusted key, and no user was named.")
    group: str | None = Field(description="The group that calls go to when they name none.")
    role: MemberRole | None = Field(description="The user's role in that group.")
    admin: bool
    trusted: bool
    node: str = Field(description="What the node that answered calls itself.")
    groups: list[Group] = Field(description="The groups that this key may name.")


@router.get("/me", response_model=Me, responses=problems.documented())
async def me(request: Request, call: Calling) -> Response:
    """Who am I, with this key, and which groups are mine?"""
    node: str = request.app.state.node

    def job(history: History, who: Principal) -> Me:
        role = None
        if who.group is not None and who.user is not None:
            role = history.groups.member(who.group, who.user).role
        return Me(user=who.user, group=who.group, role=role, admin=who.admin, trusted=who.trusted, node=node,
                  groups=_groups(history, who))  # fmt: skip

    return reply(await call(job))


def _groups(history: History, who: Principal) -> list[Group]:
    """All for the admin; else the one of the key, or those of its user."""
    if who.admin:
        return history.groups.list()
    if who.group is not None:
        try:
            return [history.groups.get(who.group)]
        except NotFound:
            return []
    return [] if who.user is None else history.groups.list(who.user)
