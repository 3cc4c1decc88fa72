"""The messages of a conversation, as the items of OpenAI's Conversations API."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Annotated, Any

from fastapi import APIRouter, Header, Query
from pydantic import BaseModel, ConfigDict, Field
from starlette.responses import Response

from server import problems
from server.auth import Calling, Principal
from server.openai_shapes import ITEMS_MAX, ConversationObject, Item, ItemList, NewItem
from server.reply import reply
from server.routes.conversations import After, IdempotencyKey, Limit, Order, named_once
from sharedrag.history import History
from sharedrag.history.models import Conversation, Message, NewMessage

router = APIRouter(prefix="/v1/conversations/{conversation}/items", tags=["items"])

#: OpenAI's SDK sends a call again, without an idempotency key, when it had no answer; longer ago it is a new call.
_RETRIED_WITHIN = timedelta(minutes=10)
LeaseToken = Annotated[
    int | None, Header(alias="X-Sharedrag-Lease", ge=0, le=2**63 - 1, description="The token of whoever has the wheel.")
]
RetryCount = Annotated[int, Header(alias="x-stainless-retry-count", ge=0, include_in_schema=False)]
Include = Annotated[list[str] | None, Query(description="As OpenAI's clients send it; it changes nothing here.")]


class NewItems(BaseModel):
    """Messages to be added, all in one step."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "items": [
                        {
                            "type": "message",
                            "role": "user",
                            "content": [{"type": "input_text", "text": "Is there a ferry?"}],
                        },
                        {"type": "message", "role": "assistant", "content": "No; fly."},
                    ]
                }
            ]
        }
    )

    items: Annotated[list[NewItem], Field(min_length=1, max_length=ITEMS_MAX)]


@router.post("", response_model=ItemList, responses=problems.documented(409, 423, openai=True))
async def create(
    conversation: str,
    body: NewItems,
    call: Calling,
    idempotency_key: IdempotencyKey = None,
    lease: LeaseToken = None,
    retry_count: RetryCount = 0,
    include: Include = None,
) -> Response:
    """Add up to 20 messages, all or none. Whoever asks afterwards, on any node, finds them."""
    del include
    messages = [one.message() for one in body.items]

    def job(history: History, who: Principal) -> list[Message]:
        group, user = who.place
        if retry_count and idempotency_key is None:
            stored = _stored_before(history, group, user, conversation, messages)
            if stored:
                return stored
        once = named_once(who, idempotency_key, f"items/{conversation}")
        return history.messages.append(group, user, conversation, messages, lease_token=lease, idempotency_key=once)

    return reply(ItemList.of(await call(job)))


def _stored_before(
    history: History, group: str, user: str, conversation: str, messages: list[NewMessage]
) -> list[Message] | None:
    """The newest messages of the conversation, if they are these: the first try was heard, only its answer was lost."""
    newest, _ = history.messages.list(group, user, conversation, limit=len(messages), order="desc")
    newest.reverse()
    since = datetime.now(UTC) - _RETRIED_WITHIN
    said: list[Any] = [(one.user, one.role, one.text, one.parts) for one in newest if one.created >= since]
    return newest if said == [(user, one.role, one.text, one.parts) for one in messages] else None


@router.get("", response_model=ItemList, responses=problems.documented(openai=True))
async def listed(
    conversation: str,
    call: Calling,
    limit: Limit = 20,
    order: Order = "desc",
    after: After = None,
    include: Include = None,
) -> Response:
    """A page of its messages, those of the conversation it was forked from included."""
    del include

    def job(history: History, who: Principal) -> tuple[list[Message], bool]:
        return history.messages.list(*who.place, conversation, limit=limit, after=after, order=order)

    return reply(ItemList.of(*await call(job)))


@router.get("/{item}", response_model=Item, responses=problems.documented(openai=True))
async def get(conversation: str, item: str, call: Calling, include: Include = None) -> Response:
    """One message."""
    del include
    return reply(Item.of(await call(lambda history, who: history.messages.get(*who.place, conversation, item))))


@router.delete("/{item}", response_model=ConversationObject, responses=problems.documented(openai=True))
async def delete(conversation: str, item: str, call: Calling) -> Response:
    """Erase a message, with what was found through it. Wants its author or a moderator. The conversation is the answer."""

    def job(history: History, who: Principal) -> Conversation:
        history.messages.delete(*who.place, conversation, item)
        return history.conversations.get(*who.place, conversation)

    return reply(ConversationObject.of(await call(job)))
