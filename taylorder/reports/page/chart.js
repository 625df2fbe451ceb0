// The errors of one head by order, drawn into the axes that stand on the page. Places across are percentages.

const data = JSON.parse(document.getElementById("data").textContent);
const [TOP, BOTTOM, RIGHT] = [26, 230, "82%"];

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

const drawable = (value) => typeof value === "number" && Number.isFinite(value) && value > 0;

/** Round figures between two: powers of ten with others between them where these are few, or else even steps. */
function logTicks(low, high, most) {
  const decades = Math.log10(high / low);
  const found = [];
  if (decades < 0.7) {
    const unit = 10 ** Math.floor(Math.log10((high - low) / most));
    const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size * most >= high - low);
    for (let count = Math.max(1, Math.ceil(low / step)); count * step <= high; count += 1) found.push(count * step);
    return found;
  }
  const factors = decades < 1.6 ? [1, 2, 5] : decades < 2.6 ? [1, 3] : [1];
  const every = Math.ceil(decades / most);
  for (let power = every * Math.floor(Math.log10(low) / every); 10 ** power <= high; power += every) {
    found.push(...factors.map((factor) => Number(`${factor}e${power}`)).filter((value) => value >= low && value <= high));
  }
  return found;
}

/** Draw figures by order, `{name, y}` each, and the line of the tolerance. */
function drawChart(title, series) {
  const figures = [data.tolerance.value, ...series.flatMap((each) => each.y)].filter(drawable);
  const [least, most] = [Math.min(...figures), Math.max(...figures)];
  const room = least === most ? 2 : (most / least) ** 0.04;
  const [low, high] = [least / room, most * room];
  const y = (value) => (BOTTOM - (Math.log(value / low) / Math.log(high / low)) * (BOTTOM - TOP)).toFixed(1);
  const across = (value, kind) => svg("line", { class: kind, x2: RIGHT, y1: y(value), y2: y(value) });
  const label = (x, at, anchor, kind, text) => svg("text", { x, y: at, "text-anchor": anchor, class: kind }, text);
  document.querySelector("#curves figcaption").textContent = title;
  document.querySelector("#curves .chart").setAttribute("aria-label", `${title}: relative L2 error against order`);
  document.getElementById("curves-drawn").replaceChildren(
    ...logTicks(low, high, 6).flatMap((value) => [across(value, "rule"), label(-7, Number(y(value)) + 4, "end", "", percent(value))]),
    across(data.tolerance.value, "guide"),
    label(RIGHT, y(data.tolerance.value) - 5, "end", "guide-label", `tolerance ${data.tolerance.text}`),
    ...series.map((each, index) => curve(each, index, y)),
  );
  const missing = series.flatMap((each) => each.y).filter((value) => !drawable(value)).length;
  document.querySelector("#curves .note").textContent =
    missing ? `Without ${counted(missing, "point")} that ${missing === 1 ? "has" : "have"} no figure on these axes.` : "";
}

/** One series: its points, and lines between those whose neighbours have a figure, too. */
function curve(series, index, y) {
  const drawn = svg("g", { class: `series-${index % 6}` });
  series.y.forEach((value, at) => {
    if (!drawable(value)) return;
    const [x, order] = data.across[at];
    if (drawable(series.y[at + 1])) {
      drawn.append(svg("line", { class: "curve", x1: `${x}%`, x2: `${data.across[at + 1][0]}%`, y1: y(value), y2: y(series.y[at + 1]) }));
    }
    const words = svg("title", {}, `${series.name}: ${order}, ${percent(value)}`);
    drawn.append(svg("use", { href: `#mark-${index}`, x: `${x}%`, y: y(value) }, words));
  });
  return drawn;
}
