// The controls over the map: which figure it shows, how it is sorted, and from where on it is dimmed.

/** Fill a select, and call `changed` when the reader picks. */
function choices(id, options, value, changed) {
  const control = document.getElementById(id);
  for (const [key, text] of options) control.append(element("option", { value: key, textContent: text }));
  control.value = value;
  control.addEventListener("change", () => changed(control.value));
}

function refresh() {
  for (const part of document.querySelectorAll("[data-for]")) part.hidden = part.dataset.for !== state.view;
  document.getElementById("explanation").textContent = currentView().explanation;
  document.getElementById("readout").textContent = "";
  resetThreshold();
  drawGrid();
}

function changing(name, read = (value) => value) {
  return (value) => {
    state[name] = read(value);
    refresh();
  };
}

/** Fill the controls that every map has. */
function startControls() {
  choices("view", Object.entries(data.views).map(([name, view]) => [name, view.name]), state.view, (view) => {
    state.threshold = null;
    changing("view")(view);
    noteInAddress();
  });
  choices("rows", [], state.rows, changing("rows"));
  choices("columns", [], state.columns, changing("columns"));
  const slider = document.getElementById("threshold");
  slider.addEventListener("input", () => setThreshold(bounds[Number(slider.value)]?.[0] ?? null));
}

function start() {
  startControls();
  watchGrid();
  refresh();
  showDetail(false);
  followAddress();
}
