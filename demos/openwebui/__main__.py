"""Open WebUI over one group's memory, tried as two people would: real servers, a real browser, and what the group holds.

`python -m demos.openwebui --command PATH/bin/open-webui`. Ann asks a model behind sharedrag. Bob asks the crowd in other
words and gets Ann's answer; then he asks the crowd and a model that has never heard of it side by side, and the filter shows
beside the model what the crowd knows; then in a temporary chat. At last the group's messages are listed: theirs under their
names, nothing else. It takes some two minutes, most of them Open WebUI's start. Where Open WebUI or a browser is missing, it
says so and ends.
"""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import httpx
import typer

from demos.openwebui import site
from demos.openwebui.guide import MODEL, Guide

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Request

FERRY = "Is there a ferry from Oahu to Maui?"
BOAT = "Can I take a boat from Honolulu to Maui?"
PARKING, TIP = "Where do we park for Hanauma Bay?", "In the lot at the top, before 7:30; later it is full. $3, cards only."
PARK = "Is there any parking at Hanauma Bay?"
SECRET = "Is a boat to Maui a good place to propose?"
WAIT_MS = 120_000


class Person:
    """Somebody at Open WebUI, in a browser window of their own."""

    def __init__(self, browser: Browser, url: str, email: str) -> None:
        """Sign in."""
        self._url = url
        self.page = browser.new_context(viewport={"width": 1000, "height": 620}).new_page()
        self.page.set_default_timeout(WAIT_MS)
        self.asked: list[Any] = []  # what the page sent for each question
        self.page.on("request", self._sent)
        self.page.goto(f"{url}/auth")
        self.page.locator("input[type=email]").fill(email)
        self.page.locator("input[type=password]").fill(site.PASSWORD)
        self.page.get_by_role("button", name="Sign in", exact=True).click()
        self.page.locator("#chat-input").wait_for()

    def _sent(self, request: Request) -> None:
        if request.method == "POST" and request.url.endswith("/api/chat/completions"):
            self.asked.append(request.post_data_json)

    def begin(self, models: str, *, temporary: bool = False) -> None:
        """A new chat with one model, or with several side by side."""
        self.page.goto(f"{self._url}/?models={models}" + ("&temporary-chat=true" if temporary else ""))
        self.page.locator("#chat-input").wait_for()
        self.page.wait_for_timeout(1500)  # it takes the models from the address after it has drawn itself

    def ask(self, question: str, *wanted: str) -> str:
        """Type it and send it; what is answered, when all that is wanted is in it or a minute has passed."""
        self.send(question)
        _until(lambda: all(one in self.heard() for one in wanted))
        self.page.wait_for_timeout(1000)  # the page tidies up
        return self.heard()

    def send(self, question: str) -> None:
        """Type it and send it."""
        self.page.locator("#chat-input").click()
        self.page.keyboard.type(question)
        self.page.keyboard.press("Enter")
        self.page.locator(".chat-assistant").last.wait_for()

    def heard(self) -> str:
        """What has been answered so far."""
        return "\n".join(self.page.locator(".chat-assistant").all_inner_texts())


class Report:
    """What was seen, line by line."""

    def __init__(self) -> None:
        self.failed = 0

    def check(self, seen: bool, what: str) -> None:
        """Print it, and count it if it was not so."""
        self.failed += not seen
        typer.echo(f"{'ok ' if seen else 'NOT'} {what}")


def _until(seen: Callable[[], bool], seconds: float = 60.0) -> bool:
    deadline = time.monotonic() + seconds
    while not seen() and time.monotonic() < deadline:
        time.sleep(0.2)
    return seen()


@contextmanager
def _chromium(path: str) -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        # Its own sandbox wants user namespaces, which neither root nor a container has.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=path, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def _group(url: str, admin_key: str) -> tuple[str, httpx.Client]:
    """A trusted key of a new group, and the group as its administrator sees it."""
    admin = httpx.Client(base_url=url, headers={"Authorization": f"Bearer {admin_key}"}, timeout=60)
    group = admin.post("/v1/groups", json={"name": "Hawaii 2026"}).raise_for_status().json()["id"]
    made = admin.post(f"/v1/groups/{group}/keys", json={"trusted": True, "label": "Open WebUI"}).raise_for_status().json()
    admin.headers["X-Sharedrag-Group"] = group
    return str(made["key"]), admin


def _set_up(admin: site.Administrator, told: str, crowd: str, guide: str, key: str) -> tuple[str, str]:
    """Open WebUI with its connections, the filter, and two users, whose addresses are returned."""
    emails = (admin.add_user("Ann"), admin.add_user("Bob"))
    admin.connect({"model": (f"{told}/v1", key), "crowd": (f"{crowd}/v1", key), "": (guide, "none")})
    admin.install(Path(__file__).with_name("crowd_filter.py"), {"url": crowd, "key": key, "remember": True})
    admin.publish("model.sharedrag", "A model that knows the crowd")
    admin.publish("crowd.sharedrag", "The crowd")
    admin.publish(MODEL, "A model by itself", (site.FILTER,))
    return emails


def _held(group: httpx.Client) -> list[tuple[str, str, str]]:
    """Author, role and text of everything that the group holds, oldest first."""
    held = []
    for one in group.get("/v1/conversations", params={"limit": 100, "order": "asc"}).raise_for_status().json()["data"]:
        items = group.get(f"/v1/conversations/{one['id']}/items", params={"limit": 100, "order": "asc"}).raise_for_status()
        held += [(item["author"], item["role"], item["content"][0]["text"]) for item in items.json()["data"]]
    return held


def _play(report: Report, browser: Browser, url: str, guide: Guide, emails: tuple[str, str], pictures: Path) -> None:
    """Ann and Bob at their windows."""
    ann, bob = (Person(browser, url, one) for one in emails)
    ann.begin("model.sharedrag")
    guide.may_end.clear()
    ann.send(FERRY)
    streamed = _until(lambda: "Superferry" in ann.heard()) and "minutes" not in ann.heard()
    guide.may_end.set()
    report.check(_until(lambda: "minutes" in ann.heard()), "Ann asks the model behind sharedrag, and it answers")
    report.check(streamed, "she reads its first words before it has said its last")
    report.check(_until(lambda: guide.chores >= 3), f"Open WebUI asks for a title, tags and follow-ups: {guide.chores}")
    ann.page.screenshot(path=pictures / "ann.png")

    bob.begin("crowd.sharedrag")
    heard = bob.ask(BOAT, emails[0])
    report.check("Superferry" in heard, "Bob asks the crowd in other words, and gets Ann's answer")
    report.check(emails[0] in heard and bob.asked[-1]["stream"] is True, "attributed to Ann, streamed")
    report.check(_until(lambda: bob.page.title().startswith("Can I take a boat")), "his chat has a title without any model")
    bob.page.screenshot(path=pictures / "bob.png")

    bob.begin(f"crowd.sharedrag,{MODEL}")
    beside = bob.ask(PARK, f"to the question: {PARKING}", "car park of its own", "1 Source")
    report.check(f"to the question: {PARKING}" in beside, "the crowd beside a model: it gives Ann's tip")
    report.check("a car park of its own" in beside, "a model that is not behind sharedrag answers without the crowd")
    report.check(
        f"The crowd: {emails[0]}" in beside and re.search("just now|ago", beside) is not None,
        "the filter shows Ann's tip beside it, and its age",
    )
    bob.page.get_by_role("button", name="Source").first.click()
    bob.page.wait_for_timeout(1000)
    bob.page.screenshot(path=pictures / "filter.png")

    bob.begin("crowd.sharedrag", temporary=True)
    heard = bob.ask(SECRET, emails[0])
    report.check("Superferry" in heard, "a temporary chat is answered, too")


def main(
    command: Annotated[str, typer.Option(help="Open WebUI's command.")] = "open-webui",
    pictures: Annotated[Path | None, typer.Option(help="Folder for screenshots; by default none are kept.")] = None,
) -> None:
    """Try it; exit code 1 if something was not as it should be."""
    browser_path = next((path for name in ("chromium", "google-chrome") if (path := shutil.which(name))), None)
    program = shutil.which(command)
    if program is None or browser_path is None:
        missing = (
            "a chromium" if program else f"Open WebUI ({command}; `pip install open-webui` in an environment of its own)"
        )
        typer.echo(f"Skipped: there is no {missing} here.")
        return
    report, admin_key = Report(), secrets.token_urlsafe(24)
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharedrag-openwebui-")))
        pool = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sharedrag-", dir="/dev/shm"))) / "group.pool"
        guide = Guide()
        stack.callback(guide.stop)
        webui = stack.enter_context(site.open_webui(program, folder))
        told = stack.enter_context(site.sharedrag("node-1", folder, pool, admin_key, upstream_url=guide.url))
        told.wait_until_ready("/readyz")
        crowd = stack.enter_context(site.sharedrag("node-2", folder, pool, admin_key))
        for server, path in ((crowd, "/readyz"), (webui, "/health")):
            server.wait_until_ready(path)
        typer.echo("Open WebUI and two nodes of one pool are up")

        key, group = _group(crowd.url, admin_key)
        emails = _set_up(site.Administrator(webui.url), told.url, crowd.url, guide.url, key)
        group.headers["X-Sharedrag-User"] = emails[0]
        tip = [{"role": "user", "content": PARKING}, {"role": "assistant", "content": TIP}]
        group.post("/v1/conversations", json={"items": tip}).raise_for_status()  # as from another chat app of Ann's

        kept = pictures or folder
        kept.mkdir(parents=True, exist_ok=True)
        with _chromium(browser_path) as browser:
            _play(report, browser, webui.url, guide, emails, kept)
        _until(lambda: len(_held(group)) == 10, 10)
        held = _held(group)
        typer.echo(
            "\nThe group holds:\n" + "\n".join(f"  {who:16} {role:9} {text[:76]!r}" for who, role, text in held) + "\n"
        )
        asked = [(who, text) for who, role, text in held if role == "user"]
        expected = [(emails[0], PARKING), (emails[0], FERRY), (emails[1], BOAT), (emails[1], PARK), (emails[1], PARK)]
        report.check(asked == expected and len(held) == 10, "these five exchanges under their own names, and nothing else")
    raise typer.Exit(code=1 if report.failed else 0)


if __name__ == "__main__":
    typer.run(main)
