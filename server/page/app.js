// Starts the page: who is signed in, which view is open, and what stands in the header.

import { forget, get, me } from "./api.js";
import { askView, forgetQuestion } from "./ask.js";
import { ConversationView, listView } from "./conversations.js";
import { h, icon, say, set } from "./dom.js";
import { Feed } from "./feed.js";
import { membersView } from "./members.js";
import { PoolView, Strip } from "./pool.js";
import { chooseView, signinView } from "./signin.js";

const main = document.getElementById("main");
const rail = document.getElementById("rail");
const leave = document.getElementById("leave");
const wide = matchMedia("(min-width: 1020px)");
const TITLES = { ask: "Ask", conversations: "Conversations", c: "Conversation", live: "Live", pool: "The pool", group: "The group", signin: "Sign in" };
const THEMES = [["system", "device", "as the device"], ["light", "sun", "light"], ["dark", "moon", "dark"]];

const feed = new Feed();
const strip = new Strip(document.getElementById("strip"));
let view = null;
let started = false;

function signedIn() { return Boolean(me().key && me().group && me().user); }

function route() {
  const [, name = "", id, aim] = location.hash.split("/");
  if (!signedIn()) { open("signin"); return; }
  start();
  if (name === "c" && id) open("c", decodeURIComponent(id), aim && decodeURIComponent(aim));
  else if (name === "live" && !wide.matches) open("live");
  else if (["conversations", "group", "pool"].includes(name)) open(name);
  else open("ask");
}

function open(name, ...rest) {
  view?.leave?.();
  const shown = name === "c" ? "conversations" : name;
  document.body.dataset.view = shown;
  document.title = `${TITLES[name]} · sharedrag`;
  for (const link of document.querySelectorAll("#views a")) {
    if (link.dataset.view === shown) link.setAttribute("aria-current", "page"); else link.removeAttribute("aria-current");
  }
  scrollTo(0, 0);
  if (name === "signin") view = signinView(main, enter);
  else if (name === "ask") view = askView(main);
  else if (name === "conversations") view = listView(main);
  else if (name === "c") view = new ConversationView(main, ...rest);
  else if (name === "group") view = membersView(main);
  else if (name === "pool") { const pool = new PoolView(main); view = { focus: pool.title, leave: () => pool.leave() }; }
  else view = { focus: null };
  if (signedIn() && (name === "live" || (name !== "pool" && wide.matches))) strip.start(); else strip.stop();
  // A new view tells where one is: focus goes to its first field or heading, never before somebody did something.
  if (navigator.userActivation?.hasBeenActive || name === "signin" || name === "ask") view.focus?.focus({ preventScroll: true });
}

/** Once after each signing in: the header and the streams. */
function start() {
  if (started) return;
  started = true;
  const who = document.getElementById("who");
  set(who, h("a", { href: "#/group", title: "Who is in this group" }, h("b", {}, me().user), ` in ${me().group.name}`));
  leave.hidden = false;
  rail.hidden = false;
  feed.start();
}

function enter() {
  say(`Signed in as ${me().user} in ${me().group.name}`);
  if (location.hash.length < 3) history.replaceState(null, "", "#/ask");
  route();
}

function signOut(message = "") {
  forget();
  forgetQuestion();
  feed.stop();
  strip.stop();
  started = false;
  leave.hidden = true;
  rail.hidden = true;
  set(document.getElementById("who"));
  history.replaceState(null, "", location.pathname + location.search);
  open("signin");
  if (message) signinView(main, enter, message);
}

leave.addEventListener("click", () => signOut());
addEventListener("hashchange", route);
addEventListener("pagehide", () => view?.leave?.()); // the wheel is let go
addEventListener("pageshow", (event) => { if (event.persisted) route(); });
addEventListener("sharedrag:unknown-key", () => { if (started) signOut("Your key is not known any more. Sign in again."); });
wide.addEventListener("change", () => { if (signedIn()) route(); });
document.getElementById("skip").addEventListener("click", (event) => { event.preventDefault(); main.focus(); });
document.addEventListener("keydown", (event) => {
  // "/" goes to the question field, as in many places; nowhere where one types.
  if (event.key === "/" && !event.ctrlKey && !event.metaKey && !event.altKey && signedIn() && !event.target.closest("input, textarea, select")) {
    event.preventDefault();
    if (document.body.dataset.view !== "ask") location.hash = "#/ask";
    else main.querySelector("textarea")?.focus();
  }
});

const themeButton = document.getElementById("theme");
function theme() { try { return localStorage.getItem("sharedrag.theme") || "system"; } catch { return "system"; } }
function drawTheme(choice) {
  const [, drawing, words] = THEMES.find(([name]) => name === choice) ?? THEMES[0];
  set(themeButton, icon(drawing)).setAttribute("aria-label", `Colours: ${words}`);
  themeButton.title = `Colours: ${words}`;
}
themeButton.addEventListener("click", () => {
  const at = THEMES.findIndex(([name]) => name === theme());
  const [choice, , words] = THEMES[(at + 1) % THEMES.length];
  try { if (choice === "system") localStorage.removeItem("sharedrag.theme"); else localStorage.setItem("sharedrag.theme", choice); } catch { /* for this visit, then */ }
  if (choice === "system") delete document.documentElement.dataset.theme; else document.documentElement.dataset.theme = choice;
  drawTheme(choice);
  say(`Colours: ${words}`);
  dispatchEvent(new Event("sharedrag:theme"));
});
drawTheme(theme());

// A key that is kept from before a reload, but has no group chosen yet, goes on where it was.
if (me().key && !signedIn()) {
  get("v1/me").then((found) => { document.body.dataset.view = "signin"; view = chooseView(main, found, enter); }, () => signOut());
} else route();
