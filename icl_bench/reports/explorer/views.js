// The views of the page, one question each. A view is a function that returns nodes.

// A word of the glossary opens its explanation.
function term(name, words = name) {
  return h("button", { type: "button", class: "term", onclick: () => {
    byId("term").replaceChildren(h("h2", {}, name), h("p", {}, data.glossary[name]), h("form", { method: "dialog" }, h("button", {}, "Close")));
    byId("term").showModal();
  } }, words);
}

const terms = (...names) => h("p", { class: "terms" }, "Terms: ", names.map((name, i) => [i ? ", " : "", term(name)]).flat());

function choice(words, key, options, value = state[key]) {
  const field = h("select", { onchange: (event) => go({ [key]: event.target.value }) },
    options.map(([key, text]) => h("option", { value: key, selected: key === value }, text)));
  return h("label", {}, `${words} `, field);
}

const cellChoice = (one) => choice("accuracy", "cell", [["", "mean over cells"], ...one.cells.map((cell) => [cell.label, cell.label])]);
const empty = (words) => [h("p", { class: "empty" }, words)];
const titled = (words) => words.replace(/^no /, "No "); // names of architectures keep their case

// Rows of a section's runs that measure, for tables and CSV.
function scoreRows(one) {
  return shownEntries(one).flatMap((entry) => scoredRuns(entry).flatMap((run) => run.cells.map((value, i) => [
    run.id, one.task, entry.label, run.seed, run.lr, entry.elements, entry.bytes, entry.params, one.cells[i].label, value, one.cells[i].floor,
  ])));
}
const SCORE_COLUMNS = ["id", "task", "arch", "seed", "lr", "state_elements", "state_bytes", "params", "cell", "accuracy", "floor"];

function answersView() {
  const cards = data.sections.filter((one) => state.store === "" || String(one.store) === state.store).map((one) => {
    const open = (view) => addressOf({ view, task: one.task, store: data.stores.length > 1 ? String(one.store) : "" });
    const chart = h("div", { class: "thumb" });
    const card = h("article", { class: "card" },
      h("p", { class: "task" }, data.stores.length > 1 ? `${storeName(one)} · ${one.task}` : one.task),
      h("h2", {}, h("a", { href: open("state") }, sentences(one.answers.recall))), chart,
      h("details", {}, h("summary", {}, "Question and limits"), h("p", {}, one.question), h("p", {}, one.limits ? `Limits: ${one.limits}` : "")),
      h("p", { class: "more" }, h("a", { href: open("load") }, "by load"), " · ", h("a", { href: open("capacity") }, "capacity"), " · ",
        h("a", { href: open("rates") }, "learning rates"), " · ", h("a", { href: open("training") }, "training")));
    card.render = () => {
      const entries = shownEntries(one).filter((entry) => entry.median !== null);
      chart.replaceChildren(entries.length ? recallChart(one, Math.max(260, chart.clientWidth), data.sections.length > 1).plot : "");
      chart.firstElementChild?.setAttribute("aria-hidden", "true");
    };
    return card;
  });
  const studies = data.stores.filter((store, i) => store.study && data.stores.findIndex((other) => other.study?.name === store.study.name) === i).map((store) => studyOf(store.study));
  const totals = data.stores.map((store) => h("p", { class: "totals" }, `${store.name}: ${store.totals}`));
  return [...totals, ...studies, h("div", { class: "cards" }, cards)];
}

// The question of a study, and what its author expected before it ran and concluded after.
function studyOf(study) {
  const lists = [["Expected, before it ran", "hypotheses"], ["Concluded by its author", "conclusions"], ["Corrected later", "corrections"], ["Left out", "left_out"]];
  return h("section", { class: "card study" }, h("h2", {}, study.question ?? study.name), lists.filter(([, key]) => study[key].length).map(([words, key]) =>
    h("details", { open: key === "hypotheses" }, h("summary", {}, words), h("ul", {}, study[key].map((line) => h("li", {}, line))))));
}

function stateView() {
  const one = section();
  const controls = h("div", { class: "controls" }, choice("size", "x", Object.entries(SIZES), sizeOf(one)), cellChoice(one));
  const chart = figure({
    name: "recall-by-state", title: titled(one.answers.recall), controls,
    note: "A dot for each seed; bars are intervals of the median. Open dots are seeds that are not locked in. Drag over the chart, or set the range above, to keep some sizes.",
    draw: (width) => brushed(one, recallChart(one, width)), columns: SCORE_COLUMNS, rows: () => scoreRows(one),
  });
  return [chart, entryTable(one), limitsOf(one), terms("state", "floor", "interval of the median", "locked in", "untrained", "bimodal")];
}

const limitsOf = (one) => (one.limits ? h("p", { class: "limits" }, h("strong", {}, "Limits: "), one.limits) : null);

// Dragging over sizes sets the range of states that every view shows.
function brushed(one, drawn) {
  const xs = drawn.plot.scale("x");
  if (xs.type !== "log" || sizeOf(one) !== "elements") return drawn;
  const [left, right] = xs.range;
  const height = Number(drawn.plot.getAttribute("height"));
  const brush = d3.brushX().extent([[left, 14], [right, height - 44]]).on("end", (event) => {
    if (!event.sourceEvent || !event.selection) return;
    const [low, high] = event.selection.map((place) => Math.round(xs.invert(place)));
    if (shownEntries(one).some((entry) => low <= entry.elements && entry.elements <= high)) go({ low: String(low), high: String(high) }, true);
  });
  const layer = d3.select(drawn.plot).insert("g", ":first-child").attr("class", "brush").call(brush);
  layer.selectAll("*").attr("tabindex", null);
  return drawn;
}

const ENTRY_COLUMNS = [
  ["architecture", (entry) => entry.label], ["state elements", (entry) => entry.elements], ["parameters", (entry) => entry.params],
  ["median", (entry) => entry.median, (entry) => entry.score], ["corrected", (entry) => entry.corrected, (entry) => share(entry.corrected)],
  ["P(solved)", (entry) => entry.solved?.[0] / entry.solved?.[1], (entry) => (entry.solved ? `${entry.solved[0]}/${entry.solved[1]} [${entry.solved[2].toFixed(2)}, ${entry.solved[3].toFixed(2)}]` : "–")],
  ["training", (entry) => entry.training], ["learning rate", (entry) => entry.rate, (entry) => entry.rate.toPrecision(3)],
];

function entryTable(one) {
  return sortable("entries", ENTRY_COLUMNS, shownEntries(one), (entry) => (trained(entry) ? "" : "unranked"));
}

// A name may break behind its commas and colons.
const breakable = (name) => name.split(/(?<=[,:])/).flatMap((part) => [h("wbr"), part]);

// A table that any heading sorts; the choice is kept in the address.
function sortable(name, columns, rows, classOf = () => "", open = null, most = 200) {
  const [which, place, way] = state.sort.split(".");
  const sorted = [...rows];
  if (which === name && columns[place]) {
    const value = columns[place][1];
    const empty = (one) => value(one) === null || value(one) === undefined || Number.isNaN(value(one));
    sorted.sort((a, b) => empty(a) - empty(b) || (way === "down" ? d3.descending : d3.ascending)(value(a), value(b)));
  }
  const head = columns.map(([words], i) => {
    const on = which === name && Number(place) === i;
    const next = on && way === "down" ? "up" : "down";
    return h("th", { scope: "col", "aria-sort": on ? (way === "down" ? "descending" : "ascending") : "none" },
      h("button", { type: "button", onclick: () => go({ sort: `${name}.${i}.${next}` }) }, words, on ? (way === "down" ? " ↓" : " ↑") : ""));
  });
  const page = Math.max(1, Number(state.page) || 1);
  const body = sorted.slice(0, most * page).map((row) => h("tr", { class: classOf(row) }, columns.map(([, value, words], i) => {
    const text = (words ?? value)(row);
    const shown = text === null || text === undefined ? "–" : typeof text === "number" ? count(text) : text;
    return h("td", { class: i ? null : "left" }, i === 0 && open ? h("button", { type: "button", class: "link", onclick: () => open(row) }, shown) : i ? shown : breakable(shown));
  })));
  const more = sorted.length > most * page
    ? h("button", { type: "button", onclick: () => go({ page: String(page + 1) }) }, `Show more (${count(sorted.length - most * page)} left)`) : null;
  return h("div", {}, h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": name }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body))), more);
}

function loadView() {
  const one = section();
  if (!one.cells.length) return empty("No run ended with a score.");
  const steps = stateSteps(one);
  const first = steps[0].rising ? steps.length - 1 : 0; // sizes begin at the largest, where every family is drawn
  const place = state.step === "" ? first : Math.min(steps.length - 1, Math.max(0, Number(state.step) || 0));
  const step = steps[place];
  const entries = step.entries.map((number) => one.entries[number]).filter((entry) => admitted(entry) && entry.median !== null);
  const words = h("output", { id: "step-words" }, step.words);
  const slider = steps.length > 1 ? h("label", { class: "slider" }, "State: ", h("input", {
    type: "range", min: 0, max: steps.length - 1, step: 1, value: place, name: "step", "aria-valuetext": step.words,
    oninput: (event) => go({ step: event.target.value }),
  }), " ", words) : h("p", {}, step.words);
  const crossed = crossingWords(one, entries);
  const list = crossed.length ? h("details", { open: crossed.length < 6 }, h("summary", {}, `Medians change their order ${crossed.length === 1 ? "once" : `${crossed.length} times`}`),
    h("ul", {}, crossed.map((line) => h("li", {}, line)))) : h("p", { class: "note" }, "No two medians above the floor change their order between loads.");
  const chart = figure({
    name: "accuracy-by-load", title: titled(step.answer), controls: slider,
    note: "Lines go through medians, bars are their intervals, a dot is a seed. Grey bands: medians change their order there, which is no test.",
    draw: (width) => loadChart(one, entries, width), columns: SCORE_COLUMNS, rows: () => scoreRows(one),
  });
  return [chart, list, ...groupTable(one, entries), limitsOf(one), terms("load", "cell", "matched state", "floor")];
}

// Medians by group of scored positions, such as the distance of the answer, over all loads.
function groupTable(one, entries) {
  if (one.groupNames.length < 2) return [];
  const columns = one.groupNames.map((name, i) => [name, (entry) => entry.groups[i], (entry) => square(entry.groups[i])]);
  return [h("section", { class: "matrix" }, h("h2", {}, "Accuracy by group of scored positions, over all loads"), sortable("groups", [["architecture", (entry) => entry.label], ...columns], entries))];
}

function square(value) {
  if (value === null) return "–";
  const shade = shadeOf(value);
  return h("span", { class: "square", style: `background:${shade.colour};color:${shade.ink}` }, share(value));
}

function capacityView() {
  const one = section();
  const fits = shownEntries(one).filter((entry) => entry.k50);
  if (!fits.length) return empty(`${one.answers.capacity}.`);
  const columns = ["arch", "state_elements", "k50", "k50_side", "k50_low", "k50_high", "k90", "k90_side", "predicted_pairs", "bits"];
  return [figure({
    name: "capacity", title: titled(one.answers.capacity), draw: (width) => capacityChart(one, width), columns,
    note: "Filled: K50 over its interval. Open: K90. Star: predicted pairs. Arrows: beyond the measured loads.",
    rows: () => fits.map((entry) => [entry.label, entry.elements, entry.k50.value, entry.k50.side, entry.k50.interval?.[0], entry.k50.interval?.[1], entry.k90.value, entry.k90.side, entry.predicted, entry.bits]),
  }), limitsOf(one), terms("K50", "predicted pairs", "chance-corrected accuracy")];
}

const MOST_SMALL = 24;

function smallCharts(one, entries, draw) {
  return entries.slice(0, MOST_SMALL).map((entry) => ({ title: entry.label, draw: (width) => draw(one, entry, width) }));
}

const leftOut = (entries) => (entries.length > MOST_SMALL ? ` The first ${MOST_SMALL} of ${entries.length} are drawn; filter to see others.` : "");

function ratesView() {
  const one = section();
  const entries = shownEntries(one).filter((entry) => entry.rates.length > 1);
  if (!entries.length) return empty("No learning rates were swept here.");
  return [figure({
    name: "learning-rates", title: titled(one.answers.rates), charts: smallCharts(one, entries, rateChart),
    note: `Validation accuracy of the seeds that chose the rate, a line through the medians, a ring around the chosen rate.${leftOut(entries)}`,
    columns: ["id", "arch", "seed", "lr", "validation", "status"],
    rows: () => entries.flatMap((entry) => entry.runs.map((run) => [run.id, entry.label, run.seed, run.lr, run.validation, run.status])),
  }), sortable("rates", [
    ["architecture", (entry) => entry.label], ["chosen", (entry) => entry.rate, (entry) => entry.rate.toPrecision(3)],
    ["window, decades", (entry) => entry.window, (entry) => `${entry.openEnd ? "≥ " : ""}${entry.window.toFixed(2)}`], ["chosen rate lies", (entry) => entry.place],
  ], entries), terms("learning-rate window", "seed")];
}

function trainingView() {
  const one = section();
  const entries = shownEntries(one).filter((entry) => scoredRuns(entry).some((run) => run.curve?.length > 2));
  if (!entries.length) return empty("No run here was validated more than once.");
  return [figure({
    name: "training", title: titled(one.answers.learning), charts: smallCharts(one, entries, trainingChart),
    note: `Validation accuracy over training at the chosen rate, a line for each seed.${leftOut(entries)}`,
    columns: ["id", "arch", "seed", "step", "validation"],
    rows: () => entries.flatMap((entry) => scoredRuns(entry).flatMap((run) => d3.range(0, run.curve.length, 2).map((i) => [run.id, entry.label, run.seed, run.curve[i], run.curve[i + 1]]))),
  }), terms("seed", "bimodal", "diverged")];
}

function matrixView() {
  const stores = data.stores.map((store, i) => i).filter((i) => state.store === "" || state.store === String(i));
  return [...stores.flatMap(matrixOfStore), terms("chance-corrected accuracy", "P(solved)", "floor", "ranks", "untrained")];
}

function matrixOfStore(store) {
  const { columns, rows, key } = matrixOf(store);
  if (!rows.length) return empty("No run ended with a score.");
  const own = data.sections.filter((one) => one.store === store);
  const title = data.stores[store].matrix || own[0].answers.recall;
  const name = `matrix-${store}`;
  const cellOf = (cells, column) => cells.get(key(column));
  const table = [["architecture", ([words]) => words], ...columns.map((column) => [
    cut(column.name, 30), ([, cells]) => cellOf(cells, column)?.corrected ?? null, ([, cells]) => matrixCell(column, cellOf(cells, column)),
  ])];
  const floors = h("p", { class: "note" }, "Floors: ", columns.map((column) => `${column.name} ${share(column.floor)}${column.grey ? ` (${column.why ?? "does not rank"})` : ""}`).join("; "));
  const names = ["arch", "column", "corrected", "solved", "seeds", "floor", "ranks"];
  const csv = () => rows.flatMap(([words, cells]) => columns.filter((column) => cellOf(cells, column)).map((column) => {
    const cell = cellOf(cells, column);
    return [words, column.name, cell.corrected, cell.solved?.[0], cell.solved?.[1], column.floor, !column.grey];
  }));
  return [h("figure", { "aria-label": title }, h("h2", {}, sentences(titled(title))),
    h("p", { class: "note" }, "Corrected accuracy, and below it the seeds that solved it. Grey columns rank nothing; grey cells are untrained."),
    h("div", { class: "plots matrix" }, sortable(name, table, rows)),
    h("div", { class: "copies" }, h("button", { type: "button", onclick: () => save(new Blob([csvOf(names, csv())], { type: "text/csv" }), "matrix.csv") }, "Save CSV"),
      h("button", { type: "button", onclick: () => copyText(csvOf(names, csv())) }, "Copy CSV")), floors)];
}

function matrixCell(column, cell) {
  if (!cell || cell.corrected === null) return h("span", {}, "–");
  const off = column.grey || !trained(cell.entry);
  const shade = shadeOf(cell.corrected);
  const words = `${cell.entry.label}: corrected ${share(cell.corrected)}${cell.interval ? ` ${span(cell.interval)}` : ""}, solved ${cell.solved[0]} of ${cell.solved[1]}${off ? `, ${column.grey ? column.why ?? "does not rank" : cell.entry.training}` : ""}`;
  const look = off ? null : `background:${shade.colour};color:${shade.ink}`;
  return h("a", { class: off ? "square off" : "square", style: look, title: words, "aria-label": words, href: addressOf({ view: "state", task: column.section.task, find: "", cell: column.cell === undefined ? "" : column.name }) },
    share(cell.corrected), h("small", {}, `${cell.solved[0]}/${cell.solved[1]}`));
}

function failuresView() {
  const failed = runs.filter((run) => run.status !== "ok" && admitted(entryOf(run)));
  const title = data.stores.map((store) => (data.stores.length > 1 ? `${store.name}: ${store.failures}` : store.failures)).join("; ");
  const problems = data.stores.flatMap((store) => store.problems);
  return [h("h2", {}, sentences(title)), failed.length ? sortable("failures", [
    ["run", (run) => run.id], ["status", (run) => run.status], ["task", (run) => data.sections[run.section].task], ["architecture", (run) => entryOf(run).label],
    ["seed", (run) => run.seed], ["learning rate", (run) => run.lr, (run) => run.lr.toPrecision(3)], ["reason", (run) => run.detail],
  ], failed, () => "", (run) => go({ run: run.id }, true)) : h("p", { class: "empty" }, "Nothing failed among the runs shown."),
  problems.length ? h("div", {}, h("h2", {}, "Records that could not be read"), h("ul", {}, problems.map((line) => h("li", {}, h("code", {}, line))))) : null, terms("diverged")];
}

function differencesView() {
  const found = data.differences;
  return [h("h2", {}, found.title), h("p", { class: "note" }, `Shift: ${data.stores[1].name} against ${data.stores[0].name}, by ranks; p adjusted by Holm's method over all rows. Marked rows differ at 5 %.`),
    sortable("differences", [
      ["architecture", (row) => row.label], ["task", (row) => row.task], [data.stores[0].name, (row) => row.first[0], (row) => `${share(row.first[0])} (${row.first[1]})`],
      [data.stores[1].name, (row) => row.second[0], (row) => `${share(row.second[0])} (${row.second[1]})`],
      ["shift", (row) => row.shift?.[0] ?? null, (row) => (row.shift ? `${row.shift[0].toFixed(3)} ${span(row.shift.slice(1))}` : "–")],
      ["p", (row) => row.p, (row) => (row.p === null ? "–" : row.p < 0.001 ? "< 0.001" : row.p.toFixed(3))], ["mark", (row) => (row.differs ? 1 : 0), (row) => (row.differs ? "◆ differs" : "")],
    ], found.rows, (row) => (row.differs ? "marked" : ""))];
}
