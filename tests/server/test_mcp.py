"""The `/mcp` door, through the protocol's official client, against real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx
import pytest
from httpx2 import AsyncClient
from mcp import Client
from mcp.client.streamable_http import streamable_http_client

from tests.server.serving import Crowd, Serving


@asynccontextmanager
async def client_of(crowd: Crowd, user: str, at: Serving | None = None) -> AsyncIterator[Client]:
    """The official client, acting as a member."""
    serving = at or crowd.serving
    headers = {"Authorization": f"Bearer {crowd.key(user)}"}
    async with (
        AsyncClient(headers=headers, timeout=30) as http,
        Client(streamable_http_client(f"{serving.url}/mcp", http_client=http)) as client,
    ):
        yield client


async def test_what_one_agent_remembers_another_asks_for_on_another_node(crowd: Crowd, other_node: Serving) -> None:
    """Ann's agent remembers an answer; Bob's, asking in other words at another server, is given it, and votes it up."""
    async with client_of(crowd, "ann") as ann:
        tools = {tool.name: tool for tool in (await ann.list_tools()).tools}
        assert set(tools) == {"ask", "remember", "recent", "vote"}
        assert all(tool.description and tool.output_schema for tool in tools.values())
        assert "context" not in tools["ask"].input_schema["properties"]
        exchange = {"question": "Is there a ferry from Oahu to Maui?", "answer": "No, there is none; you have to fly."}
        stored = await ann.call_tool("remember", exchange)
        assert not stored.is_error and stored.structured_content is not None
    async with client_of(crowd, "bob", other_node) as bob:
        found = await bob.call_tool("ask", {"question": "Can I take a boat from Honolulu to Maui?", "k": 3})
        assert found.structured_content is not None
        first = found.structured_content["answers"][0]
        assert (first["answer"], first["author"]) == (exchange["answer"], "ann")
        voted = await bob.call_tool("vote", {"answer_id": first["answer_id"], "value": 1})
        assert voted.structured_content is not None and voted.structured_content["up"] == 1
        recent = await bob.call_tool("recent", {"hours": 1})
        assert recent.structured_content is not None
        assert [one["text"] for one in recent.structured_content["messages"]] == [exchange["answer"], exchange["question"]]


async def test_a_group_never_sees_another(crowd: Crowd, serving: Serving) -> None:
    """An agent with a key of another group is given nothing of this one, and cannot vote there."""
    async with client_of(crowd, "ann") as ann:
        stored = await ann.call_tool("remember", {"question": "Where is the spare key?", "answer": "Under the third stone."})
        assert stored.structured_content is not None
    async with client_of(Crowd(serving, "others"), "eve") as eve:
        found = await eve.call_tool("ask", {"question": "Where is the spare key?"})
        assert found.structured_content == {"answers": []}
        voted = await eve.call_tool("vote", {"answer_id": stored.structured_content["answer_id"], "value": 1})
        assert voted.is_error


async def test_what_is_wrong_is_said_in_words(crowd: Crowd) -> None:
    """A vote on one's own answer and an argument out of range are tool errors with a reason."""
    async with client_of(crowd, "ann") as ann:
        stored = await ann.call_tool("remember", {"question": "What time is high tide?", "answer": "At six."})
        assert stored.structured_content is not None
        own = await ann.call_tool("vote", {"answer_id": stored.structured_content["answer_id"], "value": 1})
        assert own.is_error and "own" in str(own.content)
        too_many = await ann.call_tool("ask", {"question": "What?", "k": 1000})
        assert too_many.is_error and "50" in str(too_many.content)


@pytest.mark.parametrize("key", [None, "sr_nobody"])
def test_without_a_valid_key_there_is_no_protocol(serving: Serving, key: str | None) -> None:
    """Before anything else is looked at, a request without a valid key is a 401."""
    with serving.client(key) as client:
        answer = client.post("/mcp", json={"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
    assert answer.status_code == httpx.codes.UNAUTHORIZED
    assert answer.json()["type"] == "urn:sharedrag:problem:unauthorized"
