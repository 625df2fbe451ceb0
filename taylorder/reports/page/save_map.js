// The heat map as a drawing, to be downloaded: cells, their colours, and the names of layers and columns.

const CELL = { width: 46, height: 24, left: 60, top: 46 };

function drawnMap() {
  const columns = Math.max(...arranged.map((row) => row.length));
  const [width, height] = [CELL.left + columns * CELL.width + 12, CELL.top + arranged.length * CELL.height + 12];
  const ink = getComputedStyle(document.body).color;
  const text = (x, y, anchor, fill, words, weight = 400) =>
    svg("text", { x, y, fill, "text-anchor": anchor, "font-size": 12, "font-family": "sans-serif", "font-weight": weight }, String(words));
  const parts = arranged.flatMap((row, down) => {
    const y = CELL.top + down * CELL.height;
    return [text(CELL.left - 8, y + 16, "end", ink, row[0].layer.marked), ...row.flatMap((head, across) => {
      const x = CELL.left + across * CELL.width;
      const shown = getComputedStyle(cells.get(head));
      return [svg("rect", { x, y, width: CELL.width - 2, height: CELL.height - 2, rx: 3, fill: shown.backgroundColor }),
        text(x + CELL.width / 2 - 1, y + 15, "middle", shown.color, figureOf(head).text)];
    })];
  });
  const titles = state.columns === "number" ? widestRow().map((head, at) =>
    text(CELL.left + at * CELL.width + CELL.width / 2 - 1, CELL.top - 6, "middle", ink, `${data.column}${head.number}`)) : [];
  const ground = svg("rect", { width, height, fill: getComputedStyle(document.body).backgroundColor });
  const { name, where } = currentView();
  return svg("svg", { xmlns: "http://www.w3.org/2000/svg", width, height, viewBox: `0 0 ${width} ${height}` },
    ground, text(8, 18, "start", ink, `${name}${state.view === "error" ? where : ""}`, 600), ...titles, ...parts);
}

document.getElementById("save-map").addEventListener("click", () => save(asFile(drawnMap()), `${fileName(currentView().name)}.svg`));
