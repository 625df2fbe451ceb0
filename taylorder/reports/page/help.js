// What a column means: the question mark beside its title opens it by click, key and touch; this adds the mouse, and
// puts the sentence beside the mark.

function explain(button) {
  const words = document.getElementById(button.getAttribute("popovertarget"));
  words.showPopover();
  const { left, bottom } = button.getBoundingClientRect();
  words.style.left = `${Math.max(8, Math.min(left, innerWidth - words.offsetWidth - 8))}px`;
  words.style.top = `${Math.max(8, Math.min(bottom + 4, innerHeight - words.offsetHeight - 8))}px`;
}

/** The question mark under the mouse or the focus, if there is one. */
const helpUnder = (event) => event.target.closest?.(".help");

for (const kind of ["mouseover", "click"]) {
  document.addEventListener(kind, (event) => helpUnder(event) && explain(helpUnder(event)));
}
document.addEventListener("mouseout", (event) => {
  const button = helpUnder(event);
  if (button && button !== document.activeElement) document.getElementById(button.getAttribute("popovertarget")).hidePopover();
});
