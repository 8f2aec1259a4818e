// More charts: accuracy by load at one state, capacity, learning rates, training, and the matrix of tasks.

// Positions of the state slider: groups of matched state where there are any, else the sizes themselves.
function stateSteps(one) {
  const groups = one.groups.filter((group) => group.sizes && group.entries.length > 1);
  if (groups.length && groups.some((group) => group.matched !== "nothing")) {
    return groups.map((group) => ({
      entries: group.entries, answer: group.answer,
      words: `${group.sizes[0] === group.sizes[1] ? count(group.sizes[0]) : `${count(group.sizes[0])} to ${count(group.sizes[1])}`} state elements${group.where ? `, ${group.where}` : ""}`,
    }));
  }
  const sizes = [...new Set(one.entries.filter((entry) => entry.median !== null && entry.elements !== null).map((entry) => entry.elements))];
  if (sizes.length < 2) return [{ entries: one.entries.map((entry) => entry.number), answer: one.answers.recall, words: "all architectures" }];
  return d3.sort(sizes).map((size) => ({
    entries: d3.rollups(
      one.entries.filter((entry) => entry.median !== null && entry.elements !== null && entry.elements <= size),
      (members) => d3.greatest(members, (entry) => entry.elements).number, (entry) => entry.family,
    ).map(([, number]) => number),
    answer: `Accuracy by load: of each family the largest with at most ${count(size)} state elements`,
    words: `at most ${count(size)} state elements`, rising: true,
  }));
}

function loadChart(one, chosen, width) {
  const entries = chosen.flatMap((entry) => [entry, twinOf(entry)].filter((found) => found && found.median !== null));
  const places = one.cells.map((cell, i) => (one.byLoad ? cell.load : i));
  const placeOf = (entry, i) => places[one.cells.findIndex((cell) => cell.label === data.sections[entry.section].cells[i].label)];
  const ratio = Math.max(...places) / Math.max(1e-9, Math.min(...places));
  const nudge = (x, k) => (one.logarithmic ? x * ratio ** (0.006 * k) : x + 0.006 * k * Math.max(1, places.at(-1) - places[0]));
  const shift = (entry) => entries.indexOf(entry) - (entries.length - 1) / 2;
  const points = entries.flatMap((entry) => scoredRuns(entry).flatMap((run) => run.cells.map((value, i) => ({ value, i })).filter(({ value, i }) => value !== null && inZoom(value) && placeOf(entry, i) !== undefined).map(({ value, i }) => ({
    x: nudge(placeOf(entry, i), shift(entry)), y: value, run, entry, over: over(one, entry), line: `${run.id} ${run.section}`, words: `${runWords(run, share(value))} at ${data.sections[entry.section].cells[i].label}`,
  }))));
  const medians = summarised() ? entries.flatMap((entry) => entry.cells.map((cell, i) => cell && placeOf(entry, i) !== undefined && {
    entry, over: over(one, entry), x: nudge(placeOf(entry, i), shift(entry)), y: cell[0], low: cell[1]?.[0], high: cell[1]?.[1],
  }).filter(Boolean)) : [];
  const name = brief(chosen.map((entry) => entry.family));
  const crossings = summarised() ? d3.groups(crossingsAmong(one, chosen), (row) => row[2]).map(([, [row]]) => row) : []; // a band for each place
  const colour = (row) => styleOf(row.entry.shownAs).colour;
  const narrow = width < 560;
  const direct = !narrow && chosen.length <= 12 && summarised();
  const ends = direct ? spaced(d3.rollups(medians.filter((row) => !row.over), (rows) => d3.greatest(rows, (row) => row.x), (row) => row.entry).map(([, row]) => row)) : [];
  const clip = Boolean(zoom());
  const line = (rows, looks) => Plot.line(rows, { x: "x", y: "y", z: (row) => row.entry.label, stroke: colour, strokeWidth: 2, clip, ...looks });
  const plot = Plot.plot(base(width, {
    height: narrow ? 340 : 430, marginLeft: 48, marginRight: direct ? 210 : 16, marginBottom: 44,
    x: {
      type: one.logarithmic ? "log" : "linear", base: 2, label: one.byLoad ? one.load : "cell", ticks: places,
      tickFormat: (value) => (one.byLoad ? short(value) : one.cells[value]?.label ?? ""),
    },
    y: shareAxis({ label: "test accuracy", grid: true, labelArrow: "none" }),
    marks: [
      Plot.rectX(crossings, { x1: (row) => places[row[2]], x2: (row) => places[row[3]], y1: (zoom() ?? [0])[0], y2: (zoom() ?? [0, 1])[1], fill: "currentColor", fillOpacity: 0.05 }),
      Plot.line(one.cells, { x: (cell, i) => places[i], y: "floor", stroke: grey(), strokeDasharray: "2 4", clip }),
      Plot.text(one.cells.slice(0, 1).filter((cell) => inZoom(cell.floor)), { x: () => places[0], y: "floor", dx: 4, dy: -8, textAnchor: "start", text: () => "floor", fill: grey() }),
      Plot.ruleX(medians.filter((row) => row.low !== undefined), { x: "x", y1: "low", y2: "high", stroke: colour, strokeWidth: 3, strokeOpacity: 0.22, clip }),
      line(medians.filter((row) => !row.over), {}),
      line(medians.filter((row) => row.over), { strokeDasharray: "6 4" }),
      ...dots(points, entries.length > 4 || narrow),
      Plot.text(ends, { x: () => places.at(-1), y: "at", dx: 12 + 0.006 * 380 * entries.length, textAnchor: "start", text: (row) => cut(name(row.entry.family), 27), fill: colour }),
    ],
  }));
  return { plot, points, legend: direct ? null : [...new Set(entries.map((entry) => entry.family))] };
}

const crossingsAmong = (one, entries) => one.crossings.filter(([first, second]) => entries.includes(one.entries[first]) && entries.includes(one.entries[second]));

function crossingWords(one, entries) {
  return crossingsAmong(one, entries).map(([first, second, before, after]) =>
    `${one.entries[first].label} and ${one.entries[second].label}: between ${one.cells[before].label} and ${one.cells[after].label}`);
}

// K50 with its interval, K90 and the prediction: by state where states differ, else a row for each entry.
function capacityChart(one, width) {
  const fits = shownEntries(one).filter((entry) => entry.k50);
  const rows = d3.sort(fits, (entry) => -entry.k50.value).map((entry, i) => ({ entry, i }));
  const beyond = { above: "> ", below: "< ", within: "" };
  const say = (found) => `${beyond[found.side]}${short(found.value)}`;
  const narrow = width < 620;
  const points = rows.flatMap(({ entry, i }) => [["k50", "K50"], ["k90", "K90"]].map(([key, words]) => ({
    x: entry[key].value, y: i, entry, words: `${entry.label}: ${words} ${say(entry[key])} ${one.load}${entry[key].interval ? ` [${short(entry[key].interval[0])}, ${short(entry[key].interval[1])}]` : ""}`,
  }))).concat(rows.filter(({ entry }) => entry.predicted > 0).map(({ entry, i }) => ({ x: entry.predicted, y: i, entry, words: `${entry.label}: ${short(entry.predicted)} predicted pairs` })));
  const colour = (row) => styleOf(row.entry.shownAs).colour;
  const loads = one.cells.map((cell) => cell.load).filter((load) => load > 0);
  const all = [...loads, ...rows.map(({ entry }) => entry.predicted).filter((value) => value > 0)];
  const plot = Plot.plot(base(width, {
    height: 70 + rows.length * (narrow ? 46 : 32), marginLeft: narrow ? 10 : Math.min(width * 0.42, 14 + 7.3 * Math.max(0, ...rows.map(({ entry }) => entry.label.length))),
    marginRight: 40, marginTop: 14, marginBottom: 44,
    x: { type: "log", base: 2, label: one.load, domain: [Math.min(...all) / 1.1, Math.max(...all) * 1.1], tickFormat: short, ticks: 8, grid: true },
    y: { domain: [rows.length - 0.4, narrow ? -0.8 : -0.6], axis: null },
    marks: [
      Plot.ruleY(rows.filter(({ entry }) => entry.k50.interval), { y: "i", x1: ({ entry }) => entry.k50.interval[0], x2: ({ entry }) => entry.k50.interval[1], stroke: colour, strokeWidth: 8, strokeOpacity: 0.3 }),
      Plot.dot(rows, { x: ({ entry }) => entry.k90.value, y: "i", r: 4, stroke: colour, fill: ink("--card") }),
      Plot.dot(rows, { x: ({ entry }) => entry.k50.value, y: "i", r: 5, fill: colour }),
      Plot.text(rows.filter(({ entry }) => entry.k50.side !== "within"), { x: ({ entry }) => entry.k50.value, y: "i", text: ({ entry }) => (entry.k50.side === "above" ? "→" : "←"), dy: -11, fill: colour }),
      Plot.dot(rows.filter(({ entry }) => entry.predicted > 0), { x: ({ entry }) => entry.predicted, y: "i", r: 6, symbol: "star", stroke: "currentColor", fill: "none" }),
      Plot.text(rows, {
        x: narrow ? () => Math.min(...all) / 1.1 : undefined, frameAnchor: narrow ? undefined : "left", dx: narrow ? 0 : -10, textAnchor: narrow ? "start" : "end",
        y: (row) => (narrow ? row.i - 0.46 : row.i), text: ({ entry }) => cut(entry.label, narrow ? Math.floor(width / 7.4) : Math.floor((width * 0.42) / 7.3)),
      }),
    ],
  }));
  return { plot, points };
}

function rateChart(one, entry, width) {
  const colour = styleOf(entry.shownAs).colour;
  const swept = entry.runs.filter((run) => run.role === "chooses" && seedAdmitted(run.seed));
  const drawn = swept.length ? swept : entry.runs.filter((run) => seedAdmitted(run.seed));
  const points = drawn.map((run) => ({ x: run.lr, y: run.validation, run, entry, words: `${entry.label}, seed ${run.seed}, rate ${run.lr.toPrecision(3)}: ${share(run.validation)}${run.status === "ok" ? "" : ` (${run.status})`}` }));
  const chosen = entry.rates.filter(([rate]) => rate === entry.rate);
  const plot = Plot.plot(base(width, {
    height: 190, marginLeft: 40, marginBottom: 40, marginTop: 10,
    x: { type: "log", label: "learning rate", ticks: d3.range(-8, 2).map((power) => 10 ** power).filter((rate) => rateDomain(one)[0] <= rate && rate <= rateDomain(one)[1]), tickFormat: (rate) => rate.toExponential(0), domain: rateDomain(one) },
    y: { ...SHARE_AXIS, label: null, grid: true },
    marks: [
      Plot.ruleY([one.floor], { stroke: grey(), strokeDasharray: "2 4" }),
      Plot.line(summarised() ? entry.rates : [], { x: "0", y: "1", stroke: colour, strokeWidth: 2 }),
      Plot.dot(points, { x: "x", y: "y", r: 3, fill: colour, fillOpacity: 0.65 }),
      Plot.dot(chosen, { x: "0", y: "1", r: 9, stroke: "currentColor" }),
    ],
  }));
  return { plot, points };
}

function rateDomain(one) {
  const [low, high] = d3.extent(one.entries.flatMap((entry) => entry.rates.map(([rate]) => rate)));
  return low === high ? [low / 3, high * 3] : [low / 1.2, high * 1.2];
}

// The measures of training, each with the values of a run at its validations.
const MEASURES = {
  "": { words: "validation accuracy", of: (run) => d3.range(1, run.curve.length, 2).map((i) => run.curve[i]), read: share },
  loss: { words: "training loss", of: (run) => run.losses, read: (value) => `${+value.toPrecision(4)}` },
};
const measure = () => MEASURES[state.measure] ?? MEASURES[""];

// One axis of losses for all charts of a task, logarithmic where they span a factor of twenty.
function lossAxis(one) {
  const losses = shownEntries(one).flatMap((entry) => scoredRuns(entry).flatMap((run) => run.losses ?? []));
  const [least, largest] = d3.extent(losses);
  const [low, high] = zoom() ? [zoom()[0], Math.min(zoom()[1], largest)] : [least, largest];
  const logarithmic = low > 0 && high > 20 * low;
  return { type: logarithmic ? "log" : "linear", domain: logarithmic || zoom() ? [low, high] : [Math.min(0, low), high], ticks: 5, tickFormat: short };
}

function trainingChart(one, entry, width) {
  const colour = styleOf(entry.shownAs).colour;
  const { of, read } = measure();
  const drawn = [entry, twinOf(entry)].filter(Boolean).flatMap(scoredRuns).filter((run) => run.curve?.length);
  const lines = drawn.flatMap((run) => of(run).map((y, i) => ({
    x: run.curve[2 * i], y, run, entry: entryOf(run), over: run.section !== one.place, line: `${run.id} ${run.section}`, words: `${entry.label}, seed ${run.seed}, ${count(run.curve[2 * i])} updates: ${read(y)}`,
  })));
  const loss = measure() === MEASURES.loss;
  const line = (rows, looks) => Plot.line(rows, { x: "x", y: "y", z: "line", stroke: colour, strokeWidth: 1.3, strokeOpacity: 0.8, clip: Boolean(zoom()), ...looks });
  const plot = Plot.plot(base(width, {
    height: 190, marginLeft: 40, marginBottom: 40, marginTop: 10,
    x: { label: "updates", ticks: 4, tickFormat: short, nice: true },
    y: loss ? { ...lossAxis(one), label: null, grid: true } : shareAxis({ label: null, grid: true }),
    marks: [
      ...(loss || !inZoom(one.floor) ? [] : [Plot.ruleY([one.floor], { stroke: grey(), strokeDasharray: "2 4" })]),
      line(lines.filter((point) => !point.over), {}), line(lines.filter((point) => point.over), { strokeDasharray: "4 3" }),
    ],
  }));
  return { plot, points: lines.filter((point) => inZoom(point.y)) };
}

// Architectures by tasks of a store; with one task, by its cells.
function matrixOf(store) {
  const sections = data.sections.filter((one) => one.store === store);
  const several = sections.length > 1;
  const columns = several
    ? sections.map((one) => ({ name: one.task, section: one, grey: !one.ranks, floor: one.floor }))
    : sections.flatMap((one) => one.cells.map((cell, i) => ({ name: cell.label, section: one, cell: i, grey: cell.verdict !== "ranks", why: cell.verdict, floor: cell.floor })));
  const rows = new Map();
  for (const one of sections) {
    for (const entry of one.entries.filter((found) => found.median !== null && admitted(found))) {
      const name = several ? entry.name ?? entry.label : entry.label;
      if (!rows.has(name)) rows.set(name, new Map());
      const cells = several
        ? [[one, { corrected: entry.corrected, solved: entry.solved, entry, interval: entry.correctedInterval }]]
        : entry.cells.map((cell, i) => [i, cell && { corrected: cell[2], solved: cell[3], entry, interval: null }]);
      for (const [key, value] of cells) if (value) rows.get(name).set(several ? key.place : key, value);
    }
  }
  return { columns, rows: [...rows], key: (column) => (several ? column.section.place : column.cell) };
}

// Light to dark in one hue, with ink that reads on it.
function shadeOf(value) {
  const dark = isDark();
  const colour = dark ? d3.interpolateRgb("#151b24", "#3a86c8")(value) : d3.interpolateRgb("#f4f8fc", "#0a5a9c")(value);
  const linear = ({ r, g, b }) => [r, g, b].map((part) => (part / 255 <= 0.04045 ? part / 3294.6 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  const [r, g, b] = linear(d3.rgb(colour));
  return { colour, ink: 0.2126 * r + 0.7152 * g + 0.0722 * b > 0.179 ? "#000000" : "#ffffff" }; // where both contrasts are equal
}
