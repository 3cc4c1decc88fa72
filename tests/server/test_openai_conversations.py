"""OpenAI's own SDK, unchanged, against `client.conversations.*`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import openai
import pytest

from tests.server.serving import Crowd


@pytest.fixture
def client(crowd: Crowd) -> Iterator[openai.OpenAI]:
    """The SDK with a member's key."""
    with openai.OpenAI(base_url=f"{crowd.serving.url}/v1", api_key=crowd.key("ann")) as made:
        yield made


def _text(item: Any) -> str:
    return str(item.content[0].text)


def test_a_conversation_lives_as_the_sdk_has_it(client: openai.OpenAI) -> None:
    """Created, retrieved, updated and deleted."""
    made = client.conversations.create(
        metadata={"topic": "ferries"}, items=[{"type": "message", "role": "user", "content": "Is there a ferry?"}]
    )
    assert made.metadata == {"topic": "ferries"}
    assert client.conversations.retrieve(made.id).created_at == made.created_at
    assert client.conversations.update(made.id, metadata={"topic": "flights"}).metadata == {"topic": "flights"}
    gone = client.conversations.delete(made.id)
    assert gone.deleted and gone.object == "conversation.deleted"
    with pytest.raises(openai.NotFoundError) as error:
        client.conversations.retrieve(made.id)
    assert error.value.code == "not_found"


def test_items_as_the_sdk_has_them(client: openai.OpenAI) -> None:
    """Created, retrieved, listed over pages by the SDK's own iterator, and deleted."""
    conversation = client.conversations.create()
    texts = [f"message {number}" for number in range(30)]
    for start in (0, 15):
        page = client.conversations.items.create(
            conversation.id,
            items=[
                {"type": "message", "role": "user", "content": [{"type": "input_text", "text": text}]}
                for text in texts[start : start + 15]
            ],
        )
        assert len(page.data) == 15 and page.last_id == page.data[-1].id
    listed = list(client.conversations.items.list(conversation.id, limit=7, order="asc"))
    assert [_text(one) for one in listed] == texts
    first = client.conversations.items.retrieve(listed[0].id or "", conversation_id=conversation.id)
    assert first.type == "message" and first.role == "user" and first.status == "completed"
    assert client.conversations.items.delete(first.id, conversation_id=conversation.id).id == conversation.id
    with pytest.raises(openai.NotFoundError):
        client.conversations.items.retrieve(first.id, conversation_id=conversation.id)


def test_an_answer_of_a_model_comes_back_as_output_text(client: openai.OpenAI) -> None:
    """As the Responses API gives it, so that it can be sent back as it is."""
    conversation = client.conversations.create(
        items=[
            {"type": "message", "role": "user", "content": "Is there a ferry?"},
            {"role": "assistant", "content": "No; fly."},
        ]
    )
    (answer, _) = client.conversations.items.list(conversation.id).data
    assert answer.type == "message" and answer.content[0].type == "output_text"
    sent_back = client.conversations.items.create(conversation.id, items=[answer.model_dump()])  # type: ignore[list-item]
    assert _text(sent_back.data[0]) == "No; fly."


def test_what_the_sdk_sends_again_is_stored_once(client: openai.OpenAI) -> None:
    """The SDK retries without an idempotency key when an answer was lost; the count of tries tells."""
    conversation = client.conversations.create()
    items: list[object] = [{"type": "message", "role": "user", "content": "Hello"}]
    first = client.conversations.items.create(conversation.id, items=items)  # type: ignore[arg-type]
    again = client.conversations.items.create(
        conversation.id,
        items=items,  # type: ignore[arg-type]
        extra_headers={"x-stainless-retry-count": "1"},
    )
    assert [one.id for one in again.data] == [one.id for one in first.data]
    new = client.conversations.items.create(conversation.id, items=items)  # type: ignore[arg-type]
    assert new.data[0].id != first.data[0].id  # said twice is said twice


def test_errors_are_the_sdks_own(client: openai.OpenAI, crowd: Crowd) -> None:
    """What is wrong with a request or key arrives as the SDK's typed error."""
    with pytest.raises(openai.BadRequestError) as error:
        client.conversations.create(metadata={"topic": "x" * 600})
    assert "metadata" in str(error.value)
    with pytest.raises(openai.BadRequestError):
        client.conversations.create(items=[{"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}])
    stranger = openai.OpenAI(base_url=f"{crowd.serving.url}/v1", api_key="sr_wrong", max_retries=0)
    with stranger, pytest.raises(openai.AuthenticationError):
        stranger.conversations.create()
