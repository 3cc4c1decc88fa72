"""What members make of a message: comments, votes, confirmations, corrections, flags.

The same under `/v1/items/{item}` and `/v1/conversations/{conversation}/items/{item}`: an item's id is enough.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Call, Calling, Principal
from server.reply import listing, reply
from sharedrag.history import History
from sharedrag.history.marks import Marks
from sharedrag.history.models import Comment, Standing

TEXT_MAX = 32_768  # characters
MessageId = Annotated[str, Field(min_length=1, max_length=256)]


class NewComment(BaseModel):
    """A remark."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"text": "Still true in May."}]})

    text: Annotated[str, Field(max_length=TEXT_MAX, pattern=r"\S")]


class CommentList(BaseModel):
    """Remarks on a message, the oldest first."""

    object: Literal["list"] = "list"
    data: list[Comment]
    has_more: bool = False


class Vote(BaseModel):
    """Up, down, or (0) no vote any more."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"value": 1}]})

    value: Literal[1, -1, 0]


class Correction(BaseModel):
    """Which message says it better now."""

    model_config = ConfigDict(extra="forbid")

    by: MessageId


class Flag(BaseModel):
    """What is wrong with a message."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"reason": "spam"}]})

    reason: Annotated[str, Field(min_length=1, max_length=1024)]


class Moderated(BaseModel):
    """Whether the crowd's answers may show it. In its conversation it stays."""

    model_config = ConfigDict(extra="forbid")

    state: Literal["hidden", "visible"]


async def _in_conversation(request: Request, call: Calling) -> None:
    """Under a conversation's path: the item is one of its messages."""
    conversation, item = request.path_params.get("conversation"), request.path_params["item"]
    if conversation is not None:
        await call(lambda history, who: history.messages.get(*who.place, conversation, item))


_marks = APIRouter(tags=["items"], dependencies=[Depends(_in_conversation)])


async def _marked(call: Call, item: str, mark: Callable[[Marks, str, str], object]) -> Response:
    """Make a mark as the caller, given as (group, user); the answer is what the members make of the item then."""

    def job(history: History, who: Principal) -> Standing:
        group, user = who.place
        mark(history.marks, group, user)
        return history.marks.standing(group, user, item)

    return reply(await call(job))


@_marks.get("/standing", response_model=Standing, responses=problems.documented())
async def standing(item: str, call: Calling) -> Response:
    """What the members made of it so far."""
    return reply(await call(lambda history, who: history.marks.standing(*who.place, item)))


@_marks.get("/comments", response_model=CommentList, responses=problems.documented())
async def comments(item: str, call: Calling) -> Response:
    """The remarks on it."""
    return listing(await call(lambda history, who: history.marks.comments(*who.place, item)))


@_marks.post("/comments", status_code=201, response_model=Comment, responses=problems.documented())
async def comment(item: str, body: NewComment, call: Calling) -> Response:
    """Remark on it."""
    return reply(await call(lambda history, who: history.marks.comment(*who.place, item, body.text)), 201)


@_marks.delete("/comments/{comment}", status_code=204, response_class=Response, responses=problems.documented())
async def uncomment(item: str, comment: str, call: Calling) -> Response:
    """Take a remark away. Wants its author or a moderator."""
    await call(lambda history, who: history.marks.delete_comment(*who.place, comment, item))
    return Response(status_code=204)


@_marks.put("/vote", response_model=Standing, responses=problems.documented())
@_marks.post("/vote", response_model=Standing, responses=problems.documented())
async def vote(item: str, body: Vote, call: Calling) -> Response:
    """Vote on it. One vote a member, the newest counts; nobody votes on their own."""
    return await _marked(call, item, lambda marks, group, user: marks.vote(group, user, item, body.value))


@_marks.post("/confirm", response_model=Standing, responses=problems.documented())
async def confirm(item: str, call: Calling) -> Response:
    """Say that it is still true, as of now."""
    return await _marked(call, item, lambda marks, group, user: marks.confirm(group, user, item))


@_marks.delete("/confirm", response_model=Standing, responses=problems.documented())
async def unconfirm(item: str, call: Calling) -> Response:
    """Take one's confirmation back."""
    return await _marked(call, item, lambda marks, group, user: marks.unconfirm(group, user, item))


@_marks.post("/supersede", response_model=Standing, responses=problems.documented(409))
async def supersede(item: str, body: Correction, call: Calling) -> Response:
    """Say which message takes its place. Wants the author of either, or a moderator."""
    return await _marked(call, item, lambda marks, group, user: marks.supersede(group, user, item, body.by))


@_marks.delete("/supersede", response_model=Standing, responses=problems.documented())
async def unsupersede(item: str, call: Calling) -> Response:
    """Nothing takes its place any more."""
    return await _marked(call, item, lambda marks, group, user: marks.unsupersede(group, user, item))


@_marks.post("/flag", response_model=Standing, responses=problems.documented())
async def flag(item: str, body: Flag, call: Calling) -> Response:
    """Flag it for the moderators. Flagged by enough members, it is hidden until one has looked at it."""
    return await _marked(call, item, lambda marks, group, user: marks.flag(group, user, item, body.reason))


@_marks.delete("/flag", response_model=Standing, responses=problems.documented())
async def unflag(item: str, call: Calling) -> Response:
    """Take one's flag back."""
    return await _marked(call, item, lambda marks, group, user: marks.unflag(group, user, item))


@_marks.put("/moderation", response_model=Standing, responses=problems.documented())
async def moderate(item: str, body: Moderated, call: Calling) -> Response:
    """Hide it or show it, whatever its flags. Wants a moderator."""
    return await _marked(call, item, lambda marks, group, user: marks.moderate(group, user, item, body.state))


router = APIRouter()
router.include_router(_marks, prefix="/v1/items/{item}")
router.include_router(_marks, prefix="/v1/conversations/{conversation}/items/{item}", include_in_schema=False)
