"""Groups and their members. The admin key makes groups; an owner cares for their own."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.problems import CONFLICT, NOT_ALLOWED, Trouble
from server.reply import listing, reply
from sharedrag.history import History
from sharedrag.history.errors import NotFound
from sharedrag.history.models import Group, KeyInfo, Member, MemberRole, Policy, UserId

router = APIRouter(prefix="/v1/groups", tags=["groups"])


class NewGroup(BaseModel):
    """A group to be made."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"name": "Hawaii 2026"}]})

    name: Annotated[str, Field(max_length=256, pattern=r"\S")]
    policy: Policy = Policy()
    owner: UserId | None = Field(default=None, description="A first member, who may care for the group.")


class GroupChange(BaseModel):
    """What is to be different; what is left out stays."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"policy": {"retention_days": 365}}]})

    name: Annotated[str, Field(max_length=256, pattern=r"\S")] | None = None
    policy: Policy | None = None


class NewMember(BaseModel):
    """A user to be let in."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"user": "ann"}]})

    user: UserId
    role: MemberRole = "member"


class MemberWithKey(Member):
    """A member, and a new key that acts as this user in this group. The key is shown this once."""

    key: str = Field(examples=["sr_kM4…"])
    key_id: str = Field(description="For revoking it.")


class GroupList(BaseModel):
    """Groups."""

    object: Literal["list"] = "list"
    data: list[Group]
    has_more: bool = False


class MemberList(BaseModel):
    """Members of a group."""

    object: Literal["list"] = "list"
    data: list[Member]
    has_more: bool = False


def see(history: History, who: Principal, group: str) -> Member | None:
    """The caller's membership, None for the admin key. Raises `NotFound` for others' groups."""
    if who.admin:
        history.groups.get(group)
        return None
    if who.group not in (None, group):
        raise NotFound(f"no group {group!r}", operation="groups", hint="Your key is for another one")
    return history.groups.member(group, who.as_user)


def care(history: History, who: Principal, group: str) -> None:
    """Raise unless the caller is the admin or an owner of the group."""
    member = see(history, who, group)
    if member is not None and member.role != "owner":
        raise Trouble(NOT_ALLOWED, "Only an owner of the group or the admin key may do that")


@router.post("", status_code=201, response_model=Group, responses=problems.documented())
async def create(body: NewGroup, call: Calling) -> Response:
    """Make a group. Wants the admin key."""

    def job(history: History, who: Principal) -> Group:
        who.must_be_admin()
        return history.groups.create(body.name, policy=body.policy, owner=body.owner)

    return reply(await call(job), 201)


@router.get("", response_model=GroupList, responses=problems.documented())
async def listed(call: Calling) -> Response:
    """The groups that the key can see: all with the admin key, else those that its user is a member of."""

    def job(history: History, who: Principal) -> list[Group]:
        if who.admin:
            return history.groups.list(who.user)
        if who.group is not None and who.user is None:
            return [history.groups.get(who.group)]
        found = history.groups.list(who.as_user)
        return [one for one in found if who.group in (None, one.id)]

    return listing(await call(job))


@router.get("/{group}", response_model=Group, responses=problems.documented())
async def get(group: str, call: Calling) -> Response:
    """One group."""

    def job(history: History, who: Principal) -> Group:
        see(history, who, group)
        return history.groups.get(group)

    return reply(await call(job))


@router.patch("/{group}", response_model=Group, responses=problems.documented())
async def change(group: str, body: GroupChange, call: Calling) -> Response:
    """Give the group another name or policy. Wants an owner's or the admin key."""

    def job(history: History, who: Principal) -> Group:
        care(history, who, group)
        return history.groups.update(group, name=body.name, policy=body.policy)

    return reply(await call(job))


@router.delete("/{group}", status_code=204, response_class=Response, responses=problems.documented())
async def delete(group: str, call: Calling) -> Response:
    """Erase the group and all that is in it. Wants the admin key."""

    def job(history: History, who: Principal) -> None:
        who.must_be_admin()
        history.groups.delete(group)

    await call(job)
    return Response(status_code=204)


@router.get("/{group}/members", response_model=MemberList, responses=problems.documented())
async def members(group: str, call: Calling) -> Response:
    """Who is in it."""

    def job(history: History, who: Principal) -> list[Member]:
        see(history, who, group)
        return history.groups.members(group)

    return listing(await call(job))


@router.post("/{group}/members", status_code=201, response_model=MemberWithKey, responses=problems.documented(409))
async def join(group: str, body: NewMember, call: Calling) -> Response:
    """Let a user in, and get a key that acts as this user in this group.

    With the admin key, a user who is a member already gets another key and, if it differs, the new role. An owner can let in
    only who is no member yet and never wrote here: with a key for anybody else the owner could act as them.
    """

    def job(history: History, who: Principal) -> tuple[Member, str, KeyInfo]:
        care(history, who, group)
        if not who.admin and _is_member(history, group, body.user):
            raise Trouble(CONFLICT, f"{body.user} is a member already; members make further keys for themselves")
        if not who.admin and history.groups.has_written(group, body.user):
            raise Trouble(CONFLICT, f"{body.user} was a member before; only the admin key lets them in again")
        member = history.groups.add_member(group, body.user, role=body.role)
        return (member, *history.keys.create(user=body.user, group=group))

    member, key, info = await call(job)
    return reply(MemberWithKey(**member.model_dump(), key=key, key_id=info.id), 201)


@router.delete("/{group}/members/{user:path}", status_code=204, response_class=Response, responses=problems.documented())
async def leave(group: str, user: str, call: Calling) -> Response:
    """Take a member out, with their keys; what they wrote stays. Wants an owner's, the admin's or the member's own key."""

    def job(history: History, who: Principal) -> None:
        if user != who.user or who.admin:
            care(history, who, group)
        else:
            see(history, who, group)
        history.groups.remove_member(group, user)

    await call(job)
    return Response(status_code=204)


def _is_member(history: History, group: str, user: str) -> bool:
    try:
        history.groups.member(group, user)
    except NotFound:
        return False
    return True
