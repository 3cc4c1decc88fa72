// Small helpers. Everything that people wrote goes in as text nodes: there is no way here to insert markup.

const SVG = "http://www.w3.org/2000/svg";
const ICONS = {
  up: "M10 16V5M5 9.5 10 4.5l5 5", down: "M10 4v11M5 10.5l5 5 5-5", check: "m4 10.5 4 4 8-9", talk: "M3 4.5h14v9.5H9l-4 3v-3H3z",
  fork: "M6 4v12M6 9c0 3 8 1 8 5M14 16v-2M4.5 4h3M12.5 16h3M4.5 16h3", open: "M8 4h8v8M16 4l-9 9M12 16H4V8", reply: "M8 5 3 10l5 5M3 10h9c3 0 5 2 5 5",
  wheel: "M10 3a7 7 0 1 0 0 14 7 7 0 0 0 0-14M10 8.5a1.5 1.5 0 1 0 0 3 1.5 1.5 0 0 0 0-3M3.2 9 8.6 9.6M16.8 9l-5.4.6M10 11.5V17",
  sun: "M10 6.5a3.5 3.5 0 1 0 0 7 3.5 3.5 0 0 0 0-7M10 2v1.5M10 16.5V18M2 10h1.5M16.5 10H18M4.3 4.3l1 1M14.7 14.7l1 1M15.7 4.3l-1 1M5.3 14.7l-1 1",
  moon: "M16 12.2A6.5 6.5 0 0 1 7.8 4 6.5 6.5 0 1 0 16 12.2Z", device: "M3 4.5h14v9H3zM7 16.5h6M10 13.5v3",
};

/** An element. `props`: `class`, `on…` listeners, properties where the element has them, else attributes (null: none). */
export function h(tag, props, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined) continue;
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (name === "class") made.className = value;
    else if (name in made && !name.startsWith("aria") && name !== "list") made[name] = value;
    else made.setAttribute(name, value);
  }
  fill(made, children);
  return made;
}

/** Append children to an element: elements as they are, anything else as text; null and false are left out. */
export function fill(parent, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    parent.append(child instanceof Node ? child : document.createTextNode(readable(String(child))));
  }
  return parent;
}

/** Put these in place of what an element has. */
export const set = (parent, ...children) => { parent.replaceChildren(); return fill(parent, children); };

// Characters that turn the direction of what follows could make one author's text look like another's.
const readable = (text) => text.replace(/[\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f\u200e\u200f\u202a-\u202e\u2066-\u2069]/g, "\ufffd");

/** One of the line drawings above, hidden from screen readers: the text beside it says what it means. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS(SVG, "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return svg;
}

/** 'now', '5 min ago', '3 months ago'. */
export function ago(date) {
  const seconds = (Date.now() - date) / 1000;
  if (seconds < 8) return "now";
  for (const [limit, unit, name] of [[60, 1, "s"], [3600, 60, "min"], [86400, 3600, "h"]]) {
    if (seconds < limit) return `${Math.round(seconds / unit)} ${name} ago`;
  }
  const days = seconds / 86400;
  const [count, name] = days >= 730 ? [days / 365, "year"] : days >= 61 ? [days / 30.4, "month"] : [days, "day"];
  return `${Math.round(count)} ${name}${Math.round(count) === 1 ? "" : "s"} ago`;
}

/** A <time> that keeps telling how long ago it was, and on hovering when. */
export function when(value) {
  const date = moment(value);
  return h("time", { dateTime: date.toISOString(), title: date.toLocaleString() }, ago(date));
}

/** A Date of seconds since 1970 or of an ISO text. */
export const moment = (value) => new Date(typeof value === "number" ? value * 1000 : value);

setInterval(() => {
  if (document.hidden) return;
  for (const time of document.querySelectorAll("time")) {
    const text = ago(new Date(time.dateTime));
    if (time.textContent !== text) time.textContent = text;
  }
}, 15000);

/** 1536 -> '1.5 KiB'. */
export function bytes(count) {
  let number = count;
  for (const unit of ["B", "KiB", "MiB", "GiB", "TiB"]) {
    if (number < 1024 || unit === "TiB") return `${unit === "B" || number >= 100 ? Math.round(number) : number.toFixed(1)} ${unit}`;
    number /= 1024;
  }
}

const whole = new Intl.NumberFormat("en");
/** 12345.6 -> '12,346'. */
export const count = (number) => whole.format(Math.round(number));

/** 'one answer', '3 answers'. */
export const plural = (number, one, many) => (number === 1 ? `one ${one}` : `${count(number)} ${many ?? one + "s"}`);

let toastTimer;
/** Say something to everybody for some seconds, aloud too. */
export function toast(text) {
  const box = document.getElementById("toast");
  set(box, text).hidden = false;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { box.hidden = true; }, 6000);
}

/** Say something to who listens instead of looking. */
export function say(text) {
  set(document.getElementById("said"), text);
}

/** A bar from 0 to 1 for eyes; the number beside it is for all. */
export function bar(share, kind = "") {
  const inner = h("i");
  inner.style.transform = `scaleX(${Math.max(0, Math.min(1, share)) || 0})`;
  return h("span", { class: `bar ${kind}`, "aria-hidden": "true" }, inner);
}

/** Run what a button does once at a time, and say plainly what went wrong. */
export function guarded(button, work) {
  return async (event) => {
    event?.preventDefault();
    if (button.disabled) return;
    button.disabled = true;
    const focused = document.activeElement === button;
    try { await work(); } catch (error) { toast(error.message); } finally {
      button.disabled = false;
      if (focused && document.activeElement === document.body) button.focus();
    }
  };
}
