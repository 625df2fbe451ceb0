// The heat map: one tab stop, arrow keys between heads, sorted and dimmed as the controls say.

const grid = document.getElementById("grid");
const cells = new Map(heads.map((head) => [head, makeCell(head)]));
const headOf = new Map([...cells].map(([head, cell]) => [cell, head]));
const TALLEST = 48; // layers that stand on the page without a scroll bar of their own
const ROOMY = 4; // heads of a layer whose cells may be wide
let arranged = []; // rows of heads, as they stand on the page
let bounds = []; // thresholds of the view; state.threshold is one of them, or null

function makeCell(head) {
  return element("td", { role: "gridcell", tabIndex: -1, id: `head-${head.at}-${head.number}` });
}

/** Arrange and paint everything anew. */
function drawGrid() {
  const active = document.activeElement;
  arranged = sortedRows();
  grid.replaceChildren(gridHeader(), gridBody());
  grid.classList.toggle("roomy", widestRow().length <= ROOMY);
  paintCells();
  if (headOf.has(active)) active.focus();
}

function sortedRows() {
  const rows = layers.map((_, at) => heads.filter((head) => head.at === at));
  if (state.rows === "mean") {
    const means = new Map(rows.map((row) => [row, meanFigure(row)]));
    rows.sort((a, b) => ascending(means.get(a), means.get(b)) || a[0].at - b[0].at);
  }
  if (state.columns === "value") {
    const value = (head) => figureOf(head).value;
    for (const row of rows) row.sort((a, b) => ascending(value(a), value(b)) || a.number - b.number);
  }
  return rows;
}

/** Smallest first; what is missing comes last. */
function ascending(a, b) {
  const [first, second] = [a ?? Infinity, b ?? Infinity];
  return first === second ? 0 : first - second;
}

/** Mean of the figures of a row that exist. */
function meanFigure(row) {
  const known = row.map((head) => figureOf(head).value).filter((value) => value !== null);
  return known.length ? known.reduce((sum, value) => sum + value, 0) / known.length : null;
}

/** Whether a gap goes before this column: heads that share a KV head stand together. */
function opensGroup(row, column) {
  const group = row[0].layer.group;
  return state.columns === "number" && group > 1 && group < row.length && column > 0 && column % group === 0;
}

/** Layers that stay exact may have other numbers of heads. */
function widestRow() {
  return arranged.reduce((widest, row) => (row.length > widest.length ? row : widest));
}

function gridHeader() {
  const row = widestRow();
  const alike = arranged.every((other) => other[0].layer.group === row[0].layer.group);
  const group = alike ? row[0].layer.group : 1;
  if (state.columns === "value") {
    const ends = row.length > 1 ? ["lowest", "highest"] : ["head"];
    const spans = row.length > 1 ? [Math.ceil(row.length / 2), Math.floor(row.length / 2)] : [1];
    const titles = ends.map((end, at) => element("th", { scope: "colgroup", colSpan: spans[at], textContent: end, style: `text-align: ${at ? "right" : "left"}` }));
    return element("thead", {}, element("tr", {}, cornerCell("layer"), ...titles));
  }
  const numbers = row.map((head, column) => element("th", { scope: "col", textContent: `${data.column}${head.number}`, className: opensGroup(row, column) ? "start" : "" }));
  const lines = [element("tr", {}, cornerCell("layer"), ...numbers)];
  if (group > 1) {
    const shared = Array.from({ length: row.length / group }, (_, at) =>
      element("th", { scope: "colgroup", colSpan: group, textContent: `KV ${at}`, className: opensGroup(row, at * group) ? "start" : "" }));
    lines.unshift(element("tr", {}, cornerCell(""), ...shared));
  }
  return element("thead", {}, ...lines);
}

function cornerCell(text) {
  return element(text ? "th" : "td", { className: "label", textContent: text, ...(text ? { scope: "col" } : {}) });
}

function gridBody() {
  const body = element("tbody");
  for (const row of arranged) {
    const { marked, module, staying } = row[0].layer;
    const title = staying === null ? module : `${module}, ${staying}`;
    const name = element("th", { scope: "row", className: "label", textContent: marked, title });
    const line = element("tr", {}, name);
    row.forEach((head, column) => {
      cells.get(head).classList.toggle("start", opensGroup(row, column));
      line.append(cells.get(head));
    });
    body.append(line);
  }
  return body;
}

function paintCells() {
  for (const [head, cell] of cells) {
    const { value, text, words, step } = figureOf(head);
    const [ground, ink] = step === null ? ["", ""] : data.palette[step];
    cell.style.background = "";
    cell.style.backgroundColor = ground;
    cell.style.color = ink;
    cell.replaceChildren(...(state.columns === "value" ? [element("small", { textContent: `${data.column || "h"}${head.number} ` })] : []), text);
    cell.classList.toggle("none", step === null);
    cell.classList.toggle("within", state.view === "error" && value !== null && value <= data.tolerance.value);
    cell.setAttribute("aria-label", `${cell.textContent}: ${nameOf(head)}, ${words}`);
  }
  paintThreshold();
  paintSelection();
  paintLegend();
}

function isAbove(head) {
  const { value } = figureOf(head);
  return state.threshold !== null && !(value !== null && value <= state.threshold);
}

function paintThreshold() {
  let low = 0;
  for (const [head, cell] of cells) {
    const above = isAbove(head);
    cell.classList.toggle("dim", above);
    if (!above) low += 1;
  }
  const view = currentView();
  const slider = document.getElementById("threshold");
  const limit = state.threshold === null ? "off" : bounds.find(([value]) => value === state.threshold)[1];
  slider.setAttribute("aria-valuetext", limit);
  document.getElementById("tolerance")?.setAttribute("aria-pressed", state.threshold === data.tolerance.value);
  const count = document.getElementById("count");
  count.dataset.threshold = state.threshold ?? "";
  count.textContent = state.threshold === null
    ? `No threshold: all ${data.count} are shown.`
    : `${low.toLocaleString("en")} of ${data.count} ${low === 1 ? "is" : "are"} at or below ${limit}${view.where}.`;
}

/** Give the slider the thresholds of the view; beyond the last one it is off. */
function resetThreshold() {
  bounds = currentView().bounds;
  if (placeOfThreshold() === -1) state.threshold = null;
  const slider = document.getElementById("threshold");
  slider.max = bounds.length;
  document.getElementById("thresholds").hidden = bounds.length === 0;
  slider.value = state.threshold === null ? bounds.length : placeOfThreshold();
}

const placeOfThreshold = () => bounds.findIndex(([value]) => value === state.threshold);

function setThreshold(value) {
  state.threshold = value;
  document.getElementById("threshold").value = value === null ? bounds.length : placeOfThreshold();
  paintThreshold();
}

function paintSelection() {
  for (const [head, cell] of cells) {
    const chosen = head === state.selected;
    cell.classList.toggle("selected", chosen);
    cell.setAttribute("aria-selected", chosen);
    cell.tabIndex = chosen ? 0 : -1;
  }
}

function paintLegend() {
  const { ticks, legend } = currentView();
  document.getElementById("legend").classList.toggle("plain", ticks.length === 0);
  const colours = data.palette.map(([ground]) => element("span", { style: `background: ${ground}` }));
  const ramp = element("div", { className: "ramp", "aria-hidden": "true" }, ...colours);
  const labels = element("div", { className: "ticks" }, ...ticks.map((text) => element("span", { textContent: text })));
  document.getElementById("legend").replaceChildren(ramp, labels, element("ul", {}, ...legend.map((text) => element("li", { textContent: text }))));
}

function showReadout(head) {
  document.getElementById("readout").textContent =
    `${nameOf(head)}${data.noun === "head" ? `, KV head ${head.kv_head}` : ""}: ${figureOf(head).words}${state.view === "error" ? currentView().where : ""}`;
}

function placeOf(head) {
  const row = arranged.findIndex((each) => each.includes(head));
  return [row, arranged[row].indexOf(head)];
}

/** Where a key leads from a place, or null if it is not one of ours. */
function moved(event, [row, column]) {
  const [last, end] = [arranged.length - 1, arranged[row].length - 1];
  const clamp = (value, most) => Math.min(most, Math.max(0, value));
  switch (event.key) {
    case "ArrowUp": return [clamp(row - 1, last), column];
    case "ArrowDown": return [clamp(row + 1, last), column];
    case "ArrowLeft": return [row, clamp(column - 1, end)];
    case "ArrowRight": return [row, clamp(column + 1, end)];
    case "PageUp": return [clamp(row - 10, last), column];
    case "PageDown": return [clamp(row + 10, last), column];
    case "Home": return [event.ctrlKey ? 0 : row, 0];
    case "End": return [event.ctrlKey ? last : row, end];
    default: return null;
  }
}

function focusHead(head) {
  for (const cell of cells.values()) cell.tabIndex = -1;
  cells.get(head).tabIndex = 0;
  cells.get(head).focus();
}

function onGridKey(event) {
  const head = headOf.get(event.target);
  if (!head || event.altKey || event.metaKey) return;
  if (event.key === "Enter" || event.key === " ") {
    event.preventDefault();
    select(head);
    return;
  }
  const place = moved(event, placeOf(head));
  if (place === null) return;
  event.preventDefault();
  focusHead(arranged[place[0]][place[1]]);
}

function headUnder(event) {
  return headOf.get(event.target.closest?.("td"));
}

function watchGrid() {
  document.getElementById("grid-scroll").classList.toggle("tall", layers.length > TALLEST);
  grid.addEventListener("keydown", onGridKey);
  for (const kind of ["mouseover", "focusin"]) {
    grid.addEventListener(kind, (event) => headUnder(event) && showReadout(headUnder(event)));
  }
  grid.addEventListener("click", (event) => headUnder(event) && select(headUnder(event)));
}
