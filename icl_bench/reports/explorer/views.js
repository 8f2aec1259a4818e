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

// Of each store its question, its totals and a card for each task, whose title is the answer.
function answersView() {
  const several = data.stores.length > 1;
  const drawn = new Set(); // studies of several stores whose question stands above
  return data.stores.map((store, i) => i).filter((i) => state.store === "" || String(i) === state.store).flatMap((i) => {
    const store = data.stores[i];
    const fresh = store.study && !drawn.has(store.study.name);
    if (fresh) drawn.add(store.study.name);
    return [fresh ? studyOf(store.study, several) : null, h("p", { class: "totals" }, `${store.name}: ${store.totals}`),
      h("div", { class: "cards" }, data.sections.filter((one) => one.store === i).map(taskCard))];
  });
}

function taskCard(one) {
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
}

// The question of a study, and what its author concluded, and expected before it ran.
function studyOf(study, several) {
  const lists = [["Corrected later", "corrections"], ["Concluded by its author", "conclusions"], ["Expected, before it ran", "hypotheses"], ["Left out", "left_out"]];
  return h("section", { class: "card study" }, h("h2", {}, study.question ?? study.name), lists.filter(([, key]) => study[key].length).map(([words, key]) =>
    h("details", { open: key === "conclusions" && !several }, h("summary", {}, words), h("ul", {}, study[key].map((line) => h("li", {}, line))))));
}

// Fields and a button for the part of the vertical axis that is shown, which dragging over a chart sets too.
function axisControls(words) {
  const field = (name, key) => h("label", {}, `${name} `, h("input", { type: "number", step: "any", name: key, value: state[key], onchange: (event) => go({ [key]: event.target.value }) }));
  const whole = h("button", { type: "button", onclick: () => go({ bottom: "", top: "", low: "", high: "" }) }, "Whole axes");
  return [field(`${words} from`, "bottom"), field("to", "top"), zoom() || state.low || state.high ? whole : null];
}

// The store to lay over the one shown, where another store has the same task.
function overControl(one) {
  const others = data.sections.filter((found) => found.store !== one.store && found.task === one.task);
  return others.length ? choice("lay over it", "over", [["", "nothing"], ...others.map((found) => [String(found.store), storeName(found)])]) : null;
}

function overNote(one) {
  const other = laidOver(one);
  const marks = data.differences ? " ◆ marks a median that differs significantly between the stores (Holm, 5 %)." : "";
  return other ? ` Solid lines and dots: ${storeName(one)}. Dashed lines and crosses: ${storeName(other)}.${marks}` : "";
}

// With two stores in a chart, its title says how many architectures differ between them.
const overTitle = (one, words) => (laidOver(one) && data.differences ? `${titled(words)}; ${data.differences.title}` : titled(words));

function stateView() {
  const one = section();
  const controls = h("div", { class: "controls" }, choice("size", "x", Object.entries(SIZES), sizeOf(one)), cellChoice(one), overControl(one), axisControls("accuracy"));
  const chart = figure({
    name: "recall-by-state", title: overTitle(one, one.answers.recall), controls,
    note: `A dot for each seed; bars are intervals of the median. Open dots are seeds that are not locked in; no line goes through untrained architectures. Drag over the chart to zoom in.${overNote(one)}`,
    draw: (width) => {
      const drawn = recallChart(one, width);
      const strip = drawn.plot.scale("x").type !== "log";
      return brushed(one, drawn, strip ? "x" : sizeOf(one) === "elements" ? "xy" : "y");
    },
    columns: SCORE_COLUMNS, rows: () => [one, laidOver(one)].filter(Boolean).flatMap(scoreRows),
  });
  return [chart, entryTable(one), limitsOf(one), terms("state", "floor", "interval of the median", "locked in", "untrained", "bimodal")];
}

const limitsOf = (one) => (one.limits ? h("p", { class: "limits" }, h("strong", {}, "Limits: "), one.limits) : null);

const LEAST_DRAG = 12; // pixels; a drag that is thinner keeps the whole of that axis

// Dragging over a chart keeps a part of its axes: `axes` is x or y for the axis of accuracies or losses alone, xy where x
// has state sizes, whose range every view shows.
function brushed(one, drawn, axes) {
  const [xs, ys] = ["x", "y"].map((name) => drawn.plot.scale(name));
  if (!xs || !ys) return drawn;
  const extent = d3.transpose([xs, ys].map((scale) => d3.extent(scale.range)));
  let last = null;
  const brush = { x: d3.brushX, y: d3.brushY, xy: d3.brush }[axes]().extent(extent)
    .on("brush", (event) => { last = event.selection; })
    .on("end", (event) => {
      if (!event.sourceEvent || !last) return;
      const changes = axes === "xy" ? { ...sizeRange(one, xs, last.map(([x]) => x)), ...axisRange(ys, last.map(([, y]) => y)) } : axisRange(axes === "x" ? xs : ys, last);
      if (Object.keys(changes).length) go(changes, true);
    });
  const layer = d3.select(drawn.plot).insert("g", ":first-child").attr("class", "brush").call(brush);
  layer.selectAll("*").attr("tabindex", null);
  return drawn;
}

function sizeRange(one, scale, ends) {
  const [low, high] = ends.map((place) => Math.round(scale.invert(place)));
  const some = shownEntries(one).some((entry) => low <= entry.elements && entry.elements <= high);
  return Math.abs(ends[1] - ends[0]) < LEAST_DRAG || !some ? {} : { low: String(low), high: String(high) };
}

function axisRange(scale, ends) {
  const [low, high] = d3.sort(ends.map((place) => +scale.invert(place).toPrecision(3)));
  return Math.abs(ends[1] - ends[0]) < LEAST_DRAG || low === high ? {} : { bottom: String(low), top: String(high) };
}

const ENTRY_COLUMNS = [
  ["architecture", (entry) => entry.label], ["state elements", (entry) => entry.elements], ["parameters", (entry) => entry.params],
  ["median", (entry) => entry.median, (entry) => entry.score], ["corrected", (entry) => entry.corrected, (entry) => share(entry.corrected)],
  ["P(solved)", (entry) => entry.solved?.[0] / entry.solved?.[1], (entry) => (entry.solved ? `${entry.solved[0]}/${entry.solved[1]} [${entry.solved[2].toFixed(2)}, ${entry.solved[3].toFixed(2)}]` : "–")],
  ["training", (entry) => entry.training], ["learning rate", (entry) => entry.rate, (entry) => entry.rate.toPrecision(3)],
];

function entryTable(one) {
  const other = laidOver(one);
  const store = ["store", (entry) => storeName(data.sections[entry.section])];
  const differs = ["differs", (entry) => (differenceOf(entry)?.differs ? "◆ yes" : differenceOf(entry) ? "no" : null)];
  const columns = other ? [ENTRY_COLUMNS[0], store, ...(data.differences ? [differs] : []), ...ENTRY_COLUMNS.slice(1)] : ENTRY_COLUMNS;
  const rows = [one, other].filter(Boolean).flatMap(shownEntries);
  return sortable("entries", columns, d3.sort(rows, (entry) => (other ? entry.label : 0)), (entry) => (trained(entry) ? "" : "unranked"));
}

// A name may break behind its commas and colons.
const breakable = (name) => name.split(/(?<=[,:])/).flatMap((part) => [h("wbr"), part]);

const chosenColumns = () => { const found = parsed(state.columns, {}); return found && typeof found === "object" ? found : {}; };
const unfolded = new Set(); // names of tables whose list of columns is open

// A list of boxes, one for each column of a table but the first; the address has those that are switched off.
function columnChooser(name, columns, off) {
  const boxes = columns.slice(1).map(([words]) => h("label", {}, h("input", { type: "checkbox", name: `column:${name}:${words}`, checked: !off.has(words), onchange: (event) => {
    if (event.target.checked) off.delete(words); else off.add(words);
    const { [name]: before, ...rest } = chosenColumns();
    const kept = off.size ? { ...rest, [name]: [...off] } : rest;
    go({ columns: Object.keys(kept).length ? JSON.stringify(kept) : "" });
  } }), " ", words));
  const list = h("details", { class: "columns", open: unfolded.has(name) }, h("summary", {}, `Columns (${columns.length - off.size} of ${columns.length})`), h("div", { class: "controls" }, boxes));
  list.addEventListener("toggle", () => { if (list.open) unfolded.add(name); else unfolded.delete(name); });
  return list;
}

// A table that any heading sorts, with a choice of its columns; both are kept in the address.
function sortable(name, columns, rows, classOf = () => "", open = null, most = 200) {
  const words = new Set(columns.map(([text]) => text));
  const off = new Set([chosenColumns()[name] ?? []].flat().filter((text) => words.has(text) && text !== columns[0][0]));
  const places = d3.range(columns.length).filter((i) => !off.has(columns[i][0]));
  const [which, place, way] = state.sort.split(".");
  const sorted = [...rows];
  if (which === name && columns[place]) {
    const value = columns[place][1];
    const empty = (one) => value(one) === null || value(one) === undefined || Number.isNaN(value(one));
    sorted.sort((a, b) => empty(a) - empty(b) || (way === "down" ? d3.descending : d3.ascending)(value(a), value(b)));
  }
  const head = places.map((i) => {
    const on = which === name && Number(place) === i;
    const next = on && way === "down" ? "up" : "down";
    return h("th", { scope: "col", "aria-sort": on ? (way === "down" ? "descending" : "ascending") : "none" },
      h("button", { type: "button", onclick: () => go({ sort: `${name}.${i}.${next}` }) }, columns[i][0], on ? (way === "down" ? " ↓" : " ↑") : ""));
  });
  const page = Math.max(1, Number(state.page) || 1);
  const body = sorted.slice(0, most * page).map((row) => h("tr", { class: classOf(row) }, places.map((i) => {
    const [, value, words] = columns[i];
    const text = (words ?? value)(row);
    const shown = text === null || text === undefined ? "–" : typeof text === "number" ? count(text) : text;
    return h("td", { class: i ? null : "left" }, i === 0 && open ? h("button", { type: "button", class: "link", onclick: () => open(row) }, shown) : i ? shown : breakable(shown));
  })));
  const more = sorted.length > most * page
    ? h("button", { type: "button", onclick: () => go({ page: String(page + 1) }) }, `Show more (${count(sorted.length - most * page)} left)`) : null;
  return h("div", { class: "sorted" }, h("div", { class: "wide", tabindex: "0", role: "group", "aria-label": name }, h("table", {}, h("thead", {}, h("tr", {}, head)), h("tbody", {}, body))), more, columns.length > 3 ? columnChooser(name, columns, off) : null);
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
    name: "accuracy-by-load", title: overTitle(one, step.answer), controls: [slider, h("div", { class: "controls" }, overControl(one), axisControls("accuracy"))],
    note: `Lines go through medians, bars are their intervals, a dot is a seed. Grey bands: medians change their order there, which is no test. Drag over the chart to zoom in.${overNote(one)}`,
    draw: (width) => brushed(one, loadChart(one, entries, width), "y"), columns: SCORE_COLUMNS, rows: () => scoreRows(one),
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
  const { words, of } = measure();
  const loss = measure() === MEASURES.loss;
  const controls = h("div", { class: "controls" }, h("label", {}, "measure ", h("select", { name: "measure", onchange: (event) => go({ measure: event.target.value, bottom: "", top: "" }) },
    Object.entries(MEASURES).map(([key, one]) => h("option", { value: key, selected: one === measure() }, one.words)))), overControl(one), axisControls(loss ? "loss" : "accuracy"));
  const what = loss ? "Training loss, the mean since the validation before," : "Validation accuracy";
  return [figure({
    name: "training", title: titled(loss ? one.answers.loss : one.answers.learning), controls, charts: smallCharts(one, entries, (task, entry, width) => brushed(task, trainingChart(task, entry, width), "y")),
    note: `${what} over training at the chosen rate, a line for each seed. Drag over a chart to zoom in.${leftOut(entries)}${overNote(one)}`,
    columns: ["id", "arch", "seed", "step", words.replace(" ", "_")],
    rows: () => entries.flatMap((entry) => scoredRuns(entry).flatMap((run) => of(run).map((value, i) => [run.id, entry.label, run.seed, run.curve[2 * i], value]))),
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
      ["architecture", (row) => row.labels[0]], ["task", (row) => row.task], [data.stores[0].name, (row) => row.first[0], (row) => `${share(row.first[0])} (${row.first[1]})`],
      [data.stores[1].name, (row) => row.second[0], (row) => `${share(row.second[0])} (${row.second[1]})`],
      ["shift", (row) => row.shift?.[0] ?? null, (row) => (row.shift ? `${row.shift[0].toFixed(3)} ${span(row.shift.slice(1))}` : "–")],
      ["p", (row) => row.p, (row) => (row.p === null ? "–" : row.p < 0.001 ? "< 0.001" : row.p.toFixed(3))], ["mark", (row) => (row.differs ? 1 : 0), (row) => (row.differs ? "◆ differs" : "")],
    ], found.rows, (row) => (row.differs ? "marked" : ""))];
}
