"""Groups and their members."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.reply import listing, reply
from sharedrag.history import History
from sharedrag.history.models import Group, Member, MemberRole, Policy, UserId

router = APIRouter(prefix="/v1/groups", tags=["groups"])


class NewGroup(BaseModel):
    """A group to be made."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "Hawaii 2026"}]})

    name: Annotated[str, Field(min_length=1, max_length=256)]
    policy: Policy = Policy()
    owner: UserId | None = Field(default=None, description="A first member, who may do everything in it.")


@router.post("", status_code=201, response_model=Group, responses=problems.documented())
async def create(body: NewGroup, call: Calling) -> Response:
    """Make a group. Wants the admin key."""

    def job(history: History, who: Principal) -> Group:
        who.must_be_admin()
        return history.groups.create(body.name, policy=body.policy, owner=body.owner)

    return reply(await call(job), 201)
