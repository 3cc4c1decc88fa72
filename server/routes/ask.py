"""Asking the crowd: `/v1/ask` finds exchanges, ranked and attributed; `/v1/search` finds messages by their words."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Request
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Call, Calling, Principal
from server.problems import UNPROCESSABLE, Trouble
from sharedrag.history import History
from sharedrag.history.errors import NotFound
from sharedrag.history.models import Answer, Message

router = APIRouter(prefix="/v1", tags=["ask"])

QUESTION_MAX = 32_768  # characters
K_MAX = 100
NOT_BLANK = r"\S"


class Question(BaseModel):
    """What somebody wants to know."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"question": "Can I sail from Oahu to Maui?", "k": 3}]}
    )

    question: Annotated[str, Field(max_length=QUESTION_MAX, pattern=NOT_BLANK)]
    k: Annotated[int, Field(ge=1, le=K_MAX, description="At most so many answers.")] = 5
    vector: list[float] | None = Field(
        default=None, max_length=4096, description="The question's embedding by the history's own model, if it is at hand."
    )
    conversation: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="Where it is asked: a follow-up is understood from what came before."
    )
    explain: bool = Field(default=False, description="Say every factor of each score.")
    group: Annotated[str, Field(max_length=256)] | None = Field(
        default=None, description="The group, where neither the key nor a header names it."
    )


class Answers(BaseModel):
    """The crowd's answers, the best first; none where nobody has answered anything like it."""

    answers: list[Answer]


class Words(BaseModel):
    """Words to look for."""

    model_config = ConfigDict(extra="forbid", json_schema_extra={"examples": [{"query": "ferry Maui", "k": 5}]})

    query: Annotated[str, Field(max_length=QUESTION_MAX, pattern=NOT_BLANK)]
    k: Annotated[int, Field(ge=1, le=K_MAX)] = 10
    group: Annotated[str, Field(max_length=256)] | None = None


class FoundMessage(Message):
    """A message with its BM25 score."""

    score: float


class Messages(BaseModel):
    """Messages, the best first."""

    messages: list[FoundMessage]


def _group(who: Principal, named: str | None) -> str:
    """The group of the key or header, or else the body's."""
    if named is None or who.group == named:
        return who.in_group
    if who.group is not None:
        raise NotFound(f"no group {named!r}", operation="ask", hint="Your key or header names another one")
    return named


_CONTENT = {"application/json": {"schema": Question.model_json_schema()}}
_BODY = {"requestBody": {"required": True, "content": _CONTENT}}


@router.post("/ask", response_model=Answers, responses=problems.documented(), openapi_extra=_BODY)
async def ask(request: Request) -> Response:
    """Ask the group's history: what was answered when somebody asked this before, by whom, and how far to trust it."""
    # The one route that everything waits for. Its body is parsed in the thread that asks, straight from bytes to numbers,
    # not by FastAPI on the event loop: with a vector in it that saves a third of what the door costs.
    call = Call(request)
    return Response(await call(_asked, await request.body()), media_type="application/json")


def _asked(history: History, who: Principal, given: bytes) -> bytes:
    body = problems.parsed(Question, given)
    found = history.ask(
        _group(who, body.group),
        body.question,
        body.k,
        user=who.user if who.admin else who.as_user,
        vector=_vector(body.vector),
        conversation=body.conversation,
        explain=body.explain,
    )
    return b'{"answers":[' + b",".join([one.model_dump_json().encode() for one in found]) + b"]}"


@router.post("/search", response_model=Messages, responses=problems.documented())
async def search(body: Words, call: Calling) -> Response:
    """Find messages by their words (BM25)."""

    def job(history: History, who: Principal) -> bytes:
        user = who.user if who.admin else who.as_user
        found = history.messages.search(_group(who, body.group), user, body.query, body.k)
        rows = [FoundMessage.model_construct(**dict(one), score=score) for one, score in found]
        return b'{"messages":[' + b",".join([one.model_dump_json().encode() for one in rows]) + b"]}"

    return Response(await call(job), media_type="application/json")


def _vector(given: list[float] | None) -> list[float] | None:
    if given is not None and not given:
        raise Trouble(UNPROCESSABLE, "The vector is empty; leave it out to have the question embedded here", param="vector")
    return given
