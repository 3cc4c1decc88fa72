"""A scripted model with OpenAI's API, so that what the crowd is told is known beforehand: a guide who knows two things.

It streams word by word, and answers a client's own chores (a title, tags, follow-ups) with the JSON that they ask for, as a
model would. `demos.local_model` is a real one.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MODEL = "guide"
HELD_S = 60.0
PAUSE_S = 0.04  # between words: fast enough to read along
KNOWN = {
    "ferry": "No. The Superferry stopped in 2009 and nobody has taken its place: fly from Honolulu to Kahului, 40 minutes.",
    "parking": "Yes, the nature preserve has a car park of its own.",
}
UNKNOWN = "I do not know that."
CHORES = {"title": "Hawaii by sea", "tags": ["travel"], "follow_ups": ["How long is the flight?"]}


class Guide:
    """The model's server, in threads of this process, at `url` until `stop`. `chores` is how many it was asked.

    While `may_end` is not set, replies stop before their last word.
    """

    def __init__(self) -> None:
        guide = self
        self.chores = 0
        self.may_end = threading.Event()
        self.may_end.set()

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                _send(self, {"object": "list", "data": [{"id": MODEL, "object": "model", "owned_by": "demo"}]})

            def do_POST(self) -> None:
                asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                guide._reply(self, asked)

            def log_message(self, format: str, *args: Any) -> None:
                """What it is asked, its caller knows."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1"
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def stop(self) -> None:
        """Listen no more."""
        self._server.shutdown()
        self._server.server_close()

    def _reply(self, handler: BaseHTTPRequestHandler, asked: dict[str, Any]) -> None:
        text = self._answer(_question(asked["messages"]))
        head = {"id": "chatcmpl-guide", "created": int(time.time()), "model": MODEL}
        if not asked.get("stream"):
            choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
            _send(handler, head | {"object": "chat.completion", "choices": [choice]})
            return
        handler.send_response(200)
        handler.send_header("Content-Type", "text/event-stream")
        handler.send_header("Connection", "close")
        handler.end_headers()
        for delta, finish in self._deltas(text):
            choice = {"index": 0, "delta": delta, "finish_reason": finish}
            event = json.dumps(head | {"object": "chat.completion.chunk", "choices": [choice]})
            handler.wfile.write(f"data: {event}\n\n".encode())
            time.sleep(PAUSE_S)
        handler.wfile.write(b"data: [DONE]\n\n")
        handler.close_connection = True

    def _deltas(self, text: str) -> Iterator[tuple[dict[str, str], str | None]]:
        *words, last = text.split(" ")
        for word in words:
            yield {"content": f"{word} "}, None
        self.may_end.wait(HELD_S)
        yield {"content": last}, None
        yield {}, "stop"

    def _answer(self, question: str) -> str:
        if question.startswith("### Task:"):
            self.chores += 1
            return json.dumps({key: value for key, value in CHORES.items() if f'"{key}":' in question} or {"text": ""})
        # What sharedrag puts before a question is data of others'; the question itself comes last.
        asked = question.rsplit("\n\n", 1)[-1].lower()
        return next((text for word, text in KNOWN.items() if word in asked), UNKNOWN)


def _question(messages: list[dict[str, Any]]) -> str:
    content = next(one["content"] for one in reversed(messages) if one["role"] == "user")
    return content if isinstance(content, str) else "\n".join(part.get("text", "") for part in content)


def _send(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)
