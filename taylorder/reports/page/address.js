// The address of the page names the view and the head shown, so that a link opens them again.

/** `#view=tokens&head=4.2`; null for the address of a section. */
function placeInAddress() {
  const told = new URLSearchParams(location.hash.slice(1));
  return told.has("view") || told.has("head") ? told : null;
}

const headNamed = (name) => heads.find((head) => `${head.layer.label}.${head.number}` === name);

function noteInAddress() {
  const { label } = state.selected.layer;
  history.replaceState(null, "", `#view=${state.view}&head=${label}.${state.selected.number}`);
}

/** Show what the address names; what it does not know stays as it is. */
function followAddress() {
  const told = placeInAddress();
  if (told === null) return;
  if (told.get("view") in data.views) state.view = told.get("view");
  const head = headNamed(told.get("head"));
  if (head) state.selected = head;
  document.getElementById("view").value = state.view;
  refresh();
  showDetail(head !== undefined);
  document.getElementById("heads").scrollIntoView();
}

addEventListener("hashchange", followAddress);
