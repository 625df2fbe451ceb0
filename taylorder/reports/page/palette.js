// Viridis: perceptually even, and told apart by the colour blind. Small figures are the bright end.

const VIRIDIS = ["#440154", "#482878", "#3e4989", "#31688e", "#26828e", "#1f9e89", "#35b779", "#6ece58", "#b5de2b", "#fde725"];
const STOPS = VIRIDIS.map((hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16)));

/** Red, green and blue at `share`: 0 is the bright end, 1 the dark one. */
function colourAt(share) {
  const place = (1 - Math.min(1, Math.max(0, share))) * (STOPS.length - 1);
  const below = Math.min(STOPS.length - 2, Math.floor(place));
  return STOPS[below].map((part, channel) => Math.round(part + (place - below) * (STOPS[below + 1][channel] - part)));
}

function luminance(colour) {
  const linear = colour.map((part) => (part / 255 <= 0.04045 ? part / 255 / 12.92 : ((part / 255 + 0.055) / 1.055) ** 2.4));
  return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2];
}

/** Black or white, whichever is the more readable on a colour. */
function inkOn(colour) {
  const light = luminance(colour);
  return (light + 0.05) / 0.05 > 1.05 / (light + 0.05) ? "#000000" : "#ffffff";
}

function css(colour) {
  return `rgb(${colour.join(" ")})`;
}

/** Where a figure lies on a scale `{low, high, log}`, clipped to 0 … 1. */
function share(value, { low, high, log }) {
  if (high <= low) return 0;
  if (value <= low) return 0;
  if (value >= high) return 1;
  return log ? Math.log(value / low) / Math.log(high / low) : (value - low) / (high - low);
}
