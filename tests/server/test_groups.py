"""Groups, members and keys: who may do what, over real HTTP."""

from __future__ import annotations

import pytest

from tests.server.serving import Crowd, Serving, said


def test_the_fixed_way_in(serving: Serving) -> None:
    """Group, member, key, and the member's first question, as the clients that others run do it."""
    with serving.client() as admin:
        group = admin.post("/v1/groups", json={"name": "Hawaii"}).json()["id"]
        key = admin.post(f"/v1/groups/{group}/members", json={"user": "ann"}).json()["key"]
    with serving.client(key) as ann:
        answers = ann.post("/v1/ask", json={"question": "Is there a ferry to Maui?", "k": 3})
    assert answers.status_code == 200 and answers.json() == {"answers": []}


def test_only_the_admin_makes_groups(crowd: Crowd) -> None:
    """A member's key is refused with a problem that says why."""
    with crowd.as_user("ann") as ann:
        refused = ann.post("/v1/groups", json={"name": "mine"})
        assert refused.status_code == 403
        assert refused.headers["content-type"] == "application/problem+json"
        assert refused.json()["type"] == "urn:sharedrag:problem:not-allowed"


def test_a_member_sees_their_own_group_only(crowd: Crowd, serving: Serving) -> None:
    """Another group's things are not found, as if they were not there."""
    other = Crowd(serving, "Iceland")
    with crowd.as_user("ann") as ann, other.as_user("bob") as bob:
        conversation = bob.post("/v1/conversations", json={"items": [{"role": "user", "content": "Hot springs?"}]}).json()
        item = bob.get(f"/v1/conversations/{conversation['id']}/items").json()["data"][0]["id"]
        assert [one["id"] for one in ann.get("/v1/groups").json()["data"]] == [crowd.group]
        for method, path, body in (
            ("GET", f"/v1/groups/{other.group}", None),
            ("GET", f"/v1/groups/{other.group}/members", None),
            ("GET", f"/v1/groups/{other.group}/keys", None),
            ("PATCH", f"/v1/groups/{other.group}", {"name": "mine"}),
            ("POST", f"/v1/groups/{other.group}/members", {"user": "ann"}),
            ("GET", f"/v1/conversations/{conversation['id']}", None),
            ("POST", f"/v1/conversations/{conversation['id']}", {"metadata": {}}),
            ("GET", f"/v1/conversations/{conversation['id']}/items", None),
            ("POST", f"/v1/conversations/{conversation['id']}/items", {"items": [{"role": "user", "content": "x"}]}),
            ("GET", f"/v1/conversations/{conversation['id']}/items/{item}", None),
            ("POST", f"/v1/conversations/{conversation['id']}/fork", {}),
            ("POST", f"/v1/conversations/{conversation['id']}/lease", {}),
            ("DELETE", f"/v1/conversations/{conversation['id']}", None),
            ("POST", f"/v1/items/{item}/vote", {"value": 1}),
            ("POST", f"/v1/items/{item}/comments", {"text": "x"}),
            ("GET", f"/v1/items/{item}/standing", None),
        ):
            assert ann.request(method, path, json=body).status_code == 404, path
        named = ann.get("/v1/conversations", headers={"X-Sharedrag-Group": other.group})
        assert named.status_code == 404
        assert ann.post("/v1/ask", json={"question": "Hot springs?", "group": other.group}).status_code == 404


def test_a_revoked_key_counts_no_more(crowd: Crowd, other_node: Serving) -> None:
    """Revoked on one node, it is refused on the other in its next call."""
    with crowd.as_user("ann") as ann, crowd.as_user("ann", at=other_node) as ann_there:
        assert ann_there.get("/v1/groups").status_code == 200
        (key,) = ann.get(f"/v1/groups/{crowd.group}/keys").json()["data"]
        assert ann.delete(f"/v1/groups/{crowd.group}/keys/{key['id']}").status_code == 204
        refused = ann_there.get("/v1/groups")
        assert refused.status_code == 401 and refused.headers["www-authenticate"] == "Bearer"


def test_removing_a_member_takes_their_keys(crowd: Crowd) -> None:
    """Who was taken out is nobody any more."""
    with crowd.as_user("ann") as ann, crowd.serving.client() as admin:
        assert admin.delete(f"/v1/groups/{crowd.group}/members/ann").status_code == 204
        assert ann.get("/v1/groups").status_code == 401


def test_members_make_keys_for_themselves_only(crowd: Crowd) -> None:
    """Keys of others, and keys that are trusted, are the admin's to make."""
    keys = f"/v1/groups/{crowd.group}/keys"
    with crowd.as_user("ann") as ann:
        made = ann.post(keys, json={"label": "phone"})
        assert made.status_code == 201 and made.json()["user"] == "ann"
        assert ann.post(keys, json={"user": "bob"}).status_code == 403
        assert ann.post(keys, json={"trusted": True}).status_code == 403
        with crowd.serving.client(made.json()["key"]) as phone:
            assert phone.get(f"/v1/groups/{crowd.group}").json()["name"] == "Hawaii 2026"


def test_an_owner_cares_for_the_group(crowd: Crowd) -> None:
    """An owner renames it and lets people in, but cannot become one of them."""
    with crowd.as_user("olga", role="owner") as olga, crowd.as_user("ann") as ann:
        assert (
            olga.patch(f"/v1/groups/{crowd.group}", json={"policy": {"flags_to_hide": 2}}).json()["policy"]["flags_to_hide"]
            == 2
        )
        assert ann.patch(f"/v1/groups/{crowd.group}", json={"name": "x"}).status_code == 403
        let_in = olga.post(f"/v1/groups/{crowd.group}/members", json={"user": "new@example.org"})
        assert let_in.status_code == 201 and let_in.json()["key"].startswith("sr_")
        assert olga.post(f"/v1/groups/{crowd.group}/members", json={"user": "ann"}).status_code == 409
        assert {one["user"] for one in ann.get(f"/v1/groups/{crowd.group}/members").json()["data"]} == {
            "olga",
            "ann",
            "new@example.org",
        }
        assert olga.delete(f"/v1/groups/{crowd.group}/members/new@example.org").status_code == 204
        assert olga.post(f"/v1/groups/{crowd.group}/members", json={"user": "new@example.org"}).status_code == 201
        said(ann, "Where is the beach?")
        assert olga.delete(f"/v1/groups/{crowd.group}/members/ann").status_code == 204
        assert olga.post(f"/v1/groups/{crowd.group}/members", json={"user": "ann"}).status_code == 409, "nor by this way"
        with crowd.serving.client() as admin:
            assert admin.post(f"/v1/groups/{crowd.group}/members", json={"user": "ann"}).status_code == 201


def test_a_deleted_group_is_gone_with_its_keys(serving: Serving) -> None:
    """Its members' keys open nothing."""
    crowd = Crowd(serving, "for a day")
    with crowd.as_user("ann") as ann, serving.client() as admin:
        assert ann.delete(f"/v1/groups/{crowd.group}").status_code == 403
        assert admin.delete(f"/v1/groups/{crowd.group}").status_code == 204
        assert ann.get("/v1/groups").status_code == 401
        assert admin.get(f"/v1/groups/{crowd.group}").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"name": ""},
        {"name": 7},
        {"name": "x", "policy": {"retention_days": -1}},
        {"name": "x", "colour": "red"},
        {"name": "x", "policy": {"retention_days": 1e308}},
    ],
)
def test_a_group_that_means_nothing_is_refused(serving: Serving, body: dict[str, object]) -> None:
    """With 422 and the fields that are wrong."""
    with serving.client() as admin:
        refused = admin.post("/v1/groups", json=body)
    assert refused.status_code == 422 and refused.json()["fields"]
