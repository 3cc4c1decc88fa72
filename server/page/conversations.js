// The list of conversations, and one conversation with its turns, its wheel and its composer.

import { Trouble, get, me, path, post, remove } from "./api.js";
import { Marks, corrected, longer } from "./answers.js";
import { guarded, h, icon, moment, say, set, toast, when } from "./dom.js";
import { hear } from "./feed.js";

const PAGE = 20;
const LEASE_S = 90; // renewed every 30 s; a hidden page may come to it once a minute only
const textOf = (item) => item.content.map((part) => part.text ?? `[${part.type}]`).join("\n");
const shorten = (text, most) => { const line = text.replace(/\s+/g, " ").trim(); return line.length > most ? `${line.slice(0, most - 1)}…` : line; };

export function listView(main) {
  const title = h("h1", { tabIndex: -1 }, "Conversations");
  const begin = h("button", { class: "main-button", type: "button" }, "New conversation");
  begin.addEventListener("click", guarded(begin, async () => { location.hash = `#/c/${(await post("v1/conversations", {})).id}`; }));
  const list = h("ul", { class: "list card", hidden: true });
  const note = h("p", { class: "empty", role: "status" }, "Looking…");
  const more = h("button", { class: "plain", type: "button", hidden: true }, "Show older ones");
  let last = null, stopped = false;
  const load = async () => {
    const page = await get(`v1/conversations?limit=${PAGE}${last ? `&after=${encodeURIComponent(last)}` : ""}`);
    if (stopped) return;
    last = page.data.at(-1)?.id ?? last;
    list.append(...page.data.map(row));
    list.hidden = !list.children.length;
    note.hidden = !list.hidden;
    set(note, "No conversation yet. Ask a question, or begin one.");
    more.hidden = !page.has_more;
  };
  more.addEventListener("click", guarded(more, load));
  set(main, h("div", { class: "talk-head" }, h("div", {}, title, h("p", { class: "lead" }, "Everybody in the group can read along, remark, fork, and take the wheel.")), begin),
    list, note, h("div", { class: "marks" }, more));
  load().catch((error) => set(note, error.message));
  const deaf = hear((event) => {
    if (event.kind !== "conversation" || event.deleted || document.getElementById(`row-${event.id}`)) return;
    get(path`v1/conversations/${event.id}`).then((one) => {
      if (stopped || document.getElementById(`row-${one.id}`)) return;
      list.prepend(row(one));
      list.hidden = false;
      note.hidden = true;
    }, () => {});
  });
  return { focus: title, leave: () => { stopped = true; deaf(); } };
}

function row(one) {
  const title = h("span", { class: "title" }, one.metadata.title || " ");
  if (!one.metadata.title) {
    get(path`v1/conversations/${one.id}/items?limit=1&order=asc`).then(({ data }) => set(title, data.length ? shorten(textOf(data[0]), 110) : "Nothing said yet"), () => set(title, "A conversation"));
  }
  return h("li", { id: `row-${one.id}` }, h("a", { href: `#/c/${one.id}` }, title,
    h("span", { class: "byline" }, h("span", {}, "begun by ", h("b", {}, one.user)), h("span", {}, when(one.created_at)), one.fork ? h("span", {}, "a fork") : null)));
}

export class ConversationView {
  constructor(main, id, aim) {
    Object.assign(this, { main, id, aim, items: new Map(), lease: null, answers: null, closed: false });
    this.title = h("h1", { tabIndex: -1 }, "Conversation");
    this.about = h("div", { class: "byline" });
    this.turns = h("ol", { class: "turns", "aria-label": "Turns" });
    this.note = h("p", { class: "empty", role: "status" }, "Looking…");
    this.older = h("button", { class: "plain", type: "button", hidden: true }, "Show earlier turns");
    this.older.addEventListener("click", guarded(this.older, () => this.loadOlder()));
    this.wheelText = h("div", { class: "say" });
    this.take = h("button", { class: "plain", type: "button" }, "Take the wheel");
    this.take.addEventListener("click", guarded(this.take, () => (this.token ? this.letGo() : this.takeWheel())));
    this.wheel = h("section", { class: "wheel", "aria-label": "The wheel" }, this.wheelText, this.take);
    const fork = h("button", { class: "plain", type: "button" }, "Fork");
    fork.addEventListener("click", guarded(fork, async () => {
      location.hash = `#/c/${(await post(path`v1/conversations/${id}/fork`, {})).id}`;
      toast("Forked: what you write here stays here.");
    }));
    set(main, h("div", { class: "talk-head" }, h("div", {}, this.title, this.about), fork), this.wheel,
      h("div", { class: "marks" }, this.older), this.turns, this.note, this.composer());
    this.focus = this.title;
    this.deaf = hear((event) => this.event(event));
    this.clock = setInterval(() => this.drawWheel(), 1000);
    this.drawWheel();
    this.load().catch((error) => { if (!this.closed) set(this.note, error.status === 404 ? "There is no such conversation, or not in this group." : error.message).hidden = false; });
  }

  leave() {
    this.closed = true;
    this.deaf();
    clearInterval(this.clock);
    clearTimeout(this.renewing);
    if (this.token) remove(path`v1/conversations/${this.id}/lease?token=${this.token}`).catch(() => {});
  }

  composer() {
    this.field = h("textarea", { rows: 1, maxLength: 200000, required: true, placeholder: "Write to this conversation", "aria-label": "Your message" });
    this.send = h("button", { class: "main-button", type: "submit" }, "Send");
    this.answering = h("div", { class: "answering", hidden: true });
    const submit = guarded(this.send, () => this.write());
    this.field.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) { event.preventDefault(); submit(); }
    });
    return h("form", { class: "composer card", onsubmit: submit }, this.answering, this.field,
      h("div", { class: "under" }, h("span", { class: "hint" }, `As ${me().user}. Ctrl + Enter sends.`), this.send));
  }

  async load() {
    const [one, page, lease] = await Promise.all([
      get(path`v1/conversations/${this.id}`), get(path`v1/conversations/${this.id}/items?limit=${50}&order=desc`), this.leaseNow()]);
    if (this.closed) return;
    this.conversation = one;
    this.lease = lease;
    this.drawWheel();
    const items = page.data.toReversed();
    this.earliest = items[0]?.id;
    this.older.hidden = !page.has_more;
    const title = one.metadata.title || (items.length ? shorten(textOf(items[0]), 140) : "New conversation");
    set(this.title, title);
    document.title = `${shorten(title, 60)} · sharedrag`;
    set(this.about, h("span", {}, "begun by ", h("b", {}, one.user)), h("span", {}, when(one.created_at)), one.fork ? h("span", {}, h("a", { href: `#/c/${one.fork.conversation}/${one.fork.message}` }, "forked from here")) : null);
    for (const item of items) this.turns.append(this.turn(item));
    this.settle();
    await this.standings(items);
    this.aiming();
  }

  aiming() {
    const turn = this.aim && document.getElementById(`turn-${this.aim}`);
    if (turn) { turn.tabIndex = -1; turn.focus({ preventScroll: true }); turn.scrollIntoView({ block: "center" }); }
  }

  async loadOlder() {
    const page = await get(path`v1/conversations/${this.id}/items?limit=${50}&order=desc&after=${this.earliest}`);
    for (const item of page.data) this.turns.prepend(this.turn(item));
    this.earliest = page.data.at(-1)?.id ?? this.earliest;
    this.older.hidden = !page.has_more;
    await this.standings(page.data);
  }

  settle() {
    this.note.hidden = this.turns.children.length > 0;
    set(this.note, "Nothing said here yet.");
  }

  async standings(items) {
    for (const item of items) this.items.get(item.id)?.marks?.reload().catch(() => {});
  }

  turn(item) {
    const text = textOf(item);
    const body = h("div", { class: "said" }, text);
    const reply = h("button", { type: "button", class: "mark-button" }, icon("reply"), "Answer");
    reply.addEventListener("click", () => this.answer(item));
    const marks = new Marks({ id: item.id, conversation: this.id, author: item.author, extra: [item.role === "user" ? reply : null] });
    const note = h("div", {});
    marks.onstanding = (standing) => set(note, corrected(standing), standing.moderation === "hidden" ? h("p", { class: "notice warn" }, "A moderator has hidden this.") : null);
    const who = item.role === "assistant" ? [h("b", {}, item.model || "a model"), ` for ${item.author}`] : h("b", {}, item.author);
    const answered = item.answers && this.items.get(item.answers);
    const inherited = this.conversation && item.conversation !== this.id;
    const element = h("li", { class: `turn card ${item.role}${inherited ? " inherited" : ""}`, id: `turn-${item.id}` },
      h("div", { class: "byline" }, h("span", {}, who), h("span", {}, when(item.created_at)), item.node ? h("span", {}, h("span", { class: "chip" }, item.node)) : null,
        answered ? h("span", {}, `answers ${answered.author}`) : null, inherited ? h("span", {}, "from before the fork") : null),
      body, longer(body, text), note, marks.element);
    this.items.set(item.id, { ...item, element, marks });
    return element;
  }

  answer(item) {
    this.answers = item.id;
    const cancel = h("button", { type: "button", class: "quiet small" }, "Not any more");
    cancel.addEventListener("click", () => { this.answers = null; this.answering.hidden = true; this.field.focus(); });
    set(this.answering, `Answering ${item.author}: ${shorten(textOf(item), 50)}`, cancel).hidden = false;
    this.field.focus();
  }

  async write() {
    const text = this.field.value.trim();
    if (!text) { this.field.focus(); return; }
    const item = { type: "message", role: "user", content: [{ type: "input_text", text }] };
    if (this.answers) item.answers = this.answers;
    const { data } = await post(path`v1/conversations/${this.id}/items`, { items: [item] }, this.token ? { "X-Sharedrag-Lease": String(this.token) } : {});
    this.field.value = "";
    this.answers = null;
    this.answering.hidden = true;
    for (const one of data) this.append(one);
    this.field.focus();
  }

  append(item) {
    if (this.items.has(item.id)) return;
    const low = innerHeight + scrollY > document.body.scrollHeight - 160;
    this.turns.append(this.turn(item));
    this.settle();
    if (this.turns.children.length === 1 && !this.conversation?.metadata.title) set(this.title, shorten(textOf(item), 140));
    if (low) scrollTo({ top: document.body.scrollHeight });
  }

  event({ kind, id, deleted, data }) {
    if (this.closed) return;
    if (kind === "resumed") { this.catchUp().catch(() => {}); return; }
    if (kind === "message" && deleted) { this.items.get(id)?.element.remove(); this.items.delete(id); return; }
    if (kind === "message" && data.conversation === this.id && !this.items.has(id)) {
      get(path`v1/conversations/${this.id}/items/${id}`).then((item) => this.append(item), () => {});
    } else if (kind === "lease" && data.conversation === this.id) this.leaseNow().then((lease) => { this.lease = lease; this.drawWheel(true); }, () => {});
  }

  /** After a break of the feed: what was said meanwhile, and who has the wheel. */
  async catchUp() {
    const [page, lease] = await Promise.all([get(path`v1/conversations/${this.id}/items?limit=${50}&order=desc`), this.leaseNow()]);
    for (const item of page.data.toReversed()) this.append(item);
    this.lease = lease;
    this.drawWheel();
  }

  // The wheel: while somebody has it, only they can write here. It is renewed while this view is open, and given back after.

  async leaseNow() {
    try { return await get(path`v1/conversations/${this.id}/lease`); } catch (error) { if (error instanceof Trouble && error.status === 404) return null; throw error; }
  }

  async takeWheel() {
    const lease = await post(path`v1/conversations/${this.id}/lease`, { seconds: LEASE_S });
    this.hold(lease);
    say("You have the wheel");
    this.field.focus();
  }

  hold(lease) {
    this.token = lease.token;
    this.lease = lease;
    clearTimeout(this.renewing);
    this.renewing = setTimeout(() => this.renew(), (LEASE_S / 3) * 1000);
    this.drawWheel();
  }

  async renew() {
    if (!this.token || this.closed) return;
    try { this.hold(await post(path`v1/conversations/${this.id}/lease`, { seconds: LEASE_S, token: this.token })); } catch (error) {
      if (error.status === 409 || error.status === 423) { this.token = null; toast(error.message); this.lease = await this.leaseNow().catch(() => null); } else this.renewing = setTimeout(() => this.renew(), 5000);
      this.drawWheel();
    }
  }

  async letGo() {
    const token = this.token;
    this.token = null;
    clearTimeout(this.renewing);
    await remove(path`v1/conversations/${this.id}/lease?token=${token}`);
    this.lease = null;
    this.drawWheel();
    say("The wheel is free");
  }

  drawWheel(aloud = false) {
    const lasts = this.lease && moment(this.lease.until) > Date.now();
    const mine = Boolean(lasts && this.token);
    const other = lasts && !this.token;
    this.wheel.className = `wheel${mine ? " mine" : other ? " taken" : ""}`;
    const left = lasts ? Math.max(0, Math.round((moment(this.lease.until) - Date.now()) / 1000)) : 0;
    const text = mine ? "You have the wheel: only you can write here." : other ? `${this.lease.holder === me().user ? "You have the wheel in another window" : `${this.lease.holder} has the wheel`}, for ${left} s more unless renewed.` : "Nobody has the wheel: anybody may write here.";
    const taken = other && this.lease.holder !== me().user;
    if (this.said !== text) {
      set(this.wheelText, icon("wheel"), h("span", {}, text));
      this.said = text;
    }
    set(this.take, mine ? "Let go" : "Take the wheel");
    this.take.hidden = taken;
    this.send.disabled = this.field.disabled = taken;
    this.field.placeholder = taken ? "Wait for the wheel, or fork the conversation" : "Write to this conversation";
    if (aloud && other) say(`${this.lease.holder} has the wheel`);
  }
}
