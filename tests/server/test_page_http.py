"""What the page is made of and how it is served; what the map tells to whom."""

from __future__ import annotations

import gzip
import itertools
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import orjson
import pytest

from server.routes import page
from sharedrag import Pool
from sharedrag.watch import PoolSample
from tests.server.serving import Crowd, Serving, said

SIZE_MAX = 300_000


@pytest.fixture
def visitor(serving: Serving) -> Iterator[httpx.Client]:
    """A client without a key."""
    with serving.client(None) as client:
        yield client


def _parts(visitor: httpx.Client) -> list[str]:
    """The paths that the page names."""
    return [f"/{path}" for path in re.findall(r'(?:href|src)="(page/[^"]+)"', visitor.get("/").text)]


def test_the_page_is_whole_small_and_from_here_alone(visitor: httpx.Client) -> None:
    """Every file that the page and its modules name is there; all of them have less than 300 KB; none points elsewhere."""
    paths = _parts(visitor)
    texts = {path: visitor.get(path) for path in paths}
    assert all(one.status_code == 200 for one in texts.values())
    modules = {path.rpartition("/")[2] for path in paths}
    for path, one in texts.items():
        assert set(re.findall(r'from "\./(\w+\.js)"', one.text)) <= modules, path  # else it would come late, or not at all
    everything = [visitor.get("/").text, *(one.text for one in texts.values())]
    assert sum(map(len, everything)) < SIZE_MAX
    assert not [url for text in everything for url in re.findall(r"https?://[^\s\"')]+", text) if "www.w3.org" not in url]
    assert {path.name for path in page.FOLDER.iterdir()} == modules | {"index.html"}


def test_browsers_keep_what_never_changes_and_ask_for_the_rest(visitor: httpx.Client) -> None:
    """Parts are under a version's name and kept for good; `/` is asked for again, and a 304 where it is the same."""
    first = visitor.get("/")
    assert first.headers["cache-control"] == "no-cache"
    again = visitor.get("/", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"") and again.headers["etag"] == first.headers["etag"]
    path = _parts(visitor)[-1]
    part = visitor.get(path)
    assert "immutable" in part.headers["cache-control"]
    other_version = visitor.get(re.sub(r"/page/\w+/", "/page/0000000000000000/", path))
    assert other_version.content == part.content and other_version.headers["cache-control"] == "no-cache"
    assert visitor.head("/").status_code == visitor.head(path).status_code == 200
    assert visitor.get("/page/x/nothing.js").status_code == 404
    assert visitor.get("/page/x/..%2Fsettings.py").status_code in (401, 404)


def test_it_is_packed_for_who_can_unpack(visitor: httpx.Client) -> None:
    """Packed by gzip where it is accepted, and the same bytes either way."""
    path = next(one for one in _parts(visitor) if one.endswith("style.css"))
    plain = visitor.get(path, headers={"Accept-Encoding": "identity"})
    with visitor.stream("GET", path, headers={"Accept-Encoding": "gzip"}) as packed:
        raw = b"".join(packed.iter_raw())
        assert packed.headers["content-encoding"] == "gzip" and packed.headers["vary"] == "accept-encoding"
    assert "content-encoding" not in plain.headers and gzip.decompress(raw) == plain.content
    assert len(raw) < len(plain.content) / 2


def test_the_policy_lets_nothing_in(visitor: httpx.Client) -> None:
    """No inline code, no foreign origins, no frames, no referrer; and the page needs none of them."""
    response = visitor.get("/")
    policy = response.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "*" not in policy
    assert "frame-ancestors 'none'" in policy and "require-trusted-types-for 'script'" in policy
    assert response.headers["x-content-type-options"] == "nosniff"
    assert response.headers["referrer-policy"] == "no-referrer"
    assert not re.search(r"<script>|<style|\son\w+=|\sstyle=|javascript:", response.text)
    for path in _parts(visitor):
        if path.endswith(".js"):
            assert not re.search(
                r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", visitor.get(path).text
            )


def _luminance(colour: str) -> float:
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_text_can_be_read_in_both_themes() -> None:
    """Contrast as WCAG 2.2 has it: 4.5 for texts on each ground, 3 for what only marks."""
    style = (page.FOLDER / "style.css").read_text()
    colours = re.findall(r"--([\w-]+): light-dark\((#[0-9a-f]{6}), (#[0-9a-f]{6})\)", style)
    themes = [{name: both[dark] for name, *both in colours} for dark in (0, 1)]
    texts = [(text, ground) for text in ("ink", "soft", "faint", "accent-text") for ground in ("paper", "card", "sunken")]
    texts += [
        ("accent-text", "accent-wash"),
        ("accent-ink", "accent"),
        ("bad", "bad-wash"),
        ("warn", "warn-wash"),
        ("ink", "warn-wash"),
    ]
    marks = [("line-strong", "card"), ("line-strong", "paper"), ("accent", "card")] + [
        (f"hue-{n}", "card") for n in range(8)
    ]
    for theme, (pair, least) in itertools.product(themes, [(one, 4.5) for one in texts] + [(one, 3.0) for one in marks]):
        light, dark = sorted((_luminance(theme[pair[0]]), _luminance(theme[pair[1]])), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= least, pair


def test_a_key_is_told_what_it_is(crowd: Crowd, serving: Serving) -> None:
    """`/v1/me` for a member, for the admin, and for nobody."""
    with crowd.as_user("Ann") as ann:
        told = ann.get("/v1/me").raise_for_status().json()
        assert (told["user"], told["group"], told["admin"], told["node"]) == ("Ann", crowd.group, False, "node-a")
        assert [one["id"] for one in told["groups"]] == [crowd.group] and told["role"] == "member"
    with serving.client() as admin:
        told = admin.get("/v1/me").raise_for_status().json()
        assert told["admin"] and told["user"] is None and crowd.group in [one["id"] for one in told["groups"]]
    with serving.client("sr_nobody") as nobody:
        assert nobody.get("/v1/me").status_code == 401


def test_recent_messages_are_the_groups_own(crowd: Crowd, serving: Serving) -> None:
    """The newest first, over all conversations of the group, and no other group's."""
    with crowd.as_user("Ann") as ann:
        said(ann, "First?", "One.")
        said(ann, "Second?")
        texts = [one["content"][0]["text"] for one in ann.get("/v1/recent").raise_for_status().json()["data"]]
        assert texts == ["Second?", "One.", "First?"]
    stranger = Crowd(serving, "Others")
    with stranger.as_user("Zoe") as zoe:
        assert zoe.get("/v1/recent").json()["data"] == []


def test_members_see_sizes_and_rates_but_nobodys_names(crowd: Crowd, server_pool: str, serving: Serving) -> None:
    """Other collections, paths, process ids and processes are the admin's to see; a map is as its model says."""
    with Pool.open(server_pool, name="stranger") as pool:
        pool.collection("secret-group-of-others").put(["a"], texts=["x"])
        with crowd.as_user("Ann") as ann, serving.client() as admin:
            seen, whole = ann.get("/v1/pool/map").raise_for_status(), admin.get("/v1/pool/map").raise_for_status()
    assert "secret-group" not in seen.text and server_pool not in seen.text
    for response in (seen, whole):
        PoolSample.model_validate_json(response.content)
    mine, all_of_it = seen.json(), whole.json()
    assert "secret-group-of-others" in [one["name"] for one in all_of_it["collections"]]
    assert mine["sessions"] == [] and all_of_it["sessions"]
    assert {lane["pid"] for lane in mine["lanes"]} == {0} and any(lane["pid"] for lane in all_of_it["lanes"])
    assert [one["rows"] for one in mine["collections"]] == [one["rows"] for one in all_of_it["collections"]]
    assert mine["allocated"] == all_of_it["allocated"]
    names = {run[4] for node in mine["nodes"] for run in node["runs"]} | {one["name"] for one in mine["collections"]}
    assert names <= {"", "history", "history.exchanges"} | {name for name in names if name.startswith("another")}
    with serving.client(None) as nobody:
        assert nobody.get("/v1/pool/map").status_code == nobody.get("/v1/pool/watch").status_code == 401


def _looks(response: httpx.Response) -> Iterator[dict[str, Any]]:
    for line in response.iter_lines():
        if line.startswith("data: "):
            yield orjson.loads(line[6:])


def test_looks_come_while_something_moves(crowd: Crowd) -> None:
    """Each look tells the rates since the one before; runs come again only with a node's new generation."""
    with crowd.as_user("Ann") as watcher, crowd.as_user("Bob") as bob, watcher.stream("GET", "/v1/pool/watch") as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        looks = _looks(response)
        first = next(looks)
        seen: list[dict[str, Any]] = []
        while len(seen) < 6:
            said(bob, "A question?", "An answer.")
            seen.append(next(looks))
    assert sum(one["rows_per_s"] for one in seen) > 0
    runs = {node["node"]: node for node in first["nodes"]}
    assert all(node["runs"] for node in runs.values())
    for look in seen:
        for node in look["nodes"]:
            same = node["generation"] == runs[node["node"]]["generation"]
            assert node["runs"] == [] if same else node["runs"]
            runs[node["node"]] = node


def test_nobody_watches_nobody_looks(serving: Serving, crowd: Crowd) -> None:
    """When the last watcher has gone, looking ends; whoever comes next gets a whole look again."""
    with crowd.as_user("Ann") as ann:
        for _ in range(3):
            with ann.stream("GET", "/v1/pool/watch") as response:
                assert next(_looks(response))["nodes"][0]["runs"]


def test_streams_are_counted_and_given_back(server_pool_folder: Path) -> None:
    """A worker refuses more streams than it takes, with a 503, and takes another when one has gone."""
    with Serving(str(server_pool_folder / "few.pool"), 1, streams=1) as server:
        crowd = Crowd(server)
        with crowd.as_user("Ann") as ann:
            with ann.stream("GET", "/v1/pool/watch") as response:
                looks = _looks(response)  # kept: a reader that is dropped closes its connection
                assert next(looks)["nodes"]
                with ann.stream("GET", "/v1/pool/watch") as refused:
                    assert refused.status_code == 503 and refused.headers["retry-after"]
            deadline = time.monotonic() + 20
            while time.monotonic() < deadline:
                with ann.stream("GET", "/v1/pool/watch") as response:
                    if response.status_code == 200:
                        assert next(_looks(response))["nodes"]
                        return
                time.sleep(0.1)
    raise AssertionError("the stream that has gone is still counted")
