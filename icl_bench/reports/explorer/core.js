// Elements, the data document as objects, the state of the page in its address, and filters.
// Names come from strangers' records: they are only ever written as text nodes or attributes.

const SVG = "http://www.w3.org/2000/svg";

function h(tag, props = {}, ...children) {
  const node = document.createElement(tag);
  for (const [key, value] of Object.entries(props)) {
    if (key.startsWith("on")) node.addEventListener(key.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) node.setAttribute(key, value === true ? "" : value);
  }
  node.append(...children.flat().filter((child) => child !== null && child !== undefined && child !== false));
  return node;
}

// Replace what a node contains; what is not there is left out.
const put = (node, ...children) => node.replaceChildren(...children.flat().filter(Boolean));

const byId = (id) => document.getElementById(id);

// Data

let data = JSON.parse(byId("data").textContent);
let runs = [];
let runById = new Map();
let families = []; // of all sections, so that a family has one colour everywhere

function take(found) {
  data = found;
  const columns = Object.entries(data.runs);
  runs = data.runs.id.map((_, i) => Object.fromEntries(columns.map(([name, values]) => [name, values[i]])));
  runById = new Map(runs.map((run) => [run.id, run]));
  data.sections.forEach((section, place) => {
    section.place = place;
    section.entries.forEach((entry, number) => { entry.number = number; entry.section = place; entry.runs = []; });
  });
  families = [...new Set(data.sections.flatMap((one) => one.families))].sort(new Intl.Collator("en", { numeric: true }).compare);
  for (const run of runs) data.sections[run.section].entries[run.entry].runs.push(run);
}

const entryOf = (run) => data.sections[run.section].entries[run.entry];
const storeName = (section) => data.stores[section.store].name;

// State of the page, kept in the address

const DEFAULTS = {
  view: "answers", task: "", store: "", hide: "", p: "", seeds: "", low: "", high: "", find: "", x: "", cell: "",
  step: "", sort: "", run: "", sample: "", group: "", wrong: "", theme: "", page: "1", over: "", bottom: "", top: "",
  columns: "", measure: "",
};
const state = { ...DEFAULTS };

function readAddress() {
  const found = new URLSearchParams(location.hash.slice(1));
  for (const key of Object.keys(DEFAULTS)) state[key] = found.get(key) ?? DEFAULTS[key];
}

function addressOf(changes) {
  const kept = Object.entries({ ...state, ...changes }).filter(([key, value]) => value !== DEFAULTS[key]);
  return `#${new URLSearchParams(kept)}`;
}

// A change of the view or of the open run is a step that the back button takes back.
function go(changes, step = false) {
  const target = addressOf(changes);
  if (target === (location.hash || "#")) return;
  if (step) location.hash = target;
  else location.replace(target);
}

// Filters

// What an address holds as JSON; an address that someone changed by hand may hold anything.
function parsed(text, otherwise) {
  try {
    return JSON.parse(text);
  } catch {
    return otherwise;
  }
}

const hidden = () => new Set([parsed(state.hide, [])].flat());

function section() {
  const found = data.sections.filter((one) => String(one.store) === state.store || state.store === "");
  return found.find((one) => one.task === state.task) ?? found[0] ?? data.sections[0];
}

// Seeds as typed, 0,1,5..8; null admits every seed.
function seedsTyped() {
  const parts = state.seeds.split(",").map((part) => part.trim()).filter(Boolean);
  const ranges = parts.map((part) => /^(\d+)(?:\.\.(\d+))?$/.exec(part)).filter(Boolean);
  return ranges.length ? ranges.map(([, low, high]) => [Number(low), Number(high ?? low)]) : null;
}

function seedAdmitted(seed) {
  const ranges = seedsTyped();
  return ranges === null || ranges.some(([low, high]) => low <= seed && seed <= high);
}

function admitted(entry) {
  const size = entry.elements;
  const words = state.find.toLowerCase().split(/\s+/).filter(Boolean);
  return !hidden().has(entry.family)
    && (state.p === "" || state.p === String(entry.p ?? "none"))
    && (state.low === "" || (size !== null && size >= Number(state.low)))
    && (state.high === "" || (size !== null && size <= Number(state.high)))
    && words.every((word) => entry.label.toLowerCase().includes(word));
}

const shownEntries = (one) => one.entries.filter(admitted);
const scoredRuns = (entry) => entry.runs.filter((run) => run.cells !== null && seedAdmitted(run.seed));

// The section of another store that is laid over one: the same task there.
const laidOver = (one) => data.sections.find((found) => state.over !== "" && String(found.store) === state.over && found.store !== one.store && found.task === one.task);
const differenceOf = (entry) => data.differences?.rows.find((row) => row.task === data.sections[entry.section].task && row.labels[data.sections[entry.section].store] === entry.label);
function twinOf(entry) {
  const other = laidOver(data.sections[entry.section]);
  const label = other && (differenceOf(entry)?.labels[other.store] ?? entry.label);
  return other?.entries.find((found) => found.label === label);
}

// The part of the axis of accuracies or losses that is shown; null for the whole axis. One end alone leaves the other.
function zoom() {
  if (state.bottom === "" && state.top === "") return null;
  const low = state.bottom === "" ? 0 : Number(state.bottom);
  const high = state.top === "" ? (state.measure === "loss" && state.view === "training" ? Infinity : 1) : Number(state.top);
  return low < high ? [low, high] : null;
}
const inZoom = (value) => !zoom() || (zoom()[0] <= value && value <= zoom()[1]);

// Numbers in words

const share = (value) => (value === null || value === undefined ? "–" : value.toFixed(3));
const count = (value) => (value === null || value === undefined ? "–" : value.toLocaleString("en"));
const span = (interval) => (interval ? `[${share(interval[0])}, ${share(interval[1])}]` : "–");

function short(value) {
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e3) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

const cut = (text, most) => (text.length > most ? `${text.slice(0, most - 1)}…` : text);

// Colours that colour-blind readers can tell apart (after Okabe and Ito), for light and for dark pages; a symbol too.

const COLOURS = {
  light: ["#0072b2", "#c24a00", "#007a5a", "#a3457f", "#8a6100", "#3d5a80", "#444444"],
  dark: ["#56b4e9", "#f28e4b", "#3fcf9f", "#e39bc6", "#e6b84c", "#9db8e0", "#d0d0d0"],
};
const SYMBOLS = ["circle", "square", "triangle", "diamond", "star", "wye", "cross"];

const isDark = () => (state.theme ? state.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches);
const ink = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();

function styleOf(family) {
  const place = families.indexOf(family);
  const turn = Math.floor(place / COLOURS.light.length);
  const colours = COLOURS[isDark() ? "dark" : "light"];
  return { colour: colours[place % colours.length], symbol: SYMBOLS[(place + turn) % SYMBOLS.length] };
}

// Copies: what a figure shows as SVG, PNG or CSV

// A text that a spreadsheet would take for a formula gets a quote before it.
function csvCell(value) {
  const text = value === null || value === undefined ? "" : String(value);
  const safe = typeof value === "string" && /^\s*[=+\-@＝＋－＠]/.test(text) ? `'${text}` : text;
  return /[",\n\r]/.test(safe) ? `"${safe.replaceAll('"', '""')}"` : safe;
}

const csvOf = (columns, rows) => [columns, ...rows].map((row) => row.map(csvCell).join(",")).join("\n") + "\n";

// All charts of a figure, at their places, as one SVG with its title.
function svgOf(place, title) {
  const outer = place.getBoundingClientRect();
  const whole = document.createElementNS(SVG, "svg");
  const head = 32;
  const size = { width: Math.ceil(outer.width), height: Math.ceil(outer.height) + head };
  for (const [key, value] of Object.entries(size)) whole.setAttribute(key, value);
  whole.setAttribute("xmlns", SVG);
  whole.setAttribute("style", `color:${ink("--ink")};font-family:system-ui,sans-serif;font-size:13px`);
  const ground = document.createElementNS(SVG, "rect");
  for (const [key, value] of Object.entries({ ...size, fill: ink("--card") })) ground.setAttribute(key, value);
  const words = document.createElementNS(SVG, "text");
  for (const [key, value] of Object.entries({ x: 8, y: 20, fill: "currentColor" })) words.setAttribute(key, value);
  words.textContent = title;
  whole.append(ground, words);
  for (const chart of place.querySelectorAll("svg.chart")) {
    const box = chart.getBoundingClientRect();
    const copy = chart.cloneNode(true);
    copy.setAttribute("x", box.left - outer.left);
    copy.setAttribute("y", box.top - outer.top + head);
    for (const node of copy.querySelectorAll(".brush, .ring, .lifted")) node.remove();
    whole.append(copy);
  }
  return new XMLSerializer().serializeToString(whole);
}

async function pngOf(text) {
  const image = new Image();
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`;
  await image.decode();
  const canvas = h("canvas", { width: 2 * image.width, height: 2 * image.height });
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done, "image/png"));
}

function save(blob, name) {
  const link = h("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copyText(text) {
  await navigator.clipboard.writeText(text);
  say("Copied");
}

function say(words) {
  byId("said").textContent = words;
}
