// The head that is shown in detail: beside the map, or on a narrow screen in a sheet over its lower end.

function select(head) {
  state.selected = head;
  paintSelection();
  showDetail(true);
  noteInAddress();
  document.getElementById("selected").textContent = `${capital(nameOf(head))} is shown in detail.`;
}

const capital = (text) => text.charAt(0).toUpperCase() + text.slice(1);

/** Draw the head; `opened` also opens the sheet, which covers nothing where the head stands beside the map. */
function showDetail(opened) {
  const head = state.selected;
  const { module, staying } = head.layer;
  const kvHead = data.noun === "head" ? `, KV head ${head.kv_head}` : "";
  document.getElementById("detail-title").textContent = capital(nameOf(head));
  document.getElementById("detail-place").textContent = `${module}${kvHead}${staying === null ? "" : `, ${staying.startsWith("sliding") ? "in a" : "with"} ${staying}`}`;
  document.getElementById("detail-choice").textContent = head.choice;
  document.getElementById("detail-facts").replaceChildren(...head.facts.map(([name, fact]) =>
    element("div", {}, element("dt", { textContent: name }), element("dd", { textContent: fact }))));
  drawFigures(head);
  const sheet = document.getElementById("detail");
  if (!opened) return;
  sheet.classList.add("open");
  if (getComputedStyle(sheet).position === "fixed") cells.get(head).scrollIntoView({ block: "nearest" });
}

function closeSheet() {
  const sheet = document.getElementById("detail");
  const inside = sheet.contains(document.activeElement);
  sheet.classList.remove("open");
  if (inside) cells.get(state.selected).focus();
}

document.getElementById("detail-close").addEventListener("click", closeSheet);
document.addEventListener("keydown", (event) => event.key === "Escape" && closeSheet());
