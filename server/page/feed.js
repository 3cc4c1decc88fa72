// The live feed: what anybody in the group writes, on any node, as it is written. Others listen to the same events.

import { Stream, get } from "./api.js";
import { touched } from "./answers.js";
import { h, moment, plural, say, set, when } from "./dom.js";

const SHOWN_MAX = 100;
const ALOUD_EVERY_MS = 12000;
const listeners = new Set();

/** Hear every event while a view is open; returns how to stop. */
export function hear(work) { listeners.add(work); return () => listeners.delete(work); }

export class Feed {
  constructor() {
    this.list = document.getElementById("feed");
    this.empty = document.getElementById("feed-empty");
    this.mark = document.getElementById("feed-state");
    this.hold = document.getElementById("feed-hold");
    this.hold.addEventListener("click", () => this.holding());
    this.held = null;
    this.unheard = 0;
  }

  start() {
    this.stop();
    this.seen = new Map(); // message id -> its conversation
    this.drivers = new Map(); // conversation -> who has its wheel
    this.state("off", null, "connecting");
    this.stream = new Stream("v1/events", {
      hideAfter: 30000,
      on: (name, event) => { if (name !== "end") this.take(event); },
      state: (state, error) => this.state(state, error),
    });
  }

  /** The newest messages that are not in the list yet, each where its time puts it: at the start, and after a break. */
  async fill() {
    const seen = this.seen;
    let data = [];
    try { ({ data } = await get("v1/recent?limit=30")); } catch { /* the feed shows what comes, then */ }
    if (this.seen !== seen) return;
    for (const item of data) {
      if (seen.has(item.id)) continue;
      seen.set(item.id, item.conversation);
      const text = item.content.map((part) => part.text ?? "").join("\n");
      const row = this.row({ kind: "message", id: item.id, created: item.created_at, node: item.node, data: { conversation: item.conversation, user: item.author, role: item.role, model: item.model, text } });
      const older = [...this.list.children].find((one) => one.dataset.at < row.dataset.at);
      this.list.insertBefore(row, older ?? null);
    }
    this.trim();
  }

  stop() {
    this.stream?.close();
    this.stream = null;
    this.seen = null;
    this.before = false;
    this.list.replaceChildren();
    this.empty.hidden = false;
    this.mark.className = "state";
    set(this.mark);
  }

  state(state, error, words) {
    if (state === "on") {
      this.fill();
      if (this.before) for (const work of listeners) work({ kind: "resumed", data: {} });
      this.before = true;
    }
    this.mark.className = `state ${state === "on" ? "on" : words ? "" : "off"}`;
    set(this.mark, words ?? { on: "connected", off: "reconnecting", refused: error?.message ?? "not allowed" }[state]);
  }

  holding() {
    const hold = this.held === null;
    this.hold.setAttribute("aria-pressed", hold);
    if (hold) this.held = [];
    else { const waiting = this.held; this.held = null; for (const event of waiting) this.add(event); }
    this.label();
  }

  label() { set(this.hold, this.held === null ? "Pause" : `Go on${this.held.length ? ` (${this.held.length})` : ""}`); }

  take(event) {
    for (const work of listeners) work(event);
    const about = event.data?.message;
    if (about) touched(about);
    if (this.held !== null) { this.held.push(event); if (this.held.length > 500) this.held.shift(); this.label(); } else this.add(event);
  }

  add(event) {
    if (event.kind === "message") {
      if (event.deleted) { this.list.querySelector(`[data-id="${CSS.escape(event.id)}"]`)?.remove(); return; }
      if (this.seen?.has(event.id)) return;
      this.seen?.set(event.id, event.data.conversation);
    }
    const row = this.row(event);
    if (!row) return;
    row.classList.add("fresh");
    this.list.prepend(row);
    this.trim();
    if (event.kind === "message") this.aloud();
  }

  trim() {
    while (this.list.children.length > SHOWN_MAX) this.list.lastChild.remove();
    this.empty.hidden = this.list.children.length > 0;
  }

  /** A screen reader hears how many came, not every text, and not more often than it can say so. */
  aloud() {
    this.unheard += 1;
    this.timer ??= setTimeout(() => {
      say(`${plural(this.unheard, "new message")} in the feed`);
      this.unheard = 0;
      this.timer = null;
    }, this.lastAloud && Date.now() - this.lastAloud < ALOUD_EVERY_MS ? ALOUD_EVERY_MS : 1500);
    this.lastAloud = Date.now();
  }

  row(event) {
    const { kind, id, created, node, data } = event;
    const line = kind === "message" ? data.text : kind === "lease" ? this.driving(event) : ACTS[kind]?.(event);
    if (!line) return null;
    const conversation = kind === "conversation" ? id : data.conversation ?? this.seen?.get(data.message);
    const aim = kind === "message" ? `/${id}` : data.message ? `/${data.message}` : "";
    const place = conversation ? `#/c/${conversation}${aim}` : null;
    const content = [
      h("div", { class: "byline" }, h("b", {}, kind === "message" && data.role === "assistant" ? data.model || "a model" : data.user ?? "somebody"),
        node ? h("span", {}, node) : null, h("span", {}, when(created))),
      h("p", {}, line),
    ];
    const row = h("li", { class: kind === "message" ? null : "act" }, place ? h("a", { href: place }, content) : content);
    row.dataset.id = id;
    row.dataset.at = moment(created).toISOString();
    return row;
  }

  /** The wheel is renewed every few seconds: only a new driver is news. */
  driving({ data, deleted }) {
    const driver = deleted || data.until_us === 0 ? null : data.user;
    const news = driver !== (this.drivers?.get(data.conversation) ?? null);
    this.drivers?.set(data.conversation, driver);
    return news && driver !== null ? "took the wheel of a conversation" : null;
  }
}

// What other events say in the feed; those without words here are not shown.
const ACTS = {
  vote: ({ data, deleted }) => (deleted || !data.value ? null : data.value > 0 ? "found an answer helpful" : "found an answer not helpful"),
  confirm: ({ deleted }) => (deleted ? null : "says that an answer is still true"),
  comment: ({ data, deleted }) => (deleted ? null : data.text ? `remarked: ${data.text}` : "remarked on a message"),
  supersede: ({ deleted }) => (deleted ? null : "put a newer answer in an older one's place"),
  conversation: ({ data, deleted }) => (deleted || !data.fork ? null : "forked a conversation"),
};
