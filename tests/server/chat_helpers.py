"""What the tests of the OpenAI-compatible door share: members with OpenAI's SDK, and a proxy that loses answers."""

from __future__ import annotations

import socket
import threading
from typing import Any

import httpx
from openai import OpenAI

from tests.server.serving import Crowd

FERRY = "Is there a ferry from Oahu to Maui?"
NO_FERRY = "No. The Superferry stopped in 2009; you have to fly."


def member(crowd: Crowd, user: str, url: str | None = None) -> Member:
    """A member who talks to the group's server, or to `url` in front of it."""
    return Member(url or crowd.serving.url, crowd.key(user))


class Member:
    """A member's clients: OpenAI's SDK, and plain HTTP."""

    def __init__(self, url: str, key: str) -> None:
        self.key = key
        self.ai = OpenAI(base_url=f"{url}/v1", api_key=key, max_retries=0, timeout=60)
        self.http = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=60)

    def asks(self, question: str, **more: Any) -> Any:
        """A completion of one question."""
        messages = [{"role": "user", "content": question}]
        return self.ai.chat.completions.create(**{"model": "sharedrag", "messages": messages} | more)

    def streams(self, question: str, **more: Any) -> list[Any]:
        """The chunks of a streamed one."""
        return list(self.asks(question, stream=True, **more))

    def tells(self, question: str, answer: str) -> str:
        """Put a question and an answer into the history; returns the conversation."""
        items: Any = [
            {"type": "message", "role": "user", "content": question},
            {"type": "message", "role": "assistant", "content": answer},
        ]
        return self.ai.conversations.create(items=items).id

    def answers(self, question: str) -> list[dict[str, Any]]:
        """What the crowd knows."""
        found = self.http.post("/v1/ask", json={"question": question, "k": 10}).raise_for_status()
        return list(found.json()["answers"])

    def said(self, conversation: str) -> list[tuple[str, str]]:
        """The roles and texts of a conversation, oldest first."""
        items = self.ai.conversations.items.list(conversation, order="asc", limit=100)
        return [(one.role, "".join(part.text for part in one.content if hasattr(part, "text"))) for one in items]  # type: ignore[union-attr]

    def conversations(self) -> list[str]:
        """The ids of all conversations of the group."""
        found = self.http.get("/v1/conversations", params={"limit": 100}).raise_for_status()
        return [one["id"] for one in found.json()["data"]]


def text_of(chunks: list[Any]) -> str:
    """What a stream said."""
    return "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices if choice.index == 0)


def extra_of(reply: Any) -> dict[str, Any]:
    """The object `sharedrag` beside OpenAI's fields of a completion or chunk."""
    return dict(reply.model_extra["sharedrag"])


class LosingProxy:
    """In front of a server: the first answers to POSTs of completions are read to their end, and never passed on."""

    def __init__(self, target: str, lose: int = 1) -> None:
        self._target = httpx.URL(target)
        self.lose = lose
        self.seen: list[str] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def stop(self) -> None:
        """Take no more connections."""
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One request on one connection, passed on with `Connection: close` so that its answer ends where that ends."""
        with client:
            request = b""
            while b"\r\n\r\n" not in request:
                request += client.recv(65536)
            head, _, body = request.partition(b"\r\n\r\n")
            length = next((int(line[15:]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0)
            while len(body) < length:
                body += client.recv(65536)
            lines = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"connection:")]
            self.seen.append(lines[0].decode())
            with socket.create_connection((self._target.host, self._target.port or 80)) as server:
                server.sendall(b"\r\n".join([*lines, b"Connection: close", b"", b""]) + body)
                answer = b""
                while piece := server.recv(65536):
                    answer += piece
            if lines[0].startswith(b"POST /v1/chat/completions") and self.lose > 0:
                self.lose -= 1
                return
            client.sendall(answer)
