// What the heat map can show: for every view a figure per head, as taylorder/reports/heat_map.py made it.

const layers = data.layers;
const heads = layers.flatMap((layer, at) => layer.heads.map((head, number) => ({ ...head, layer, at, number })));

const state = {
  view: data.start_view,
  order: data.start_order,
  expansion: data.expansions?.includes("mean") ? "mean" : data.expansions?.[0],
  projection: "qk",
  rows: "depth",
  columns: "number",
  threshold: null,
  selected: heads.find((head) => head.at === data.start[0] && head.number === data.start[1]),
};

const nameOf = (head) => `layer ${head.layer.label} ${data.noun} ${head.number}`;

const errorOf = (head, order = state.order, expansion = state.expansion) => head.error[data.expansions.indexOf(expansion)][order - 1];

const FIGURES = {
  error: (head) => errorOf(head),
  alpha: (head) => head.layer.alphas[state.projection],
};

/** What the view shows of a head: the number, or null; its text and its words; its step on the palette, or null. */
function figureOf(head) {
  const [value, text, words, step] = (FIGURES[state.view] ?? ((found) => found[state.view]))(head);
  return { value, text, words, step };
}

/** The view, with what depends on the expansion or the projection picked. */
function currentView() {
  const view = data.views[state.view];
  const where = state.view === "error" ? ` at order ${state.order}, expansion ${state.expansion}` : "";
  return { where, ...view, ...view.by?.[state.view === "error" ? state.expansion : state.projection] };
}
