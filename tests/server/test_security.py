"""What keeps strangers out and one caller from crowding out the others."""

from __future__ import annotations

import json
import socket
import time
from collections.abc import Iterator

import httpx
import pytest

from sharedrag import Pool
from tests.server.serving import ADMIN_KEY, Crowd, Serving, said

OPEN = {"/healthz", "/readyz", "/metrics"}


def test_everything_wants_a_key(serving: Serving) -> None:
    """Each operation of the OpenAPI document, and paths that nobody has, are a 401 without a key and with a wrong one."""
    with serving.client(None) as nobody, serving.client("sr_wrong") as stranger:
        paths = nobody.get("/openapi.json").json()["paths"]
        assert len(paths) > 20
        asked = [(method, path) for path, operations in paths.items() for method in operations if path not in OPEN]
        for method, path in [*asked, ("get", "/v1/nothing"), ("get", "/nothing"), ("post", "/v1/"), ("put", "/v1/ask")]:
            for client in (nobody, stranger):
                refused = client.request(method.upper(), path, json={})
                # a body that means nothing may be told first: it says nothing of what is there
                wrong_body = client is stranger and refused.status_code in (400, 422)
                assert refused.status_code in (401, 429) or wrong_body, (method, path, refused.text)


def test_a_key_in_the_url_is_none(crowd: Crowd, serving: Serving) -> None:
    """URLs end in logs: only the header counts."""
    with serving.client(None) as nobody:
        for name in ("key", "api_key", "token", "access_token"):
            assert nobody.get("/v1/groups", params={name: crowd.key("ann")}).status_code == 401


def test_no_key_is_stored_or_logged(crowd: Crowd, serving: Serving, server_pool: str) -> None:
    """The pool holds hashes; what the server prints, access log included, shows no key."""
    key = crowd.key("ann")
    with crowd.as_user("ann") as ann:
        ann.get("/v1/groups")
        ann.post("/v1/groups", content=b"{")
    with open(server_pool, "rb") as file:
        pool = file.read()
    assert key.encode() not in pool and ADMIN_KEY.encode() not in pool
    assert "GET /v1/groups" in serving.text
    assert key not in serving.text and ADMIN_KEY not in serving.text and "sr_" not in serving.text


def test_no_worker_has_the_admin_key_in_its_environment(serving: Serving) -> None:
    """The parent hands on everything but the key, whose hash is in the pool."""
    for pid in serving.worker_pids():
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
        assert b"SHAREDRAG_POOL" in environment or b"SHAREDRAG_LABEL" in environment
        assert ADMIN_KEY.encode() not in environment


def test_only_a_trusted_key_names_its_users(crowd: Crowd, serving: Serving) -> None:
    """Open WebUI's headers count with a trusted key, whose users join by coming; with a member's key they mean nothing."""
    with serving.client() as admin:
        made = admin.post(f"/v1/groups/{crowd.group}/keys", json={"trusted": True, "label": "Open WebUI"}).json()
    assert made["trusted"] and made["user"] is None
    zoe = {"X-OpenWebUI-User-Email": "zoe@example.org", "X-OpenWebUI-User-Name": "Zoe"}
    with serving.client(made["key"], headers=zoe) as webui, crowd.as_user("ann") as ann:
        conversation = webui.post("/v1/conversations", json={}).json()
        assert conversation["user"] == "zoe@example.org" and conversation["group"] == crowd.group
        members = ann.get(f"/v1/groups/{crowd.group}/members").json()["data"]
        assert "zoe@example.org" in {one["user"] for one in members}
        assert ann.post("/v1/conversations", json={}, headers=zoe).json()["user"] == "ann"
        assert ann.post("/v1/conversations", json={}, headers={"X-Sharedrag-User": "zoe@example.org"}).status_code == 403
    with serving.client(made["key"]) as nameless:
        refused = nameless.post("/v1/conversations", json={})
        assert refused.status_code == 400 and "X-Sharedrag-User" in refused.json()["error"]["message"]
        renamed = nameless.post("/v1/conversations", json={}, headers={"X-OpenWebUI-User-Name": "zoe@example.org"})
        assert renamed.status_code == 400  # anybody may call themselves anything there


def test_the_admin_acts_as_anybody_where_it_says_so(crowd: Crowd, serving: Serving) -> None:
    """With group and user in headers; with neither, it is told what is missing."""
    headers = {"X-Sharedrag-Group": crowd.group, "X-Sharedrag-User": "ann"}
    with serving.client() as admin:
        assert admin.post("/v1/conversations", json={}, headers=headers).json()["user"] == "ann"
        refused = admin.post("/v1/conversations", json={})
        assert refused.status_code == 400 and "X-Sharedrag-Group" in refused.json()["error"]["message"]
        nowhere = admin.post("/v1/conversations", json={}, headers=headers | {"X-Sharedrag-Group": "grp_none"})
        assert nowhere.status_code == 404


def test_a_name_in_a_header_is_the_same_as_in_a_body(crowd: Crowd, serving: Serving) -> None:
    """Headers carry bytes: a name beyond ASCII is read as the UTF-8 that clients send, as Latin-1 where it is none."""
    with serving.client() as admin:
        admin.post(f"/v1/groups/{crowd.group}/members", json={"user": "jürgen"}).raise_for_status()
        for name in ("jürgen".encode(), "jürgen".encode("latin-1")):
            me = admin.get("/v1/me", headers={b"X-Sharedrag-Group": crowd.group.encode(), b"X-Sharedrag-User": name})
            assert me.json()["user"] == "jürgen"
        members = admin.get(f"/v1/groups/{crowd.group}/members").json()["data"]
    assert [one["user"] for one in members] == ["jürgen"]


def test_a_body_that_is_too_large_is_refused(crowd: Crowd) -> None:
    """Whether its length is announced or it comes in chunks."""
    body = json.dumps({"items": [{"role": "user", "content": "x" * 300_000}]}).encode()

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(body), 10_000):
            yield body[start : start + 10_000]

    with crowd.as_user("ann") as ann:
        conversation, _ = said(ann, "Hello")
        path = f"/v1/conversations/{conversation}/items"
        json_type = {"content-type": "application/json"}
        assert ann.post(path, content=body, headers=json_type).status_code == 413
        assert ann.post(path, content=chunks(), headers=json_type).status_code == 413
        assert len(ann.get(path).json()["data"]) == 1


@pytest.mark.parametrize(
    ("begin", "more"),
    [
        (b"GET /", b"a" * 4096),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\nX-A: ", b"a" * 4096),
        (b"GET /healthz HTTP/1.1\r\nHost: x\r\n", b"X-A: b\r\n" * 500),
        (b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", b"X-A: b\r\n" * 500),
        (b"POST /v1/ask HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;", b"a" * 4096),
    ],
)
def test_a_head_that_never_ends_is_cut_off(serving: Serving, begin: bytes, more: bytes) -> None:
    """Who has shown no key yet cannot make a worker gather megabytes of request line, headers or trailers."""
    url = httpx.URL(serving.url)
    with socket.create_connection((url.host, url.port or 80), timeout=30) as connection:
        connection.sendall(begin)
        assert _is_cut_off(connection, more)
    with serving.client() as admin:
        assert admin.get("/v1/groups", headers={"X-A": "a" * 30_000}).status_code == 200


def _is_cut_off(connection: socket.socket, more: bytes) -> bool:
    try:
        for _ in range(1000):
            connection.sendall(more)
            time.sleep(0.001)
    except OSError:  # reset, or a broken pipe
        return True
    return False


def test_no_other_origins_page_may_call(crowd: Crowd, serving: Serving) -> None:
    """CORS is off: no preflight is answered and no header allows it."""
    origin = {"Origin": "https://evil.example", "Access-Control-Request-Method": "POST"}
    with crowd.as_user("ann") as ann:
        for answer in (ann.options("/v1/ask", headers=origin), ann.get("/v1/groups", headers=origin)):
            assert not [name for name in answer.headers if name.startswith("access-control")]
    assert httpx.options(f"{serving.url}/v1/ask", headers=origin).status_code == 401


def test_errors_have_the_shape_of_their_routes(crowd: Crowd) -> None:
    """Problem details on native routes, OpenAI's object on OpenAI's, both with what to do."""
    with crowd.as_user("ann") as ann:
        native = ann.post("/v1/ask", json={"question": "", "k": 0})
        assert native.status_code == 422 and native.headers["content-type"] == "application/problem+json"
        assert {one["field"] for one in native.json()["fields"]} == {"question", "k"}
        assert native.json()["instance"] == "/v1/ask"
        broken = ann.post("/v1/ask", content=b"{", headers={"content-type": "application/json"})
        assert broken.status_code == 400
        openai = ann.get("/v1/conversations/conv_none")
        assert openai.status_code == 404 and set(openai.json()["error"]) == {"message", "type", "param", "code"}
        assert ann.put("/v1/ask").status_code == 405
        assert ann.get("/v1/nothing").status_code == 404


def test_an_admin_key_is_made_at_first_start_and_shown_once(server_pool_folder: object) -> None:
    """Without SHAREDRAG_ADMIN_KEY the parent prints a key that works; the next start prints none, and it works still."""
    pool = f"{server_pool_folder}/first.pool"
    with Serving(pool, 1, admin_key=None) as server:
        (line,) = [one for one in server.text.splitlines() if "sr_" in one]
        key = line.split()[-1]
        with server.client(key) as admin:
            assert admin.post("/v1/groups", json={"name": "first"}).status_code == 201
    with Serving(pool, 1, admin_key=None, rate=2, burst=9, queue=1, threads=1) as server:
        assert "sr_" not in server.text
        with server.client(key) as admin:
            assert [one["name"] for one in admin.get("/v1/groups").json()["data"]] == ["first"]
            _who_asks_too_often_is_told_when_to_return(admin, server)


def _who_asks_too_often_is_told_when_to_return(admin: httpx.Client, server: Serving) -> None:
    keys = []
    for _ in range(2):
        group = admin.post("/v1/groups", json={"name": "hasty"}).json()["id"]
        keys.append(admin.post(f"/v1/groups/{group}/members", json={"user": "ann"}).json()["key"])
    with server.client(keys[0]) as hasty, server.client(keys[1]) as other:
        answers = [hasty.get("/v1/groups") for _ in range(16)]
        assert other.get("/v1/groups").status_code == 200, "another group's member has the same name by chance"
    refused = [one for one in answers if one.status_code == 429]
    assert refused and answers[0].status_code == 200
    assert int(refused[0].headers["retry-after"]) >= 1
    assert refused[0].json()["type"] == "urn:sharedrag:problem:too-many-requests"


@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/metrics"])
def test_an_operator_needs_no_key(serving: Serving, path: str) -> None:
    """Probes and scrapes are open, and say nothing of anybody."""
    with serving.client(None) as nobody:
        assert nobody.get(path).status_code == 200


def test_a_full_pool_says_so(server_pool_folder: object) -> None:
    """507 with advice, and what was stored is still read."""
    pool = f"{server_pool_folder}/small.pool"
    Pool.open(pool, create=True, capacity="16 MiB").close()
    with Serving(pool, 1, tidy_s=0) as server:
        crowd = Crowd(server)
        with crowd.as_user("ann") as ann:
            conversation, (first,) = said(ann, "Hello")
            path = f"/v1/conversations/{conversation}/items"
            items = {"items": [{"role": "user", "content": "x" * 100_000, "answers": None}] * 10}
            for _ in range(40):
                answer = ann.post(path, json=items)
                if answer.status_code != 200:
                    break
            assert answer.status_code == 507 and answer.json()["error"]["code"] == "pool_full"
            assert ann.get(f"{path}/{first}").status_code == 200


def test_who_guesses_keys_is_told_to_wait(pool_path: str) -> None:
    """After some wrong keys from one address the next are a 429 with a time to return; a right key is not kept waiting."""
    with Serving(pool_path, 1, rate=1000) as server, server.client("sr_wrong") as guesser, server.client() as admin:
        statuses = [guesser.get("/v1/groups").status_code for _ in range(60)]
        assert statuses[0] == 401 and statuses[-1] == 429
        assert guesser.get("/v1/groups").headers["retry-after"].isdigit()
        assert admin.get("/v1/groups").status_code == 200
