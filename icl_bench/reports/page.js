"use strict";

// The chart of each section: points from the embedded JSON, an axis chosen for each side, values on hover.
// Names are only ever written as text nodes or attributes.

const COLOURS = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000"];
const VIEWS = {
  scores: { name: "test", x: ["load", "elements", "bytes", "params"], y: ["accuracy", "exact", "corrected"] },
  sweep: { name: "learning rates", x: ["rate"], y: ["validation"] },
  curve: { name: "training", x: ["step"], y: ["validation"] },
};
const NAMES = {
  elements: "state elements", bytes: "state, bytes", params: "parameters", rate: "learning rate", step: "updates",
  accuracy: "test accuracy", exact: "exact match", corrected: "(accuracy - floor) / (1 - floor)",
  validation: "validation accuracy",
};
const SIZES = new Set(["elements", "bytes", "params"]);
const BOX = { width: 960, height: 420, left: 64, right: 16, top: 12, bottom: 46 };
const SVG = "http://www.w3.org/2000/svg";

function make(tag, attributes, parent, text) {
  const node = tag.startsWith("svg:") ? document.createElementNS(SVG, tag.slice(4)) : document.createElement(tag);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  if (text !== undefined) node.textContent = text;
  if (parent) parent.append(node);
  return node;
}

function median(values) {
  const sorted = [...values].sort((a, b) => a - b);
  const middle = sorted.length >> 1;
  return sorted.length % 2 ? sorted[middle] : (sorted[middle - 1] + sorted[middle]) / 2;
}

function grouped(rows, key) {
  const groups = new Map();
  for (const row of rows) {
    if (!groups.has(row[key])) groups.set(row[key], []);
    groups.get(row[key]).push(row);
  }
  return groups;
}

// One point a seed: in a cell, or the mean over cells where the axis does not spread them.
function pointsOf(entry, choice) {
  if (choice.view !== "scores") {
    return entry[choice.view].map((row) => ({ x: row[choice.x], y: row[choice.y], seed: row.seed }));
  }
  const cell = choice.cell === "" ? null : Number(choice.cell);
  if (choice.x === "load") {
    return entry.scores.map((row) => ({ x: row.load, y: row[choice.y], seed: row.seed }));
  }
  const points = [];
  for (const [seed, rows] of grouped(entry.scores, "seed")) {
    const chosen = rows.filter((row) => cell === null || row.cell === cell);
    if (!chosen.length || entry[choice.x] === null) continue;
    points.push({ x: entry[choice.x], y: chosen.reduce((sum, row) => sum + row[choice.y], 0) / chosen.length, seed });
  }
  return points;
}

function ticksOf(low, high, logarithmic) {
  const ticks = [];
  if (logarithmic) {
    const steps = high / low > 300 ? [1] : high / low > 30 ? [1, 3] : [1, 2, 5];
    for (let power = Math.floor(Math.log10(low)); power <= Math.ceil(Math.log10(high)); power++) {
      for (const step of steps) ticks.push(step * 10 ** power);
    }
  } else {
    const raw = (high - low) / 6 || 1;
    const unit = 10 ** Math.floor(Math.log10(raw));
    const step = unit * ([1, 2, 5].find((factor) => factor * unit >= raw) || 10);
    for (let value = Math.ceil(low / step) * step; value <= high; value += step) ticks.push(value);
  }
  const inside = ticks.filter((tick) => tick >= low && tick <= high);
  return logarithmic && inside.length < 2 ? ticksOf(low, high, false) : inside;
}

function short(value) {
  if (value >= 1e6) return `${+(value / 1e6).toPrecision(3)}M`;
  if (value >= 1e3) return `${+(value / 1e3).toPrecision(3)}k`;
  return `${+value.toPrecision(3)}`;
}

function scaleOf(values, logarithmic) {
  let low = Math.min(...values);
  let high = Math.max(...values);
  if (logarithmic && high < 1.1 * low) [low, high] = [low / 2, high * 2]; // matched sizes lie side by side
  if (low === high) [low, high] = [low - 1, high + 1];
  const bend = logarithmic ? Math.log : (value) => value;
  const width = BOX.width - BOX.left - BOX.right - 40;
  return {
    low, high,
    at: (value) => BOX.left + 20 + ((bend(value) - bend(low)) / (bend(high) - bend(low))) * width,
  };
}

const heightOf = (y) => BOX.top + (1 - y) * (BOX.height - BOX.top - BOX.bottom);

function drawAxes(svg, scale, ticks, label, yName) {
  for (let i = 0; i <= 4; i++) {
    const y = heightOf(i / 4);
    make("svg:line", { x1: BOX.left, x2: BOX.width - BOX.right, y1: y, y2: y, stroke: "#d0d7de" }, svg);
    make("svg:text", { x: BOX.left - 8, y: y + 4, "text-anchor": "end" }, svg, (i / 4).toFixed(2));
  }
  for (const tick of ticks) {
    const x = scale.at(tick);
    make("svg:line", { x1: x, x2: x, y1: heightOf(1), y2: heightOf(0) + 4, stroke: "#d0d7de" }, svg);
    make("svg:text", { x, y: heightOf(0) + 18, "text-anchor": "middle" }, svg, short(tick));
  }
  const middle = (BOX.left + BOX.width) / 2;
  make("svg:text", { x: middle, y: BOX.height - 8, "text-anchor": "middle" }, svg, label);
  const turn = `translate(16 ${heightOf(0.5)}) rotate(-90)`;
  make("svg:text", { transform: turn, "text-anchor": "middle" }, svg, yName);
}

// The line through the medians; of sizes it joins a family, since an entry has one size.
function drawLine(svg, entry, points, scale) {
  const colour = COLOURS[entry.colour % COLOURS.length];
  const middles = [...grouped(points, "x")].map(([x, rows]) => [x, median(rows.map((row) => row.y))]);
  middles.sort((a, b) => a[0] - b[0]);
  const path = middles.map(([x, y]) => `${scale.at(x)},${heightOf(y)}`).join(" ");
  make("svg:polyline", { points: path, fill: "none", stroke: colour, "stroke-width": 2 }, svg);
}

function drawDots(svg, entry, points, scale) {
  const colour = COLOURS[entry.colour % COLOURS.length];
  for (const point of points) {
    const place = { cx: scale.at(point.x), cy: heightOf(point.y), r: 4, fill: colour, "fill-opacity": 0.6 };
    make("svg:circle", { ...place, class: "point" }, svg);
  }
}

function drawFloor(svg, data, choice, scale) {
  if (choice.view !== "scores" || choice.x !== "load" || choice.y !== "accuracy") return;
  const loads = data.entries.flatMap((entry) => entry.scores.map((row) => [row.load, data.cells[row.cell].floor]));
  const unique = [...new Map(loads)].sort((a, b) => a[0] - b[0]);
  const path = unique.map(([x, y]) => `${scale.at(x)},${heightOf(y)}`).join(" ");
  make("svg:polyline", { points: path, fill: "none", stroke: "#57606a", "stroke-dasharray": "2 4" }, svg);
}

function select(parent, name, options, changed) {
  const label = make("label", {}, parent, `${name} `);
  const field = make("select", { name }, label);
  for (const [value, text] of options) make("option", { value }, field, text);
  field.addEventListener("change", changed);
  return { label, field };
}

function fill(field, options) {
  const kept = field.value;
  field.replaceChildren();
  for (const [value, text] of options) make("option", { value }, field, text);
  if (options.some(([value]) => value === kept)) field.value = kept;
}

function build(root, data) {
  const hidden = new Set();
  const named = (key) => [key, key === "load" ? data.load : NAMES[key]];
  const bar = make("div", {}, root);
  const update = () => draw();
  const view = select(bar, "show", Object.entries(VIEWS).map(([key, one]) => [key, one.name]), () => { refill(); draw(); });
  const xs = select(bar, "x", VIEWS.scores.x.map(named), update);
  const ys = select(bar, "y", VIEWS.scores.y.map(named), update);
  const cells = data.cells.map((cell, i) => [String(i), cell.label]);
  const cell = select(bar, "cell", [["", "mean over cells"], ...cells], update);
  const logLabel = make("label", {}, bar);
  const log = make("input", { type: "checkbox", name: "log", checked: "" }, logLabel);
  logLabel.append(" logarithmic");
  log.addEventListener("change", update);
  const legend = make("div", { class: "legend" }, root);
  const plot = make("div", { class: "plot" }, root);
  const svg = make("svg:svg", { viewBox: `0 0 ${BOX.width} ${BOX.height}`, role: "img" }, plot);
  const tip = make("div", { class: "tip", role: "status" }, plot);
  let shown = [];

  data.entries.forEach((entry, i) => {
    const button = make("button", { type: "button", "aria-pressed": "true" }, legend);
    make("span", { style: `background:${COLOURS[entry.colour % COLOURS.length]}` }, button);
    button.append(entry.label);
    button.addEventListener("click", () => {
      if (!hidden.delete(i)) hidden.add(i);
      button.setAttribute("aria-pressed", String(!hidden.has(i)));
      draw();
    });
  });

  function refill() {
    fill(xs.field, VIEWS[view.field.value].x.map(named));
    fill(ys.field, VIEWS[view.field.value].y.map(named));
  }

  function draw() {
    const choice = { view: view.field.value, x: xs.field.value, y: ys.field.value, cell: cell.field.value };
    cell.label.hidden = choice.view !== "scores" || choice.x === "load";
    svg.replaceChildren();
    tip.style.display = "none";
    const drawn = data.entries.map((entry, i) => [entry, hidden.has(i) ? [] : pointsOf(entry, choice)]);
    const all = drawn.flatMap(([, points]) => points.map((point) => point.x));
    shown = [];
    if (!all.length) {
      make("svg:text", { x: BOX.width / 2, y: BOX.height / 2, "text-anchor": "middle" }, svg, "nothing to show");
      return;
    }
    const logarithmic = log.checked && choice.x !== "step" && Math.min(...all) > 0;
    const scale = scaleOf(all, logarithmic);
    const values = [...new Set(all)];
    const own = choice.x === "load" && values.length <= 12;
    drawAxes(svg, scale, own ? values : ticksOf(scale.low, scale.high, logarithmic), named(choice.x)[1], NAMES[choice.y]);
    drawFloor(svg, data, choice, scale);
    const families = grouped(drawn.map(([entry, points]) => ({ family: entry.family, entry, points })), "family");
    for (const members of SIZES.has(choice.x) ? families.values() : []) {
      drawLine(svg, members[0].entry, members.flatMap((one) => one.points), scale);
    }
    for (const [entry, points] of drawn) {
      if (!SIZES.has(choice.x)) drawLine(svg, entry, points, scale);
      drawDots(svg, entry, points, scale);
      for (const point of points) {
        const words = `${entry.label}\nseed ${point.seed}\n${named(choice.x)[1]}: ${short(point.x)}\n${NAMES[choice.y]}: ${point.y.toFixed(3)}`;
        shown.push({ x: scale.at(point.x), y: heightOf(point.y), words });
      }
    }
  }

  svg.addEventListener("mousemove", (event) => {
    const box = svg.getBoundingClientRect();
    const factor = BOX.width / box.width;
    const [x, y] = [(event.clientX - box.left) * factor, (event.clientY - box.top) * factor];
    let near = null;
    for (const point of shown) {
      const distance = Math.hypot(point.x - x, point.y - y);
      if (distance < 24 && (!near || distance < near.distance)) near = { ...point, distance };
    }
    tip.style.display = near ? "block" : "none";
    if (!near) return;
    tip.textContent = near.words;
    const left = near.x / factor;
    tip.style.left = `${near.x > BOX.width / 2 ? left - tip.offsetWidth - 10 : left + 10}px`;
    tip.style.top = `${near.y / factor + 10}px`;
  });
  svg.addEventListener("mouseleave", () => { tip.style.display = "none"; });
  draw();
}

const sections = JSON.parse(document.getElementById("data").textContent);
for (const root of document.querySelectorAll(".chart")) build(root, sections[Number(root.dataset.section)]);
