// Drives the page in a browser, and returns what it saw.

const seen = { errors: [] };
addEventListener("error", (event) => seen.errors.push(event.message));
addEventListener("unhandledrejection", (event) => seen.errors.push(String(event.reason)));
document.addEventListener("securitypolicyviolation", (event) => seen.errors.push(`${event.violatedDirective} ${event.blockedURI}`));

const all = (selector) => [...document.querySelectorAll(selector)];
const one = (selector) => document.querySelector(selector);
const settle = () => new Promise((done) => setTimeout(done, 60));
const dots = () => all('#content svg.chart [data-mark="dot"] > *').length;
const address = () => new URLSearchParams(location.hash.slice(1));

async function open(fields) {
  location.hash = `#${new URLSearchParams(fields)}`;
  await settle();
}

async function type(selector, value) {
  const field = one(selector);
  field.value = value;
  field.dispatchEvent(new Event("change", { bubbles: true }));
  await settle();
}

async function click(target) {
  target.click();
  await settle();
}

const button = (words) => all("#content button").find((node) => node.textContent === words);

// What a button would save, as a blob.
async function saved(words) {
  let blob = null;
  const create = URL.createObjectURL;
  const press = HTMLAnchorElement.prototype.click;
  URL.createObjectURL = (made) => { blob = made; return "blob:none"; };
  HTMLAnchorElement.prototype.click = () => {};
  button(words).click();
  for (let i = 0; i < 50 && !blob; i++) await settle();
  [URL.createObjectURL, HTMLAnchorElement.prototype.click] = [create, press];
  return blob;
}

function unnamed() {
  const named = (node) => node.textContent.trim() || node.getAttribute("aria-label") || node.labels?.length;
  return all("button, select, input, a, svg.chart, dialog").filter((node) => !named(node) && node.getAttribute("aria-hidden") !== "true").map((node) => node.outerHTML.slice(0, 80));
}

async function drive() {
  try {
    await steps();
  } catch (error) {
    seen.errors.push(`${error}: ${error.stack}`);
  }
  return seen;
}

async function steps() {
  while (!document.documentElement.dataset.ready) await settle();
  await settle();
  Object.assign(seen, { width: innerWidth, scripts: document.scripts.length, cards: all("article").length, titles: all("article h2 a").length, unnamed: [], wide: [] });
  const sizes = { view: "state", store: "0", task: "sizes" };
  for (const view of all("#views a").map((node) => new URLSearchParams(node.hash.slice(1)).get("view") ?? "answers")) {
    await open({ ...sizes, view });
    seen.unnamed.push(...unnamed());
    if (document.documentElement.scrollWidth > innerWidth) seen.wide.push(view);
  }
  await open(sizes);
  seen.dots = dots();
  const plot = one("#content svg.chart");
  const box = plot.getBoundingClientRect();
  const mark = one('#content svg.chart [data-mark="dot"] > *').getBoundingClientRect();
  const place = { clientX: mark.x + mark.width / 2, clientY: mark.y + mark.height / 2, pointerType: "touch", bubbles: true };
  plot.dispatchEvent(new PointerEvent("pointerdown", place));
  seen.picked = one(".picked").textContent;
  seen.tip = all(".tip").map((node) => node.textContent);
  one(".picked").replaceChildren();
  plot.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  seen.keys = one(".picked").textContent;
  await click(button("Open the run"));
  Object.assign(seen, { run: address().get("run"), dialog: one("#run").open ? one("#run").textContent : "" });
  history.back();
  await settle();
  seen.back = address().get("view");
  await click(all(".legend input").find((node) => node.name === "family:other"));
  Object.assign(seen, { fewer: dots(), hidden: address().get("hide") });
  await open(sizes);
  await type("[name=seeds]", "0");
  Object.assign(seen, { oneSeed: dots(), linesOfOneSeed: all('#content svg.chart [data-mark="line"] > *').length });
  await open(sizes);
  await type("[name=find]", "WINDOW w=");
  seen.searched = dots();
  await open(sizes);
  brush();
  await settle();
  seen.brushed = Object.fromEntries(address());
  await open(sizes);
  const ticks = () => all('#content svg.chart [data-mark="y-axis tick label"] text').map((node) => Number(node.textContent));
  brush(0.5);
  await settle();
  const box2 = Object.fromEntries(address());
  seen.zoomed = [box2.bottom, box2.top, box2.low, box2.high].map(Number).concat(Math.min(...ticks()));
  await click(button("Whole axes"));
  seen.whole = [address().get("bottom"), address().get("low"), Math.min(...ticks())];
  await type("[name=bottom]", "0.5");
  seen.typed = [address().get("bottom"), address().get("top")];
  await type("[name=top]", "0.9");
  seen.typed.push(Math.min(...ticks()), Math.max(...ticks()));
  const both = { view: "state", store: "0", task: "assoc-recall" };
  const marks = () => all('#content svg.chart [data-mark="dot"] > *').length;
  await open(both);
  seen.over = [marks()];
  await open({ ...both, over: "1" });
  seen.over.push(marks(), one("#content figure h2").textContent.includes("both stores have differ significantly"), one(".note").textContent.includes("Dashed lines and crosses"));
  seen.overRows = all("#content tbody tr").length;
  await open({ ...both, view: "load", over: "1" });
  seen.dashed = all('#content svg.chart [data-mark="line"][stroke-dasharray] > *').length;
  await open({ ...both, view: "training", measure: "loss" });
  seen.loss = [one("#content figure h2").textContent, await (await saved("Save CSV")).text()];
  await open(sizes);
  const heads = () => all("#content th").map((node) => node.textContent);
  seen.columns = [heads().length];
  one("#content .columns").open = true;
  await click(one('[name="column:entries:parameters"]'));
  seen.columns.push(heads().length, heads().includes("parameters"), address().get("columns"), one("#content .columns").open);
  await open({ ...sizes, columns: "{broken" });
  seen.columns.push(heads().length);
  await open({ ...sizes, view: "load" });
  const title = () => one("#content figure h2").textContent + one("#step-words").textContent;
  seen.slider = [title()];
  const curve = one("#content svg.chart");
  curve.dispatchEvent(new KeyboardEvent("keydown", { key: "ArrowRight", bubbles: true }));
  seen.lifted = [all(".lifted").length, one(".lifted").getAttribute("points").split(" ").length, curve.classList.contains("picking")];
  curve.dispatchEvent(new PointerEvent("pointerleave", { pointerType: "mouse" }));
  seen.lifted.push(all(".lifted").length);
  const slider = one("[name=step]");
  slider.value = "1";
  slider.dispatchEvent(new Event("input", { bubbles: true }));
  await settle();
  seen.slider.push(title());
  await open(sizes);
  const heading = () => all("#content th").find((node) => node.textContent.startsWith("median"));
  seen.sorted = [];
  for (let i = 0; i < 2; i++) {
    await click(heading().firstElementChild);
    seen.sorted.push(heading().getAttribute("aria-sort"));
  }
  seen.csv = await (await saved("Save CSV")).text();
  seen.svg = await (await saved("Save SVG")).text();
  seen.png = (await saved("Save PNG")).type;
  seen.csv = seen.csv.slice(0, 400);
  seen.svg = seen.svg.slice(0, 4) + (seen.svg.includes("state elements") ? "state elements" : "");
  await click(button("state"));
  seen.term = one("#term").open ? one("#term").textContent : "";
  one("#term").close();
  seen.themes = [];
  await open({ ...sizes, theme: "light" });
  for (let i = 0; i < 2; i++) {
    await click(one("#theme"));
    seen.themes.push(document.documentElement.dataset.theme);
  }
  await open({ view: "samples", group: "gap 2" });
  seen.samples = Object.fromEntries(["right", "wrong", "faded"].map((name) => [name, all(`.token.${name}`).length]));
  await open({ view: "differences" });
  seen.differences = all("#content tbody tr").length;
  await open({ view: "failures" });
  Object.assign(seen, { failures: all("#content tbody tr").length, problems: all("#content li").length });
  await open({ view: "matrix", store: "0" });
  seen.matrix = all(".square").length;
}

// Drag from the left over the chart; `down` is the part of its height that the drag covers.
function brush(down = 0) {
  const layer = one(".brush .overlay");
  const box = layer.getBoundingClientRect();
  const at = (share) => ({ clientX: box.x + share * box.width, clientY: box.y + 2 + down * share * box.height, bubbles: true, view: window });
  layer.dispatchEvent(new MouseEvent("mousedown", at(0.01)));
  window.dispatchEvent(new MouseEvent("mousemove", at(0.3)));
  window.dispatchEvent(new MouseEvent("mousemove", at(0.6)));
  window.dispatchEvent(new MouseEvent("mouseup", at(0.6)));
}
