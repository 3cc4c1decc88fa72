// The server's interface. The key is sent in the Authorization header only, and kept in sessionStorage only:
// it is in no URL, no history and no other tab, and gone with this one.

const STORE = "sharedrag.session";
let session = load();

function load() {
  try { return JSON.parse(sessionStorage.getItem(STORE)) ?? {}; } catch { return {}; }
}

/** {key, group: {id, name}, user, admin, role, node, as}; empty while nobody is signed in. */
export const me = () => session;

export function remember(changes) {
  session = { ...session, ...changes };
  try { sessionStorage.setItem(STORE, JSON.stringify(session)); } catch { /* storage is off: until the next reload, then */ }
}

export function forget() {
  session = {};
  try { sessionStorage.removeItem(STORE); } catch { /* nothing was kept */ }
}

/** What went wrong, in words for people; `status` 0: the server was not reached. */
export class Trouble extends Error {
  constructor(status, message) { super(message); this.status = status; }
}

function headers(more) {
  const made = new Headers(more);
  made.set("Authorization", `Bearer ${session.key}`);
  if (session.group && session.speaksForOthers) made.set("X-Sharedrag-Group", session.group.id);
  if (session.as) made.set("X-Sharedrag-User", session.as);
  return made;
}

const PLAIN = {
  401: "This key is not known here. Perhaps it was revoked.",
  404: "That is not here, or not for this key.",
  413: "That is too long to be stored.",
  429: "That was a lot at once. Wait a moment, then try again.",
  503: "The server has too much to do right now. Try again in a moment.",
  507: "The shared memory is full: nothing more can be written until an operator makes room.",
};

/** Ask the server (a DELETE outlives the page); the answer's JSON, or null where it has none. Throws `Trouble`. */
export async function call(method, path, body, more = {}) {
  let response;
  try {
    response = await fetch(path, {
      method, cache: "no-store", keepalive: method === "DELETE", credentials: "omit", redirect: "error",
      headers: headers({ ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...more }),
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch { throw new Trouble(0, "The server does not answer. Is it running?"); }
  if (!response.ok) throw await troubleOf(response);
  const text = await response.text();
  return text ? JSON.parse(text) : null;
}

async function troubleOf(response) {
  let detail = "";
  try {
    const problem = await response.json();
    detail = problem.detail ?? problem.error?.message ?? "";
  } catch { /* no JSON: a proxy's page, most likely */ }
  if (response.status === 401) dispatchEvent(new CustomEvent("sharedrag:unknown-key"));
  return new Trouble(response.status, PLAIN[response.status] ?? (detail || `The server answered ${response.status}.`));
}

export const get = (path) => call("GET", path);
export const post = (path, body = {}, more) => call("POST", path, body, more);
export const put = (path, body) => call("PUT", path, body);
export const remove = (path) => call("DELETE", path);
export const path = (strings, ...parts) => String.raw({ raw: strings }, ...parts.map(encodeURIComponent));

/**
 * Server-sent events, read by fetch since EventSource cannot send a header. Comes back by itself after a break, from the
 * last event on; rests while the page is hidden (a browser grants a host six connections in all) and then catches up.
 */
export class Stream {
  constructor(path, { on, state, hideAfter = 0, last = "" }) {
    Object.assign(this, { path, on, state, hideAfter, last, closed: false, failures: 0 });
    this.visibility = () => this.follow();
    document.addEventListener("visibilitychange", this.visibility);
    this.follow();
  }

  follow() {
    clearTimeout(this.hiding);
    if (!document.hidden) this.open();
    else this.hiding = setTimeout(() => this.rest(), this.hideAfter);
  }

  rest() { this.abort?.abort(); this.abort = null; clearTimeout(this.again); this.again = null; }

  close() {
    this.closed = true;
    clearTimeout(this.hiding);
    document.removeEventListener("visibilitychange", this.visibility);
    this.rest();
  }

  async open() {
    if (this.closed || this.abort) return;
    clearTimeout(this.again);
    const abort = this.abort = new AbortController();
    try {
      const response = await fetch(this.path, {
        headers: headers(this.last ? { Accept: "text/event-stream", "Last-Event-ID": this.last } : { Accept: "text/event-stream" }),
        cache: "no-store", credentials: "omit", redirect: "error", signal: abort.signal,
      });
      if (!response.ok) throw await troubleOf(response);
      this.state?.("on");
      await this.read(response.body.pipeThrough(new TextDecoderStream()).getReader(), abort);
    } catch (error) {
      if (abort.signal.aborted) return;
      if ([401, 403, 404].includes(error.status)) { this.state?.("refused", error); return; }
      if ([400, 422].includes(error.status)) this.last = ""; // another pool, where this place means nothing
    }
    if (abort.signal.aborted || this.closed) return;
    this.abort = null;
    this.state?.("off");
    const wait = Math.min(8000, 400 * 2 ** this.failures++) * (0.7 + 0.6 * Math.random());
    this.again = setTimeout(() => this.open(), wait);
  }

  async read(reader, abort) {
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done || abort.signal.aborted) return;
      this.failures = 0;
      const parts = (rest + value).replaceAll("\r\n", "\n").split("\n\n");
      rest = parts.pop();
      for (const part of parts) this.event(part);
    }
  }

  event(text) {
    let name = "message", data = [];
    for (const line of text.split("\n")) {
      const [, field, value] = /^([^:]*):? ?(.*)$/s.exec(line);
      if (field === "event") name = value;
      else if (field === "data") data.push(value);
      else if (field === "id") this.last = value;
    }
    if (data.length) this.on(name, JSON.parse(data.join("\n")), this.last);
  }
}
