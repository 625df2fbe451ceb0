// What the heat map can show: for every view a figure per head, its words, its scale and its thresholds.

decode(data.layers);
const layers = data.layers;
const heads = layers.flatMap((layer, at) => layer.heads.map((head, number) => ({ ...head, layer, at, number })));
const CLIP = 2; // relative errors from here on share a colour
const MOST = 10; // and above this one there are no thresholds

const state = {
  view: "error",
  order: data.start_order,
  expansion: data.expansions.includes("mean") ? "mean" : data.expansions[0],
  projection: "qk",
  rows: "depth",
  columns: "number",
  threshold: null,
  selected: heads.find((head) => head.at === data.start[0] && head.number === data.start[1]),
};

/** Turn the strings for non-finite figures back into numbers, in place, where figures are. */
function decode(found) {
  for (const layer of found) {
    for (const head of layer.heads) {
      for (const name of ["error", "raw", "guarded"]) head[name] = head[name].map((row) => row.map(figure));
      head.gaussian = head.gaussian.map(figure);
      head.near = head.near?.map(figure);
      head.score_std = figure(head.score_std);
      head.score_max = figure(head.score_max);
      if (head.best) head.best[2] = figure(head.best[2]);
    }
  }
}

const nameOf = (head) => `layer ${head.layer.label} head ${head.number}`;

function errorOf(head, order = state.order, expansion = state.expansion) {
  return head.error[data.expansions.indexOf(expansion)][order - 1];
}

function alphaOf(layer, projection) {
  const found = layer.alphas[projection];
  if (!found) return { alpha: null, text: "-" };
  return { ...found, text: found.text ?? (found.alpha === null ? "-" : fixed(found.alpha, 2)) };
}

const PROJECTIONS = { qk: "mean of q and k", q: "q", k: "k", v: "v", o: "o" };
const EXPANSION_WORDS = {
  zero: "zero: the plain Taylor series of the score",
  centre: "centre: of the score against keys less their calibrated mean",
  mean: "mean: around each row's mean score",
};

/** Thresholds of even steps that take in all figures. */
function evenBounds(values) {
  const { low, high } = range(values);
  if (low > high) return [];
  const step = Math.max(0.01, rounded((high - low) / 100, 1, Math.ceil));
  const bounds = [];
  for (let place = Math.floor(low / step); place * step < high + step; place += 1) bounds.push(Number((place * step).toFixed(2)));
  return [...new Set(bounds)];
}

/** Thresholds of errors: 200 steps of two significant digits, and the tolerance. */
function errorBounds() {
  const { low, high } = range(heads.flatMap((head) => head.error.flat()).filter((error) => error > 0));
  const bounds = new Set([data.tolerance.value]);
  if (low <= high) {
    const first = rounded(Math.min(low, MOST), 2, Math.floor);
    const last = rounded(Math.min(high, MOST), 2, Math.ceil);
    for (let step = 0; step <= 200; step += 1) bounds.add(rounded(first * (last / first) ** (step / 200), 2));
    bounds.add(last);
  }
  return [...bounds].sort((a, b) => a - b);
}

function range(values) {
  let low = Infinity;
  let high = -Infinity;
  for (const value of values) {
    if (value === null || !Number.isFinite(value)) continue;
    low = Math.min(low, value);
    high = Math.max(high, value);
  }
  return { low, high };
}

const ORDERS = Array.from({ length: data.max_order }, (_, place) => place + 1);

function linear(values) {
  const { low, high } = range(values);
  return low > high ? { low: 0, high: 1 } : { low, high };
}

const VIEWS = {
  order: {
    name: "chosen order",
    value: (head) => head.order,
    text: (head) => head.mark,
    words: (head) => head.choice,
    explanation: () => "The order that the config gives each head. Hatched: no order, for the reason in the legend.",
    where: () => "",
    format: (value) => `order ${value}`,
    scale: () => ({ low: 1, high: data.max_order, ticks: orderTicks() }),
    bounds: () => ORDERS,
    special: () => data.legend,
  },
  needed: {
    name: `smallest order within ${data.tolerance.text}`,
    value: (head) => head.needed,
    text: (head) => (head.needed === null ? "–" : String(head.needed)),
    words: (head) => (head.needed === null ? `more than ${data.max_order}` : `order ${head.needed}`),
    explanation: () => `The smallest measured order that meets ${data.tolerance.text} at any expansion point, whatever it costs; even orders count only where no row needed the guard.`,
    where: () => "",
    format: (value) => `order ${value}`,
    scale: () => ({ low: 1, high: data.max_order, ticks: orderTicks() }),
    bounds: () => ORDERS,
    special: () => [`–: no order up to ${data.max_order} meets ${data.tolerance.text}`],
  },
  error: {
    name: "error at an order",
    value: (head) => errorOf(head),
    text: (head) => percentCell(errorOf(head)) + (errorOf(head) <= data.tolerance.value ? "*" : ""),
    words: (head) => percent(errorOf(head), 3),
    explanation: () => `Relative L2 error of each head's output, in percent, one head replaced at a time. Expansion ${EXPANSION_WORDS[state.expansion] ?? state.expansion}.`,
    where: () => ` at order ${state.order}, expansion ${state.expansion}`,
    format: (value) => (value === data.tolerance.value ? data.tolerance.text : percent(value)),
    scale: () => ({
      low: data.tolerance.value,
      high: CLIP,
      log: true,
      ticks: [`${data.tolerance.text} or less`, percent(Math.sqrt(data.tolerance.value * CLIP)), `${percent(CLIP)} or more`],
    }),
    bounds: errorBounds,
    special: () => [`*: within ${data.tolerance.text}`, `The scale is logarithmic; errors above ${percent(CLIP)} are clipped to its end.`],
  },
  alpha: {
    name: "alpha of the layer",
    value: (head) => alphaOf(head.layer, state.projection).alpha,
    text: (head) => alphaOf(head.layer, state.projection).text,
    words: (head) => `alpha ${alphaOf(head.layer, state.projection).text}`,
    explanation: () => `Alpha (${PROJECTIONS[state.projection]}). It belongs to the layer: all heads of a row show the same figure.`,
    where: () => ` in alpha of ${PROJECTIONS[state.projection]}`,
    format: (value) => value.toFixed(2),
    scale: () => ticked(linear(heads.map(VIEWS.alpha.value)), (value) => value.toFixed(2)),
    bounds: () => evenBounds(heads.map(VIEWS.alpha.value)),
    special: () => ["failed: no usable fit; -: no such matrix; ?: one of several fits as good"],
  },
  std: {
    name: "standard deviation of scores",
    value: (head) => head.score_std,
    text: (head) => (Number.isFinite(head.score_std) ? fixed(head.score_std, 1) : nonFinite(head.score_std)),
    words: (head) => general(head.score_std),
    explanation: () => "Standard deviation of each head's scores around each row's mean: the larger, the more terms.",
    where: () => " in score std",
    format: (value) => value.toFixed(2),
    scale: () => ticked(linear(heads.map((head) => head.score_std)), (value) => value.toFixed(1)),
    bounds: () => evenBounds(heads.map((head) => head.score_std)),
    special: () => [],
  },
};

function orderTicks() {
  return data.max_order === 1 ? ["order 1"] : ["order 1", `order ${data.max_order}`];
}

function ticked(scale, format) {
  return { ...scale, ticks: scale.low === scale.high ? [format(scale.low)] : [format(scale.low), format((scale.low + scale.high) / 2), format(scale.high)] };
}

const currentView = () => VIEWS[state.view];
