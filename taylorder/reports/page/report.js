// Wires the controls to the drawing.

/** Fill a select, and call `changed` when the reader picks. */
function choices(id, options, value, changed) {
  const control = document.getElementById(id);
  for (const [key, text] of options) control.append(element("option", { value: key, textContent: text }));
  control.value = value;
  control.addEventListener("change", () => changed(control.value));
}

function refresh() {
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== state.view;
  document.getElementById("explanation").textContent = currentView().explanation;
  document.getElementById("readout").textContent = "";
  resetThreshold();
  drawGrid();
}

function changing(name, read = (value) => value) {
  return (value) => {
    state[name] = read(value);
    refresh();
  };
}

function startControls() {
  const same = (names) => names.map((name) => [name, name]);
  choices("view", Object.entries(data.views).map(([name, view]) => [name, view.name]), state.view, (view) => {
    state.threshold = null;
    changing("view")(view);
  });
  choices("order", same(data.orders), state.order, changing("order", Number));
  choices("expansion", same(data.expansions), state.expansion, changing("expansion"));
  choices("projection", Object.entries(data.projections), state.projection, changing("projection"));
  choices("rows", [], state.rows, changing("rows"));
  choices("columns", [], state.columns, changing("columns"));
  const slider = document.getElementById("threshold");
  slider.addEventListener("input", () => setThreshold(bounds[Number(slider.value)]?.[0] ?? null));
  const tolerance = document.getElementById("tolerance");
  tolerance.textContent = `at the tolerance, ${data.tolerance.text}`;
  tolerance.addEventListener("click", () => setThreshold(data.tolerance.value));
}

/** The table of all figures, made when it is opened first. */
function startNumbers() {
  const details = document.getElementById("table");
  const draw = (expansion) => document.getElementById("all-numbers").replaceChildren(...allNumbers(expansion));
  choices("table-expansion", data.expansions.map((name) => [name, name]), state.expansion, draw);
  details.addEventListener("toggle", () => draw(document.getElementById("table-expansion").value), { once: true });
}

function allNumbers(expansion) {
  const projections = Object.keys(data.projections);
  const titles = ["layer", "head", "KV head", "chosen", "needed", ...data.orders.map((order) => `order ${order}`),
    ...projections.map((name) => `alpha ${name}`), "score std"];
  const titleRow = element("tr", {}, ...titles.map((title) => element("th", { scope: "col", className: "number", textContent: title })));
  const body = element("tbody", {}, ...heads.map((head) => figureRow([
    head.layer.label, head.number, head.kv_head, head.order[1], head.needed[1],
    ...data.orders.map((order) => errorOf(head, order, expansion)[2]),
    ...projections.map((name) => head.layer.alphas[name][1]), head.std[2]])));
  return [element("thead", {}, titleRow), body];
}

startControls();
watchGrid();
refresh();
drawDetail();
startNumbers();
