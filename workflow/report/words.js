"use strict";
// What all parts of the page share: its data, numbers in words, and making elements.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
/** A colour of the present theme. */
const css = (name) =>
  getComputedStyle(document.documentElement)
    .getPropertyValue(`--${name.replace(" ", "-")}`)
    .trim();

const whole = (n) => Math.round(n).toLocaleString("en-US");
const round3 = (n) => (n === 0 ? "0" : Math.abs(n) >= 1000 ? whole(n) : String(Number(n.toPrecision(3))));
const dateText = (iso) => (iso ? iso.slice(0, 16).replace("T", " ") : "");

function scaled(n, names) {
  let i = 0;
  while (n >= 1000 && i < names.length - 1) {
    n /= 1000;
    i += 1;
  }
  const digits = i === 0 || n >= 100 ? 0 : n < 10 ? 2 : 1;
  return `${n.toFixed(digits)} ${names[i]}`.trim();
}
const sizeText = (n) => scaled(n, ["B", "kB", "MB", "GB", "TB", "PB"]);
const countText = (n) => (n < 100000 ? whole(n) : scaled(n, ["", "thousand", "million", "billion", "trillion"]));

function timeText(s) {
  if (s < 60) return `${s.toFixed(s < 10 ? 2 : 1)} s`;
  if (s < 3600) return `${Math.floor(s / 60)} min ${Math.floor(s % 60)} s`;
  return `${whole(Math.floor(s / 3600))} h ${Math.floor((s % 3600) / 60)} min`;
}

/** An element with attributes and children; a text never becomes markup. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

/** A cell of a table, with the exact number behind its text. */
function cell(text, number = null) {
  return make("td", number === null ? {} : { "data-n": number, title: number.toLocaleString("en-US") }, text);
}
const textCell = (...parts) => make("td", { class: "text" }, ...parts);
const longCell = (...parts) => make("td", { class: "text long" }, ...parts);
const countCell = (n) => (n ? cell(whole(n), n) : cell(""));
const sizeCell = (n) => (n ? cell(sizeText(n), n) : cell(""));
/** A cell for what nobody has measured or recorded. */
const noneCell = (why) => make("td", { class: "soft", title: why }, "–");
const tooShort = () => noneCell("too short to be measured");
const timeCell = (n) => (n === null ? tooShort() : cell(timeText(n), n));
const memoryCell = (n) => (n === null ? tooShort() : cell(`${whole(n)} MB`, n));
const countedText = (n, thing) => `${whole(n)} ${thing}${n === 1 ? "" : "s"}`;
function speedCell({ bytes, cpu_seconds: seconds }) {
  const speed = bytes && seconds ? bytes / seconds / 1e6 : null;
  return cell(speed === null ? "" : round3(speed), speed);
}

/** A table; a head that begins with "<" stands to the left. Rows are lists of cells, with a class before them if need be. */
function table(heads, rows) {
  const head = heads.map((text) => make("th", text.startsWith("<") ? { class: "text" } : {}, text.replace("<", "")));
  const body = rows.map(([kind, ...cells]) => make("tr", kind ? { class: kind } : {}, ...cells));
  return make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...body));
}
