// The plots of the claims.

const data = JSON.parse(document.getElementById("data").textContent);

for (const series of data.plots.flat().flatMap((plot) => plot.series)) {
  for (const name of ["x", "y", "low", "high"]) series[name] = (series[name] ?? []).map(figure);
}

function drawPlots() {
  for (const container of document.querySelectorAll(".plots")) {
    const plots = data.plots[Number(container.dataset.claim)];
    // All places come first: how wide one is depends on how many stand beside it.
    const places = plots.map(() => element("div", { className: "plot" }));
    container.replaceChildren(...places);
    places.forEach((place, index) => drawChart(place, plots[index]));
  }
}

/** Charts are drawn as wide as their place is; the width alone matters, since scrolling changes the height on phones. */
function watchWidth(draw) {
  let width = window.innerWidth;
  window.addEventListener("resize", () => {
    if (window.innerWidth === width) return;
    width = window.innerWidth;
    draw();
  });
}
