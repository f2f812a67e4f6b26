"use strict";
// The map in the hand: moving and zooming it, and the chunk under the mouse.

const MOST_ZOOM = 400;

class Sky extends SkyMap {
  constructor(grid, chunks, arrays) {
    super(grid, chunks, arrays);
    this.pinned = false;
    this.failureOf = new Map();
    for (const failure of data.failures)
      for (const chunk of expandRanges(failure.chunks)) this.failureOf.set(chunk, failure);
    this.listen();
  }

  // -- moving: sideways the sky turns, so that what is looked at is always upright --------------------------------------

  /** Moves what is at a pixel to another. */
  move(from, to) {
    const held = this.skyAt(...from);
    this.view.y += (to[1] - from[1]) / this.perUnit;
    this.clamp();
    const now = this.skyAt(...to);
    // Near a pole a little way is a long way around.
    if (held && now) this.view.ra = wrap(this.view.ra + Math.max(-60, Math.min(60, around(held.ra - now.ra))));
  }

  /** Zooms; what is at the pixel stays there. */
  zoomBy(factor, x = this.below.width / 2, y = this.below.height / 2) {
    const held = this.skyAt(x, y);
    this.view.zoom = Math.max(1, Math.min(MOST_ZOOM, this.view.zoom * factor));
    if (held) {
      this.view.y = ROOT2 * Math.sin(thetaOf(held.dec)) + (y - this.below.height / 2) / this.perUnit;
      const now = this.skyAt(x, y);
      if (now) this.view.ra = wrap(this.view.ra + held.ra - now.ra);
    }
    this.clamp();
  }

  clamp() {
    const most = Math.max(0, ROOT2 - this.below.height / 2 / this.perUnit);
    this.view.y = Math.max(-most, Math.min(most, this.view.y));
    this.request();
  }

  home() {
    this.view = { ra: 0, y: 0, zoom: 1 };
    this.request();
  }

  /** Shows all chunks as large as they go. */
  fit() {
    let [low, high, x, y] = [90, -90, 0, 0];
    const taken = new Uint8Array(720); // half degrees of RA
    for (const chunk of this.chunks) {
      const box = this.grid.box(chunk);
      const [ra, dec] = this.grid.centre(chunk);
      low = Math.min(low, box.dec);
      high = Math.max(high, box.top);
      x += Math.cos(dec * RAD) * Math.cos(ra * RAD);
      y += Math.cos(dec * RAD) * Math.sin(ra * RAD);
      for (let k = Math.floor(box.ra * 2); k < (box.ra + box.width) * 2; k += 1) taken[k % 720] = 1;
    }
    const ra = wrap(Math.atan2(y, x) / RAD);
    let reach = 0;
    taken.forEach((is, k) => {
      if (is) reach = Math.max(reach, Math.abs(around(k / 2 + 0.25 - ra)) + 0.25);
    });
    const [bottom, top] = [low, high].map((dec) => ROOT2 * Math.sin(thetaOf(dec)));
    const widest = low < 0 && high > 0 ? 0 : Math.min(Math.abs(low), Math.abs(high));
    const wide = ((2 * reach) / 180) * halfWidth(thetaOf(widest)) * this.unit;
    const zoom = 0.88 * Math.min(this.below.width / wide, this.below.height / ((top - bottom) * this.unit));
    this.view = { ra, y: (bottom + top) / 2, zoom: Math.max(1, Math.min(MOST_ZOOM, zoom)) };
    this.clamp();
  }

  /** Shows a chunk, if it is among those of the page; says whether it is. */
  goTo(chunk) {
    const i = this.at[this.grid.slot(chunk)] ?? -1;
    if (i < 0) return false;
    const [ra, dec] = this.grid.centre(chunk);
    const zoom = Math.max(this.view.zoom, 24 / (this.grid.height + 0.5));
    this.view = { ra, y: ROOT2 * Math.sin(thetaOf(dec)), zoom };
    this.clamp();
    this.draw();
    this.pick(i, ...this.project(ra, dec));
    this.pinned = true;
    return true;
  }

  // -- the chunk under the mouse ----------------------------------------------------------------------------------------

  hover(at) {
    const point = this.skyAt(...at);
    this.pick(point ? this.at[this.grid.slotAt(point.ra, point.dec)] : -1, ...at);
  }

  letGo() {
    this.pinned = false;
    this.pick(-1);
  }

  pick(i, x, y) {
    const tip = $("tip");
    if (i !== this.picked) {
      this.picked = i;
      this.drawPicked();
      if (i >= 0) tip.replaceChildren(...this.describe(i));
    }
    tip.hidden = i < 0;
    if (i < 0) return;
    const box = $("sky").getBoundingClientRect();
    const [left, top] = [x / this.ratio, y / this.ratio];
    const isRoom = left + 18 + tip.offsetWidth < box.width;
    tip.style.left = `${isRoom ? left + 18 : Math.max(0, left - 18 - tip.offsetWidth)}px`;
    tip.style.top = `${Math.max(0, Math.min(top + 14, box.height - tip.offsetHeight))}px`;
  }

  describe(i) {
    const chunk = this.chunks[i];
    const box = this.grid.box(chunk);
    const lines = make("table");
    const line = (name, ...cells) => lines.append(make("tr", {}, make("td", {}, name), ...cells));
    const word = (text, attributes = {}) => make("td", attributes, text);
    const range = (from, to) => word(`${from.toFixed(3)}° to ${to.toFixed(3)}°`);
    const jobs = Object.entries(this.jobOf).map(([stage, list]) => [stage, list[i]]);
    const done = jobs.filter(([, job]) => job >= 0);
    line("state", word(this.stateNames[this.states[i]]));
    line("RA", range(box.ra, box.ra + box.width));
    line("Dec", range(box.dec, box.top));
    if (done.length) {
      const job = done[done.length - 1][1];
      line("tile", word(`${this.tiles[job]} of ${this.transactions[this.jobs.transaction[job]]}`));
    }
    for (const [name, rows] of Object.entries(this.rows)) {
      const size = this.bytes[name][i];
      const sizeCell = size < 0 ? null : word(sizeText(size), { "data-bytes": `${name}:${size}` });
      if (rows[i] >= 0) line(name, word(`${whole(rows[i])} rows`, { "data-rows": `${name}:${rows[i]}` }), sizeCell);
    }
    for (const [stage, job] of done) {
      const time = (ms) => (ms < 0 ? "" : `${round3(ms / this.jobs.chunks[job] / 1000)} s`);
      const name = stage === "ingest" ? "loaded" : stage;
      line(name, word(time(this.jobs.ms[job])), word(`${time(this.jobs.cpu_ms[job])} CPU`));
    }
    const failure = this.stateNames[this.states[i]] === "failed" ? this.failureOf.get(chunk) : null;
    const reason = failure ? make("div", { class: "bad" }, failure.reason.slice(0, 300)) : null;
    return [make("b", { "data-chunk": chunk }, `Chunk ${chunk}`), lines, reason].filter(Boolean);
  }

  // -- mouse, keys and buttons ------------------------------------------------------------------------------------------

  listen() {
    const area = $("sky");
    let held = null;
    let isDrag = false;
    const place = (event) => {
      const box = area.getBoundingClientRect();
      return [(event.clientX - box.left) * this.ratio, (event.clientY - box.top) * this.ratio];
    };
    area.onpointerdown = (event) => {
      held = place(event);
      isDrag = false;
      area.setPointerCapture(event.pointerId);
    };
    area.onpointermove = (event) => {
      const at = place(event);
      isDrag ||= held && Math.hypot(at[0] - held[0], at[1] - held[1]) > 4 * this.ratio;
      if (held && isDrag) {
        this.letGo();
        this.move(held, at);
        held = at;
      } else if (!held && !this.pinned) this.hover(at);
    };
    area.onpointerup = (event) => {
      held = null;
      if (isDrag) return;
      this.hover(place(event));
      this.pinned = this.picked >= 0;
    };
    area.onpointerleave = () => {
      if (!this.pinned) this.pick(-1);
    };
    const roll = (event) => {
      event.preventDefault();
      this.letGo();
      this.zoomBy(Math.exp(-event.deltaY / 400), ...place(event));
    };
    area.addEventListener("wheel", roll, { passive: false });
    area.ondblclick = (event) => this.zoomBy(2, ...place(event));

    const shift = (x, y) => {
      const middle = [this.below.width / 2, this.below.height / 2];
      this.letGo();
      this.move(middle, [middle[0] + 60 * x, middle[1] + 60 * y]);
    };
    const keys = {
      "+": () => this.zoomBy(1.5),
      "=": () => this.zoomBy(1.5),
      "-": () => this.zoomBy(1 / 1.5),
      0: () => this.home(),
      f: () => this.fit(),
      Escape: () => this.letGo(),
      ArrowLeft: () => shift(1, 0),
      ArrowRight: () => shift(-1, 0),
      ArrowUp: () => shift(0, 1),
      ArrowDown: () => shift(0, -1),
    };
    area.onkeydown = (event) => {
      if (!keys[event.key] || event.ctrlKey || event.metaKey) return;
      event.preventDefault();
      keys[event.key]();
    };
    $("in").onclick = () => this.zoomBy(1.6);
    $("out").onclick = () => this.zoomBy(1 / 1.6);
    $("home").onclick = () => this.home();
    $("fit").onclick = () => this.fit();
    $("mode").onchange = () => this.setMode(Number($("mode").value));
    $("log").onchange = () => this.paint();
    $("find").onchange = () => $("find").classList.toggle("bad", !this.goTo(Number($("find").value)));
    window.addEventListener("resize", () => this.resize());
  }
}
