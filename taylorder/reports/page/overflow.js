// Boxes that scroll are tab stops, so that a keyboard can scroll them; those that show everything are none.

function watchOverflow(box) {
  const scrolls = box.scrollWidth > box.clientWidth + 1 || box.scrollHeight > box.clientHeight + 1;
  box.classList.toggle("scrolls", scrolls);
  if (scrolls) box.tabIndex = 0;
  else box.removeAttribute("tabindex");
}

const sizes = new ResizeObserver((entries) => {
  for (const { target } of entries) watchOverflow(target.closest(".scroll, div.tokens, pre"));
});

for (const box of document.querySelectorAll(".scroll, div.tokens, pre")) {
  sizes.observe(box);
  if (box.firstElementChild) sizes.observe(box.firstElementChild);
}
