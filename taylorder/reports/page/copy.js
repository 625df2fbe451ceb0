// A button on every command that puts it on the clipboard.

/** Copy a text; where a page from disk may not use the clipboard, by selecting it. */
async function copy(text, box) {
  try {
    await navigator.clipboard.writeText(text);
    return true;
  } catch {
    getSelection().selectAllChildren(box);
    return document.execCommand("copy");
  }
}

for (const box of document.querySelectorAll("pre")) {
  const command = box.querySelector("code");
  const button = element("button", { type: "button", className: "small copy", textContent: "Copy" });
  button.addEventListener("click", async () => {
    button.textContent = (await copy(command.textContent, command)) ? "Copied" : "Selected: copy with Ctrl+C";
    setTimeout(() => { button.textContent = "Copy"; }, 2000);
  });
  box.after(button);
}
