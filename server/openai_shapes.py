"""Conversations and items in the shapes of OpenAI's Conversations API: its SDK's `client.conversations.*` works unchanged.

Beside OpenAI's own fields an item says who wrote it (`author`), where (`node`), when (`created_at`) and what it answers.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from server.problems import UNPROCESSABLE, Trouble
from sharedrag.history.models import Conversation, Fork, Message, NewMessage, Role

ITEMS_MAX = 20  # in one request, as OpenAI has it
TEXT_TYPES = ("input_text", "output_text", "text", "summary_text", "reasoning_text")
Metadata = Annotated[
    dict[Annotated[str, StringConstraints(max_length=64)], Annotated[str, StringConstraints(max_length=512)]],
    Field(max_length=16, description="Up to 16 pairs of the caller's own.", examples=[{"topic": "ferries"}]),
]


class ConversationObject(BaseModel):
    """A conversation."""

    id: str
    object: Literal["conversation"] = "conversation"
    created_at: int = Field(description="Seconds since 1970.")
    metadata: dict[str, Any]
    group: str
    user: str = Field(description="Who began it.")
    fork: Fork | None = None

    @classmethod
    def of(cls, one: Conversation) -> ConversationObject:
        """A conversation of the history."""
        return cls(
            id=one.id,
            created_at=int(one.created.timestamp()),
            metadata=one.metadata,
            group=one.group,
            user=one.user,
            fork=one.fork,
        )


class DeletedConversation(BaseModel):
    """What became of a conversation."""

    id: str
    object: Literal["conversation.deleted"] = "conversation.deleted"
    deleted: bool = True


class ContentPart(BaseModel):
    """A part of a message: a text (`input_text`, `output_text`), or what the client sent beside it, as it was."""

    model_config = ConfigDict(extra="allow")

    type: Annotated[str, Field(min_length=1, max_length=64, examples=["input_text"])]
    text: str | None = Field(default=None, description="The text, in parts that have one.")


class Item(BaseModel):
    """A message of a conversation."""

    id: str
    type: Literal["message"] = "message"
    status: Literal["completed"] = "completed"
    role: Role
    content: list[dict[str, Any]]
    author: str = Field(description="Whose key wrote it; for a model's answer, who asked the model.")
    created_at: int = Field(description="Seconds since 1970.")
    answers: str | None = Field(default=None, description="The message that it answers.")
    model: str | None = Field(default=None, description="The model that wrote it, if one did.")
    node: str | None = Field(default=None, description="The node that wrote it.")
    conversation: str

    @classmethod
    def of(cls, one: Message) -> Item:
        """A message of the history."""
        return cls(
            id=one.id,
            role=one.role,
            content=one.parts if one.parts is not None else [_text_part(one)],
            author=one.user,
            created_at=int(one.created.timestamp()),
            answers=one.answers,
            model=one.model,
            node=one.node,
            conversation=one.conversation,
        )


def _text_part(one: Message) -> dict[str, Any]:
    if one.role == "assistant":
        return {"type": "output_text", "text": one.text, "annotations": [], "logprobs": []}
    return {"type": "input_text", "text": one.text}


class ItemList(BaseModel):
    """A page of items."""

    object: Literal["list"] = "list"
    data: list[Item]
    first_id: str = Field(description="Empty where the page is.")
    last_id: str = Field(description="Give it as `after` for the next page.")
    has_more: bool

    @classmethod
    def of(cls, messages: list[Message], has_more: bool = False) -> ItemList:
        """A page of messages."""
        data = [Item.of(one) for one in messages]
        return cls(data=data, first_id=data[0].id if data else "", last_id=data[-1].id if data else "", has_more=has_more)


class ConversationList(BaseModel):
    """A page of conversations."""

    object: Literal["list"] = "list"
    data: list[ConversationObject]
    first_id: str = ""
    last_id: str = ""
    has_more: bool


class NewItem(BaseModel):
    """A message to be added. Fields that OpenAI's clients send beside these are let through and mean nothing here."""

    type: Literal["message"] = "message"
    role: Role = "user"
    content: Annotated[str, Field(max_length=1_000_000)] | Annotated[list[ContentPart], Field(min_length=1, max_length=100)]
    answers: str | None = Field(default=None, max_length=256, description="The message that it answers, if it is known.")
    model: str | None = Field(default=None, max_length=256, description="The model that wrote it, if one did.")

    def message(self) -> NewMessage:
        """As the history takes it: its text is what is searched; parts are kept where they are more than a text."""
        if isinstance(self.content, str):
            return NewMessage(role=self.role, text=self.content, answers=self.answers, model=self.model)
        text = "\n".join(one.text for one in self.content if one.type in TEXT_TYPES and one.text is not None)
        if not text:
            raise Trouble(UNPROCESSABLE, "A message wants at least one part with text", param="items")
        plain = len(self.content) == 1 and set(self.content[0].model_dump()) <= {"type", "text", "annotations", "logprobs"}
        parts = None if plain else [one.model_dump(exclude_none=True) for one in self.content]
        return NewMessage(role=self.role, text=text, parts=parts, answers=self.answers, model=self.model)
