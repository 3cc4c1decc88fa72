"""Conversations, in the shapes of OpenAI's Conversations API; beside it: forks, and the wheel (a lease)."""

from __future__ import annotations

import hashlib
from typing import Annotated, Literal

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.openai_shapes import (
    ITEMS_MAX,
    ConversationList,
    ConversationObject,
    DeletedConversation,
    Metadata,
    NewItem,
)
from server.problems import CHANGED, Trouble
from server.reply import reply
from sharedrag.history import History
from sharedrag.history.errors import Conflict, NotFound
from sharedrag.history.models import Conversation, Lease

router = APIRouter(prefix="/v1/conversations", tags=["conversations"])

IdempotencyKey = Annotated[
    str | None,
    Header(max_length=256, description="The same key with the same call, sent again within a day, is done once."),
]
IfMatch = Annotated[str | None, Header(max_length=256, description="Only if the ETag is still this one; else a 412.")]
IfNoneMatch = Annotated[str | None, Header(max_length=256, description="If the ETag is still this one: a 304.")]
#: A page's size, order and start, as OpenAI has them.
Limit = Annotated[int, Query(ge=1, le=100)]
Order = Annotated[Literal["asc", "desc"], Query(description="By time: oldest or newest first.")]
After = Annotated[str | None, Query(max_length=256, description="The last id of the page before.")]


class NewConversation(BaseModel):
    """A conversation to be begun."""

    model_config = ConfigDict(
        json_schema_extra={"examples": [{"metadata": {"topic": "ferries"}, "items": [{"role": "user", "content": "Hello"}]}]}
    )

    metadata: Metadata | None = None
    items: Annotated[list[NewItem], Field(max_length=ITEMS_MAX)] | None = None


class ConversationChange(BaseModel):
    """What replaces the metadata."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"metadata": {"topic": "flights"}}]})

    metadata: Metadata | None


class ForkPoint(BaseModel):
    """Where to branch off."""

    model_config = ConfigDict(extra="forbid")

    message: Annotated[str, Field(max_length=256)] | None = Field(default=None, description="By default the newest message.")


class WantedLease(BaseModel):
    """For how long to take the wheel."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"seconds": 60}]})

    seconds: Annotated[float, Field(gt=0, le=3600)] = 60
    token: int | None = Field(default=None, ge=0, le=2**63 - 1, description="Your own lease's, to stay at the wheel.")


class Released(BaseModel):
    """The wheel is free."""

    conversation: str
    released: bool = True


def named_once(who: Principal, key: str | None, what: str) -> str | None:
    """An idempotency key that is this user's own, for this kind of call."""
    return None if key is None else hashlib.sha256("\x00".join((*who.place, what, key)).encode()).hexdigest()


def _shown(one: Conversation, status: int = 200) -> Response:
    return reply(ConversationObject.of(one), status, {"etag": f'"{one.etag}"'})


@router.post("", response_model=ConversationObject, responses=problems.documented(409, 423, openai=True))
async def create(body: NewConversation, call: Calling, idempotency_key: IdempotencyKey = None) -> Response:
    """Begin a conversation, with up to 20 first messages."""
    messages = [one.message() for one in body.items or []]

    def job(history: History, who: Principal) -> Conversation:
        group, user = who.place
        once = named_once(who, idempotency_key, "conversation")
        made = history.conversations.create(group, user, metadata=body.metadata or {}, id=once)  # once: as a name
        if messages:
            history.messages.append(group, user, made.id, messages, idempotency_key=once)
        return made

    return _shown(await call(job))


@router.get("", response_model=ConversationList, responses=problems.documented(openai=True))
async def listed(call: Calling, limit: Limit = 20, order: Order = "desc", after: After = None) -> Response:
    """The group's conversations (this is not in OpenAI's API)."""

    def job(history: History, who: Principal) -> tuple[list[Conversation], bool]:
        return history.conversations.list(*who.place, limit=limit, after=after, order=order)

    found, has_more = await call(job)
    data = [ConversationObject.of(one) for one in found]
    first_id, last_id = (data[0].id, data[-1].id) if data else ("", "")
    return reply(ConversationList(data=data, first_id=first_id, last_id=last_id, has_more=has_more))


@router.get("/{conversation}", response_model=ConversationObject, responses=problems.documented(openai=True))
async def get(conversation: str, call: Calling, if_none_match: IfNoneMatch = None) -> Response:
    """One conversation, with its ETag."""
    one = await call(lambda history, who: history.conversations.get(*who.place, conversation))
    if if_none_match is not None and _etag(if_none_match) in (one.etag, "*"):
        return Response(status_code=304, headers={"etag": f'"{one.etag}"'})
    return _shown(one)


@router.post("/{conversation}", response_model=ConversationObject, responses=problems.documented(412, openai=True))
async def update(conversation: str, body: ConversationChange, call: Calling, if_match: IfMatch = None) -> Response:
    """Replace its metadata."""

    def job(history: History, who: Principal) -> Conversation:
        wanted = None if if_match is None or if_match.strip() == "*" else _etag(if_match)
        try:
            return history.conversations.update(*who.place, conversation, metadata=body.metadata or {}, if_match=wanted)
        except Conflict as error:
            raise Trouble(CHANGED, f"{error.what}. {error.hint}", param="If-Match") from None

    return _shown(await call(job))


@router.delete("/{conversation}", response_model=DeletedConversation, responses=problems.documented(openai=True))
async def delete(conversation: str, call: Calling) -> Response:
    """Erase it with its messages and all that was found through them. Wants who began it, or a moderator."""
    await call(lambda history, who: history.conversations.delete(*who.place, conversation))
    return reply(DeletedConversation(id=conversation))


@router.post("/{conversation}/fork", response_model=ConversationObject, responses=problems.documented(openai=True))
async def fork(conversation: str, call: Calling, body: ForkPoint | None = None) -> Response:
    """A new conversation that begins as this one does, up to a message. Nothing is copied, and neither changes the other."""
    message = None if body is None else body.message

    def job(history: History, who: Principal) -> Conversation:
        return history.conversations.fork(*who.place, conversation, message=message)

    return _shown(await call(job))


@router.post("/{conversation}/lease", response_model=Lease, responses=problems.documented(409, 423, openai=True))
async def take(conversation: str, call: Calling, body: WantedLease | None = None) -> Response:
    """Take the wheel: while the lease lasts, appending wants its token (`X-Sharedrag-Lease`). With the token: stay at it."""
    wanted = body or WantedLease()

    def job(history: History, who: Principal) -> Lease:
        return history.conversations.take(*who.place, conversation, seconds=wanted.seconds, token=wanted.token)

    return reply(await call(job))


@router.get("/{conversation}/lease", response_model=Lease, responses=problems.documented(openai=True))
async def lease(conversation: str, call: Calling) -> Response:
    """Who has the wheel; a 404 if nobody has."""

    def job(history: History, who: Principal) -> Lease:
        found = history.conversations.lease(*who.place, conversation)
        if found is None:
            raise NotFound("nobody has the wheel", operation="lease", hint="Take it with POST")
        return found

    return reply(await call(job))


@router.delete("/{conversation}/lease", response_model=Released, responses=problems.documented(409, 423, openai=True))
async def release(
    conversation: str, call: Calling, token: Annotated[int, Query(ge=0, le=2**63 - 1, description="Your lease's.")]
) -> Response:
    """Let go of the wheel."""
    await call(lambda history, who: history.conversations.release(*who.place, conversation, token))
    return reply(Released(conversation=conversation))


def _etag(header: str) -> str:
    return header.strip().removeprefix("W/").strip('"')
