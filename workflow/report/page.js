"use strict";
// What the page says around the map, and how it begins.

let skyMap = null;

function writeHeader() {
  const { num_stripes: stripes, num_sub_stripes: subStripes, overlap_deg: overlap } = data.partitioning;
  const isStored = data.store !== "none";
  const total = Object.values(data.states).reduce((sum, n) => sum + n, 0);
  const last = data.stages.find((s) => s.stage === (isStored ? "loaded" : "partitioned")) ?? { rows: 0, bytes: 0 };
  const cpu = data.stages.reduce((sum, s) => sum + (s.cpu_seconds ?? 0), 0);
  $("title").textContent = data.database;
  $("subtitle").textContent =
    `A synthetic sky survey: ${whole(stripes)} stripes × ${subStripes} sub-stripes, overlap ${overlap}°, ` +
    `seed ${data.seed}, store ${data.store}. As of ${dateText(data.made)} UTC.`;

  const card = (id, name, value, note, extra = null) => {
    const parts = [make("span", { class: "soft" }, name), make("b", {}, value), make("span", { class: "soft" }, note)];
    $("cards").append(make("div", { class: "card", id }, ...parts, extra));
  };
  const bar = make("div", { class: "bar" }, make("i", { style: `width: ${(100 * data.done) / Math.max(1, total)}%` }));
  const published = data.published ? `; published as ${data.published.database}` : "; not published";
  const end = isStored ? `committed${published}` : "partitioned; there is no store";
  card("card-chunks", "Chunks", `${whole(data.done)} of ${whole(total)}`, end, bar);
  card("card-rows", "Rows", countText(last.rows), isStored ? "in the store, overlap included" : "partitioned");
  card("card-text", "Text", sizeText(last.bytes), "of chunk and overlap files");
  card("card-time", "Processor time", timeText(cpu), "of all steps, the start of jobs not counted");
  const waiting = data.states.failed;
  const wait = waiting ? `${countedText(waiting, "chunk")} ${waiting === 1 ? "waits" : "wait"} for it` : "no chunk waits for it";
  if (data.failed) card("card-failed", "Failed", whole(data.failed), wait);
}

function writeFailures() {
  if (!data.failed) return;
  const more = data.failed > data.failures.length ? `; the first ${data.failures.length} are listed` : "";
  const rows = data.failures.map((f) => {
    const first = f.chunks.split(/[:,]/)[0];
    const link = f.chunks ? make("a", { href: "#map", "data-chunk": first }, f.chunks) : "";
    if (link) link.onclick = () => skyMap.goTo(Number(first));
    const where = make("span", { class: "soft" }, `${dateText(f.time)} · ${f.file}`);
    // What is no tile is a table, which belongs to the step, or a number that says nothing.
    const isTile = f.transaction || /^s\d+p\d+/.test(f.tile);
    const place = isTile ? [f.transaction, f.tile].filter(Boolean).join(" / ") : "–";
    const object = isTile || /^\d*$/.test(f.tile) ? "" : ` ${f.tile}`;
    return [
      null,
      textCell(place),
      textCell(f.step.replace("_", " ") + object),
      longCell(link),
      longCell(f.reason, make("br"), where),
    ];
  });
  $("failures").hidden = false;
  $("failures").querySelector("h2").textContent = `What failed, and why (${data.failed}${more})`;
  $("failures")
    .querySelector(".wide")
    .append(table(["<transaction, tile", "<step", "<chunks", "<reason"], rows));
}

function writeTables() {
  const name = (kind, key, text) => make("td", { class: "text", [`data-${kind}`]: key }, text.replace("_", " "));
  const blank = () => cell("");
  const measures = (e) => [
    sizeCell(e.bytes),
    ...(e.jobs
      ? [timeCell(e.cpu_seconds), timeCell(e.seconds), speedCell(e), memoryCell(e.memory_mb)]
      : [blank(), blank(), blank(), blank()]),
  ];
  const heads = ["text", "CPU", "wall", "MB/s of CPU", "memory"];

  const stages = data.stages.flatMap((stage) => [
    [
      "whole",
      name("stage", stage.stage, stage.stage),
      countCell(stage.jobs),
      countCell(stage.rows),
      ...measures(stage),
    ],
    ...stage.tables.map((t) => {
      const key = `${stage.stage}.${t.name}`;
      return [
        "part",
        name("table", key, t.name),
        blank(),
        countCell(t.rows),
        sizeCell(t.bytes),
        blank(),
        blank(),
        blank(),
        blank(),
      ];
    }),
  ]);
  $("stages")
    .querySelector(".wide")
    .append(table(["stage, table", "jobs", "rows", ...heads], stages));

  const transactions = data.transactions.map((t) => {
    const id = t.id && t.id !== t.name ? make("span", { class: "soft" }, ` as ${t.id}`) : null;
    const aborted = t.aborted.length
      ? make("span", { class: "bad" }, ` aborted before: ${t.aborted.join("; ")}`)
      : null;
    const chunks = t.chunks.length > 60 ? `${t.chunks.slice(0, 60)}…` : t.chunks;
    const first = make("td", { class: "text", "data-transaction": t.name }, t.name, id);
    const state = make("td", { class: aborted ? "text long" : "text" }, t.state, aborted);
    const dates = [cell(dateText(t.started)), cell(dateText(t.committed))];
    const cpu = t.jobs ? timeCell(t.cpu_seconds) : blank();
    const sums = [countCell(t.tiles), countCell(t.rows), sizeCell(t.bytes), cpu, speedCell(t)];
    return [null, first, state, longCell(chunks), ...sums, ...dates];
  });
  const columns = [
    "transaction",
    "<state",
    "<chunks",
    "tiles",
    "rows",
    "text",
    "CPU",
    "MB/s of CPU",
    "started",
    "committed",
  ];
  $("transactions").querySelector(".wide").append(table(columns, transactions));

  const workers = data.workers.map((w) => {
    const host = w.host
      ? name("worker", `${w.host}.${w.stage}`, w.host)
      : make("td", { class: "text soft", title: "this step does not record it" }, "–");
    const first = [host, textCell(w.stage.replace("_", " "))];
    return [null, ...first, countCell(w.jobs), countCell(w.chunks), countCell(w.rows), ...measures(w)];
  });
  $("workers")
    .querySelector(".wide")
    .append(table(["host", "<step", "jobs", "chunks", "rows", ...heads], workers));
  for (const id of ["stages", "workers"])
    $(id).querySelector("p").hidden = ![...$(id).querySelectorAll("td")].some((td) => td.textContent === "–");
}

function writeStore() {
  if (!data.store_workers.length) return;
  const rows = data.store_workers.map((w) => [
    null,
    make("td", { class: "text", "data-store": w.worker }, w.worker),
    countCell(w.transactions),
    countCell(w.files),
    countCell(w.rows),
    sizeCell(w.bytes),
  ]);
  $("store").hidden = false;
  $("store")
    .querySelector(".wide")
    .append(table(["worker", "transactions", "files", "rows", "text"], rows));
}

function writeVerification() {
  const { verified } = data;
  if (!verified) return;
  const compared = `${whole(verified.compared)} facts of ${whole(verified.chunks)} chunks were compared with the truth of generation`;
  const verdict = verified.differ
    ? make("p", { class: "bad" }, `${whole(verified.differ)} facts differ: ${compared}.`)
    : make("p", {}, `The store holds what was made: ${compared}, and all agree.`);
  const rows = verified.tables.map((t) => [
    null,
    make("td", { class: "text", "data-verified": t.name }, t.name),
    countCell(t.expected),
    countCell(t.found),
    countCell(t.chunks),
  ]);
  const heads = ["table", "rows expected", "rows found", "chunks that differ"];
  $("verified").hidden = false;
  $("verified").append(verdict, make("div", { class: "wide" }, table(heads, rows)));
  for (const { chunk, text } of verified.differences) {
    const link = chunk === null ? null : make("a", { href: "#map" }, `show chunk ${chunk}`);
    if (link) link.onclick = () => skyMap.goTo(chunk);
    $("verified").append(make("p", {}, `${text} `, link));
  }
}

/** How many chunks had come how far by the end of each job; drawn for the present width of the page. */
function writeProgress() {
  const { jobs, jobOf } = skyMap;
  const order = [...jobs.ended.keys()].filter((j) => jobs.ended[j] > 0).sort((a, b) => jobs.ended[a] - jobs.ended[b]);
  if (order.length < 3) return;
  $("progress").hidden = false;
  $("progress").querySelector("svg")?.remove();
  const { paddingLeft, paddingRight } = getComputedStyle($("progress"));
  const inner = $("progress").clientWidth - parseFloat(paddingLeft) - parseFloat(paddingRight);
  const [width, height, left, right, top, bottom] = [Math.max(280, Math.round(inner)), 190, 60, 130, 10, 26];
  const [first, last] = [jobs.ended[order[0]], jobs.ended[order[order.length - 1]]];
  const counts = Object.values(jobOf).map((list) => list.filter((job) => job >= 0).length);
  const most = Math.max(...counts);
  const x = (time) => left + ((time - first) / Math.max(1, last - first)) * (width - left - right);
  const y = (n) => height - bottom - (n / most) * (height - top - bottom);
  const svg = (tag, attributes, ...children) => {
    const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
    for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
    element.append(...children);
    return element;
  };
  const text = (words, at, anchor, fill) =>
    svg("text", { x: at[0], y: at[1], "text-anchor": anchor, fill, "font-size": 12 }, words);
  const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "chunks over time" });
  for (const n of [0, most / 2, most]) {
    picture.append(svg("line", { x1: left, x2: width - right, y1: y(n), y2: y(n), stroke: "var(--line)" }));
    picture.append(text(whole(n), [left - 8, y(n) + 4], "end", "var(--soft)"));
  }
  for (const [time, anchor] of [
    [first, "start"],
    [last, "end"],
  ]) {
    const words = new Date(time * 1000).toISOString().slice(0, 19).replace("T", " ");
    picture.append(text(words, [anchor === "end" ? Math.max(x(time), left + 270) : x(time), height - 6], anchor, "var(--soft)"));
  }
  Object.keys(jobOf).forEach((stage, number) => {
    const name = stage === "ingest" ? "loaded" : stage;
    let [n, path] = [0, `M${left} ${y(0)}`];
    for (const job of order.filter((j) => jobs.stage[j] === number)) {
      n = Math.min(most, n + jobs.chunks[job]);
      path += `H${x(jobs.ended[job]).toFixed(1)}V${y(n).toFixed(1)}`;
    }
    if (!n) return;
    const stroke = `var(--${stage === "ingest" ? "done" : name})`;
    picture.append(svg("path", { d: `${path}H${width - right}`, fill: "none", stroke, "stroke-width": 2.5 }));
    picture.append(
      text(
        `${name} ${whole(n)}`,
        [width - right + 8, Math.max(y(n), top + 30) + 2 - 14 * number],
        "start",
        "var(--text)",
      ),
    );
  });
  $("progress").append(picture);
}

function writeAbout() {
  const { skymill } = data.versions;
  const key = data.fingerprint.slice(0, 12);
  const lines = Object.entries(data.versions).map(([name, version]) => [null, textCell(name), longCell(version)]);
  for (const [name, hash] of Object.entries(data.files))
    lines.push([null, textCell(name), longCell(`sha256 ${hash.slice(0, 16)}…`)]);
  $("cite").append(
    make(
      "p",
      {},
      "Every row follows from the configuration. Datasets of the same fingerprint are the same, byte for byte:",
    ),
    make("p", {}, make("code", { id: "fingerprint" }, data.fingerprint)),
    make(
      "p",
      {},
      `Cite it as: ${data.database}, a synthetic sky survey made with skymill ${skymill}, seed ${data.seed}, fingerprint ${key}. `,
      "The workflow runs on Snakemake (Mölder et al. 2021, F1000Research 10, 33, doi:10.12688/f1000research.29032). The sky is cut ",
      "as in Qserv (Wang, Monkewitz, Lim and Becla 2011, SC ’11, doi:10.1145/2063348.2063364).",
    ),
  );
  $("versions").append(table(["versions", "<"], lines));
  $("config").querySelector("pre").textContent = data.config;
}

// -- light and dark, and paper ------------------------------------------------------------------------------------------

function setTheme(name) {
  document.documentElement.dataset.theme = name;
  $("theme").textContent = name === "dark" ? "Light" : "Dark";
  if (skyMap) skyMap.paint();
}

function watchTheme() {
  const dark = window.matchMedia("(prefers-color-scheme: dark)");
  const prefer = () => setTheme(dark.matches ? "dark" : "light");
  prefer();
  dark.addEventListener("change", prefer);
  $("theme").onclick = () => setTheme(document.documentElement.dataset.theme === "dark" ? "light" : "dark");
  // On paper the page is light, and the map sharp.
  let before = "light";
  window.addEventListener("beforeprint", () => {
    before = document.documentElement.dataset.theme;
    setTheme("light");
    $("config").open = true;
    skyMap.resize(Math.max(2, window.devicePixelRatio));
  });
  window.addEventListener("afterprint", () => {
    setTheme(before);
    skyMap.resize();
  });
}

async function begin() {
  watchTheme();
  writeHeader();
  writeFailures();
  writeTables();
  writeStore();
  writeVerification();
  writeAbout();
  const { chunks, states, tiles, transactions, ...packed } = data.arrays;
  const [rows, bytes, jobOf, jobs] = await Promise.all(
    [packed.rows, packed.bytes, packed.job_of, packed.jobs].map(unpackAll),
  );
  const arrays = { states: await unpack(states), rows, bytes, jobOf, jobs, tiles, transactions };
  skyMap = new Sky(new Grid(data.partitioning), expandRanges(chunks), arrays);
  writeProgress();
  window.addEventListener("resize", writeProgress);
  document.documentElement.dataset.ready = "yes";
}

begin().catch((error) => {
  $("note").textContent = `The map cannot be shown (${error}). It needs a browser of 2023 or later.`;
  throw error;
});
