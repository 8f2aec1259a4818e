// The figures: each is a title that states its answer, a chart, the point that is picked, copies, and its numbers.

// Options of every chart.
function base(width, rest) {
  return {
    width, style: { background: "transparent", fontSize: "13px", fontFamily: "system-ui, sans-serif", overflow: "visible" },
    className: "chart", ...rest,
  };
}

const SHARE_AXIS = { domain: [-0.02, 1.02], ticks: [0, 0.25, 0.5, 0.75, 1], tickFormat: (value) => value.toFixed(2) };
const grey = () => ink("--quiet");

// The axis of accuracies, or the part of it that is zoomed to.
function shareAxis(rest) {
  const part = zoom();
  return part ? { domain: part, ticks: 6, tickFormat: (value) => `${+value.toFixed(4)}`, ...rest } : { ...SHARE_AXIS, ...rest };
}

// Places of direct labels: rows by rising `y`, moved apart by at least this share of the axis, as `at`.
function spaced(rows, share = 0.045) {
  const [low, high] = zoom() ?? [0, 1];
  const sorted = d3.sort(rows.filter((row) => inZoom(row.y)), (row) => row.y);
  sorted.forEach((row, i) => { row.at = i ? Math.max(row.y, sorted[i - 1].at + share * (high - low)) : row.y; });
  return sorted;
}

// A chart with its points: { plot, points: [{ x, y, run or entry, words }] }. The pointer, a finger, or the arrow keys pick one.
function figure({ name, title, note, controls, draw, columns, rows, charts }) {
  const place = h("div", { class: charts ? "plots grid" : "plots" });
  const picked = h("p", { class: "picked", "aria-live": "polite" });
  const table = h("details", { class: "numbers" }, h("summary", {}, "Numbers of this figure"));
  table.addEventListener("toggle", () => {
    if (table.open && table.childElementCount === 1) table.append(plainTable(columns, rows().slice(0, 400)));
  });
  const heading = h("h2", {}, sentences(title));
  const whole = h("figure", { "aria-label": title }, heading, note ? h("p", { class: "note" }, note) : null,
    controls ?? null, place, picked, copies(name, title, place, columns, rows), table);
  const render = () => {
    const width = Math.max(280, Math.floor(place.clientWidth || 800));
    place.replaceChildren(...(charts ?? [{ draw }]).map((one) => chartBox(one, charts ? gridWidth(width) : width, picked, title)));
  };
  whole.render = render;
  return whole;
}

const gridWidth = (width) => Math.floor(width / Math.max(1, Math.round(width / 340))) - 12;

function chartBox(one, width, picked, title) {
  const { plot, points, legend } = one.draw(width);
  plot.setAttribute("role", "img"); // one picture, whose parts have no names of their own
  for (const mark of plot.querySelectorAll("g[aria-label]")) {
    mark.dataset.mark = mark.getAttribute("aria-label");
    mark.removeAttribute("aria-label");
  }
  plot.setAttribute("aria-label", `${one.title ?? title}. ${points.length} points; arrow keys go through them.`);
  plot.setAttribute("tabindex", "0");
  pickable(plot, points, picked);
  return h("div", { class: "plot" }, one.title ? h("h3", { title: one.title }, one.title) : null, plot,
    legend ? h("p", { class: "legend" }, legend.map((family) => h("span", {}, swatch(family), " ", family))) : null);
}

// A title of several answers has a line for each.
const sentences = (title) => title.split("; ").map((words) => h("span", { class: "line" }, words));

function pickable(plot, points, picked) {
  const [xs, ys] = [plot.scale("x"), plot.scale("y")];
  if (!xs || !ys || !points.length) return;
  const places = points.map((point) => [xs.apply(point.x), ys.apply(point.y)]);
  let chosen = -1;
  const ring = document.createElementNS(SVG, "circle");
  ring.setAttribute("class", "ring");
  for (const [key, value] of Object.entries({ r: 9, fill: "none", stroke: "currentColor", "stroke-width": 2 })) {
    ring.setAttribute(key, value);
  }
  const lifted = document.createElementNS(SVG, "polyline"); // the whole line of the picked run, while the others fade
  for (const [key, value] of Object.entries({ class: "lifted", fill: "none", stroke: "currentColor", "stroke-width": 2.5 })) {
    lifted.setAttribute(key, value);
  }
  const tip = h("div", { class: "tip", "aria-hidden": "true" }); // the words beside the point; a reader hears those below
  const show = (words, [x, y]) => {
    const scale = plot.getBoundingClientRect().width / plot.viewBox.baseVal.width;
    const right = x > plot.viewBox.baseVal.width / 2;
    tip.textContent = words;
    tip.style.cssText = `top:${y * scale + plot.offsetTop}px;${right ? `right:calc(100% - ${x * scale - 14}px)` : `left:${x * scale + 14}px`}`;
    plot.parentElement.append(tip);
  };
  const lift = (point) => {
    const own = point?.line ? places.filter((_, i) => points[i].line === point.line) : [];
    plot.classList.toggle("picking", own.length > 1);
    if (own.length < 2) { lifted.remove(); return; }
    lifted.setAttribute("points", own.map((at) => at.join(",")).join(" "));
    plot.append(lifted);
  };
  const choose = (place) => {
    chosen = place;
    lift(points[place]);
    if (place < 0) { ring.remove(); tip.remove(); return; }
    [["cx", places[place][0]], ["cy", places[place][1]]].forEach(([key, value]) => ring.setAttribute(key, value));
    plot.append(ring);
    const point = points[place];
    show(point.words, places[place]);
    picked.replaceChildren(h("span", {}, point.words));
    if (point.run) picked.append(" ", h("button", { type: "button", onclick: () => go({ run: point.run.id }, true) }, "Open the run"));
  };
  const nearest = (event) => {
    const box = plot.getBoundingClientRect();
    const scale = plot.viewBox.baseVal.width / box.width;
    const [x, y] = [(event.clientX - box.left) * scale, (event.clientY - box.top) * scale];
    let best = -1;
    let least = 32 * scale;
    places.forEach(([px, py], i) => {
      const away = Math.hypot(px - x, py - y);
      if (away < least) [best, least] = [i, away];
    });
    return best;
  };
  plot.addEventListener("pointermove", (event) => { if (event.pointerType === "mouse") choose(nearest(event)); });
  plot.addEventListener("pointerleave", (event) => { if (event.pointerType === "mouse") choose(-1); });
  plot.addEventListener("pointerdown", (event) => choose(nearest(event)));
  plot.addEventListener("dblclick", () => { if (points[chosen]?.run) go({ run: points[chosen].run.id }, true); });
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    if (step) {
      event.preventDefault();
      choose((chosen + step + points.length) % points.length);
    } else if (event.key === "Enter" && points[chosen]?.run) go({ run: points[chosen].run.id }, true);
  });
}

function copies(name, title, place, columns, rows) {
  const file = (kind) => `${name}.${kind}`;
  const csv = () => csvOf(columns, rows());
  const blob = (text, type) => new Blob([text], { type });
  const actions = [
    ["Save SVG", () => save(blob(svgOf(place, title), "image/svg+xml"), file("svg"))],
    ["Save PNG", async () => save(await pngOf(svgOf(place, title)), file("png"))],
    ["Save CSV", () => save(blob(csv(), "text/csv"), file("csv"))],
    ["Copy SVG", () => copyText(svgOf(place, title))],
    ["Copy PNG", async () => {
      await navigator.clipboard.write([new ClipboardItem({ "image/png": pngOf(svgOf(place, title)) })]);
      say("Copied");
    }],
    ["Copy CSV", () => copyText(csv())],
    ["Copy link", () => copyText(location.href)],
  ];
  const own = actions.filter(([words]) => columns || !words.endsWith("CSV"));
  return h("div", { class: "copies", role: "group", "aria-label": "Copies of this figure" },
    own.map(([words, act]) => h("button", { type: "button", onclick: act }, words)));
}

function plainTable(columns, rows) {
  return h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": "Numbers" }, h("table", {},
    h("thead", {}, h("tr", {}, columns.map((name) => h("th", { scope: "col" }, name)))),
    h("tbody", {}, rows.map((row) => h("tr", {}, row.map((value) => h("td", {}, value === null || value === undefined ? "–" : String(value))))))));
}

// Dots of one place lie side by side: a shift from -1 to 1 that depends on the seed alone.
const jitter = (seed) => ((seed * 0.6180339887) % 1) * 2 - 1;

// The size on the horizontal axis; published results count bytes.
const sizeOf = (one) => state.x || (one.published.length ? "bytes" : "elements");
const SIZES = { elements: "state elements", bytes: "state, bytes", params: "parameters" };

// Scores of runs and entries in a cell, or their means over cells.
function scoresIn(one) {
  const cell = state.cell === "" ? null : one.cells.findIndex((found) => found.label === state.cell);
  if (cell === null || cell < 0) {
    return { of: (run) => run.accuracy, median: (entry) => entry.median, interval: (entry) => entry.interval, floor: one.floor, words: "mean over cells" };
  }
  return {
    of: (run) => run.cells[cell], median: (entry) => entry.cells[cell]?.[0] ?? null,
    interval: (entry) => entry.cells[cell]?.[1] ?? null, floor: one.cells[cell].floor, words: state.cell,
  };
}

const runWords = (run, value) => `${entryOf(run).label}, seed ${run.seed}: ${value}${run.locked ? "" : " (not locked in)"}`;
const trained = (entry) => entry.training === "trained" || entry.training === "bimodal";

// Medians and intervals are over all seeds; where seeds are filtered they would be those of other runs.
const summarised = () => seedsTyped() === null;

function recallChart(one, width, small = false) {
  const layers = [one, small ? null : laidOver(one)].filter(Boolean);
  const entries = layers.flatMap(shownEntries).filter((entry) => entry.median !== null);
  const sizes = entries.map((entry) => entry[sizeOf(one)]).filter(Boolean);
  const matched = !sizes.length || Math.max(...sizes) <= 1.2 * Math.min(...sizes);
  return matched ? stripChart(one, entries, width, small) : sizeChart(one, entries, width, small);
}

// True for what comes from the store that is laid over: it has dashed lines and crosses.
const over = (one, entry) => entry.section !== one.place;

function sizeChart(one, entries, width, small) {
  const scoresBy = new Map([...new Set(entries.map((entry) => entry.section))].map((place) => [place, scoresIn(data.sections[place])]));
  const scores = { of: (run) => scoresBy.get(run.section).of(run), median: (entry) => scoresBy.get(entry.section).median(entry), interval: (entry) => scoresBy.get(entry.section).interval(entry) };
  const { floor, words } = scoresIn(one);
  const known = entries.filter((entry) => entry[sizeOf(one)] > 0);
  const published = small || sizeOf(one) !== "bytes" ? [] : one.published.filter((point) => inZoom(point.accuracy));
  const sizes = [...known.map((entry) => entry[sizeOf(one)]), ...published.map((point) => point.bytes)];
  const [low, high] = [Math.min(...sizes), Math.max(...sizes)];
  const spread = (high / low) ** 0.006;
  const points = known.flatMap((entry) => scoredRuns(entry).filter((run) => scores.of(run) !== null && inZoom(scores.of(run))).map((run) => ({
    x: entry[sizeOf(one)] * spread ** jitter(run.seed), y: scores.of(run), run, entry, over: over(one, entry), words: runWords(run, share(scores.of(run))),
  })));
  const series = d3.flatGroup(known, (entry) => entry.shownAs, (entry) => entry.section);
  const narrow = width < 560 || small;
  const ends = series.filter(([, place]) => place === one.place).map(([, , members]) => d3.greatest(members, (entry) => entry[sizeOf(one)]));
  const direct = !narrow && ends.length <= 9 && summarised();
  const name = brief(ends.map((entry) => entry.family));
  const labels = direct ? spaced(ends.filter((entry) => scores.median(entry) !== null).map((entry) => ({ entry, x: entry[sizeOf(one)], y: scores.median(entry) }))) : [];
  const clip = Boolean(zoom());
  const differing = summarised() ? known.filter((entry) => over(one, entry) && differenceOf(entry)?.differs && inZoom(scores.median(entry))) : [];
  const marks = [
    ...floorMarks(floor, "y"),
    ...(summarised() ? series.map(([family, place, members]) => Plot.line(d3.sort(members.filter(trained), (entry) => entry[sizeOf(one)]), { // untrained says nothing of capacity
      x: sizeOf(one), y: scores.median, stroke: styleOf(family).colour, strokeWidth: 2, strokeDasharray: place === one.place ? null : "6 4", clip,
    })) : []),
    ...(summarised() ? [Plot.ruleX(known.filter(scores.interval), {
      x: sizeOf(one), y1: (entry) => scores.interval(entry)[0], y2: (entry) => scores.interval(entry)[1],
      stroke: (entry) => styleOf(entry.shownAs).colour, strokeWidth: 3, strokeOpacity: 0.35, clip,
    })] : []),
    ...dots(points, small),
    Plot.dot(published, { x: "bytes", y: "accuracy", r: 6, stroke: "currentColor", fill: "none", strokeWidth: 2 }),
    Plot.text(differing, { x: sizeOf(one), y: scores.median, dx: -12, text: () => "◆", fontSize: 14 }),
    ...(direct ? [Plot.text(labels, {
      x: "x", y: "at", dx: 10, textAnchor: "start", text: (row) => cut(name(row.entry.family), 27), fill: (row) => styleOf(row.entry.shownAs).colour,
    })] : []),
  ];
  const hollow = published.map((point) => ({ x: point.bytes, y: point.accuracy, words: `published: ${point.label}, ${share(point.accuracy)}; ${point.source}` }));
  const plot = Plot.plot(base(width, {
    height: small ? 150 : narrow ? 340 : 430, marginLeft: 48, marginRight: direct ? 200 : 16, marginBottom: small ? 30 : 44,
    x: { type: "log", label: small ? null : SIZES[sizeOf(one)], tickFormat: short, ticks: narrow ? 4 : 8, domain: [low / 1.15, high * 1.15] },
    y: shareAxis({ label: small ? null : `test accuracy, ${words}`, grid: true, labelArrow: "none" }), marks,
  }));
  return { plot, points: [...points, ...hollow], legend: direct || small ? null : [...new Set(series.map(([family]) => family))] };
}

// The floor as a dotted line with its name, across an axis of accuracies.
function floorMarks(floor, axis) {
  if (!inZoom(floor)) return [];
  const looks = { stroke: grey(), strokeDasharray: "2 4" };
  const words = { text: () => "floor", fill: grey() };
  return axis === "y"
    ? [Plot.ruleY([floor], looks), Plot.text([floor], { y: (value) => value, frameAnchor: "right", dx: -4, dy: -7, textAnchor: "end", ...words })]
    : [Plot.ruleX([floor], looks), Plot.text([floor], { x: (value) => value, frameAnchor: "top", dy: -10, ...words })];
}

// Names without the parts, behind commas, that all of them have.
function brief(names) {
  const parts = names.map((name) => name.split(", "));
  const common = new Set(names.length > 1 ? parts[0].slice(1).filter((part) => parts.every((own) => own.includes(part))) : []);
  return (name) => name.split(", ").filter((part) => !common.has(part)).join(", ");
}

// A dot for each seed, in the colour and the symbol of its family; a seed that is not locked in is open, one of the
// store that is laid over is a cross.
function dots(points, small = false) {
  const colour = (point) => styleOf(point.entry.shownAs).colour;
  const own = points.filter((point) => !point.over);
  const looks = (open) => ({
    x: "x", y: "y", r: small ? 2.2 : 4, symbol: (point) => styleOf(point.entry.shownAs).symbol,
    [open ? "stroke" : "fill"]: colour, ...(open ? { strokeWidth: 1.3, fill: ink("--card") } : { fillOpacity: 0.7 }),
  });
  const scale = (open) => Plot.dot(own.filter((point) => Boolean(point.run.locked) !== open), looks(open));
  const crosses = { x: "x", y: "y", r: small ? 2 : 3.4, symbol: "times", stroke: colour, strokeWidth: 1.5, strokeOpacity: (point) => (point.run.locked ? 0.9 : 0.45) };
  return [scale(true), scale(false), Plot.dot(points.filter((point) => point.over), crosses)];
}

// Entries of one size: a row for each, its seeds side by side, the median as a bar over its interval. What a second store
// has of the same name stands below it, in the same row.
function stripChart(one, entries, width, small) {
  const scoresBy = new Map([...new Set([one.place, ...entries.map((entry) => entry.section)])].map((place) => [place, scoresIn(data.sections[place])]));
  const scores = scoresBy.get(one.place);
  const median = (entry) => scoresBy.get(entry.section).median(entry);
  const twins = new Map(entries.filter((entry) => !over(one, entry)).map((entry) => [twinOf(entry), entry]));
  const named = d3.groups(entries, (entry) => twins.get(entry) ?? entry).map(([, members]) => d3.sort(members, (entry) => over(one, entry)));
  const sorted = d3.sort(named, ([first]) => -(median(first) ?? -1)).slice(0, small ? 6 : 80);
  const narrow = width < 620 || small;
  const two = entries.some((entry) => over(one, entry));
  const longest = Math.max(0, ...sorted.map(([first]) => first.label.length));
  const rows = sorted.flatMap((members, i) => members.map((entry) => {
    const dashed = over(one, entry);
    return { entry, i: two ? i + (dashed ? 0.24 : -0.1) : i, row: i, dashed, median: median(entry), interval: scoresBy.get(entry.section).interval(entry) };
  }));
  const points = rows.flatMap(({ entry, i, dashed }) => scoredRuns(entry).map((run) => ({ run, value: scoresBy.get(entry.section).of(run) })).filter(({ value }) => value !== null && inZoom(value)).map(({ run, value }) => ({
    x: value, y: i + (two ? 0.1 : 0.17) * jitter(run.seed), run, entry, over: dashed, words: runWords(run, share(value)),
  })));
  const colour = (row) => styleOf(row.entry.shownAs).colour;
  const known = summarised() ? rows.filter((row) => row.median !== null) : [];
  const clip = Boolean(zoom());
  const tall = (small ? 34 : narrow ? 46 : 34) * (two ? 1.4 : 1);
  const left = narrow ? (zoom() ?? [0])[0] : undefined;
  const mark = (entry) => (differenceOf(entry)?.differs && two ? "◆ " : "");
  const heads = sorted.map(([entry], i) => ({ entry, i }));
  const plot = Plot.plot(base(width, {
    height: 60 + sorted.length * tall, marginTop: 14,
    marginLeft: narrow ? 10 : Math.min(width * 0.42, 14 + 7.3 * longest), marginRight: 14, marginBottom: small ? 28 : 44,
    x: shareAxis({ label: small ? null : `test accuracy, ${scores.words}`, grid: true, labelArrow: "none" }),
    y: { domain: [sorted.length - 0.45, narrow ? -0.75 : -0.55], axis: null },
    marks: [
      ...floorMarks(scores.floor, "x"),
      Plot.ruleY(known.filter((row) => row.interval), { y: "i", x1: (row) => row.interval[0], x2: (row) => row.interval[1], stroke: colour, strokeWidth: small ? 6 : 10, strokeOpacity: 0.25, clip }),
      ...dots(points, small),
      Plot.ruleX(known, { x: "median", y1: (row) => row.i - (two ? 0.16 : 0.3), y2: (row) => row.i + (two ? 0.16 : 0.3), stroke: colour, strokeWidth: 3, strokeDasharray: (row) => (row.dashed ? "3 2" : null), clip }),
      Plot.text(heads, {
        x: narrow ? () => left : undefined, frameAnchor: narrow ? undefined : "left", y: (row) => (narrow ? row.i - 0.46 : row.i), dx: narrow ? 0 : -10,
        textAnchor: narrow ? "start" : "end", text: (row) => mark(row.entry) + cut(row.entry.label, narrow ? Math.floor(width / 7.4) : Math.floor((width * 0.42) / 7.3)) + (trained(row.entry) || small ? "" : ` (${row.entry.training})`),
        fill: (row) => (trained(row.entry) ? "currentColor" : grey()), fontSize: small ? 11 : 13,
      }),
    ],
  }));
  return { plot, points };
}
