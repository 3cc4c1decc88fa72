"""The filter function for Open WebUI, called as Open WebUI calls it, against a real server."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from demos.openwebui.crowd_filter import Filter
from tests.server.serving import Crowd, Serving, said

FERRY, NO_FERRY = "Is there a ferry from Oahu to Maui?", "There is none; fly."
BOB = {"id": "1", "name": "Bob", "email": "bob@example.org"}
BODY = {"model": "guide", "messages": [{"role": "user", "content": "Can I take a ferry to Maui?"}]}


@pytest.fixture
def crowd_filter(crowd: Crowd, serving: Serving) -> Filter:
    """With a trusted key of the group."""
    with serving.client() as admin:
        made = admin.post(f"/v1/groups/{crowd.group}/keys", json={"trusted": True}).raise_for_status().json()
    made_filter = Filter()
    made_filter.valves = Filter.Valves(url=serving.url, key=made["key"], remember=True, timeout_s=30)
    return made_filter


def shown(one: Filter, body: dict[str, Any]) -> list[dict[str, Any]]:
    """The events that a question leads to, of which the model's request knows nothing."""
    events: list[dict[str, Any]] = []

    async def emit(event: dict[str, Any]) -> None:
        events.append(event)

    assert asyncio.run(one.inlet(body, BOB, emit)) == body
    return events


def test_the_crowds_answers_are_shown_with_author_and_age(crowd: Crowd, crowd_filter: Filter) -> None:
    """Each as a source, the best one in a line, too; a question in parts is a question."""
    with crowd.as_user("ann") as ann:
        said(ann, FERRY, NO_FERRY)
    parts = {"messages": [{"role": "user", "content": [{"type": "text", "text": FERRY}, {"type": "image_url"}]}]}
    for body in (BODY, parts):
        source, status = shown(crowd_filter, body)
        assert source["type"] == "source" and source["data"]["document"] == [f"{FERRY}\n\n{NO_FERRY}"]
        assert source["data"]["source"]["name"].startswith("ann") and source["data"]["source"]["name"].endswith("just now")
        assert "ann" in status["data"]["description"] and NO_FERRY in status["data"]["description"]


def test_nothing_is_shown_where_nobody_knows(crowd_filter: Filter) -> None:
    """Nor where nothing was asked."""
    assert shown(crowd_filter, BODY) == [] and shown(crowd_filter, {"messages": []}) == []


def test_a_chat_goes_on_without_the_crowd(crowd_filter: Filter) -> None:
    """It is told why there is none: the key is wrong, or nobody listens."""
    for change, why in (({"key": "wrong"}, "401"), ({"url": "http://127.0.0.1:9"}, "ConnectError")):
        crowd_filter.valves = crowd_filter.valves.model_copy(update=change)
        (status,) = shown(crowd_filter, BODY)
        assert status["type"] == "status" and why in status["data"]["description"]


def test_what_the_model_answered_is_remembered_once(crowd: Crowd, crowd_filter: Filter) -> None:
    """Under the user's name, in the chat's own conversation; never a temporary chat, never when it is not wanted."""
    answered = BODY | {
        "messages": [*BODY["messages"], {"role": "assistant", "content": NO_FERRY}],
        "chat_id": "c1",
        "id": "m1",
    }
    other = answered | {"chat_id": "temporary:1"}
    for body in (answered, answered, other):
        assert asyncio.run(crowd_filter.outlet(body, BOB)) == body
    crowd_filter.valves.remember = False
    asyncio.run(crowd_filter.outlet(answered | {"chat_id": "c2"}, BOB))
    with crowd.as_user("ann") as ann:
        (conversation,) = ann.get("/v1/conversations").json()["data"]
        items = ann.get(f"/v1/conversations/{conversation['id']}/items", params={"order": "asc"}).json()["data"]
        assert [(one["author"], one["role"], one["model"]) for one in items] == [
            (BOB["email"], "user", None),
            (BOB["email"], "assistant", "guide"),
        ]
