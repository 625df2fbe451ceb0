// The errors of one head by order, drawn into the axes that stand on the page. Places across are percentages.

const [TOP, BOTTOM, RIGHT] = data.axes;

const drawable = (figure) => figure !== undefined && figure[0] !== null && figure[0] > 0;

/** The errors that an axis names: as many as it has room for, the roundest where there are more. */
function ticks(low, high, most) {
  let found = data.ticks.filter(([value]) => value >= low && value <= high);
  for (let round = 1; found.length > most; round += 1) found = found.filter(([, , roundness]) => roundness >= round);
  return found;
}

/** Draw figures by order, `{name, figures}` each, and the line of the tolerance. */
function drawChart(title, series) {
  const figures = series.flatMap((each) => each.figures);
  const values = [data.tolerance.value, ...figures.filter(drawable).map(([value]) => value)];
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const room = least === most ? 2 : (most / least) ** 0.04;
  const [low, high] = [least / room, most * room];
  const y = (value) => (BOTTOM - (Math.log(value / low) / Math.log(high / low)) * (BOTTOM - TOP)).toFixed(1);
  const across = (value, kind) => svg("line", { class: kind, x2: RIGHT, y1: y(value), y2: y(value) });
  const label = (x, at, anchor, kind, text) => svg("text", { x, y: at, "text-anchor": anchor, class: kind }, text);
  document.querySelector("#curves figcaption").textContent = title;
  document.querySelector("#curves .chart").setAttribute("aria-label", `${title}: relative L2 error against order`);
  document.getElementById("curves-drawn").replaceChildren(
    ...ticks(low, high, 8).flatMap(([value, text]) => [across(value, "rule"), label(-7, Number(y(value)) + 4, "end", "", text)]),
    across(data.tolerance.value, "guide"),
    label(RIGHT, y(data.tolerance.value) - 5, "end", "guide-label", `tolerance ${data.tolerance.text}`),
    ...series.map((each, index) => curve(each, index, y)),
  );
  const missing = figures.filter((figure) => !drawable(figure)).length;
  document.querySelector("#curves .note").textContent =
    missing ? `Without ${missing} ${missing === 1 ? "point that has" : "points that have"} no figure on these axes.` : "";
}

/** One series: its points, and lines between those whose neighbours have a figure, too. */
function curve(series, index, y) {
  const drawn = svg("g", { class: `series-${index % 6}` });
  series.figures.forEach((figure, at) => {
    if (!drawable(figure)) return;
    const [[x, order], next] = [data.across[at], series.figures[at + 1]];
    const place = { x: `${x}%`, y: y(figure[0]) };
    if (drawable(next)) {
      drawn.append(svg("line", { class: "curve", x1: place.x, x2: `${data.across[at + 1][0]}%`, y1: place.y, y2: y(next[0]) }));
    }
    drawn.append(svg("use", { href: `#mark-${index}`, ...place }, svg("title", {}, `${series.name}: ${order}, ${figure[2]}`)));
  });
  return drawn;
}
