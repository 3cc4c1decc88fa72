"""Conversations, items and what members make of them, over real HTTP and several workers."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from tests.server.serving import Crowd, Serving, said


def test_what_one_says_another_finds_on_every_worker_and_node(crowd: Crowd, other_node: Serving) -> None:
    """Read your writes: ten connections at each of two nodes see a message right after its call returned."""
    with crowd.as_user("ann") as ann:
        conversation, _ = said(ann, "Is there a ferry to Maui?", "No, fly.")
        for at in (crowd.serving, other_node) * 10:
            with crowd.as_user("bob", at=at) as bob:
                items = bob.get(f"/v1/conversations/{conversation}/items", params={"order": "asc"}).json()["data"]
                assert [one["content"][0]["text"] for one in items] == ["Is there a ferry to Maui?", "No, fly."]
                assert [one["author"] for one in items] == ["ann", "ann"]


def test_pages_by_cursor(crowd: Crowd) -> None:
    """`after` and `limit` walk through all items in either order, each once."""
    with crowd.as_user("ann") as ann:
        conversation, ids = said(ann, *[f"{number}" for number in range(20)])
        for order in ("asc", "desc"):
            seen: list[str] = []
            after: dict[str, str] = {}
            while True:
                page = ann.get(
                    f"/v1/conversations/{conversation}/items", params={"limit": "7", "order": order, **after}
                ).json()
                seen += [one["id"] for one in page["data"]]
                if not page["has_more"]:
                    break
                after = {"after": page["last_id"]}
            assert seen == (ids if order == "asc" else ids[::-1])
        assert ann.get(f"/v1/conversations/{conversation}/items", params={"limit": 101}).status_code == 400


def test_an_update_wants_what_it_read(crowd: Crowd) -> None:
    """If-Match lets one of two writers through; the other is told with 412, in OpenAI's shape."""
    with crowd.as_user("ann") as ann:
        made = ann.post("/v1/conversations", json={"metadata": {"topic": "ferries"}})
        path, etag = f"/v1/conversations/{made.json()['id']}", made.headers["etag"]
        first = ann.post(path, json={"metadata": {"topic": "flights"}}, headers={"If-Match": etag})
        second = ann.post(path, json={"metadata": {"topic": "boats"}}, headers={"If-Match": etag})
        assert first.status_code == 200 and first.headers["etag"] != etag
        assert second.status_code == 412 and second.json()["error"]["code"] == "changed"
        got = ann.get(path)
        assert got.json()["metadata"] == {"topic": "flights"} and got.headers["etag"] == first.headers["etag"]
        assert ann.get(path, headers={"If-None-Match": got.headers["etag"]}).status_code == 304


def test_an_idempotency_key_makes_a_call_count_once(crowd: Crowd, other_node: Serving) -> None:
    """Sent again and at once, at both nodes, it is stored once, and every call gets the same answer."""
    headers = {"Idempotency-Key": "the-same"}
    body = {"items": [{"role": "user", "content": "Once?"}, {"role": "assistant", "content": "Once."}]}

    def begin(at: Serving) -> str:
        with crowd.as_user("ann", at=at) as ann:
            return str(ann.post("/v1/conversations", json=body, headers=headers).raise_for_status().json()["id"])

    crowd.key("ann")
    with ThreadPoolExecutor(8) as threads:
        ids = set(threads.map(begin, [crowd.serving, other_node] * 8))
    assert len(ids) == 1
    with crowd.as_user("ann") as ann:
        path = f"/v1/conversations/{ids.pop()}/items"
        assert len(ann.get(path).json()["data"]) == 2
        more = {"items": [{"role": "user", "content": "More?"}]}
        answers = [ann.post(path, json=more, headers={"Idempotency-Key": "more"}) for _ in range(2)]
        assert answers[0].json() == answers[1].json() and len(ann.get(path).json()["data"]) == 3
        other = {"items": [{"role": "user", "content": "Something else"}]}
        assert ann.post(path, json=other, headers={"Idempotency-Key": "more"}).status_code == 409


def test_a_fork_shows_what_was_and_goes_its_own_way(crowd: Crowd) -> None:
    """Both show the messages up to the fork; what either says afterwards is its own."""
    with crowd.as_user("ann") as ann, crowd.as_user("bob") as bob:
        conversation, ids = said(ann, "one", "two", "three")
        fork = bob.post(f"/v1/conversations/{conversation}/fork", json={"message": ids[1]}).raise_for_status().json()
        assert fork["fork"] == {"conversation": conversation, "message": ids[1]} and fork["user"] == "bob"
        said(bob, "other", conversation=fork["id"])
        for shown, texts in ((conversation, ["one", "two", "three"]), (fork["id"], ["one", "two", "other"])):
            items = ann.get(f"/v1/conversations/{shown}/items", params={"order": "asc"}).json()["data"]
            assert [one["content"][0]["text"] for one in items] == texts


def test_the_wheel(crowd: Crowd, other_node: Serving) -> None:
    """While Ann has the wheel, Bob cannot append at either node; her token can, and an old token cannot."""
    with crowd.as_user("ann") as ann, crowd.as_user("bob", at=other_node) as bob:
        conversation, _ = said(ann, "Hello")
        path = f"/v1/conversations/{conversation}"
        assert bob.get(f"{path}/lease").status_code == 404
        lease = ann.post(f"{path}/lease", json={"seconds": 30}).raise_for_status().json()
        assert bob.get(f"{path}/lease").json()["holder"] == "ann"
        body = {"items": [{"role": "user", "content": "mine"}]}
        refused = bob.post(f"{path}/items", json=body)
        assert refused.status_code == 423 and refused.json()["error"]["code"] == "wheel_taken"
        assert bob.post(f"{path}/lease", json={}).status_code == 423
        token = {"X-Sharedrag-Lease": str(lease["token"])}
        assert ann.post(f"{path}/items", json=body, headers=token).status_code == 200
        assert ann.request("DELETE", f"{path}/lease", params={"token": lease["token"]}).status_code == 200
        mine = bob.post(f"{path}/lease", json={}).raise_for_status().json()
        assert mine["token"] > lease["token"]
        assert ann.post(f"{path}/items", json=body, headers=token).status_code in (409, 423)
        assert bob.post(f"{path}/items", json=body, headers={"X-Sharedrag-Lease": str(mine["token"])}).status_code == 200


def test_marks_on_a_message(crowd: Crowd) -> None:
    """Votes, confirmations, comments, corrections and flags, each as its rules have it."""
    with crowd.as_user("ann") as ann, crowd.as_user("bob") as bob, crowd.as_user("mia", role="moderator") as mia:
        conversation, (_, answer) = said(ann, "Is there a ferry?", "Yes, daily.")
        _, (_, better) = said(ann, "Is there a ferry?", "Not any more.")
        item = f"/v1/items/{answer}"
        assert ann.post(f"{item}/vote", json={"value": 1}).status_code == 403  # one's own
        assert bob.post(f"{item}/vote", json={"value": 1}).json()["up"] == 1
        changed = bob.put(f"{item}/vote", json={"value": -1}).json()
        assert (changed["up"], changed["down"]) == (0, 1)
        assert bob.post(f"{item}/vote", json={"value": 2}).status_code == 422
        assert bob.post(f"{item}/confirm").json()["confirmed"] is not None
        assert bob.request("DELETE", f"{item}/confirm").json()["confirmed"] is None
        comment = bob.post(f"{item}/comments", json={"text": "Since when?"}).raise_for_status().json()
        assert [one["id"] for one in ann.get(f"{item}/comments").json()["data"]] == [comment["id"]]
        assert ann.delete(f"{item}/comments/{comment['id']}").status_code == 403
        assert bob.delete(f"{item}/comments/{comment['id']}").status_code == 204
        assert ann.post(f"{item}/supersede", json={"by": better}).json()["superseded_by"] == better
        assert ann.request("DELETE", f"{item}/supersede").json()["superseded_by"] is None
        assert bob.post(f"{item}/flag", json={"reason": "wrong"}).json()["flags"] == 1
        assert bob.put(f"{item}/moderation", json={"state": "hidden"}).status_code == 403
        assert mia.put(f"{item}/moderation", json={"state": "hidden"}).json()["moderation"] == "hidden"
        under = f"/v1/conversations/{conversation}/items/{answer}/standing"
        assert ann.get(under).json()["moderation"] == "hidden"
        assert ann.get(f"/v1/conversations/{conversation}/items/{better}/standing").status_code == 404


def test_an_exchange_is_found_and_then_forgotten(crowd: Crowd, other_node: Serving) -> None:
    """Bob's question at the other node finds Ann's answer; when Ann is erased, nothing of hers is found anywhere."""
    with crowd.as_user("ann") as ann, crowd.as_user("bob", at=other_node) as bob, crowd.serving.client() as admin:
        said(ann, "Can I take a ferry from Oahu to Maui?", "There is none any more; fly.")
        asked = {"question": "Is there a ferry between Oahu and Maui?", "k": 3, "explain": True}
        (found,) = bob.post("/v1/ask", json=asked).raise_for_status().json()["answers"]
        assert found["question"] == "Can I take a ferry from Oahu to Maui?"
        assert found["answer"] == "There is none any more; fly." and found["author"] == "ann"
        assert found["score"] > 0 and set(found["explain"]) >= {"similarity", "relevance", "quality", "freshness", "trust"}
        assert bob.post("/v1/search", json={"query": "ferry Maui"}).json()["messages"]
        mine = ann.get("/v1/users/ann/export").raise_for_status().json()
        assert "There is none any more; fly." in str(mine["data"])
        assert bob.get("/v1/users/ann/export").status_code == 403
        erased = (
            admin.delete("/v1/users/ann", headers={"X-Sharedrag-Group": crowd.group}).raise_for_status().json()["erased"]
        )
        assert erased["messages"] == 2
        assert bob.post("/v1/ask", json=asked).json() == {"answers": []}
        assert bob.post("/v1/search", json={"query": "ferry Maui"}).json() == {"messages": []}
        assert ann.get("/v1/groups").status_code == 401


def test_a_vector_of_the_wrong_width_is_refused(crowd: Crowd) -> None:
    """The problem says what would be right."""
    with crowd.as_user("ann") as ann:
        said(ann, "Can I sail?", "No.")
        refused = ann.post("/v1/ask", json={"question": "x", "vector": [1.0, 2.0]})
        assert refused.status_code == 422 and "384" in refused.json()["detail"]


def test_parts_beyond_text_are_kept(crowd: Crowd) -> None:
    """A message with an image comes back with its parts; its text is what is searched."""
    parts = [{"type": "input_text", "text": "Which beach is this?"}, {"type": "input_image", "image_url": "https://x/y.png"}]
    with crowd.as_user("ann") as ann:
        made = ann.post("/v1/conversations", json={"items": [{"role": "user", "content": parts}]}).json()
        (item,) = ann.get(f"/v1/conversations/{made['id']}/items").json()["data"]
        assert item["content"] == parts
        only_image = {"items": [{"role": "user", "content": parts[1:]}]}
        refused = ann.post(f"/v1/conversations/{made['id']}/items", json=only_image)
        assert refused.status_code == 400 and refused.json()["error"]["type"] == "invalid_request_error"
