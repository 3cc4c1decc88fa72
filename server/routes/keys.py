"""Keys of a group: what proves who calls. A key is shown once, when it is made; what is stored cannot be turned back."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.problems import NOT_ALLOWED, UNPROCESSABLE, Trouble
from server.reply import listing, reply
from server.routes.groups import see
from sharedrag.history import History
from sharedrag.history.errors import NotFound
from sharedrag.history.models import KeyInfo, UserId

router = APIRouter(prefix="/v1/groups/{group}/keys", tags=["keys"])


class NewKey(BaseModel):
    """A key to be made: a member's (`user`), or a front end's that names its users itself (`trusted`)."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"trusted": True, "label": "Open WebUI"}, {"user": "ann"}]}
    )

    user: UserId | None = Field(default=None, description="Whom it acts as; by default whoever asks.")
    trusted: bool = Field(default=False, description="It may name its user in a header. Only the admin key makes such keys.")
    label: Annotated[str, Field(max_length=256)] = ""


class KeyWithSecret(KeyInfo):
    """A key, shown this once."""

    key: str = Field(examples=["sr_kM4…"])


class KeyList(BaseModel):
    """Keys of a group, without the keys themselves."""

    object: Literal["list"] = "list"
    data: list[KeyInfo]
    has_more: bool = False


def _visible(history: History, who: Principal, group: str) -> list[KeyInfo]:
    """The keys that the caller may see and revoke: all for the admin and owners, else their own."""
    member = see(history, who, group)
    found = history.keys.list(group)
    return found if member is None or member.role == "owner" else [one for one in found if one.user == member.user]


@router.get("", response_model=KeyList, responses=problems.documented())
async def listed(group: str, call: Calling) -> Response:
    """The group's keys with the admin's or an owner's key, else one's own."""
    return listing(await call(_visible, group))


@router.post("", status_code=201, response_model=KeyWithSecret, responses=problems.documented())
async def create(group: str, body: NewKey, call: Calling) -> Response:
    """Make a key. Members make keys for themselves, the admin key makes all others."""

    def job(history: History, who: Principal) -> tuple[str, KeyInfo]:
        see(history, who, group)
        user = body.user if body.user is not None or body.trusted else who.user
        if not who.admin and (body.trusted or user != who.user):
            raise Trouble(NOT_ALLOWED, "Only the admin key makes trusted keys and keys of other users")
        if user is None and not body.trusted:
            raise Trouble(UNPROCESSABLE, "For whom? Name a user, or say trusted", param="user")
        return history.keys.create(user=user, group=group, trusted=body.trusted, label=body.label)

    key, info = await call(job)
    return reply(KeyWithSecret(**info.model_dump(), key=key), 201)


@router.delete("/{key_id}", status_code=204, response_class=Response, responses=problems.documented())
async def revoke(group: str, key_id: str, call: Calling) -> Response:
    """Revoke a key: from now on, and on every node, it counts no more."""

    def job(history: History, who: Principal) -> None:
        if all(one.id != key_id for one in _visible(history, who, group)):
            raise NotFound(f"no key {key_id!r}", operation="keys", hint="List the keys to see their ids")
        history.keys.revoke(key_id)

    await call(job)
    return Response(status_code=204)
