// One head: its errors by order as curves and as a table, its figures, and what was chosen for it.

function select(head) {
  state.selected = head;
  paintSelection();
  drawDetail();
  document.getElementById("selected").textContent = `${capital(nameOf(head))} is shown in detail.`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

function drawDetail() {
  const head = state.selected;
  const { module, sliding } = head.layer;
  document.getElementById("detail-title").textContent = capital(nameOf(head));
  document.getElementById("detail-place").textContent =
    `${module}, KV head ${head.kv_head}${sliding === null ? "" : `, in a ${sliding}`}`;
  document.getElementById("detail-choice").textContent = head.choice;
  document.getElementById("detail-facts").replaceChildren(...head.facts.map(([name, fact]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: fact }))));
  document.getElementById("detail-table").replaceChildren(...detailTable(head));
  drawCurves();
}

function drawCurves() {
  const head = state.selected;
  const series = data.expansions.map((name, at) => ({ name, figures: head.error[at] }));
  if (head.near) series.push({ name: data.near, figures: head.near });
  drawChart(`Error by order: ${nameOf(head)}`, series);
}

function detailTable(head) {
  const names = data.expansions;
  const top = element("tr", {},
    element("td"),
    element("th", { scope: "colgroup", colSpan: names.length, className: "group", textContent: "error (without the guard)" }),
    element("th", { scope: "colgroup", colSpan: names.length, className: "group", textContent: "rows guarded" }),
    element("td"));
  const titles = ["order", ...names, ...names, "Gaussian"];
  const second = element("tr", {}, ...titles.map((title) => element("th", { scope: "col", className: "number", textContent: title })));
  return [element("thead", {}, top, second), element("tbody", {}, ...head.table.map(figureRow))];
}

function figureRow(values) {
  return element("tr", {}, ...values.map((value, at) =>
    element(at ? "td" : "th", { className: "number", textContent: value, ...(at ? {} : { scope: "row" }) })));
}
