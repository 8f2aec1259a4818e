// Samples, runs, the open run, the frame around the views, and the live page.

function samplesView() {
  const kept = data.samples.filter((one) => runById.has(one.run));
  if (!kept.length) return empty("No run kept examples; train with --keep samples.");
  const chosen = kept.find((one) => one.run === state.sample) ?? kept[0];
  const run = runById.get(chosen.run);
  const cell = chosen.cells.find((one) => one.label === state.cell) ?? chosen.cells[0];
  const groups = [...new Set(cell.examples.flatMap((one) => one.groups))].sort(new Intl.Collator("en", { numeric: true }).compare);
  const answered = cell.examples.flatMap((one) => one.hits.map((hit, i) => ({ hit, group: one.groups[i] }))).filter((one) => !state.group || one.group === state.group);
  const right = answered.filter((one) => one.hit >= 1).length;
  const shown = cell.examples.filter((one) => !state.wrong || one.hits.some((hit, i) => hit < 1 && (!state.group || one.groups[i] === state.group)));
  const controls = h("div", { class: "controls" },
    choice("run", "sample", kept.map((one) => [one.run, `${cut(entryOf(runById.get(one.run)).label, 40)}, seed ${runById.get(one.run).seed}`])),
    choice("load", "cell", chosen.cells.map((one) => [one.label, one.label])), choice("gap", "group", [["", "all"], ...groups.map((name) => [name, name])]),
    h("label", {}, h("input", { type: "checkbox", checked: Boolean(state.wrong), onchange: (event) => go({ wrong: event.target.checked ? "1" : "" }) }), " only with a wrong answer"));
  return [h("h2", {}, `${entryOf(run).label}, ${cell.label}: ${right} of ${answered.length} answers right${state.group ? ` at ${state.group}` : ""} in the first ${cell.examples.length} examples`),
    controls, h("p", { class: "note" }, "Each example is read from left to right. ✓ right and ✗ wrong answers, each with the probability that the model gave the right one."),
    ...shown.map(exampleOf), shown.length ? null : h("p", { class: "empty" }, "Every answer shown is right."), h("p", {}, h("a", { href: addressOf({ run: run.id }) }, "Details of this run"))];
}

function exampleOf(one) {
  const scored = new Map(one.positions.map((position, i) => [position, i]));
  return h("p", { class: "example" }, one.inputs.map((token, t) => {
    const i = scored.get(t);
    if (i === undefined) return h("span", { class: "token" }, token);
    const right = one.hits[i] >= 1;
    const faded = state.group && one.groups[i] !== state.group ? " faded" : "";
    const chance = one.chances ? one.chances[i] : null;
    const words = `${token}: answered ${one.answers[i]}${right ? ", right" : `, right is ${one.targets[i]}`}; ${one.groups[i]}${chance === null ? "" : `; probability of the right answer ${share(chance)}`}`;
    return h("span", { class: `token ${right ? "right" : "wrong"}${faded}`, title: words }, token, h("b", {}, right ? " ✓ " : " ✗ ", one.answers[i]),
      right ? null : h("i", {}, ` ≠ ${one.targets[i]}`), chance === null ? null : h("small", {}, ` ${chance.toFixed(2)}`));
  }));
}

function runsView() {
  const found = runs.filter((run) => (state.store === "" || String(data.sections[run.section].store) === state.store) && admitted(entryOf(run)) && seedAdmitted(run.seed));
  return [h("h2", {}, `${count(found.length)} of ${count(runs.length)} runs`), sortable("runs", [
    ["run", (run) => run.id], ["task", (run) => run.section, (run) => cut(data.sections[run.section].task, 36)], ["architecture", (run) => entryOf(run).label, (run) => cut(entryOf(run).label, 48)],
    ["seed", (run) => run.seed], ["learning rate", (run) => run.lr, (run) => run.lr.toPrecision(3)], ["role", (run) => run.role], ["status", (run) => run.status],
    ["validation", (run) => run.validation, (run) => share(run.validation)], ["accuracy", (run) => run.accuracy, (run) => share(run.accuracy)],
  ], found, (run) => (run.status === "ok" ? "" : "marked"), (run) => go({ run: run.id }, true), 100)];
}

function openRun() {
  const box = byId("run");
  const run = runById.get(state.run);
  if (!run) { if (box.open) box.close(); return; }
  const [one, entry] = [data.sections[run.section], entryOf(run)];
  const command = data.commands[run.command];
  const facts = [
    ["id", run.id], ["task", one.task], ["architecture", entry.label], ["store", storeName(one)], ["seed", run.seed], ["learning rate", run.lr], ["status", run.status], ["role", run.role],
    ["validation", share(run.validation)], ["test accuracy", share(run.accuracy)], ["exact match", share(run.exact)], ["state elements", count(entry.elements)],
    ["parameters", count(entry.params)], ["device", data.devices[run.device]], ["reason", run.detail],
  ].filter(([, value]) => value !== null && value !== "–");
  const cells = run.cells ? plainTable(["cell", "accuracy", "floor"], run.cells.map((value, i) => [one.cells[i].label, share(value), share(one.cells[i].floor)])) : null;
  const sampled = data.samples.some((kept) => kept.run === run.id);
  put(box,
    h("h2", {}, `Run ${run.id}`), h("dl", {}, facts.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, String(value))])), cells,
    h("h3", {}, data.stores[one.store].study ? "The command that trains its study" : "The command that made it, and repeats it in an empty store"), h("pre", { tabindex: "0" }, command), h("button", { type: "button", onclick: () => copyText(command) }, "Copy the command"),
    h("h3", {}, "Its record"), h("pre", { tabindex: "0" }, `icl-bench runs show ${run.id}`),
    sampled ? h("p", {}, h("a", { href: addressOf({ view: "samples", sample: run.id, run: "" }) }, "Its answers to test examples")) : null,
    h("form", { method: "dialog" }, h("button", {}, "Close")));
  if (!box.open) box.showModal();
}

// The frame

const VIEWS = {
  answers: ["Answers", answersView], state: ["Recall by state", stateView], load: ["By load", loadView], capacity: ["Capacity", capacityView],
  matrix: ["Matrix", matrixView], rates: ["Learning rates", ratesView], training: ["Training", trainingView], failures: ["Failures", failuresView],
  samples: ["Samples", samplesView], differences: ["Differences", differencesView], runs: ["Runs", runsView], report: ["Report", () => []],
};

function viewsThere() {
  const lacking = new Set([...(data.samples.length ? [] : ["samples"]), ...(data.differences ? [] : ["differences"]), ...(byId("report").childElementCount ? [] : ["report"])]);
  return Object.keys(VIEWS).filter((name) => !lacking.has(name));
}

const OF_TASK = new Set(["state", "load", "capacity", "rates", "training"]);

function drawNavigation() {
  byId("views").replaceChildren(...viewsThere().map((name) => h("a", { href: addressOf({ view: name, run: "", page: "1" }), "aria-current": state.view === name ? "page" : null }, VIEWS[name][0])));
  const current = byId("views").querySelector("[aria-current]");
  byId("views").scrollLeft = current.offsetLeft - (byId("views").clientWidth - current.offsetWidth) / 2;
}

function drawFilters() {
  const one = section();
  const focused = document.activeElement?.name;
  const off = hidden();
  const listed = OF_TASK.has(state.view) ? one.families : families;
  const powers = [...new Set(data.sections.flatMap((found) => found.entries.map((entry) => String(entry.p ?? "none"))))].sort();
  const set = (key) => (event) => go({ [key]: event.target.value.trim(), page: "1" });
  const field = (words, key, props) => h("label", {}, `${words} `, h("input", { name: key, value: state[key], onchange: set(key), ...props }));
  const tasks = data.sections.filter((found) => state.store === "" || String(found.store) === state.store);
  const legend = h("fieldset", { class: "legend" }, h("legend", {}, "Families"), listed.map((family) => h("label", { class: off.has(family) ? "off" : "" },
    h("input", { type: "checkbox", name: `family:${family}`, checked: !off.has(family), onchange: (event) => {
      if (event.target.checked) off.delete(family); else off.add(family);
      go({ hide: off.size ? JSON.stringify([...off]) : "" });
    } }), swatch(family), h("span", {}, family))));
  byId("filters").replaceChildren(h("div", { class: "controls" },
    data.stores.length > 1 ? choice("store", "store", [["", "all"], ...data.stores.map((store, i) => [String(i), store.name])]) : null,
    tasks.length > 1 && OF_TASK.has(state.view) ? h("label", {}, "task ", h("select", { name: "task", onchange: (event) => {
      const found = data.sections[event.target.value];
      go({ task: found.task, store: data.stores.length > 1 ? String(found.store) : "", cell: "", step: "", bottom: "", top: "" });
    } }, tasks.map((found) => h("option", { value: found.place, selected: found === one }, data.stores.length > 1 ? `${storeName(found)} · ${found.task}` : found.task)))) : null,
    powers.length > 1 ? choice("p", "p", [["", "all"], ...powers.map((value) => [value, value])]) : null,
    field("search", "find", { type: "search", placeholder: "architecture" }), field("seeds", "seeds", { size: 8, placeholder: "0..4" }),
    field("state from", "low", { type: "number", min: 0, step: "any" }), field("to", "high", { type: "number", min: 0, step: "any" }),
    h("button", { type: "button", onclick: () => go({ hide: "", p: "", seeds: "", low: "", high: "", find: "", page: "1" }) }, "Show all")), legend);
  if (focused) byId("filters").querySelector(`[name="${CSS.escape(focused)}"]`)?.focus();
}

function swatch(family) {
  const { colour, symbol } = styleOf(family);
  const path = d3.symbol(d3[`symbol${symbol[0].toUpperCase()}${symbol.slice(1)}`], 70)();
  const picture = document.createElementNS(SVG, "svg");
  const mark = document.createElementNS(SVG, "path");
  for (const [key, value] of Object.entries({ viewBox: "-8 -8 16 16", width: 16, height: 16, "aria-hidden": "true" })) picture.setAttribute(key, value);
  for (const [key, value] of Object.entries({ d: path, fill: colour })) mark.setAttribute(key, value);
  picture.append(mark);
  return picture;
}

function renderFigures() {
  for (const node of byId("content").querySelectorAll("figure, article")) node.render?.();
}

// An architecture of a store that is laid over another looks as its counterpart there, whatever both are called.
function chooseLooks() {
  for (const entry of data.sections.flatMap((one) => one.entries)) entry.shownAs = entry.family;
  if (state.over === "") return;
  for (const entry of section().entries) {
    const twin = twinOf(entry);
    if (twin) twin.shownAs = entry.family;
  }
}

function draw() {
  readAddress();
  if (!viewsThere().includes(state.view)) state.view = DEFAULTS.view;
  document.documentElement.dataset.theme = state.theme;
  chooseLooks();
  drawNavigation();
  if (data.sections.length) drawFilters();
  const focused = byId("content").contains(document.activeElement) ? document.activeElement.name : null;
  for (const [id, off] of [["report", state.view !== "report"], ["content", state.view === "report"], ["filtering", ["report", "differences"].includes(state.view)]]) {
    byId(id).hidden = off;
  }
  put(byId("content"), data.sections.length || state.view === "report" ? VIEWS[state.view][1]() : empty("No finished run."));
  renderFigures();
  if (focused) byId("content").querySelector(`[name="${CSS.escape(focused)}"]`)?.focus();
  openRun();
}

// A live page asks its server now and then whether runs have finished, and keeps its state.
async function follow(stamp) {
  try {
    const found = await fetch(`data?after=${encodeURIComponent(stamp)}`);
    if (found.status === 200) {
      take(await found.json());
      draw();
      say(`${count(runs.length)} runs`);
      stamp = data.stamp;
    }
    byId("live").textContent = "live";
  } catch {
    byId("live").textContent = "the server is gone";
  }
  setTimeout(follow, 2000, stamp);
}

take(data);
for (const id of ["run", "term"]) byId(id).addEventListener("click", (event) => { if (event.target === byId(id)) byId(id).close(); });
byId("run").addEventListener("close", () => go({ run: "" }));
byId("theme").addEventListener("click", () => go({ theme: isDark() ? "light" : "dark" }));
addEventListener("hashchange", draw);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
let width = innerWidth;
if (width < 600) byId("filtering").open = false;
addEventListener("resize", () => { if (innerWidth !== width) { width = innerWidth; renderFigures(); } });
draw();
if (data.stamp) follow(data.stamp);
