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
    `${module}, KV head ${head.kv_head}${sliding === null ? "" : `, in a sliding window of ${counted(sliding, "token")}`}`;
  document.getElementById("detail-choice").textContent = choiceWords(head);
  document.getElementById("detail-facts").replaceChildren(...Object.entries(factsOf(head)).map(([name, fact]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: fact }))));
  document.getElementById("detail-table").replaceChildren(...detailTable(head));
  drawCurves();
}

function drawCurves() {
  const head = state.selected;
  const series = data.expansions.map((name, at) => ({ name, y: head.error[at] }));
  if (head.near) series.push({ name: data.near, y: head.near });
  drawChart(`Error by order: ${nameOf(head)}`, series);
}

function choiceWords(head) {
  return head.choice.startsWith("exact") ? `Stays ${head.choice}.` : `Chosen: ${head.choice}. ${head.why}`;
}

function factsOf(head) {
  const alphas = Object.keys(PROJECTIONS).map((name) => `${PROJECTIONS[name]} ${alphaOf(head.layer, name).text}`);
  const own = Object.entries(head.alphas).map(([name, fit]) => `${name} ${fit.text}`);
  return {
    "least error": head.best ? `${percent(head.best[2], 3)} with order ${head.best[0]}, ${head.best[1]} (of what may be chosen)` : "no order pays off",
    "needs order": head.needed === null ? `more than ${data.max_order}, as measured` : `${head.needed}, as measured`,
    predicted: head.predicted === null ? "an order beyond 400, were scores normal" : `order ${head.predicted}, were scores normal`,
    scores: `standard deviation ${general(head.score_std)}, largest ${general(head.score_max)}, logit rank ${general(head.logit_rank)}`,
    "alpha, layer": alphas.join(", "),
    ...(own.length ? { "alpha, head": own.join(", ") } : {}),
  };
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
  const body = element("tbody", {}, ...ORDERS.map((order) => {
    const errors = names.map((_, at) => withRaw(head.error[at][order - 1], head.raw[at][order - 1]));
    const guarded = names.map((_, at) => percent(head.guarded[at][order - 1]));
    return figureRow([order, ...errors, ...guarded, percent(head.gaussian[order - 1])]);
  }));
  return [element("thead", {}, top, second), body];
}

function withRaw(error, raw) {
  const [told, rawTold] = [percent(error), raw === null ? null : percent(raw)];
  return rawTold === null || rawTold === told ? told : `${told} (${rawTold})`;
}

function figureRow(values) {
  return element("tr", {}, ...values.map((value, at) =>
    element(at ? "td" : "th", { className: "number", textContent: value, ...(at ? {} : { scope: "row" }) })));
}
