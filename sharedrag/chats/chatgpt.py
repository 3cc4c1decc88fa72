"""ChatGPT's export: `conversations.json` (or its shards `conversations-000.json`), a tree of messages per conversation.

Of each tree the path to `current_node` is what the user last saw; edited questions and regenerated answers lie on other
branches and are left out. Prompts, tool calls, hidden turns and reasoning are no part of what was said. An answer in several
pieces (around a tool call) is joined to one.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from sharedrag.chats.messages import Message, Role
from sharedrag.chats.reading import iso_time

ROLES: dict[str, Role] = {"user": "question", "assistant": "answer"}
SAID = ("text", "multimodal_text")


def messages(conversations: Iterable[dict[str, Any]], skipped: Counter[str]) -> Iterator[Message]:
    """Messages of all conversations that have a tree, each in the order of its path; counts what it leaves out."""
    for number, conversation in enumerate(conversations):
        mapping = conversation.get("mapping")
        if not isinstance(mapping, dict):
            skipped["conversations without messages"] += 1
            continue
        name = str(conversation.get("conversation_id") or conversation.get("id") or f"conversation-{number}")
        title = conversation.get("title")
        extra = {"title": title} if isinstance(title, str) and title else {}
        for said in _joined(_path(mapping, conversation.get("current_node")), skipped):
            yield _message(said, name, extra)


def _path(mapping: dict[str, Any], current: object) -> list[dict[str, Any]]:
    """The messages from the root to `current`; without one, along the last children."""
    path: list[str] = []
    node = current if isinstance(current, str) and current in mapping else _last_leaf(mapping)
    while isinstance(node, str) and node in mapping and node not in path:
        path.append(node)
        node = mapping[node].get("parent")
    found = (mapping[node].get("message") for node in reversed(path))
    return [message for message in found if isinstance(message, dict)]


def _last_leaf(mapping: dict[str, Any]) -> str | None:
    node = next((key for key, value in mapping.items() if not value.get("parent")), None)
    seen: set[str] = set()
    while node is not None and node not in seen and mapping.get(node, {}).get("children"):
        seen.add(node)
        node = mapping[node]["children"][-1]
    return node


def _joined(path: list[dict[str, Any]], skipped: Counter[str]) -> list[dict[str, Any]]:
    """What was said: {id, role, text, time, model}, pieces of one speaker joined."""
    said: list[dict[str, Any]] = []
    for message in path:
        role = str((message.get("author") or {}).get("role"))
        content = message.get("content") or {}
        hidden = (message.get("metadata") or {}).get("is_visually_hidden_from_conversation")
        text = _text(content)
        if (
            role not in ROLES
            or hidden
            or content.get("content_type") not in SAID
            or message.get("recipient", "all") != "all"  # to a tool
        ):
            skipped["system, tool or hidden turns"] += 1
        elif not text:
            skipped["without text"] += 1
        elif said and said[-1]["role"] == role:
            said[-1]["text"] += f"\n\n{text}"
        else:
            model = (message.get("metadata") or {}).get("model_slug")
            time = message.get("create_time")
            said.append({"id": message.get("id"), "role": role, "text": text, "time": time, "model": model})
    return said


def _text(content: dict[str, Any]) -> str:
    parts = content.get("parts") or []
    return "\n".join(part for part in parts if isinstance(part, str) and part.strip()).strip()


def _message(said: dict[str, Any], conversation: str, extra: dict[str, Any]) -> Message:
    return Message(
        id=str(said["id"] or f"{conversation}:{said['time']}"),
        conversation=conversation,
        text=said["text"],
        author="ChatGPT" if said["role"] == "assistant" else None,
        role=ROLES[said["role"]],
        time=iso_time(said["time"]),
        extra=extra,
        model=str(said["model"] or "ChatGPT") if said["role"] == "assistant" else None,
    )
