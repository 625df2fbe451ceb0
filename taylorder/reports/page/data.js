// What the page draws, as taylorder/reports made it: every figure with its finished text.

const data = JSON.parse(document.getElementById("data").textContent);
