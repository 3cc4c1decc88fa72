// The view of the pool: its map, who writes, what lies where; and the strip that shows it in brief beside the feed.

import { Stream } from "./api.js";
import { bytes, count, h, plural, set, when } from "./dom.js";
import { NodeMap, Palette, lookOf, paint, prepare, spark } from "./map.js";

const SPARK = 60;
const KINDS = [
  ["sealed", "Sealed segment", "rows, closed for good"], ["open", "Open segment", "fills as rows are published"],
  ["index", "Index", "over vectors"], ["columns", "Columns", "metadata, typed"], ["terms", "Terms", "postings of words"],
  ["deletions", "Deletions", "which rows are dead"], ["retired", "Retired", "waits until nobody reads it"], ["building", "Being built", ""], ["free", "Free", ""],
];
const NAMES = { segment: "Segment", index: "Index", columns: "Columns", terms: "Terms", deletions: "Deletions" };

let palette = null;
const palettes = () => (palette ??= new Palette());
const repaint = new Set();
function newTheme() { palette = null; for (const draw of repaint) draw(); }
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", newTheme);
addEventListener("sharedrag:theme", newTheme);
addEventListener("resize", () => { for (const draw of repaint) draw(); });

/** The newest look at the pool, with the runs of nodes that did not change kept; shared by all who show it. */
class Watch {
  constructor() { this.viewers = new Set(); this.look = null; this.runs = new Map(); this.hues = new Map(); this.rates = new Map(); }

  join(viewer) {
    this.viewers.add(viewer);
    this.stream ??= new Stream("v1/pool/watch", {
      on: (name, look) => { if (name === "pool") this.take(look); },
      state: (state, error) => { for (const one of this.viewers) one.state?.(state, error); },
    });
    if (this.look) viewer.show(this.look);
  }

  leave(viewer) {
    this.viewers.delete(viewer);
    if (!this.viewers.size) { this.stream?.close(); this.stream = null; this.runs.clear(); this.look = null; }
  }

  take(look) {
    for (const node of look.nodes) {
      const known = this.runs.get(node.node);
      if (node.runs.length || !known || known.generation !== node.generation) {
        const runs = node.runs.map(([first, extents, kind, state, collection, lane, rows]) => ({ first, extents, kind, state, collection, lane, rows }));
        this.runs.set(node.node, { generation: node.generation, runs });
      }
      node.runs = this.runs.get(node.node).runs;
      const rates = this.rates.get(node.node) ?? Array(SPARK).fill(0);
      rates.shift();
      rates.push(node.rows_per_s);
      this.rates.set(node.node, rates);
    }
    for (const one of look.collections) if (!this.hues.has(one.name)) this.hues.set(one.name, this.hues.size);
    look.open = look.nodes.map(() => new Map());
    for (const lane of look.lanes) for (const [first, , rows, room] of lane.open) look.open[lane.node]?.set(first, { rows, room });
    this.look = look;
    for (const one of this.viewers) one.show(look);
  }

  hue = (collection) => this.hues.get(collection) ?? -1;
}
const watch = new Watch();

const nodeName = (node) => node.label || `node ${node.node}`;
const rate = (number) => (number >= 0.5 ? `${count(number)} rows/s` : number > 0 ? "< 1 row/s" : "idle");
const swatch = (draw) => { const canvas = h("canvas", { class: "swatch", "aria-hidden": "true" }); repaintSoon(canvas, draw); return canvas; };
function repaintSoon(canvas, draw) {
  const work = () => { if (canvas.isConnected) draw(...prepare(canvas, 14)); else repaint.delete(work); };
  requestAnimationFrame(() => { repaint.add(work); work(); });
}

/** The strip beside the feed: how full, how busy, and the first rows of the map. */
export class Strip {
  constructor(box) {
    this.used = h("span", {}); this.rate = h("span", { class: "num soft" }, "");
    this.canvas = h("canvas", { "aria-hidden": "true" });
    set(box, h("a", { href: "#/pool", "aria-label": "The pool: see its map" }, h("div", { class: "line" }, this.used, this.rate), this.canvas));
    set(this.used, "The pool");
    this.map = new NodeMap(this.canvas, { rows: 4, rowHeight: 9 });
    repaint.add(() => { if (this.look) this.show(this.look); });
  }

  start() { watch.join(this); }
  stop() { watch.leave(this); }
  show(look) {
    this.look = look;
    set(this.used, h("b", {}, bytes(look.allocated)), ` of ${bytes(look.capacity)}`);
    set(this.rate, rate(look.rows_per_s));
    // All nodes, one after the other, as if they were one.
    const runs = [], open = new Map(), each = look.nodes[0]?.extents ?? 1;
    let at = 0;
    for (const node of look.nodes) {
      let end = 0;
      for (const run of node.runs) {
        runs.push({ ...run, first: run.first + at });
        end = Math.max(end, run.first + run.extents);
        const one = look.open[node.node].get(run.first);
        if (one) open.set(run.first + at, one);
      }
      at += Math.min(each, end + 2);
    }
    this.map.show(runs, Math.max(at, 64), open, watch.hue, palettes());
  }
}

/** The whole view. */
export class PoolView {
  constructor(main) {
    this.main = main;
    this.nodes = new Map();
    this.whole = false;
    this.rowsOpen = false;
    this.title = h("h1", { tabIndex: -1 }, "The pool");
    this.lead = h("p", { class: "lead" }, "One file of shared memory. Every process that maps it reads it in place and appends to it.");
    this.facts = h("dl", { class: "facts" });
    this.values = {};
    for (const [key, name] of [["used", "Memory used"], ["rate", "Written now"], ["rows", "Live records"], ["who", "Who is here"]]) {
      this.values[key] = h("dd", {}, "–");
      this.facts.append(h("div", { class: "fact card" }, h("dt", {}, name), this.values[key]));
    }
    const choice = h("input", { type: "checkbox", onchange: () => { this.whole = choice.checked; this.again(); } });
    this.box = h("div", { class: "map-nodes" });
    this.tip = h("div", { class: "tip", hidden: true, "aria-hidden": "true" });
    this.card = h("section", { class: "map-card card", "aria-label": "Map of the pool" }, this.box, this.legend(), this.tip);
    this.lanes = h("tbody");
    this.collections = h("tbody");
    this.sessions = h("tbody");
    this.sessionCard = this.table("Processes", ["Process", "pid", "Its own memory", "Of the pool", "State"], [1, 2, 3], this.sessions);
    this.sessionCard.hidden = true;
    this.runs = h("tbody");
    this.details = h("details", { class: "table-card card", ontoggle: () => { this.runsFor = null; this.again(); } },
      h("summary", {}, "The map as a table"),
      h("table", {}, h("caption", { class: "unseen" }, "What each run of extents holds"), head(["Node", "First extent", "Extents", "What", "Collection", "Rows", "Lane"], [1, 2, 5, 6]), this.runs));
    this.trouble = h("p", { class: "notice bad", hidden: true });
    set(main,
      h("div", { class: "pool-head" }, h("div", {}, this.title, this.lead), h("label", { class: "row-choice" }, choice, "Show the free space to its end")),
      this.trouble, this.looking = h("p", { class: "empty", role: "status" }, "Looking…"),
      this.all = h("div", { hidden: true }, this.facts, this.card,
        h("div", { class: "tables" },
          this.table("Lanes: who may append", ["Lane", "Held by", "Writes to", "Since", "Rate"], [4], this.lanes, [3]),
          h("div", {}, this.table("Collections", ["Collection", "Records", "Dead", "Segments", "Memory", "Index"], [1, 2, 3, 4, 5], this.collections, [2, 3]), this.sessionCard)),
        this.details));
    this.redraw = () => this.again();
    repaint.add(this.redraw);
    watch.join(this);
  }

  leave() { watch.leave(this); repaint.delete(this.redraw); }

  state(state, error) {
    this.trouble.hidden = state === "on";
    if (state === "refused") set(this.trouble, error.message);
    else if (state === "off") set(this.trouble, "The connection is gone. What you see is the last look; trying again.");
  }

  legend() {
    return h("div", { class: "legend", role: "group", "aria-label": "What the patterns mean" }, KINDS.map(([what, name, note]) =>
      h("span", { title: note || null }, swatch((context, width) => paint(context, palettes(), what, what === "free" || what === "retired" ? -1 : 7, 0, 0, width, 14)), name)));
  }

  /** `rare` columns are left out where there is no room; a table that is still too wide can be scrolled by keyboard. */
  table(title, columns, numbers, body, rare = []) {
    const made = h("section", { class: "table-card card", "aria-label": title }, h("h2", {}, title), h("table", {}, head(columns, numbers, rare), body));
    body.classes = columns.map((_, i) => [numbers.includes(i) ? "n" : "", rare.includes(i) ? "rare" : ""].join(" ").trim() || null);
    new ResizeObserver(() => { if (made.scrollWidth > made.clientWidth) made.tabIndex = 0; else made.removeAttribute("tabindex"); }).observe(body);
    return made;
  }

  again() { if (this.look) { this.runsFor = null; this.show(this.look); } }

  show(look) {
    this.look = look;
    this.all.hidden = false; // all at once, at its full size: nothing that is seen is pushed about
    this.looking.hidden = true;
    const share = look.allocated / Math.max(1, look.capacity);
    put(this.values.used, bytes(look.allocated), `${(share * 100).toFixed(share < 0.1 ? 1 : 0)} % of ${bytes(look.capacity)}`);
    put(this.values.rate, rate(look.rows_per_s), look.bytes_per_s ? `${bytes(look.bytes_per_s)}/s` : "nobody appends at the moment");
    const rows = look.collections.reduce((sum, one) => sum + one.rows, 0);
    put(this.values.rows, count(rows), plural(look.collections.length, "collection"));
    const held = look.lanes.filter((one) => one.held).length;
    put(this.values.who, plural(held, "writer"), look.sessions.length ? plural(look.sessions.length, "process here", "processes here") : plural(look.nodes.length, "node"));
    for (const node of look.nodes) this.showNode(look, node);
    this.showLanes(look);
    this.showCollections(look);
    this.showSessions(look);
    if (this.details.open) this.showRuns(look);
  }

  showNode(look, node) {
    let view = this.nodes.get(node.node);
    if (!view) {
      const many = look.nodes.length;
      const canvas = h("canvas", { class: "map", role: "img" });
      view = {
        name: h("h2", {}), size: h("span", { class: "num" }), rate: h("span", { class: "rate num" }), spark: h("canvas", { class: "spark rare", "aria-hidden": "true" }), canvas,
        map: new NodeMap(canvas, many === 1 ? { rows: 10, rowHeight: 20 } : many < 4 ? { rows: 5, rowHeight: 18 } : { rows: 3, rowHeight: 14 }),
      };
      this.box.append(h("section", { class: "node", "aria-label": nodeName(node) }, h("div", { class: "node-head" }, view.name, view.size, view.spark, view.rate), canvas));
      canvas.addEventListener("pointermove", (event) => this.point(view, node.node, event));
      canvas.addEventListener("pointerdown", (event) => this.point(view, node.node, event));
      canvas.addEventListener("pointerleave", () => { this.tip.hidden = true; });
      this.nodes.set(node.node, view);
    }
    set(view.name, nodeName(node));
    set(view.size, `${bytes(node.allocated)} of ${bytes(node.capacity)}`, node.retired ? `, ${bytes(node.retired)} retired` : "");
    set(view.rate, rate(node.rows_per_s));
    view.map.whole = this.whole;
    view.map.show(node.runs, node.extents, look.open[node.node], watch.hue, palettes());
    spark(view.spark, watch.rates.get(node.node), palettes().accent);
    view.canvas.setAttribute("aria-label", `${nodeName(node)}: ${bytes(node.allocated)} of ${bytes(node.capacity)} used by ${plural(node.runs.length, "run")} of extents, ${rate(node.rows_per_s)}. The table at the end of the page lists them.`);
  }

  point(view, number, event) {
    const box = view.canvas.getBoundingClientRect(), card = this.card.getBoundingClientRect();
    const found = view.map.at(event.clientX - box.left, event.clientY - box.top);
    this.tip.hidden = !found;
    if (!found) return;
    set(this.tip, found === "free" ? h("b", {}, "Free") : this.describe(found, this.look.open[number]));
    const width = this.tip.offsetWidth;
    this.tip.style.left = `${Math.max(8, Math.min(card.width - width - 8, event.clientX - card.left + 14))}px`;
    this.tip.style.top = `${event.clientY - card.top + 18}px`;
  }

  describe(run, open) {
    const one = open?.get(run.first);
    return [
      h("b", {}, `${NAMES[run.kind] ?? run.kind}, ${run.state}`), run.collection ? `of ${run.collection}` : "of a dropped collection",
      h("br"), one ? `${count(one.rows)} of ${count(one.room)} rows, lane ${run.lane}` : run.rows ? plural(run.rows, "row") : "",
      one || run.rows ? h("br") : "", `${bytes(run.extents * this.look.extent_size)} from extent ${count(run.first)}`,
    ];
  }

  showLanes(look) {
    const rows = look.lanes.map((lane) => {
      const names = [...new Set(lane.open.map(([, collection]) => collection))];
      return [`${lane.node}.${lane.lane}`, [
        h("span", { class: "still" }, h("span", { class: `lamp${lane.held ? " on" : ""}`, "aria-hidden": "true" }), look.nodes.length > 1 ? `${nodeName(look.nodes[lane.node])}, ` : "", `${lane.lane}`),
        lane.held ? [lane.label || "a process", lane.pid ? h("span", { class: "faint" }, ` pid ${lane.pid}`) : ""] : h("span", { class: "faint" }, "nobody"),
        names.length ? names.join(", ") : h("span", { class: "faint" }, "nothing open"),
        lane.held ? when(lane.since_us / 1e6) : "", rate(lane.rows_per_s),
      ]];
    });
    fillRows(this.lanes, rows, "Nobody holds a lane: nothing is being written.");
  }

  showCollections(look) {
    const rows = look.collections.map((one) => {
      const recall = one.indexes.length ? Math.min(...one.indexes.map((index) => index.recall)) : null;
      return [one.name, [
        [h("span", { class: `swatch hue-${watch.hue(one.name) % 8}`, "aria-hidden": "true" }), one.name], count(one.rows), count(one.rows_dead), `${one.segments_open} open, ${one.segments_sealed} sealed`,
        bytes(one.bytes_allocated), recall === null ? h("span", { class: "faint" }, "none yet") : `recall ${recall.toFixed(2)}`,
      ]];
    });
    fillRows(this.collections, rows, "There is no collection yet.");
  }

  showSessions(look) {
    this.sessionCard.hidden = !look.sessions.length;
    const known = (size) => (size === null ? "–" : bytes(size));
    fillRows(this.sessions, look.sessions.map((one) => [`${one.node}.${one.slot}`, [
      one.label || "a process", String(one.pid), known(one.memory_private), known(one.memory_shared),
      one.stopped ? "stopped: it holds memory" : one.generations_behind > 1 ? `${one.generations_behind} generations behind` : "up to date",
    ]]), "");
  }

  showRuns(look) {
    const generations = look.nodes.map((node) => node.generation).join();
    if (this.runsFor === generations) return;
    this.runsFor = generations;
    set(this.runs, look.nodes.flatMap((node) => node.runs.slice(0, 500).map((run) => h("tr", {},
      h("td", {}, nodeName(node)), h("td", { class: "n" }, count(run.first)), h("td", { class: "n" }, count(run.extents)), h("td", {}, `${NAMES[run.kind] ?? run.kind}, ${lookOf(run) === "retired" ? "retired" : run.state}`),
      h("td", {}, run.collection), h("td", { class: "n" }, run.state === "open" ? `${count(look.open[node.node].get(run.first)?.rows ?? 0)} so far` : count(run.rows)), h("td", { class: "n" }, run.kind === "segment" ? String(run.lane) : "")))));
  }
}

const head = (columns, numbers, rare = []) => h("thead", {}, h("tr", {}, columns.map((name, i) =>
  h("th", { scope: "col", class: `${numbers.includes(i) ? "n" : ""}${rare.includes(i) ? " rare" : ""}` }, name))));

function put(box, value, note) {
  set(box, value, h("span", { class: "sub" }, note));
}

/** Rows of a table by key; cells are replaced only where their text changed, so that a screen reader is not disturbed. */
function fillRows(body, rows, nothing) {
  body.rowsByKey ??= new Map();
  const known = body.rowsByKey;
  if (!rows.length) { known.clear(); set(body, h("tr", {}, h("td", { colSpan: 9, class: "faint" }, nothing))); return; }
  if (!known.size) body.replaceChildren();
  const seen = new Set(rows.map(([key]) => key));
  for (const [key, row] of known) if (!seen.has(key)) { row.remove(); known.delete(key); }
  for (const [key, cells] of rows) {
    let row = known.get(key);
    if (!row) { row = h("tr", {}, cells.map((_, i) => h("td", { class: body.classes[i] }))); known.set(key, row); }
    if (!row.isConnected) body.append(row);
    cells.forEach((cell, i) => {
      const made = set(h("td"), cell);
      const old = row.cells[i];
      if (old.textContent !== made.textContent || (!old.hasChildNodes() && made.hasChildNodes())) old.replaceChildren(...made.childNodes);
    });
  }
}
