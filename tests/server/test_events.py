"""`/v1/events`: everything new from any worker of any node, once, in order, resumable, and with a clear end."""

from __future__ import annotations

import os
import signal
import socket
import time

import pytest

from tests.server.listening import Listening
from tests.server.serving import ADMIN_KEY, Crowd, Serving, said


def test_what_either_worker_and_another_node_write_is_heard(crowd: Crowd, serving: Serving, other_node: Serving) -> None:
    """Messages, comments and votes come as events with who and where."""
    key = crowd.key("ann")
    with Listening(serving, key) as events, crowd.as_user("ann") as ann, crowd.as_user("bob", at=other_node) as bob:
        conversation, (question, answer) = said(ann, "Is there a ferry to Maui?", "No, fly.")
        bob.post(f"/v1/items/{answer}/comments", json={"text": "True."}).raise_for_status()
        bob.post(f"/v1/items/{answer}/vote", json={"value": 1}).raise_for_status()
        first, second = events.until("message"), events.until("message")
        assert (first.data["id"], second.data["id"]) == (question, answer)
        assert first.data["data"]["text"] == "Is there a ferry to Maui?"
        assert first.data["data"]["conversation"] == conversation and first.data["node"] == "node-a"
        comment = events.until("comment")
        assert comment.data["data"]["text"] == "True." and comment.data["data"]["message"] == answer
        assert events.until("vote").data["data"]["value"] == 1
        ann.delete(f"/v1/conversations/{conversation}").raise_for_status()
        gone = events.until("conversation")
        assert gone.data["deleted"] and gone.data["id"] == conversation


def test_no_event_of_another_group(crowd: Crowd, serving: Serving) -> None:
    """A stream is one group's."""
    other = Crowd(serving, "Iceland")
    with Listening(serving, crowd.key("ann")) as events, other.as_user("bob") as bob:
        said(bob, "Hot springs?", "Yes.")
        assert events.silent_for(0.5)


def test_resumed_it_misses_nothing_and_repeats_nothing(crowd: Crowd, serving: Serving, other_node: Serving) -> None:
    """Broken off anywhere and resumed at another node, with writes going on, it tells each message once and in order."""
    texts = [f"message {number}" for number in range(460)]  # more than a page
    key = crowd.key("ann")
    with crowd.as_user("ann") as ann, Listening(serving, key) as events:
        conversation, _ = said(ann, "begin")
        begin = events.until("message")
        for start in range(0, 440, 20):
            said(ann, *texts[start : start + 20], conversation=conversation)
        with Listening(other_node, key, last_event_id=begin.id) as resumed:
            said(ann, *texts[440:], conversation=conversation)
            heard = [resumed.next() for _ in texts]
        with Listening(serving, key, last_event_id=heard[200].id) as again:
            rest = [again.next() for _ in texts[201:]]
            assert again.silent_for(0.2)
    assert [one.data["data"]["text"] for one in heard] == texts
    assert [one.data["data"]["text"] for one in rest] == texts[201:]


def test_an_idle_stream_says_that_it_lives(crowd: Crowd, serving: Serving) -> None:
    """A comment line comes as often as the settings say (a second here)."""
    with Listening(serving, crowd.key("ann")) as events:
        assert events.silent_for(2.5)
        assert events.comments.count("still here") >= 1


def test_a_place_that_means_nothing_is_refused(crowd: Crowd) -> None:
    """A clear problem before the stream begins."""
    with crowd.as_user("ann") as ann:
        refused = ann.get("/v1/events", headers={"Last-Event-ID": "not a place"})
    assert refused.status_code == 422 and "place" in refused.json()["detail"]


def test_the_admin_hears_all_groups(crowd: Crowd, serving: Serving) -> None:
    """With the admin key and no group, every group's events come."""
    with Listening(serving, ADMIN_KEY) as events, crowd.as_user("ann") as ann:
        _, (message,) = said(ann, "Hello")
        while (heard := events.until("message")).data["group"] != crowd.group:
            pass
        assert heard.data["id"] == message


def test_a_revoked_key_ends_its_stream(crowd: Crowd, serving: Serving) -> None:
    """Who may not listen any more is told so, within the time between two keep-alives."""
    with Listening(serving, crowd.key("ann")) as events, serving.client() as admin:
        admin.delete(f"/v1/groups/{crowd.group}/members/ann").raise_for_status()
        assert events.until("end").data == {"reason": "unauthorized"}


@pytest.mark.slow
def test_a_reader_that_is_too_slow_is_let_go_with_a_clear_end(crowd: Crowd, serving: Serving) -> None:
    """Its stream ends with the reason, others go on, and it can resume where it was."""
    key = crowd.key("ann")
    host, port = serving.url.removeprefix("http://").split(":")
    with socket.socket() as slow:
        slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        slow.connect((host, int(port)))
        slow.sendall(f"GET /v1/events HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {key}\r\n\r\n".encode())
        assert b"200" in slow.recv(200)
        with crowd.as_user("ann") as ann, Listening(serving, key) as quick:
            conversation, _ = said(ann, "begin")
            for _ in range(60):
                said(ann, *["x" * 30_000] * 8, conversation=conversation)
            for _ in range(481):
                quick.until("message")
        slow.settimeout(20)
        received = b""
        while not received.endswith(b"0\r\n\r\n"):
            chunk = slow.recv(1 << 20)
            if not chunk:
                break
            received += chunk
    assert b'event: end\ndata: {"reason":"slow"}' in received


@pytest.mark.slow
def test_at_sigterm_streams_end_and_answers_are_given(server_pool: str, serving: Serving) -> None:
    """A server that is told to stop says so to its listeners, finishes what it was doing, and is gone soon."""
    with Serving(server_pool, 2, label="node-c") as server:
        crowd = Crowd(server)
        with Listening(server, crowd.key("ann")) as events, crowd.as_user("ann") as ann:
            said(ann, "Hello")
            events.until("message")
            os.kill(server.process.pid, signal.SIGTERM)
            started = time.monotonic()
            assert events.until("end").data == {"reason": "shutdown"}
        assert server.process.wait(20) == 0
        assert time.monotonic() - started < 20
        assert "Traceback" not in server.text
