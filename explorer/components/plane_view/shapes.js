// SVG out of attributes only, so that a saved picture looks like the one on the page.

const SVG = 'http://www.w3.org/2000/svg';

function shape(tag, attributes, text) {
  const node = document.createElementNS(SVG, tag);
  Object.entries(attributes).forEach(([name, value]) => node.setAttribute(name, String(value)));
  if (text !== undefined) node.textContent = text;
  return node;
}

function inksOf(root) {
  const style = getComputedStyle(root);
  const ink = (name) => style.getPropertyValue(name).trim();
  return { text: ink('--ink'), faint: ink('--ink-faint'), paper: ink('--paper'), line: ink('--line'), track: ink('--track'), sans: ink('--sans') };
}

// Black or white, whichever reads better on a colour.
function inkOnColour(colour) {
  const parts = [1, 3, 5].map((start) => parseInt(colour.slice(start, start + 2), 16) / 255)
    .map((part) => (part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4));
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2] > 0.179 ? '#000000' : '#ffffff';
}

// About four round numbers inside a range.
function ticksOf(low, high) {
  const rough = (high - low) / 4;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([5, 2, 1].find((factor) => rough >= power * factor) || 1);
  const ticks = [];
  for (let tick = Math.ceil(low / step - 1e-9) * step; tick <= high + 1e-9; tick += step) ticks.push(tick);
  const digits = Math.max(0, -Math.floor(Math.log10(step) + 1e-9));
  return ticks.map((value) => ({ value, text: value.toFixed(digits) }));
}

const three = (value) => value.toFixed(3);
