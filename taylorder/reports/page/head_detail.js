// One query head: its errors by order, as curves and as a table.

function drawFigures(head) {
  document.getElementById("detail-table").replaceChildren(...detailTable(head));
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
