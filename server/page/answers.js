// What members can do with a message: vote, say that it is still true, remark, fork. The same bar under answers and turns.

import { call, get, me, path, post, put, remove } from "./api.js";
import { ago, bar, guarded, h, icon, moment, plural, say, set, toast, when } from "./dom.js";

const NEW = { up: 0, down: 0, confirmed: null, comments: 0, superseded_by: null, flags: 0, moderation: "visible" };
const shown = new Map(); // message id -> the bars that show it

/** Somebody, anywhere, voted on, confirmed or remarked on a message: look at it again where it is shown. */
export function touched(message) {
  for (const marks of shown.get(message) ?? []) marks.later();
}

export class Marks {
  /** `open`: a link to the conversation, or null inside it; `extra`: more buttons. */
  constructor({ id, conversation, author, standing, open = null, extra = [] }) {
    Object.assign(this, { id, conversation, own: author === me().user, standing: standing ?? NEW, vote: 0, sure: false });
    if (!shown.has(id)) shown.set(id, new Set());
    shown.get(id).add(this);
    this.up = this.button("up", () => this.voting(1));
    this.down = this.button("down", () => this.voting(-1));
    this.true = this.button("check", () => this.confirming());
    this.talk = this.button("talk", () => this.talking());
    this.talk.setAttribute("aria-expanded", "false");
    this.fork = this.button("fork", () => this.forking());
    set(this.fork, icon("fork"), "Fork");
    this.fork.title = "Go on from here in a conversation of your own";
    this.talkBox = h("div", { class: "talk", hidden: true });
    this.bar = h("div", { class: "marks", role: "group", "aria-label": "What you make of it" },
      this.up, this.down, this.true, this.talk, this.fork, extra,
      open ? h("a", { class: "mark-button end", href: open, "aria-label": "Open the conversation" }, icon("open"), "Open") : null);
    this.element = h("div", {}, this.bar, this.talkBox);
    this.draw();
  }

  button(name, work) {
    const made = h("button", { type: "button", class: "mark-button" }, icon(name));
    made.addEventListener("click", guarded(made, work));
    return made;
  }

  draw() {
    const { up, down, confirmed, comments } = this.standing;
    set(this.up, icon("up"), String(up));
    set(this.down, icon("down"), String(down));
    this.up.setAttribute("aria-label", `Helpful: ${plural(up, "vote")}`);
    this.down.setAttribute("aria-label", `Not helpful: ${plural(down, "vote")}`);
    this.up.setAttribute("aria-pressed", this.vote === 1);
    this.down.setAttribute("aria-pressed", this.vote === -1);
    set(this.true, icon("check"), confirmed ? `Still true, ${ago(moment(confirmed))}` : "Still true");
    this.true.title = confirmed ? `Last confirmed ${moment(confirmed).toLocaleString()}` : "Say that this still holds";
    this.true.setAttribute("aria-pressed", this.sure);
    set(this.talk, icon("talk"), comments ? plural(comments, "comment") : "Comment");
    this.up.disabled = this.down.disabled = this.own;
    for (const button of [this.up, this.down]) button.title = this.own ? "Your own message" : "";
  }

  async voting(value) {
    const wanted = this.vote === value ? 0 : value;
    await put(path`v1/items/${this.id}/vote`, { value: wanted });
    this.vote = wanted;
    await this.reload();
    say(wanted === 0 ? "Vote withdrawn" : "Vote counted");
  }

  async confirming() {
    await call(this.sure ? "DELETE" : "POST", path`v1/items/${this.id}/confirm`);
    this.sure = !this.sure;
    await this.reload();
    say(this.sure ? "Confirmed: still true" : "Confirmation withdrawn");
  }

  async forking() {
    const made = await post(path`v1/conversations/${this.conversation}/fork`, { message: this.id });
    location.hash = `#/c/${made.id}`;
    toast("Forked: what you write here stays here.");
  }

  async talking() {
    const open = this.talkBox.hidden;
    this.talk.setAttribute("aria-expanded", open);
    this.talkBox.hidden = !open;
    if (open) { await this.loadTalk(); this.talkBox.querySelector("input")?.focus(); }
  }

  async loadTalk() {
    const { data } = await get(path`v1/items/${this.id}/comments`);
    if (this.list) { this.fillTalk(data); return; }
    this.list = h("ul", { "aria-label": "Comments" });
    const field = h("input", { type: "text", maxLength: 4000, required: true, placeholder: "Add a comment", "aria-label": "Add a comment", autocomplete: "off" });
    const button = h("button", { class: "plain", type: "submit" }, "Comment");
    const send = guarded(button, async () => {
      if (!field.value.trim()) return;
      await post(path`v1/items/${this.id}/comments`, { text: field.value.trim() });
      field.value = "";
      await Promise.all([this.loadTalk(), this.reload()]);
      say("Comment added");
    });
    set(this.talkBox, this.list, h("form", { class: "one-line", onsubmit: send }, field, button));
    this.fillTalk(data);
  }

  fillTalk(comments) {
    set(this.list, comments.map((one) => h("li", {},
      h("div", { class: "byline" }, h("b", {}, one.user), when(one.created),
        one.user === me().user ? h("span", {}, this.removing(one)) : null), h("p", {}, one.text))));
  }

  removing(comment) {
    const button = h("button", { type: "button", class: "quiet small" }, "Delete");
    button.addEventListener("click", guarded(button, async () => {
      await remove(path`v1/items/${this.id}/comments/${comment.id}`);
      await Promise.all([this.loadTalk(), this.reload()]);
    }));
    return button;
  }

  /** Once for many changes at a time, and only while it is still on the page. */
  later() {
    if (!this.element.isConnected) { shown.get(this.id)?.delete(this); return; }
    this.waiting ??= setTimeout(async () => {
      this.waiting = null;
      try { await this.reload(); if (!this.talkBox.hidden) await this.loadTalk(); } catch { /* the next change looks again */ }
    }, 250);
  }

  async reload() {
    this.standing = await get(path`v1/items/${this.id}/standing`);
    this.onstanding?.(this.standing);
    this.draw();
  }
}

const FACTORS = [
  ["similarity", "Same question", "how close your question is to theirs"], ["words", "Same words", "by BM25, of the best found"],
  ["relevance", "Relevance", "the two together"], ["quality", "Votes", "what members made of it"],
  ["freshness", "Freshness", "since it was last confirmed"], ["trust", "Trust", "in who answered"],
];

/** One answer of the crowd; the bar of its score is as long as it is beside the best one's. */
export function answerCard(answer, best) {
  const author = answer.role === "assistant" ? [h("b", {}, answer.author), answer.model ? ` asked ${answer.model}` : " asked a model"] : h("b", {}, answer.author);
  const text = h("div", { class: "said" }, answer.answer);
  const why = whyOf(answer);
  const whyButton = h("button", { type: "button", class: "quiet small", "aria-expanded": "false" }, "Why");
  whyButton.addEventListener("click", () => { why.hidden = !why.hidden; whyButton.setAttribute("aria-expanded", !why.hidden); });
  const marks = new Marks({ id: answer.answer_id, conversation: answer.conversation, author: answer.author, standing: answer.standing, open: `#/c/${answer.conversation}/${answer.answer_id}` });
  const card = h("article", { class: "answer card", "aria-label": `Answer by ${answer.author}` },
    h("p", { class: "asked" }, `${answer.asked_by} asked: `, h("q", {}, answer.question)),
    text, longer(text, answer.answer),
    h("div", { class: "byline" },
      h("span", {}, author), h("span", {}, when(answer.created)), answer.node ? h("span", { title: "The node that wrote it" }, h("span", { class: "chip" }, answer.node)) : null,
      h("span", { class: "score" }, "score", h("span", { class: "num" }, answer.score.toFixed(2)), bar(answer.score / best, "mini"), whyButton),
      answer.similar ? h("span", {}, `${plural(answer.similar, "more says", "more say")} the same`) : null),
    why, corrected(answer.standing), marks.element);
  card.dataset.message = answer.answer_id;
  return card;
}

function whyOf(answer) {
  const list = h("dl", {});
  for (const [key, name, note] of FACTORS) {
    const value = answer.explain?.[key];
    if (typeof value !== "number") continue;
    list.append(h("dt", { title: note }, name), h("dd", {}, bar(value), h("span", { class: "num soft" }, value.toFixed(2))));
  }
  return h("div", { class: "why", hidden: true }, list, h("p", { class: "hint" }, "The score is relevance × votes × freshness × trust, each weighted by the server's settings."));
}

/** Long texts are cut for the eye, with a button to see all. */
export function longer(box, text) {
  if (text.length < 900 && text.split("\n").length < 12) return null;
  box.classList.add("long");
  const button = h("button", { type: "button", class: "quiet small" }, "Show all of it");
  button.addEventListener("click", () => { box.classList.remove("long"); button.remove(); });
  return button;
}

/** Says that a newer answer took this one's place. */
export function corrected(standing) {
  return standing?.superseded_by ? h("p", { class: "notice warn" }, "A newer answer has taken the place of this one.") : null;
}
