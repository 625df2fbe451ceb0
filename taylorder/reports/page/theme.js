// Light or dark, as the reader likes it.

const THEMES = ["automatic", "light", "dark"];

/** What the browser keeps between visits; nothing where it keeps nothing for files. */
function remembered(value) {
  try {
    if (value !== undefined) localStorage.setItem("taylorder-theme", value);
    return localStorage.getItem("taylorder-theme");
  } catch {
    return null;
  }
}

function setTheme(theme) {
  const known = THEMES.includes(theme) ? theme : THEMES[0];
  if (known === THEMES[0]) delete document.documentElement.dataset.theme;
  else document.documentElement.dataset.theme = known;
  document.getElementById("theme").textContent = `Theme: ${known}`;
  return known;
}

let theme = setTheme(remembered());
document.getElementById("theme").addEventListener("click", () => {
  theme = setTheme(THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length]);
  remembered(theme);
});
