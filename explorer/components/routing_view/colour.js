// Colours of what is drawn. Experts bring their own; magnitude is cividis; the rest is of base.css, light or dark.

// Inks and fonts by name, as a canvas and a saved picture need them.
function inksOf(root) {
  const style = getComputedStyle(root);
  const ink = (name) => style.getPropertyValue(name).trim();
  return {
    text: ink('--ink'), faint: ink('--ink-faint'), paper: ink('--paper'), line: ink('--line'), track: ink('--track'),
    mono: ink('--mono'), sans: ink('--sans'),
  };
}

const CIVIDIS = [
  '#00224e', '#123570', '#3b496c', '#575d6d', '#707173', '#8a8678', '#a59c74', '#c3b369', '#e1cc55', '#fee838',
].map(parseColour);

function parseColour(text) {
  return [1, 3, 5].map((start) => parseInt(text.slice(start, start + 2), 16));
}

function mix(from, to, share) {
  return from.map((value, index) => Math.round(value + (to[index] - value) * share));
}

function cividis(value) {
  const place = Math.min(Math.max(value, 0), 1) * (CIVIDIS.length - 1);
  const lower = Math.min(Math.floor(place), CIVIDIS.length - 2);
  return mix(CIVIDIS[lower], CIVIDIS[lower + 1], place - lower);
}

function css([red, green, blue], alpha = 1) {
  return `rgba(${red}, ${green}, ${blue}, ${alpha})`;
}

function cividisGradient() {
  return `linear-gradient(to right, ${CIVIDIS.map((colour) => css(colour)).join(', ')})`;
}

function luminance(colour) {
  const [red, green, blue] = colour.map((value) => {
    const part = value / 255;
    return part <= 0.04045 ? part / 12.92 : ((part + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * red + 0.7152 * green + 0.0722 * blue;
}

// Black or white, whichever reads better on a colour.
function inkOn(colour) {
  return luminance(colour) > 0.179 ? '#000000' : '#ffffff';
}

// How strongly a margin colours: weak decisions stay visible.
function strength(margin) {
  return 0.2 + 0.8 * Math.min(Math.max(margin, 0), 1);
}
