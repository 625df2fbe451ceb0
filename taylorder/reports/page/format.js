// Numbers as the rest of the report writes them (taylorder/reports/human.py and claims.py).

/** A figure of the JSON document: non-finite ones are strings there. */
function figure(value) {
  if (value === "nan") return NaN;
  if (value === "inf") return Infinity;
  if (value === "-inf") return -Infinity;
  return value;
}

function nonFinite(value) {
  if (Number.isNaN(value)) return "nan";
  return value > 0 ? "inf" : "-inf";
}

/** `rounded`, unless the digits of `exact` behind `cut` are just half a step: then to even, as Python rounds. */
function halfEven(exact, cut, rounded) {
  if (!/^50*$/.test(exact.slice(cut))) return rounded;
  const kept = exact.slice(0, cut).replace(/\.$/, "");
  return Number(kept.at(-1)) % 2 === 0 ? kept : rounded;
}

/** `digits` decimals. */
function fixed(value, digits) {
  const exact = value.toFixed(60);
  return halfEven(exact, exact.indexOf(".") + 1 + digits, value.toFixed(digits));
}

/** One decimal and a power of ten. */
function scientific(value) {
  const [mantissa, exponent] = value.toExponential(60).split("e");
  const rounded = value.toExponential(1);
  return halfEven(mantissa, mantissa.indexOf(".") + 2, rounded).replace(/e.*/, "") + `e${Number(rounded.split("e")[1] ?? exponent)}`;
}

/** The number of `digits` significant digits that is nearest. */
function significant(value, digits) {
  if (value === 0) return 0;
  const decimals = digits - 1 - Math.floor(Math.log10(Math.abs(value)));
  return decimals < 0 ? Number(value.toPrecision(digits)) : Number(fixed(value, decimals));
}

/** A relative error as a percentage with at least `digits` significant digits. */
function percent(error, digits = 2) {
  const value = 100 * error;
  if (!Number.isFinite(value)) return `${nonFinite(value)}%`;
  if (Math.abs(value) >= 9999.5) return `${scientific(value)}%`;
  if (Math.abs(value) >= 10 ** digits - 0.5) return `${fixed(value, 0)}%`;
  const found = significant(value, digits);
  return `${found !== 0 && Math.abs(found) < 1e-4 ? fixed(value, digits) : found}%`;
}

/** A relative error in percent, without the sign, in at most three characters. */
function percentCell(error) {
  const value = 100 * error;
  if (!Number.isFinite(value)) return nonFinite(value).slice(-3);
  if (value < 0.05) return "<.1";
  if (value < 9.95) return fixed(value, 1);
  if (value < 999.5) return fixed(value, 0);
  const exponent = Math.trunc(Math.log10(value));
  return exponent < 10 ? `${Math.min(9, Number(fixed(value / 10 ** exponent, 0)))}e${exponent}` : "big";
}

/** Three significant digits. */
function general(value) {
  if (!Number.isFinite(value)) return nonFinite(value);
  const size = Math.abs(value);
  if (size >= 1000 && size < 1e9) return Math.round(value).toLocaleString("en");
  if (size !== 0 && (size < 1e-4 || size >= 1e9)) return scientific(value).replace(".0e", "e");
  return String(significant(value, 3));
}

/** `digits` significant digits, rounded by `way` (Math.floor, Math.ceil or Math.round). */
function rounded(value, digits, way = Math.round) {
  if (value === 0) return 0;
  const unit = 10 ** (Math.floor(Math.log10(Math.abs(value))) - digits + 1);
  return Number((way(value / unit) * unit).toPrecision(digits));
}

function counted(count, noun) {
  return `${count.toLocaleString("en")} ${noun}${count === 1 ? "" : "s"}`;
}

/** An HTML element with properties and children. */
function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name in made && !name.includes("-")) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}
