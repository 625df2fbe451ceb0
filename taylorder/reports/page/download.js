// Figures as files: every drawing as SVG or PNG, with the style that it has on the page.

const DRAWN = ["fill", "stroke", "stroke-width", "stroke-dasharray", "font-family", "font-size", "font-weight", "color"];

function svg(tag, attributes, ...children) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

/** A copy of a drawing that needs no style sheet and no other part of the page. */
function standalone(drawing) {
  const { width, height } = drawing.getBoundingClientRect();
  const copied = drawing.cloneNode(true);
  const [before, after] = [drawing, copied].map((one) => [one, ...one.querySelectorAll("*")]);
  before.forEach((shown, at) => {
    const style = getComputedStyle(shown);
    after[at].setAttribute("style", DRAWN.map((name) => `${name}: ${style.getPropertyValue(name)}`).join("; "));
  });
  const ground = svg("rect", { width: "100%", height: "100%", fill: getComputedStyle(document.body).backgroundColor });
  const marks = document.querySelector("svg.hidden defs")?.cloneNode(true);
  copied.prepend(...(marks ? [marks] : []), ground);
  for (const [name, value] of Object.entries({ xmlns: "http://www.w3.org/2000/svg", width, height })) copied.setAttribute(name, value);
  return copied;
}

function save(blob, name) {
  const link = element("a", { href: URL.createObjectURL(blob), download: name });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

const asFile = (drawing) => new Blob([new XMLSerializer().serializeToString(drawing)], { type: "image/svg+xml" });

/** Twice the size it has on the page, so that it stays sharp in a paper. */
async function asPicture(drawing) {
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(await asFile(drawing).text())}`;
  await picture.decode();
  const canvas = element("canvas", { width: 2 * picture.width, height: 2 * picture.height });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  return new Promise((done) => canvas.toBlob(done));
}

const fileName = (title) => title.toLowerCase().replace(/[^a-z0-9]+/g, "-").replace(/^-|-$/g, "");

for (const figure of document.querySelectorAll("figure:has(.chart)")) {
  const title = () => figure.querySelector("figcaption").textContent;
  const drawn = () => standalone(figure.querySelector(".chart"));
  const button = (kind, made) => {
    const one = element("button", { type: "button", className: "small", textContent: kind });
    one.addEventListener("click", async () => save(await made(), `${fileName(title())}.${kind.toLowerCase()}`));
    return one;
  };
  figure.append(element("p", { className: "downloads" }, "Download: ", button("SVG", () => asFile(drawn())), button("PNG", () => asPicture(drawn()))));
}
