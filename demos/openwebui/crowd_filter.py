"""
title: The crowd's answers
description: Shows what the group was told before beside the model's answer, with author and age.
author: sharedrag
version: 1.0.0
"""
# What stands above is what Open WebUI reads of a function. Paste this file into Admin Panel > Functions; README.md says how.

from __future__ import annotations

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

import httpx
from pydantic import BaseModel, Field

Emitter = Callable[[dict[str, Any]], Awaitable[None]]

#: The ids of Open WebUI's temporary chats: what it forgets, the group never knows.
TEMPORARY = ("temporary:", "local:")
SHOWN_CHARACTERS_MAX = 120
AGES = ((86_400, "day"), (3_600, "hour"), (60, "minute"))


class Filter:
    """Before the model is asked, the crowd is; what it knows appears as sources of the answer, and in a line above it."""

    class Valves(BaseModel):
        """What an administrator sets."""

        url: str = Field(default="http://127.0.0.1:8000", description="Where `sharedrag serve` listens.")
        key: str = Field(
            default="",
            description="A trusted key of one group: it acts as the user who asks.",
            json_schema_extra={"input": {"type": "password"}},
        )
        k: int = Field(default=3, ge=1, le=20, description="At most so many answers are shown.")
        remember: bool = Field(
            default=False, description="Store the model's answers, too. Only for models that are not behind sharedrag."
        )
        timeout_s: float = Field(default=3.0, gt=0, description="How long a chat may wait for the crowd.")

    def __init__(self) -> None:
        """With the valves' defaults; Open WebUI replaces them."""
        self.valves = self.Valves()

    async def inlet(
        self, body: dict[str, Any], __user__: dict[str, Any], __event_emitter__: Emitter | None = None
    ) -> dict[str, Any]:
        """Ask the crowd and show what it knows. The model's request is never changed, and never fails for want of it."""
        question = _last(body.get("messages") or [], "user")
        if not question or __event_emitter__ is None:
            return body
        try:
            async with self._client(__user__) as client:
                found = await client.post("/v1/ask", json={"question": question, "k": self.valves.k})
                answers = found.raise_for_status().json()["answers"]
        except httpx.HTTPError as error:
            await __event_emitter__(_status(f"The crowd could not be asked: {_why(error)}"))
            return body
        for one in answers:
            await __event_emitter__(_source(one))
        if answers:
            await __event_emitter__(_status(f"The crowd: {_who(answers[0])}: {_line(answers[0]['answer'])}"))
        return body

    async def outlet(
        self, body: dict[str, Any], __user__: dict[str, Any], __event_emitter__: Emitter | None = None
    ) -> dict[str, Any]:
        """Store the exchange, where that is wanted and the chat is not a temporary one."""
        chat, messages = str(body.get("chat_id") or ""), body.get("messages") or []
        question, answer = _last(messages, "user"), _last(messages, "assistant")
        if not (self.valves.remember and chat and question and answer) or chat.startswith(TEMPORARY):
            return body
        items = [
            {"role": "user", "content": question},
            {"role": "assistant", "content": answer, "model": body.get("model")},
        ]
        try:
            async with self._client(__user__) as client:
                # Both are named by the keys: the same chat is one conversation, and the same answer is stored once.
                made = await client.post("/v1/conversations", json={}, headers={"Idempotency-Key": chat})
                path = f"/v1/conversations/{made.raise_for_status().json()['id']}/items"
                stored = await client.post(path, json={"items": items}, headers={"Idempotency-Key": str(body.get("id"))})
                stored.raise_for_status()
        except httpx.HTTPError as error:
            if __event_emitter__ is not None:
                await __event_emitter__(_status(f"The crowd could not be told: {_why(error)}"))
        return body

    def _client(self, user: dict[str, Any]) -> httpx.AsyncClient:
        """As this user, under the name that Open WebUI's own connection forwards."""
        headers = {"Authorization": f"Bearer {self.valves.key}", "X-Sharedrag-User": str(user["email"])}
        return httpx.AsyncClient(base_url=self.valves.url, headers=headers, timeout=self.valves.timeout_s)


def _last(messages: list[dict[str, Any]], role: str) -> str:
    """The text of the newest message of this role; a list of parts gives its texts."""
    content = next((one.get("content") for one in reversed(messages) if one.get("role") == role), None)
    parts = [{"text": content}] if isinstance(content, str) else content or []
    return "\n".join(part["text"] for part in parts if isinstance(part.get("text"), str)).strip()


def _source(answer: dict[str, Any]) -> dict[str, Any]:
    """A source of the answer, as Open WebUI shows them: who and when is its name, what was said its text."""
    name = _who(answer)
    text = f"{answer['question']}\n\n{answer['answer']}"
    metadata = {"source": f"{name} ({answer['answer_id']})", "name": name, "date": answer["created"]}
    return {"type": "source", "data": {"source": {"name": name}, "document": [text], "metadata": [metadata]}}


def _status(text: str) -> dict[str, Any]:
    return {"type": "status", "data": {"description": text, "done": True}}


def _who(answer: dict[str, Any]) -> str:
    by = f" ({answer['model'] or 'a model'})" if answer["role"] == "assistant" else ""
    return f"{answer['author']}{by}, {_age(datetime.fromisoformat(answer['created']))}"


def _age(then: datetime) -> str:
    seconds = (datetime.now(UTC) - then).total_seconds()
    for length, unit in AGES:
        number = int(seconds // length)
        if number:
            return f"{number} {unit}{'s' if number > 1 else ''} ago"
    return "just now"


def _line(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= SHOWN_CHARACTERS_MAX else line[: SHOWN_CHARACTERS_MAX - 1] + "…"


def _why(error: httpx.HTTPError) -> str:
    if isinstance(error, httpx.HTTPStatusError):
        return f"HTTP {error.response.status_code}"
    return type(error).__name__
