"""People at the page, for tests and benches: Debian's chromium driven by Playwright, one context a person."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.serving import Serving

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Dialog

CHROMIUM = next((path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None)
WAIT_MS = 60_000  # how slow a machine is fails no test; the first embedding loads a model


@contextmanager
def chromium() -> Iterator[Browser]:
    """A headless browser; the test is skipped where there is none."""
    if CHROMIUM is None:
        pytest.skip("there is no chromium here: `make browser` installs Debian's")
    sync_api = pytest.importorskip("playwright.sync_api")
    sync_api.expect.set_options(timeout=WAIT_MS)
    with sync_api.sync_playwright() as playwright:
        # Its own sandbox wants user namespaces, which neither root nor a container has.
        arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


class Person:
    """Somebody with a browser of their own, at one server. What went wrong in it is in `errors`."""

    def __init__(self, browser: Browser, serving: Serving, width: int = 1280, height: int = 860, **context: Any) -> None:
        """`context` are options of Playwright's `new_context`."""
        self.context = browser.new_context(viewport={"width": width, "height": height}, **context)
        self.context.set_default_timeout(WAIT_MS)
        self.serving = serving
        self.errors: list[str] = []
        self.page = self.context.new_page()
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("console", lambda message: self._heard(message.type, message.text))
        self.page.on("dialog", self._opened)

    def _heard(self, kind: str, text: str) -> None:
        # A 404 or 423 that the page expects is logged by the browser all the same.
        if kind == "error" and "Failed to load resource" not in text:
            self.errors.append(text)

    def _opened(self, dialog: Dialog) -> None:
        self.errors.append(f"dialog: {dialog.message}")
        dialog.dismiss()

    def visit(self, view: str = "") -> None:
        """Open the page."""
        self.page.goto(f"{self.serving.url}/{view}")

    def sign_in(self, key: str, view: str = "") -> None:
        """Open the page and sign in with a member's key."""
        self.visit(view)
        self.page.get_by_label("Your key").fill(key)
        self.page.get_by_role("button", name="Sign in").click()
        self.page.get_by_role("button", name="Sign out").wait_for()

    def ask(self, question: str) -> None:
        """Ask, and wait for the answers, or for the word that there are none."""
        self.page.get_by_label("Your question").fill(question)
        self.page.get_by_role("button", name="Ask", exact=True).click()
        self.page.get_by_role("region", name="Answers").get_by_role("heading").wait_for()

    def close(self) -> None:
        """Close the browser's window."""
        self.context.close()
