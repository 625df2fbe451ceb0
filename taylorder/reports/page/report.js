// The page of heads judged one by one: what the views ask for, and the table of all figures.

function startPicks() {
  const same = (names) => names.map((name) => [name, name]);
  choices("order", same(data.orders), state.order, changing("order", Number));
  choices("expansion", same(data.expansions), state.expansion, changing("expansion"));
  choices("projection", Object.entries(data.projections), state.projection, changing("projection"));
  const tolerance = document.getElementById("tolerance");
  tolerance.textContent = `at the tolerance, ${data.tolerance.text}`;
  tolerance.addEventListener("click", () => setThreshold(state.threshold === data.tolerance.value ? null : data.tolerance.value));
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

startPicks();
start();
startNumbers();
