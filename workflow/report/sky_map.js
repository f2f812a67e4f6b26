"use strict";
// The map: what it can show, its colours, and how it is drawn. East is to the left, as seen from the Earth.

/** Steps between the lines of the grid, in degrees. */
const STEPS = [30, 15, 10, 5, 2, 1, 0.5, 0.2, 0.1, 0.05, 0.02, 0.01];
/** Chunks of at least so many pixels have borders. */
const BORDER_PIXELS = 9;

class SkyMap {
  /** arrays: by chunk `states`, and `rows`, `bytes` of each table; `jobOf` of each stage; `jobs` with their times; names. */
  constructor(grid, chunks, arrays) {
    Object.assign(this, arrays, { grid, chunks });
    this.at = new Int32Array(grid.size).fill(-1); // slot -> index of a chunk
    chunks.forEach((chunk, i) => {
      this.at[grid.slot(chunk)] = i;
    });
    this.stateNames = Object.keys(data.states);
    this.view = { ra: 0, y: 0, zoom: 1 };
    this.picked = -1;
    this.drawTimes = [];
    this.below = $("below");
    this.above = $("above");
    this.modes = this.makeModes();
    this.modes.forEach((mode, i) => $("mode").append(make("option", { value: i }, mode.name)));
    this.setMode(0);
    this.resize();
  }

  // -- what it shows: a value for each chunk, nan where there is none ------------------------------------------------

  makeModes() {
    const modes = [{ name: "State" }];
    const add = (name, unit, value) => {
      const values = Float64Array.from(this.chunks, (chunk, i) => value(i, chunk));
      if (values.some((v) => !Number.isNaN(v))) modes.push({ name, unit, values });
    };
    for (const name of Object.keys(data.directors)) {
      const rows = this.rows[name];
      const density = (i, chunk) => (rows[i] < 0 ? NaN : rows[i] / this.grid.area(chunk));
      add(`${name} per square degree`, "rows per square degree", density);
    }
    for (const [name, { director, visits }] of Object.entries(data.children)) {
      const [rows, parents] = [this.rows[name], this.rows[director]];
      const title = visits ? `Visits per ${director} (${name})` : `${name} per ${director}`;
      const ratio = (i) => (rows[i] < 0 || parents[i] <= 0 ? NaN : rows[i] / parents[i]);
      add(title, `rows of ${name} for each row of ${director}`, ratio);
    }
    add("Seconds per chunk", "seconds on the clock, all stages; the mean of its tile", this.timePerChunk("ms"));
    add(
      "CPU seconds per chunk",
      "seconds of processor time, all stages; the mean of its tile",
      this.timePerChunk("cpu_ms"),
    );
    const sizes = Object.values(this.bytes);
    const sum = (i) => sizes.reduce((total, values) => (values[i] < 0 ? total : (total || 0) + values[i]), NaN);
    add("Bytes per chunk", "bytes of text, overlap included", sum);
    return modes;
  }

  timePerChunk(column) {
    const perJob = Float64Array.from(this.jobs[column], (ms, job) => ms / this.jobs.chunks[job] / 1000);
    const stages = Object.values(this.jobOf);
    return (i) => stages.reduce((total, jobs) => (jobs[i] < 0 ? total : (total || 0) + perJob[jobs[i]]), NaN);
  }

  setMode(number) {
    this.mode = this.modes[number];
    $("mode").value = number;
    $("log-label").hidden = !this.mode.values;
    this.paint();
  }

  /** Works out the colour of each slot. */
  paint() {
    const { values } = this.mode;
    const back = rgb(css("sky"));
    const states = this.stateNames.map((state) => rgb(css(state)));
    const unknown = mix(back, rgb(css("grid")), 0.3);
    this.scale = values ? this.makeScale(values) : null;
    this.colours = new Int32Array(this.grid.size).fill(pixel(back));
    this.edges = new Int32Array(this.colours);
    this.chunks.forEach((chunk, i) => {
      let colour = states[this.states[i]];
      if (values) colour = Number.isNaN(values[i]) ? unknown : rampColour(this.scale.share(values[i]));
      const slot = this.grid.slot(chunk);
      this.colours[slot] = pixel(colour);
      this.edges[slot] = pixel(mix(colour, back, 0.55));
    });
    this.writeLegend();
    this.request();
  }

  makeScale(values) {
    const known = values.filter((v) => !Number.isNaN(v));
    let [low, high, least] = [Infinity, -Infinity, Infinity];
    for (const v of known) {
      low = Math.min(low, v);
      high = Math.max(high, v);
      if (v > 0) least = Math.min(least, v);
    }
    if ($("log").checked && least < high) {
      const range = Math.log(high / least);
      const share = (v) => Math.log(Math.max(v, least) / least) / range;
      return { known, share, value: (part) => least * Math.exp(range * part) };
    }
    const share = (v) => (high > low ? (v - low) / (high - low) : 0.5);
    return { known, share, value: (part) => low + (high - low) * part };
  }

  writeLegend() {
    const legend = $("legend");
    const note = $("note");
    legend.replaceChildren();
    note.textContent = this.chunks.length < this.grid.size ? "Grey sky was not asked for." : "";
    if (!this.scale) {
      for (const [state, n] of Object.entries(data.states)) {
        const swatch = make("i", { style: `background: var(--${state.replace(" ", "-")})` });
        if (n) legend.append(make("span", { class: "key", "data-state": state }, swatch, `${state}: ${whole(n)}`));
      }
      note.textContent += ` Done: ${data.store === "none" ? "partitioned" : "committed"}.`;
      if (data.states.failed) note.textContent += " Failed chunks are crossed.";
      return;
    }
    const { known, share, value } = this.scale;
    const ticks = [0, 0.25, 0.5, 0.75, 1].map((part) => make("span", {}, round3(value(part))));
    const canvas = make("canvas", { width: 840, height: 68 });
    const words = make("span", { class: "soft" }, `${whole(known.length)} chunks; bars: how many have such a value`);
    legend.append(make("div", { id: "scale" }, canvas, make("div", { class: "ticks" }, ...ticks)));
    legend.append(make("span", {}, this.mode.unit, make("br"), words));
    const bins = new Float64Array(105);
    for (const v of known) bins[Math.min(104, Math.floor(share(v) * 105))] += 1;
    const most = Math.max(...bins);
    const pen = canvas.getContext("2d");
    bins.forEach((n, i) => {
      const bar = n ? Math.max(2, (n / most) * 38) : 0;
      pen.fillStyle = `rgb(${rampColour((i + 0.5) / 105)})`;
      pen.fillRect(i * 8, 44, 8, 24);
      pen.fillRect(i * 8, 40 - bar, 7, bar);
    });
    if (known.length < this.chunks.length) note.textContent += " Chunks without a value yet are of a darker grey.";
  }

  // -- drawing ---------------------------------------------------------------------------------------------------------

  resize(ratio = window.devicePixelRatio || 1) {
    const box = $("sky").getBoundingClientRect();
    if (!box.width) return;
    this.ratio = ratio;
    for (const canvas of [this.below, this.above]) {
      canvas.width = Math.round(box.width * ratio);
      canvas.height = Math.round(box.height * ratio);
    }
    this.unit = Math.min(this.below.width / (4 * ROOT2 + 0.1), this.below.height / (2 * ROOT2 + 0.1));
    this.image = new ImageData(this.below.width, this.below.height);
    this.words = new Int32Array(this.image.data.buffer);
    this.draw();
  }

  request() {
    this.waiting ||= requestAnimationFrame(() => this.draw());
  }

  draw() {
    this.waiting = 0;
    if (!this.image) return;
    const start = performance.now();
    this.drawChunks();
    const pen = this.below.getContext("2d");
    this.drawGrid(pen);
    this.drawPlane(pen);
    if (!this.scale) this.crossFailed(pen);
    this.drawLabels(pen);
    this.drawPicked();
    this.drawTimes.push(performance.now() - start);
    if (this.drawTimes.length > 500) this.drawTimes.shift();
  }

  /** Pixels for each unit of the projection. */
  get perUnit() {
    return this.unit * this.view.zoom;
  }

  /**
   * Each pixel is asked which chunk it lies in: along a line of pixels Dec is the same and RA grows evenly, so that it takes as
   * long for ten chunks as for a hundred thousand.
   */
  drawChunks() {
    const { counts, offsets, stripes, height: stripeHeight } = this.grid;
    const { width, height } = this.below;
    const { words, colours, edges, perUnit } = this;
    const isTall = (stripeHeight * RAD * perUnit) / 1.1 > BORDER_PIXELS;
    let before = -1;
    words.fill(0);
    for (let row = 0; row < height; row += 1) {
      const sine = (this.view.y - (row + 0.5 - height / 2) / perUnit) / ROOT2;
      if (Math.abs(sine) >= 1) continue;
      const theta = Math.asin(sine);
      const stripe = Math.min(stripes - 1, Math.max(0, Math.floor((decAt(theta) + 90) / stripeHeight)));
      const count = counts[stripe];
      const reach = halfWidth(theta) * perUnit;
      const first = Math.max(0, Math.ceil(width / 2 - reach - 0.5));
      const last = Math.min(width - 1, Math.floor(width / 2 + reach - 0.5));
      const step = count / (2 * reach); // chunks per pixel
      let place = (this.view.ra / 360) * count - (first + 0.5 - width / 2) * step;
      place -= Math.floor(place / count) * count;
      const inner = isTall && before >= 0 && stripe !== before ? edges : colours;
      const outer = isTall && step < 1 / BORDER_PIXELS ? edges : inner;
      let chunk = -1;
      for (let i = row * width + first, end = row * width + last; i <= end; i += 1) {
        const found = Math.min(place | 0, count - 1);
        words[i] = (found !== chunk && chunk >= 0 ? outer : inner)[offsets[stripe] + found];
        chunk = found;
        place -= step;
        if (place < 0) place += count;
      }
      before = stripe;
    }
    this.below.getContext("2d").putImageData(this.image, 0, 0);
  }

  /** Pixels of a point of the sky; x jumps at the seam, opposite to the centre. */
  project(ra, dec) {
    const theta = thetaOf(dec);
    const x = (-around(ra - this.view.ra) / 180) * halfWidth(theta);
    const y = ROOT2 * Math.sin(theta) - this.view.y;
    return [this.below.width / 2 + x * this.perUnit, this.below.height / 2 - y * this.perUnit];
  }

  /** The point of the sky at a pixel, or null. */
  skyAt(x, y) {
    const sine = (this.view.y - (y - this.below.height / 2) / this.perUnit) / ROOT2;
    if (Math.abs(sine) >= 1) return null;
    const theta = Math.asin(sine);
    const east = ((this.below.width / 2 - x) / this.perUnit / halfWidth(theta)) * 180;
    return Math.abs(east) <= 180 ? { ra: wrap(this.view.ra + east), dec: decAt(theta) } : null;
  }

  /** Draws a line through points of the sky. */
  trace(pen, points) {
    let last = null;
    pen.beginPath();
    for (const [ra, dec] of points) {
      const at = this.project(ra, dec);
      if (last && Math.abs(at[0] - last[0]) < 2 * this.unit) pen.lineTo(...at);
      else pen.moveTo(...at);
      last = at;
    }
    pen.stroke();
  }

  /** Draws twice, broad in the colour of the ground and thin in its own, so that it shows on every colour. */
  outlined(pen, colour, thickness, draw) {
    for (const [name, more] of [
      ["halo", 2],
      [colour, 0],
    ]) {
      pen.strokeStyle = css(name);
      pen.lineWidth = (thickness + more) * this.ratio;
      draw();
    }
  }

  /** What of the grid is in sight: from bottom to top in Dec, and the lines. */
  sight() {
    const { width, height } = this.below;
    const perDegree = (this.perUnit * RAD) / 1.1;
    const step = STEPS.findLast((s) => s * perDegree > 70 * this.ratio) ?? STEPS[0];
    const limit = (y) => decAt(Math.asin(Math.max(-1, Math.min(1, (this.view.y + y / this.perUnit) / ROOT2))));
    const [bottom, top] = [limit(-height / 2), limit(height / 2)];
    // Where RA is written: at the equator, or as near to it as can be seen.
    const middle = Math.max(bottom, Math.min(top, 0));
    const widest = Math.max(0.05, halfWidth(thetaOf(Math.min(85, Math.max(Math.abs(bottom), Math.abs(top))))));
    const reach = Math.min(180, (width / 2 / this.perUnit / widest) * 180);
    const decs = [];
    const ras = [];
    for (let k = Math.ceil(bottom / step - 1e-9); k * step <= top + 1e-9; k += 1)
      if (Math.abs(k * step) < 89.9) decs.push(k * step);
    for (let k = Math.ceil((this.view.ra - reach) / step); k * step <= this.view.ra + reach && ras.length < 400; k += 1)
      ras.push(k * step);
    return { bottom, top, middle, decs, ras };
  }

  drawGrid(pen) {
    const { bottom, top, decs, ras } = this.sight();
    const middle = this.below.width / 2;
    pen.lineWidth = this.ratio;
    pen.strokeStyle = css("grid");
    pen.globalAlpha = 0.55;
    for (const dec of decs) {
      const y = this.project(this.view.ra, dec)[1];
      const half = Math.min(middle, halfWidth(thetaOf(dec)) * this.perUnit);
      pen.beginPath();
      pen.moveTo(middle - half, y);
      pen.lineTo(middle + half, y);
      pen.stroke();
    }
    const parts = Array.from({ length: 61 }, (_, i) => bottom + ((top - bottom) * i) / 60);
    for (const ra of ras)
      this.trace(
        pen,
        parts.map((dec) => [ra, dec]),
      );
    pen.globalAlpha = 1;
    for (const side of [-1, 1]) {
      pen.beginPath();
      for (let dec = -90; dec <= 90; dec += 1.5) {
        pen.lineTo(middle + side * halfWidth(thetaOf(dec)) * this.perUnit, this.project(this.view.ra, dec)[1]);
      }
      pen.stroke();
    }
  }

  drawPlane(pen) {
    const points = Array.from({ length: 361 }, (_, l) => galacticPlane(l));
    pen.setLineDash([9 * this.ratio, 6 * this.ratio]);
    this.outlined(pen, "text", 1.5, () => this.trace(pen, points));
    pen.setLineDash([]);
  }

  drawLabels(pen) {
    const { middle, decs, ras } = this.sight();
    const { width, height } = this.below;
    const r = this.ratio;
    const degrees = (angle) => `${Number(angle.toFixed(2))}°`.replace("-", "−");
    const write = (text, x, y, align = "left") => {
      pen.font = `${12 * r}px system-ui, "DejaVu Sans", sans-serif`;
      pen.textAlign = align;
      pen.textBaseline = "middle";
      pen.lineJoin = "round";
      pen.lineWidth = 3.5 * r;
      pen.strokeStyle = css("halo");
      pen.strokeText(text, x, y);
      pen.fillStyle = css("text");
      pen.fillText(text, x, y);
    };
    const [px, py] = this.project(...galacticPlane(80));
    write("galactic plane", px + 8 * r, py);
    const line = Math.max(12 * r, Math.min(height - 12 * r, this.project(0, middle)[1] + (middle === 0 ? 11 * r : 0)));
    for (const ra of ras) {
      const x = this.project(ra, middle)[0];
      if (Math.abs(ra - this.view.ra) < 180 && x > 40 * r && x < width - 30 * r)
        write(degrees(wrap(ra)), x, line, "center");
    }
    for (const dec of decs) {
      const x = width / 2 - halfWidth(thetaOf(dec)) * this.perUnit;
      write(
        (dec > 0 ? "+" : "") + degrees(dec),
        Math.max(6, x / r + 6) * r,
        this.project(this.view.ra, dec)[1] - 9 * r,
      );
    }
    write("← RA", width - 8 * r, 14 * r, "right");
  }

  crossFailed(pen) {
    const failed = this.stateNames.indexOf("failed");
    const arm = 4 * this.ratio;
    const draw = () => {
      pen.beginPath();
      this.chunks.forEach((chunk, i) => {
        if (this.states[i] !== failed) return;
        const [x, y] = this.project(...this.grid.centre(chunk));
        pen.moveTo(x - arm, y - arm);
        pen.lineTo(x + arm, y + arm);
        pen.moveTo(x - arm, y + arm);
        pen.lineTo(x + arm, y - arm);
      });
      pen.stroke();
    };
    this.outlined(pen, "bad", 2, draw);
  }

  /** The outline of the chunk that is looked at, on the upper canvas. */
  drawPicked() {
    const pen = this.above.getContext("2d");
    pen.clearRect(0, 0, this.above.width, this.above.height);
    if (this.picked < 0) return;
    const box = this.grid.box(this.chunks[this.picked]);
    const right = box.ra + box.width - 1e-9;
    const corners = [
      [box.ra, box.dec],
      [right, box.dec],
      [right, box.top],
      [box.ra, box.top],
      [box.ra, box.dec],
    ];
    const points = [];
    for (let side = 0; side < 4; side += 1) {
      const [from, to] = [corners[side], corners[side + 1]];
      for (let i = 0; i <= 24; i += 1) points.push(from.map((value, k) => value + ((to[k] - value) * i) / 24));
    }
    this.outlined(pen, "text", 2, () => this.trace(pen, points));
  }
}
