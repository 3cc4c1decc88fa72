"""People at the page: two browsers at two servers over one pool; by keyboard alone, at night, on a phone, with malice."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

from tests.server.browsing import Person, chromium
from tests.server.serving import Crowd, Serving, said

if TYPE_CHECKING:
    from playwright.sync_api import Browser

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

QUESTION = "Is there a ferry from Oahu to Maui?"
ANSWER = "No ferry sails there any more since 2009. Fly: forty minutes."
NOBODY = "Nobody has answered this yet."


def expect(what: Any) -> Any:
    """Playwright's assertions, which wait until they hold."""
    from playwright import sync_api

    return sync_api.expect(what)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """One chromium for this module."""
    with chromium() as started:
        yield started


@pytest.fixture
def person(browser: Browser, crowd: Crowd) -> Iterator[Person]:
    """Bob, signed in, in a group in which Ann has answered one question."""
    with crowd.as_user("Ann") as ann:
        said(ann, QUESTION, ANSWER)
    bob = Person(browser, crowd.serving)
    bob.sign_in(crowd.key("Bob"))
    yield bob
    bob.close()
    assert not bob.errors


def test_what_one_learns_on_one_node_the_next_finds_on_another(browser: Browser, crowd: Crowd, other_node: Serving) -> None:
    """Bob's question reaches Ann live, her answer him; he finds it, votes, confirms, remarks, forks, takes the wheel."""
    ann, bob = Person(browser, crowd.serving), Person(browser, other_node)
    ann.sign_in(crowd.key("Ann"))
    bob.sign_in(crowd.key("Bob"))

    bob.ask(QUESTION)
    expect(bob.page.get_by_role("heading", name=NOBODY)).to_be_visible()
    bob.page.get_by_role("button", name="Put it to the group").click()
    expect(bob.page.get_by_role("heading", name=QUESTION)).to_be_visible()

    heard = ann.page.locator("#feed li").first
    expect(heard).to_contain_text(QUESTION)
    expect(heard).to_contain_text("Bob")
    expect(heard).to_contain_text("node-b")
    heard.get_by_role("link").click()
    ann.page.get_by_role("button", name="Answer").click()
    ann.page.get_by_label("Your message").fill(ANSWER)
    ann.page.get_by_role("button", name="Send").click()
    expect(bob.page.get_by_role("list", name="Turns")).to_contain_text(ANSWER)
    expect(bob.page.locator("#feed li").first).to_contain_text(ANSWER)

    answer = _find(bob, "Does a ferry sail between Oahu and Maui?", ANSWER)
    expect(answer).to_contain_text("Ann")
    expect(answer).to_contain_text("node-a")
    expect(answer).to_contain_text(re.compile(r"score\s*0\.\d\d|score\s*1\.\d\d"))
    answer.get_by_role("button", name="Why").click()
    for factor in ("Relevance", "Votes", "Freshness", "Trust"):
        expect(answer.get_by_text(factor, exact=True)).to_be_visible()
    _mark(bob, ann, answer)
    _fork_and_drive(bob, ann, answer)
    assert not ann.errors and not bob.errors
    ann.close()
    bob.close()


def _find(person: Person, question: str, answer: str) -> Any:
    """Ask, and return the card of that answer."""
    person.page.get_by_role("link", name="Ask", exact=True).click()
    person.ask(question)
    card = person.page.get_by_role("article").filter(has_text=answer)
    expect(card).to_have_count(1)
    return card


def _mark(bob: Person, ann: Person, answer: Any) -> None:
    """What Bob makes of the answer, Ann sees in the conversation that she has open, on the other node."""
    turn = ann.page.locator("li.turn").filter(has_text=ANSWER)
    answer.get_by_role("button", name=re.compile("^Helpful")).click()
    expect(answer.get_by_role("button", name="Helpful: one vote")).to_have_attribute("aria-pressed", "true")
    expect(turn.get_by_role("button", name="Helpful: one vote")).to_be_disabled()  # her own message
    answer.get_by_role("button", name="Still true").click()
    expect(turn.get_by_role("button", name=re.compile("Still true, "))).to_be_visible()
    answer.get_by_role("button", name="Comment").click()
    answer.get_by_label("Add a comment").fill("It was so in May, too.")
    answer.get_by_role("button", name="Comment", exact=True).last.click()
    expect(answer.get_by_role("list", name="Comments")).to_contain_text("It was so in May, too.")
    expect(turn.get_by_role("button", name="one comment")).to_be_visible()
    expect(ann.page.locator("#feed")).to_contain_text("says that an answer is still true")


def _fork_and_drive(bob: Person, ann: Person, answer: Any) -> None:
    """Bob forks; then he takes the wheel of the first conversation, and only he can write there until he lets go."""
    answer.get_by_role("link", name="Open the conversation").click()
    wheel = bob.page.get_by_role("region", name="The wheel")
    expect(wheel).to_contain_text("Nobody has the wheel")
    original = bob.page.url
    bob.page.get_by_role("button", name="Fork", exact=True).first.click()
    expect(bob.page.get_by_role("link", name="forked from here")).to_be_visible()
    expect(bob.page.get_by_role("list", name="Turns")).to_contain_text(ANSWER)
    bob.page.get_by_label("Your message").fill("Only in my fork")
    bob.page.get_by_role("button", name="Send").click()
    expect(bob.page.get_by_role("list", name="Turns")).to_contain_text("Only in my fork")

    bob.page.goto(original)
    bob.page.get_by_role("button", name="Take the wheel").click()
    expect(wheel).to_contain_text("You have the wheel")
    seen = ann.page.get_by_role("region", name="The wheel")
    expect(seen).to_contain_text("Bob has the wheel")
    expect(ann.page.get_by_label("Your message")).to_be_disabled()
    expect(ann.page.get_by_role("list", name="Turns")).not_to_contain_text("Only in my fork")
    bob.page.get_by_label("Your message").fill("I drive")
    bob.page.get_by_role("button", name="Send").click()
    expect(ann.page.get_by_role("list", name="Turns")).to_contain_text("I drive")
    bob.page.get_by_role("button", name="Let go").click()
    expect(seen).to_contain_text("Nobody has the wheel")
    expect(ann.page.get_by_label("Your message")).to_be_enabled()


def test_the_map_moves_as_the_pool_is_used(person: Person, crowd: Crowd) -> None:
    """While others write, the rate, the records and the picture change; all of it is in a table too."""
    page = person.page
    page.get_by_role("link", name="Pool", exact=True).click()
    expect(page.get_by_role("heading", name="The pool")).to_be_focused()
    canvas = page.get_by_role("img", name=re.compile("used by .* of extents"))
    expect(canvas).to_be_visible()
    before, records = canvas.evaluate("it => it.toDataURL()"), page.get_by_text("Live records").locator("+ dd").inner_text()
    with crowd.as_user("Ann") as ann:
        for number in range(60):
            said(ann, f"Question {number}?", f"Answer {number}")
            if number > 5 and "rows/s" in page.get_by_text("Written now").locator("+ dd").inner_text():
                break
    expect(page.get_by_text("Written now").locator("+ dd")).to_contain_text("rows/s")
    assert page.get_by_text("Live records").locator("+ dd").inner_text() != records
    page.wait_for_function("before => document.querySelector('canvas.map').toDataURL() !== before", arg=before)
    expect(page.get_by_text("Written now").locator("+ dd")).to_contain_text("idle")  # and comes to rest

    lanes = page.get_by_role("region", name="Lanes: who may append")
    expect(lanes).to_contain_text("node-a")
    expect(lanes).not_to_contain_text("pid")  # a member's key
    expect(page.get_by_role("region", name="Collections")).to_contain_text("history.exchanges")
    page.get_by_text("The map as a table").click()
    expect(page.get_by_role("row").filter(has_text="Segment, open").first).to_be_visible()


def test_by_keyboard_alone(browser: Browser, crowd: Crowd) -> None:
    """Signing in, asking, seeing why, voting and going round: no mouse, focus always to be seen."""
    with crowd.as_user("Ann") as ann:
        said(ann, QUESTION, ANSWER)
    bob = Person(browser, crowd.serving)
    page, keys = bob.page, bob.page.keyboard
    bob.visit()
    expect(page.get_by_label("Your key")).to_be_focused()
    keys.insert_text(crowd.key("Bob"))
    keys.press("Enter")
    expect(page.get_by_label("Your question")).to_be_focused()
    keys.insert_text(QUESTION)
    keys.press("Enter")
    expect(page.get_by_role("article")).to_contain_text(ANSWER)
    _tab_to(bob, "Why")
    keys.press("Enter")
    expect(page.get_by_text("Freshness", exact=True)).to_be_visible()
    _tab_to(bob, "Helpful: 0 votes")
    keys.press("Space")
    expect(page.get_by_role("button", name="Helpful: one vote")).to_be_focused()
    _tab_to(bob, "Open the conversation")
    keys.press("Enter")
    expect(page.get_by_role("list", name="Turns")).to_contain_text(ANSWER)
    keys.press("/")
    expect(page.get_by_label("Your question")).to_be_focused()
    page.locator("body").focus()
    page.evaluate("document.activeElement.blur()")
    _tab_to(bob, "Skip to the content", reach_around=True)
    keys.press("Enter")
    expect(page.locator("#main")).to_be_focused()
    _tab_to(bob, "Sign out", reach_around=True)
    keys.press("Enter")
    expect(page.get_by_label("Your key")).to_be_focused()
    assert page.evaluate("Object.keys(sessionStorage)") == []
    assert not bob.errors
    bob.close()


def _tab_to(person: Person, name: str, reach_around: bool = False) -> None:
    """Press Tab until something of this name has the focus; whatever has it on the way can be seen to have it."""
    look = """() => {
        const it = document.activeElement, style = getComputedStyle(it);
        const seen = style.outlineStyle !== "none" || style.boxShadow !== "none"
            || getComputedStyle(it.closest("form") ?? it).boxShadow !== "none";
        return [it.getAttribute("aria-label") ?? it.textContent.trim(), it === document.body || seen];
    }"""
    for _ in range(160 if reach_around else 80):
        person.page.keyboard.press("Tab")
        found, seen = person.page.evaluate(look)
        assert seen, f"nobody sees that {found!r} has the focus"
        if found == name:
            return
    raise AssertionError(f"no Tab leads to {name!r}")


def test_light_and_dark(browser: Browser, crowd: Crowd) -> None:
    """The page follows the device, until one chooses; the choice outlives a reload and flashes nothing."""
    bob = Person(browser, crowd.serving, color_scheme="dark")
    bob.sign_in(crowd.key("Bob"))
    paper = "getComputedStyle(document.body).backgroundColor"
    dark = bob.page.evaluate(paper)
    bob.page.get_by_role("button", name="Colours: as the device").click()
    light = bob.page.evaluate(paper)
    assert max(_channels(dark)) < 60 and min(_channels(light)) > 220
    bob.page.reload()
    assert bob.page.evaluate(paper) == light
    bob.page.get_by_role("button", name="Colours: light").click()
    bob.page.get_by_role("button", name="Colours: dark").click()
    bob.page.emulate_media(color_scheme="light")
    assert bob.page.evaluate(paper) == light
    assert not bob.errors
    bob.close()


def _channels(colour: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", colour)[:3]]


def test_on_a_phone(browser: Browser, crowd: Crowd) -> None:
    """360 pixels are enough for every view: nothing sticks out at the side, and what is tapped can be hit."""
    with crowd.as_user("Ann") as ann:
        conversation, _ = said(ann, QUESTION, ANSWER + " " + "Aloha" * 60, "x" * 300, "A last word.")
    bob = Person(browser, crowd.serving, width=360, height=740, has_touch=True, is_mobile=True)
    bob.sign_in(crowd.key("Bob"))
    bob.ask(QUESTION)
    bob.page.get_by_role("button", name="Why").first.tap()
    views = ("#/ask", "#/conversations", f"#/c/{conversation}", "#/pool", "#/live")
    for view in views:
        bob.page.evaluate("view => { location.hash = view; }", view)
        expect(bob.page.locator("main h1, #feed-title").filter(visible=True).first).to_be_visible()
        time.sleep(0.2)
        assert bob.page.evaluate("document.documentElement.scrollWidth") <= 360, view
        small = bob.page.evaluate("""() => [...document.querySelectorAll("button, nav a, input, textarea")]
            .filter(it => it.getClientRects().length && it.getBoundingClientRect().height < 24)
            .filter(it => !it.closest("label")).map(it => it.outerHTML)""")
        assert not small, view
    expect(bob.page.locator("#feed")).to_contain_text("Aloha")
    assert not bob.errors
    bob.close()


def test_what_people_write_is_never_markup(browser: Browser, crowd: Crowd) -> None:
    """Names, texts, titles, models and remarks that want to be code are shown as they are, and nothing of them runs."""
    evil = "<img src=x onerror=alert(1)><script>window.hacked = 1</script>"
    name = "<svg onload=alert(2)>Eve"
    with crowd.as_user(name) as eve:
        made = eve.post("/v1/conversations", json={"metadata": {"title": f"{evil} title"}}).json()["id"]
        items = [
            {"role": "user", "content": f"{evil} is this a ferry?"},
            {"role": "assistant", "content": f"{evil} \"' javascript:alert(3) \u202egnp.exe", "model": "<b>model</b>"},
        ]
        stored = eve.post(f"/v1/conversations/{made}/items", json={"items": items}).raise_for_status().json()["data"]
    bob = Person(browser, crowd.serving)
    bob.sign_in(crowd.key("Bob"))
    with crowd.as_user(name) as eve:
        eve.post(f"/v1/items/{stored[1]['id']}/comments", json={"text": f"{evil} remark"}).raise_for_status()
        said(eve, f"{evil} live")
    page = bob.page
    expect(page.locator("#feed")).to_contain_text(f"{evil} live")
    expect(page.locator("#feed")).to_contain_text(f"remarked: {evil} remark")
    bob.ask(f"{evil} is this a ferry?")
    expect(page.get_by_role("article").first).to_contain_text(name)
    page.get_by_role("button", name="one comment").click()
    expect(page.get_by_role("list", name="Comments")).to_contain_text(f"{evil} remark")
    page.evaluate("id => { location.hash = `#/c/${id}`; }", made)
    expect(page.get_by_role("heading", level=1)).to_have_text(f"{evil} title")
    expect(page.get_by_role("list", name="Turns")).to_contain_text("<b>model</b>")
    expect(page.get_by_role("list", name="Turns")).to_contain_text("\ufffdgnp.exe")
    page.get_by_role("link", name="Conversations", exact=True).click()
    expect(page.locator(".list")).to_contain_text(f"{evil} title")
    assert page.evaluate(
        "[window.hacked, document.querySelectorAll('img, b > script, main script, #rail script').length]"
    ) == [None, 0]
    assert not bob.errors
    with pytest.raises(Exception, match="TrustedHTML"):  # even a mistake of ours could not insert markup
        page.evaluate("document.body.insertAdjacentHTML('beforeend', '<p>x</p>')")
    bob.close()


def test_every_view_passes_an_accessibility_audit(person: Person, crowd: Crowd) -> None:
    """axe-core finds nothing in any view, in light and in dark; and the landmarks are there."""
    axe = pytest.importorskip("axe_playwright_python.sync_playwright").Axe()
    page = person.page
    person.ask(QUESTION)
    page.get_by_role("button", name="Why").first.click()
    page.get_by_role("button", name="Comment").first.click()
    page.get_by_label("Add a comment").wait_for()
    with crowd.as_user("Bob") as bob:
        conversation = bob.get("/v1/conversations").json()["data"][0]["id"]
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        for view in ("#/ask", "#/conversations", f"#/c/{conversation}", "#/pool"):
            page.evaluate("view => { location.hash = view; }", view)
            page.wait_for_function("view => location.hash === view && document.querySelector('main h1')", arg=view)
            expect(page.get_by_text("Looking…").filter(visible=True)).to_have_count(0)
            found = axe.run(page, options={"resultTypes": ["violations"]}).response["violations"]
            assert not [(one["id"], [node["html"] for node in one["nodes"]]) for one in found], (scheme, view)
    for role in ("banner", "navigation", "main", "complementary"):
        page.evaluate("location.hash = '#/ask'")
        expect(page.get_by_role(role)).to_have_count(1)
    assert page.get_by_role("status").count() >= 1


def test_nothing_jumps_while_it_loads(browser: Browser, crowd: Crowd) -> None:
    """The shifts of the layout from the first paint to a full view stay under what a person notices."""
    with crowd.as_user("Ann") as ann:
        conversation, _ = said(ann, QUESTION, ANSWER)
    bob = Person(browser, crowd.serving)
    bob.context.add_init_script(
        """window.shift = 0;
        new PerformanceObserver(list => {
            for (const one of list.getEntries()) if (!one.hadRecentInput) window.shift += one.value;
        }).observe({ type: "layout-shift", buffered: true });"""
    )
    bob.sign_in(crowd.key("Bob"))
    for view in ("#/pool", "#/ask", "#/conversations", f"#/c/{conversation}"):
        bob.visit(view)
        bob.page.reload()
        expect(bob.page.locator("#feed-state")).to_have_text("connected")
        time.sleep(0.6)
        assert bob.page.evaluate("window.shift") < 0.05, view
    assert not bob.errors
    bob.close()


def test_it_says_plainly_what_is_wrong(browser: Browser, crowd: Crowd) -> None:
    """A wrong key, a server that is gone, a key that is revoked, a conversation that is not there: plain words for each."""
    bob = Person(browser, crowd.serving)
    page = bob.page
    bob.visit()
    page.get_by_label("Your key").fill("sr_wrong")
    page.get_by_role("button", name="Sign in").click()
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("This key is not known here")
    bob.sign_in(crowd.key("Bob"))
    assert crowd.key("Bob") not in page.url and page.evaluate("localStorage.length + document.cookie.length") == 0
    page.evaluate("location.hash = '#/c/conv_000000000000000000000000'")
    expect(page.get_by_text("There is no such conversation, or not in this group.")).to_be_visible()
    page.evaluate("location.hash = '#/conversations'")
    expect(page.get_by_text("No conversation yet.")).to_be_visible()
    page.get_by_role("link", name="Ask", exact=True).click()
    page.route("**/v1/ask", lambda route: route.abort())
    page.get_by_label("Your question").fill("Anybody there?")
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(page.get_by_role("alert").filter(visible=True)).to_contain_text("The server does not answer")
    page.unroute("**/v1/ask")
    with crowd.serving.client() as admin:
        admin.delete(f"/v1/groups/{crowd.group}/members/Bob").raise_for_status()
    page.get_by_role("button", name="Ask", exact=True).click()
    expect(
        page.get_by_text(re.compile("key is not known|not here, or not for this key")).filter(visible=True).first
    ).to_be_visible()
    assert not bob.errors
    bob.close()


def test_an_operator_enters_with_the_admin_key(browser: Browser, crowd: Crowd) -> None:
    """The admin key chooses a group and a name, and sees the processes behind the pool; a reload keeps all that."""
    from tests.server.serving import ADMIN_KEY

    operator = Person(browser, crowd.serving)
    page = operator.page
    operator.visit()
    page.get_by_label("Your key").fill(ADMIN_KEY)
    page.get_by_role("button", name="Sign in").click()
    page.get_by_label("Write as").fill("Olga")
    page.get_by_label("Name of the new group").fill("A group of Olga's")
    page.get_by_role("button", name="Make it").click()
    page.get_by_role("button", name="Sign out").wait_for()
    page.reload()
    expect(page.locator("#who")).to_have_text("Olga in A group of Olga's")
    page.get_by_role("link", name="Pool", exact=True).click()
    expect(page.get_by_role("region", name="Processes")).to_contain_text("node-a")
    expect(page.get_by_role("region", name="Lanes: who may append")).to_contain_text("pid")
    assert not operator.errors
    operator.close()
