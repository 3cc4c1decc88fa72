// Draws a node's extents as they lie in the file, row by row. Nothing here knows of the network: give it a look, it paints.
//
// Hue says which collection, pattern says what: solid rows of a sealed segment; an open one fills from the left as its rows
// are published; stripes an index; dots postings (terms); upright bars columns; hatched grey what is retired; a dashed frame what
// is being built; level bars which rows are dead. The rest is free.

const GAP = 3;
const FILL_MS = 350;
const GLOW_MS = 900;
const still = matchMedia("(prefers-reduced-motion: reduce)");

/** The theme's colours, read once per theme. */
export class Palette {
  constructor() {
    const probe = document.body.appendChild(document.createElement("i")); // only an element's own colour is a plain one
    const read = (name) => { probe.style.color = `var(--${name})`; return getComputedStyle(probe).color; };
    for (const name of ["free", "gone", "glow"]) this[name] = read(`map-${name}`);
    for (const name of ["card", "accent"]) this[name] = read(name);
    this.hues = Array.from({ length: 8 }, (_, i) => read(`hue-${i}`));
    probe.remove();
    this.patterns = new Map();
  }

  hue(index) { return index < 0 ? this.gone : this.hues[index % this.hues.length]; }

  /** A repeating pattern of a colour: "index", "terms", "columns", "gone" or "deletions". */
  pattern(context, kind, colour) {
    const key = `${kind} ${colour}`;
    if (!this.patterns.has(key)) this.patterns.set(key, context.createPattern(tile(kind, colour, this.card), "repeat"));
    return this.patterns.get(key);
  }
}

function tile(kind, colour, paper) {
  const canvas = document.createElement("canvas");
  const scale = devicePixelRatio > 1 ? 2 : 1;
  canvas.width = canvas.height = 6 * scale;
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = paper;
  context.fillRect(0, 0, 6, 6);
  context.globalAlpha = kind === "gone" ? 0.25 : 0.38;
  context.fillStyle = colour;
  context.fillRect(0, 0, 6, 6);
  context.globalAlpha = 1;
  context.strokeStyle = context.fillStyle = colour;
  context.lineWidth = kind === "gone" ? 0.8 : 1.6;
  context.beginPath();
  if (kind === "index" || kind === "gone") {
    for (const shift of [-6, 0, 6]) { context.moveTo(shift - 1, 7); context.lineTo(shift + 7, -1); }
    context.stroke();
  } else if (kind === "terms") {
    context.arc(1.5, 1.5, 1.1, 0, 7); context.arc(4.5, 4.5, 1.1, 0, 7);
    context.fill();
  } else if (kind === "deletions") {
    context.moveTo(0, 1.5); context.lineTo(6, 1.5); context.moveTo(0, 4.5); context.lineTo(6, 4.5);
    context.stroke();
  } else {
    context.moveTo(1.5, 0); context.lineTo(1.5, 6); context.moveTo(4.5, 0); context.lineTo(4.5, 6);
    context.stroke();
  }
  return canvas;
}

/** Paint one kind of thing into a box. */
export function paint(context, palette, what, hue, x, y, width, height) {
  const colour = palette.hue(hue);
  if (what === "free") { context.fillStyle = palette.free; context.fillRect(x, y, width, height); return; }
  if (what === "building") {
    context.fillStyle = palette.free; context.fillRect(x, y, width, height);
    context.strokeStyle = colour; context.setLineDash([3, 2]); context.lineWidth = 1.5;
    context.strokeRect(x + 0.75, y + 0.75, Math.max(0, width - 1.5), Math.max(0, height - 1.5));
    context.setLineDash([]);
    return;
  }
  if (what === "retired") context.fillStyle = palette.pattern(context, "gone", palette.gone);
  else if (what === "sealed") context.fillStyle = colour;
  else if (what === "open") { context.fillStyle = colour; context.globalAlpha = 0.26; } else context.fillStyle = palette.pattern(context, what, colour);
  context.fillRect(x, y, width, height);
  context.globalAlpha = 1;
}

/** What to paint for a run: its state where that is what matters, else its kind. */
export function lookOf(run) {
  if (run.state === "building") return "building";
  if (run.state === "retired" || run.state === "punching") return "retired";
  return run.kind === "segment" ? run.state : run.kind;
}

/** Sizes a canvas for its box and the screen; returns its context in CSS pixels, cleared. */
export function prepare(canvas, height) {
  const width = Math.max(40, canvas.clientWidth), ratio = Math.min(2, devicePixelRatio || 1);
  const [w, h] = [Math.round(width * ratio), Math.round(height * ratio)];
  if (canvas.width !== w || canvas.height !== h) { canvas.width = w; canvas.height = h; }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return [context, width];
}

export class NodeMap {
  /** `rows` of `rowHeight` pixels: the height never changes, so nothing on the page moves. */
  constructor(canvas, { rows, rowHeight }) {
    Object.assign(this, { canvas, rows, rowHeight, runs: [], extents: 1, shown: 1, whole: false, filled: new Map() });
    this.height = rows * (rowHeight + GAP) - GAP;
    canvas.style.height = `${this.height}px`;
  }

  /** `open`: first extent -> {rows, room}; `hueOf`: collection -> number. */
  show(runs, extents, open, hueOf, palette) {
    Object.assign(this, { runs, extents, hueOf, palette });
    const now = performance.now();
    for (const run of runs) {
      if (run.kind !== "segment" || run.state !== "open") { this.filled.delete(run.first); continue; }
      const one = open.get(run.first) ?? { rows: 0, room: 1 };
      const share = Math.min(1, one.rows / Math.max(1, one.room));
      const known = this.filled.get(run.first);
      if (!known) this.filled.set(run.first, { from: share, to: share, since: 0, ...one });
      else if (one.rows !== known.rows) {
        this.filled.set(run.first, { from: still.matches ? share : this.share(run.first, now), to: share, since: now, ...one });
      }
    }
    const used = runs.reduce((most, run) => Math.max(most, run.first + run.extents), 0);
    const fitting = 2 ** Math.ceil(Math.log2(Math.max(this.rows * 8, used * 1.12)));
    this.shown = this.whole ? extents : Math.min(extents, Math.max(fitting, Math.min(this.shown, fitting * 2)));
    this.draw();
  }

  share(first, now) {
    const one = this.filled.get(first);
    if (!one) return 0;
    const part = still.matches ? 1 : Math.min(1, (now - one.since) / FILL_MS);
    return one.from + (one.to - one.from) * (1 - (1 - part) ** 2);
  }

  get perRow() { return Math.ceil(this.shown / this.rows); }

  draw() {
    if (!this.palette || !this.canvas.isConnected) return;
    const [context, width] = prepare(this.canvas, this.height);
    const { palette, perRow } = this;
    const scale = width / perRow;
    this.scale = scale;
    for (let row = 0; row < this.rows; row++) {
      const in_row = Math.max(0, Math.min(perRow, this.shown - row * perRow));
      context.fillStyle = palette.free;
      context.beginPath();
      context.roundRect(0, row * (this.rowHeight + GAP), in_row * scale, this.rowHeight, 3);
      context.fill();
    }
    const now = performance.now();
    let moving = false;
    for (const run of this.runs) moving = this.drawRun(context, run, scale, now) || moving;
    if (moving && !still.matches) requestAnimationFrame(() => this.draw());
  }

  drawRun(context, run, scale, now) {
    const what = lookOf(run), hue = this.hueOf(run.collection), one = what === "open" ? this.filled.get(run.first) : null;
    this.pieces(run.first, run.first + run.extents, scale, (x, y, width) => paint(context, this.palette, what, hue, x, y, width, this.rowHeight));
    if (!one) return false;
    const reach = run.first + run.extents * this.share(run.first, now);
    this.pieces(run.first, reach, scale, (x, y, width) => paint(context, this.palette, "sealed", hue, x, y, width, this.rowHeight));
    const glow = one.since ? 1 - (now - one.since) / GLOW_MS : 0;
    if (glow > 0) {
      const row = Math.floor(reach / this.perRow), x = (reach - row * this.perRow) * scale;
      context.globalAlpha = still.matches ? 1 : glow;
      context.fillStyle = this.palette.glow;
      context.fillRect(Math.max(0, x - 1.5), row * (this.rowHeight + GAP) - 1, 3, this.rowHeight + 2);
      context.globalAlpha = 1;
    }
    return glow > 0;
  }

  /** Call `draw(x, y, width)` for each row that the extents [first, end) touch; a hair is left free at the end. */
  pieces(first, end, scale, draw) {
    const { perRow } = this;
    const last = Math.min(end, this.shown);
    for (let row = Math.floor(first / perRow); row * perRow < last; row++) {
      const from = Math.max(first, row * perRow), to = Math.min(last, (row + 1) * perRow);
      const width = (to - from) * scale - (to === end && (end - first) * scale > 3 ? 1 : 0);
      draw((from - row * perRow) * scale, row * (this.rowHeight + GAP), Math.max(0.6, width));
    }
  }

  /** What lies under a point of the canvas: a run, "free" or null. */
  at(x, y) {
    const row = Math.floor(y / (this.rowHeight + GAP));
    const extent = row * this.perRow + Math.floor(x / this.scale);
    if (row < 0 || row >= this.rows || extent < 0 || extent >= this.shown) return null;
    return this.runs.find((run) => extent >= run.first && extent < run.first + run.extents) ?? "free";
  }
}

/** A line of the last numbers, the newest at the right. */
export function spark(canvas, numbers, colour, height = 26) {
  const [context, width] = prepare(canvas, height);
  const most = Math.max(1, ...numbers), step = width / (numbers.length - 1);
  context.beginPath();
  numbers.forEach((number, i) => context.lineTo(i * step, height - 1.5 - (number / most) * (height - 4)));
  context.strokeStyle = colour;
  context.lineWidth = 1.5;
  context.lineJoin = "round";
  context.stroke();
  context.lineTo(width, height); context.lineTo(0, height); context.closePath();
  context.globalAlpha = 0.14;
  context.fillStyle = colour;
  context.fill();
  context.globalAlpha = 1;
}
