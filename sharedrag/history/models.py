"""What a group's history is made of, as callers see it: frozen pydantic models. How each lies in the pool: `records`.

All times are aware datetimes in UTC. Ids of groups, conversations, messages, comments and exchanges are made here
(`new_id`); user ids are the application's own.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

Role = Literal["user", "assistant", "system", "developer", "tool"]
MemberRole = Literal["member", "moderator", "owner"]
Moderation = Literal["visible", "flagged", "hidden"]

USER_LENGTH_MAX = 256
RETENTION_DAYS_MAX = 36_525  # a hundred years: "now less that" must still be a time
#: No control characters: a user's name is shown in terminals and pages.
UserId = Annotated[str, StringConstraints(min_length=1, max_length=USER_LENGTH_MAX, pattern=r"^[^\x00-\x1f\x7f]+$")]


def new_id(prefix: str) -> str:
    """A fresh id, `prefix_` and 24 random hexadecimal digits (96 bits): nobody can guess another group's."""
    return f"{prefix}_{secrets.token_hex(12)}"


class Model(BaseModel):
    """Frozen; an unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Policy(Model):
    """What a group decides for itself."""

    retention_days: Annotated[float, Field(gt=0, le=RETENTION_DAYS_MAX)] | None = Field(
        default=None, description="Messages older than this are erased; null keeps them."
    )
    flags_to_hide: Annotated[int, Field(ge=1)] = Field(
        default=3, description="A message that so many members flagged is hidden until a moderator looks at it."
    )
    probation_answers: Annotated[int, Field(ge=0)] = Field(
        default=3, description="An author counts as new until so many of their answers were voted up or confirmed by others."
    )
    direct_answer: bool = Field(
        default=False, description="Serve an answer of the crowd without asking the model, behind every gate."
    )


class Group(Model):
    """Whose history it is."""

    id: str
    name: str
    policy: Policy = Policy()
    created: datetime


class Member(Model):
    """A user in a group."""

    group: str
    user: UserId
    role: MemberRole = "member"
    since: datetime


class KeyInfo(Model):
    """What an API key may do; the key itself is not stored."""

    id: str = Field(description="Its SHA-256, by which it is revoked.")
    user: str | None = Field(default=None, description="Whom it acts as; null: an administrator or a trusted proxy.")
    group: str | None = Field(default=None, description="The only group that it is good for; null: all.")
    trusted: bool = Field(default=False, description="A proxy's, which names its users itself.")
    label: str = ""
    prefix: str = Field(description="How the key begins, to tell one from another.")
    created: datetime


class Fork(Model):
    """Where a conversation branched off: it shows the messages of `conversation` up to and with `message`, then its own."""

    conversation: str
    message: str


class Conversation(Model):
    """One chat."""

    id: str
    group: str
    user: UserId = Field(description="Who began it.")
    metadata: dict[str, Any] = Field(default_factory=dict, description="The caller's own.")
    fork: Fork | None = None
    created: datetime
    etag: str = Field(default="", description="Changes with every change of the metadata; for If-Match.")


class NewMessage(Model):
    """A message to be appended."""

    role: Role = "user"
    text: str = Field(description="Its plain text: what is searched.")
    parts: list[dict[str, Any]] | None = Field(
        default=None, description="Content parts as the client sent them, where they are more than the text."
    )
    answers: str | None = Field(default=None, description="The message that it answers; by default it is worked out.")
    model: str | None = Field(default=None, description="The model that wrote it, if one did.")
    created: datetime | None = Field(default=None, description="Its own time; by default now.")
    crowd: bool = Field(
        default=True, description="False: never offered as an answer (it only repeats the crowd, or says that nobody knows)."
    )


class Message(Model):
    """One turn of a conversation."""

    id: str
    group: str
    conversation: str
    user: UserId = Field(description="Whose key wrote it; for a model's answer, who asked the model.")
    role: Role
    text: str
    parts: list[dict[str, Any]] | None = None
    answers: str | None = None
    model: str | None = None
    node: str | None = Field(default=None, description="The node (process label) that wrote it.")
    created: datetime


class Comment(Model):
    """A remark on a message."""

    id: str
    group: str
    conversation: str
    message: str
    user: UserId
    text: str
    created: datetime


class Standing(Model):
    """What the members made of a message: a fold over their votes, confirmations, flags and corrections."""

    up: int = 0
    down: int = 0
    confirmed: datetime | None = Field(default=None, description="When somebody last said that it is still true.")
    comments: int = 0
    superseded_by: str | None = None
    flags: int = 0
    moderation: Moderation = "visible"


class Explanation(Model):
    """Every factor of an answer's score (`ranking` has the formula; what was superseded is lowered beyond it)."""

    similarity: float = Field(description="Cosine of the question to the exchange; 0 where there are no vectors.")
    words: float = Field(description="By BM25, how much of the question's words the exchange has, 0 to 1.")
    relevance: float
    quality: float
    freshness: float
    trust: float


class Answer(Model):
    """One exchange that the crowd had, ranked for a question."""

    exchange: str
    question: str
    answer: str
    author: UserId = Field(description="Who answered, or asked the model that did.")
    asked_by: UserId
    role: Role = Field(description="Of the answer: assistant for a model's.")
    model: str | None = None
    node: str | None = Field(default=None, description="The node (process label) that wrote the answer.")
    conversation: str
    question_id: str
    answer_id: str
    created: datetime
    score: float
    standing: Standing
    similar: int = Field(default=0, description="How many near-duplicates were folded into this one.")
    explain: Explanation | None = None


class Lease(Model):
    """Who has the wheel of a conversation. Appends while it lasts want its `token`."""

    conversation: str
    holder: UserId
    token: int = Field(description="Rises with each new holder: an older one is refused (a fencing token).")
    until: datetime


EventKind = Literal[
    "group", "member", "conversation", "message", "comment", "vote", "confirm", "supersede", "flag", "moderation", "lease"
]


class Event(Model):
    """Something new in a group, from whichever node."""

    place: str = Field(description="Where the feed stands after it: resume from here.")
    kind: EventKind
    id: str
    deleted: bool = False
    group: str | None = None
    data: dict[str, Any] = Field(default_factory=dict)
    node: str | None = None
    created: datetime
