// Charts as inline SVG. Series differ by dashes and markers, not by colour alone.

const SVG = "http://www.w3.org/2000/svg";
const DASHES = ["", "7 4", "2 3", "10 3 2 3", "5 2", "1 4"];
const MARKERS = [
  (x, y) => `M${x - 4} ${y}a4 4 0 1 0 8 0a4 4 0 1 0 -8 0`,
  (x, y) => `M${x - 3.5} ${y - 3.5}h7v7h-7z`,
  (x, y) => `M${x} ${y - 4.5}l4.5 8h-9z`,
  (x, y) => `M${x} ${y - 5}l5 5l-5 5l-5 -5z`,
  (x, y) => `M${x - 4} ${y - 4}l8 8m0 -8l-8 8`,
  (x, y) => `M${x - 4.5} ${y}h9m-4.5 -4.5v9`,
  (x, y) => `M${x} ${y + 4.5}l4.5 -8h-9z`,
];
const OPEN_MARKERS = new Set([4, 5]);

function svg(tag, attributes = {}, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function styleOf(index) {
  return { colour: `var(--series-${index % 6})`, dash: DASHES[index % DASHES.length], marker: index % MARKERS.length };
}

function mark(x, y, { colour, marker }) {
  const paint = OPEN_MARKERS.has(marker) ? `stroke: ${colour}; fill: none; stroke-width: 2` : `fill: ${colour}`;
  return svg("path", { d: MARKERS[marker](x, y), style: paint });
}

/** The least and the largest drawable value, with some room around. */
function domain(values, log) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (!drawable(value, log)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  if (low > high) return null;
  if (log) {
    const room = (high / low) ** 0.04;
    return low === high ? [low / 2, high * 2] : [low / room, high * room];
  }
  const room = low === high ? Math.abs(low) / 2 || 1 : 0.04 * (high - low);
  return [low - room, high + room];
}

function drawable(value, log) {
  return typeof value === "number" && Number.isFinite(value) && (!log || value > 0);
}

function ticks([low, high], log, most) {
  return log ? logTicks(low, high, most) : evenTicks(low, high, most);
}

function evenTicks(low, high, most) {
  const rough = (high - low) / most;
  const unit = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * unit).find((size) => size >= rough);
  const found = [];
  for (let place = Math.ceil(low / step); place * step <= high; place += 1) found.push(Number((place * step).toPrecision(12)));
  return found;
}

/** Powers of ten, thinned out where they are many, with 2 and 5 between them where they are few. */
function logTicks(low, high, most) {
  const first = Math.floor(Math.log10(low));
  const last = Math.ceil(Math.log10(high));
  const decades = Math.log10(high / low);
  if (decades < 0.7) return evenTicks(low, high, most).filter((value) => value > 0);
  const factors = decades < 1.6 ? [1, 2, 5] : decades < 2.6 ? [1, 3] : [1];
  const every = Math.max(1, Math.ceil(decades / most));
  const found = [];
  for (let power = first; power <= last; power += 1) {
    if (factors.length === 1 && power % every !== 0) continue;
    for (const factor of factors) {
      const value = Number(`${factor}e${power}`);
      if (value >= low && value <= high) found.push(value);
    }
  }
  return found;
}

/** Draw `spec` into `container`, as wide as it is: a figure with caption, SVG and legend. */
function drawChart(container, spec) {
  const width = Math.round(Math.min(720, Math.max(260, container.clientWidth)));
  const height = Math.round(Math.min(360, Math.max(230, 0.58 * width)));
  const box = { left: 58, right: width - 14, top: 26, bottom: height - 40 };
  const guides = spec.guides ?? [];
  const xs = domain(spec.series.flatMap((each) => each.x), spec.log_x);
  const ys = domain([...spec.series.flatMap((each) => [...each.y, ...(each.low ?? []), ...(each.high ?? [])]), ...guides.map((guide) => guide.y)], spec.log_y);
  const figureElement = element("figure", {}, element("figcaption", { textContent: spec.title }));
  container.append(figureElement);
  if (xs === null || ys === null) {
    figureElement.append(element("p", { className: "note", textContent: "There is no figure to draw." }));
    return;
  }
  const along = (value, [low, high], log, from, to) => from + (log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low)) * (to - from);
  const x = (value) => along(value, xs, spec.log_x, box.left, box.right);
  const y = (value) => Math.min(box.bottom, Math.max(box.top, along(value, ys, spec.log_y, box.bottom, box.top)));
  const drawing = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img", "aria-label": `${spec.title}: ${spec.y_label} against ${spec.x_label}` });
  drawing.append(...axes(spec, xs, ys, x, y, box));
  for (const guide of guides) drawing.append(...guideLine(guide, y, box));
  spec.series.forEach((each, index) => drawing.append(...curve(each, styleOf(index), spec, x, y, box)));
  figureElement.append(drawing, legendOf(spec));
  const left = undrawn(spec);
  if (left) figureElement.append(element("p", { className: "note", textContent: left }));
}

function axes(spec, xs, ys, x, y, box) {
  const xFormat = spec.x_format ?? general;
  const yFormat = spec.y_format ?? general;
  const parts = [];
  for (const value of ticks(ys, spec.log_y, 6)) {
    parts.push(svg("line", { class: "rule", x1: box.left, x2: box.right, y1: y(value), y2: y(value) }));
    parts.push(svg("text", { x: box.left - 7, y: y(value) + 4, "text-anchor": "end" }, yFormat(value)));
  }
  for (const value of spec.x_ticks ?? ticks(xs, spec.log_x, Math.max(3, Math.round((box.right - box.left) / 75)))) {
    parts.push(svg("line", { class: "axis", x1: x(value), x2: x(value), y1: box.bottom, y2: box.bottom + 4 }));
    parts.push(svg("text", { x: x(value), y: box.bottom + 17, "text-anchor": "middle" }, xFormat(value)));
  }
  parts.push(svg("path", { class: "axis", d: `M${box.left} ${box.top}V${box.bottom}H${box.right}` }));
  parts.push(svg("text", { x: 2, y: 13 }, spec.y_label));
  parts.push(svg("text", { x: box.right, y: box.bottom + 34, "text-anchor": "end" }, spec.x_label));
  return parts;
}

function guideLine(guide, y, box) {
  return [
    svg("line", { class: "guide", x1: box.left, x2: box.right, y1: y(guide.y), y2: y(guide.y) }),
    svg("text", { class: "guide-label", x: box.right, y: y(guide.y) - 5, "text-anchor": "end" }, guide.label),
  ];
}

/** One series: its line, broken where a figure is missing, its intervals and its points. */
function curve(series, style, spec, x, y, box) {
  const format = spec.y_format ?? general;
  const parts = [];
  let path = "";
  let broken = true;
  series.x.forEach((at, index) => {
    const value = series.y[index];
    if (!drawable(at, spec.log_x) || !drawable(value, spec.log_y)) {
      broken = true;
      return;
    }
    path += `${broken ? "M" : "L"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
    broken = false;
    const low = series.low?.[index];
    const high = series.high?.[index];
    if (drawable(high, spec.log_y) && typeof low === "number") {
      const foot = drawable(low, spec.log_y) ? y(low) : box.bottom;
      parts.push(svg("path", { class: "whisker", style: `stroke: ${style.colour}`, d: `M${x(at)} ${foot}V${y(high)}` }));
    }
    const point = mark(x(at), y(value), style);
    point.append(svg("title", {}, `${series.name}: ${general(at)}, ${format(value)}`));
    parts.push(point);
  });
  if (spec.kind !== "points") {
    parts.unshift(svg("path", { class: "curve", d: path, style: `stroke: ${style.colour}`, "stroke-dasharray": style.dash }));
  }
  return parts;
}

function legendOf(spec) {
  const items = spec.series.map((each, index) => {
    const style = styleOf(index);
    const sample = svg("svg", { width: 34, height: 12, viewBox: "0 0 34 12", "aria-hidden": "true" });
    if (spec.kind !== "points") sample.append(svg("path", { class: "curve", d: "M0 6H34", style: `stroke: ${style.colour}`, "stroke-dasharray": style.dash }));
    sample.append(mark(17, 6, style));
    return element("li", {}, sample, each.name);
  });
  return element("ul", { className: "keys" }, ...items);
}

/** What a logarithmic axis or a missing figure leaves out. */
function undrawn(spec) {
  let missing = 0;
  for (const each of spec.series) {
    each.y.forEach((value, index) => {
      if (!drawable(value, spec.log_y) || !drawable(each.x[index], spec.log_x)) missing += 1;
    });
  }
  return missing ? `Without ${counted(missing, "point")} that ${missing === 1 ? "has" : "have"} no figure on these axes.` : "";
}
