// One KV head: where the attention of its query heads goes, and what else it could have run, by bytes and error.

const PARTS = ["sink", "window", "kept", "far"];
const TITLES = ["head", "sinks", "window", "kept", "rest"];

function drawFigures(head) {
  const shares = document.getElementById("shares");
  shares.hidden = head.shares.length === 0;
  document.getElementById("shares-drawn").replaceChildren(sharesTable(head));
  if (document.getElementById("costs")) drawCosts(head);
}

function sharesTable(head) {
  const titles = element("tr", {}, ...TITLES.map((title, at) => element("th", { scope: "col", textContent: title, className: at ? "number" : "" })));
  const rows = head.shares.flatMap(([name, shares, texts]) => [
    element("tr", {}, element("th", { scope: "row", textContent: name }),
      ...texts.map((text) => element("td", { className: "number", textContent: text }))),
    element("tr", { className: "bar-row", "aria-hidden": "true" }, element("td", { colSpan: TITLES.length },
      element("span", { className: "shares" }, ...shares.map((share, at) => element("i", { className: PARTS[at], style: `--share: ${share}` }))))),
  ]);
  return element("table", { className: "figures" }, element("caption", { className: "hidden", textContent: `Where the attention of ${nameOf(head)} goes` }),
    element("thead", {}, titles), element("tbody", {}, ...rows));
}

function drawCosts(head) {
  const title = `Error against bytes: ${nameOf(head)}`;
  document.querySelector("#costs figcaption").textContent = title;
  const chosen = head.points.find((point) => point[4]);
  document.querySelector("#costs .chart").setAttribute("aria-label",
    `${title}, ${head.points.length} candidates; chosen: ${chosen ? chosen[3] : "exact attention, which has no error"}`);
  document.getElementById("costs-drawn").replaceChildren(
    ...bestLine(head.points),
    ...head.points.map(([x, y, kind, words, taken]) => svg("g", { class: `series-${kind}${taken ? " chosen" : ""}` },
      svg("use", { href: `#mark-${kind}`, x: `${x}%`, y }, svg("title", {}, words)))),
    ...(chosen ? ring(chosen) : []),
  );
}

/** A line through the points that no other beats at their bytes or fewer; places down are smaller the larger an error. */
function bestLine(points) {
  let least = -Infinity;
  const best = points.filter(([, y]) => y > least && ((least = y), true));
  return best.slice(1).map(([x, y], at) => svg("line", { class: "curve best", x1: `${best[at][0]}%`, x2: `${x}%`, y1: best[at][1], y2: y }));
}

function ring([x, y, , words]) {
  const label = svg("text", { class: "guide-label", x: `${x}%`, dx: 11, y: y - 7 }, "chosen");
  return [svg("circle", { class: "ring", cx: `${x}%`, cy: y, r: 9 }, svg("title", {}, words)), label];
}

start();
