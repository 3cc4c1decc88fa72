"""OpenAI's shapes of completions, for replies that are made here, and what ours carry beside: the object `sharedrag`."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import orjson

MODEL = "sharedrag"
DONE = b"data: [DONE]\n\n"
#: No model read or wrote anything.
NO_USAGE = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}
#: About so many characters of a text that is there already are sent at a time.
PIECE_CHARACTERS = 200


def new_completion_id() -> str:
    """An id as OpenAI's completions have it."""
    return f"chatcmpl-{secrets.token_hex(12)}"


def completion(text: str, head: Mapping[str, Any], usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """A whole completion of one choice; `head` may have its `id`, `created`, `model` and `finish_reason`."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": head.get("finish_reason", "stop")}
    return {**_head(head), "object": "chat.completion", "choices": [choice], "usage": dict(usage or NO_USAGE)}


def chunks(text: str, head: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The same as the chunks of a stream, all but the last: `last_chunk`."""
    fields = _head(head) | {"object": "chat.completion.chunk"}
    for number, piece in enumerate(_pieces(text)):
        delta = {"role": "assistant", "content": piece} if number == 0 else {"content": piece}
        yield fields | {"choices": [{"index": 0, "delta": delta, "logprobs": None, "finish_reason": None}]}


def last_chunk(head: Mapping[str, Any]) -> dict[str, Any]:
    """The chunk that ends a stream."""
    choice = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": head.get("finish_reason", "stop")}
    return _head(head) | {"object": "chat.completion.chunk", "choices": [choice]}


def usage_chunk(head: Mapping[str, Any], usage: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The chunk after it, for clients that want usage."""
    return _head(head) | {"object": "chat.completion.chunk", "choices": [], "usage": dict(usage or NO_USAGE)}


def event(content: Mapping[str, Any]) -> bytes:
    """One server-sent event."""
    return b"data: " + orjson.dumps(content) + b"\n\n"


def _head(head: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "id": head.get("id") or new_completion_id(),
        "created": head.get("created") or int(time.time()),
        "model": head.get("model") or MODEL,
    }


def _pieces(text: str) -> Sequence[str]:
    """A text in pieces that end with a line or a word; at least one."""
    pieces, begun = [], 0
    while begun < len(text):
        end = begun + PIECE_CHARACTERS
        if end < len(text):
            end = (max(text.rfind(" ", begun, end), text.rfind("\n", begun, end)) + 1) or end
        pieces.append(text[begun:end])
        begun = end
    return pieces or [""]
