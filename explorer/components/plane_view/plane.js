// Draws the plane. x is how undecided single tokens are, y how balanced the load is, both 0 to 1; what lies below the
// diagonal is impossible, and the height above it is how much a token says about its expert.

const MARGIN = { left: 58, right: 18, top: 18, bottom: 52 };
const WHOLE = { x: [0, 1], y: [0, 1] };
const CORNERS = [
  { x: 0, y: 0, text: 'one expert takes everything', anchor: 'start', dx: 8, dy: -8 },
  { x: 0, y: 1, text: 'balanced specialists', anchor: 'start', dx: 8, dy: 18 },
  { x: 1, y: 1, text: 'balanced mush', anchor: 'end', dx: -8, dy: 52 },
];

// The least range that holds all points, with room around them.
function closeRange(points) {
  const range = (values) => {
    const [low, high] = [Math.min(...values), Math.max(...values)];
    const room = Math.max((high - low) * 0.15, 0.02);
    return [Math.max(-0.02, low - room), Math.min(1.02, high + room)];
  };
  return points.length ? { x: range(points.map(([x]) => x)), y: range(points.map(([, y]) => y)) } : WHOLE;
}

function placePlane(width, range) {
  const height = Math.round(Math.min(Math.max(width * (width < 500 ? 1 : 0.8), 260), 560));
  const inner = { width: width - MARGIN.left - MARGIN.right, height: height - MARGIN.top - MARGIN.bottom };
  const pad = range === WHOLE ? 0.015 : 0;
  const [x0, x1, y0, y1] = [range.x[0] - pad, range.x[1] + pad, range.y[0] - pad, range.y[1] + pad];
  return {
    width,
    height,
    inner,
    range,
    x: (value) => MARGIN.left + ((value - x0) / (x1 - x0)) * inner.width,
    y: (value) => MARGIN.top + (1 - (value - y0) / (y1 - y0)) * inner.height,
  };
}

function drawGround(svg, place, ink) {
  const { inner } = place;
  const id = `inside-${Math.random().toString(36).slice(2)}`;
  const clip = shape('clipPath', { id });
  clip.append(shape('rect', { x: MARGIN.left, y: MARGIN.top, width: inner.width, height: inner.height }));
  const hatch = shape('pattern', { id: `${id}-hatch`, width: 8, height: 8, patternUnits: 'userSpaceOnUse', patternTransform: 'rotate(45)' });
  hatch.append(shape('line', { x1: 0, y1: 0, x2: 0, y2: 8, stroke: ink.line, 'stroke-width': 2 }));
  const definitions = shape('defs', {});
  definitions.append(clip, hatch);
  const inside = shape('g', { 'clip-path': `url(#${id})` });
  const corner = (x, y) => `${place.x(x)},${place.y(y)}`;
  inside.append(
    shape('polygon', { points: [corner(-1, -1), corner(2, 2), corner(2, -1)].join(' '), fill: `url(#${id}-hatch)` }),
    shape('line', { x1: place.x(-1), y1: place.y(-1), x2: place.x(2), y2: place.y(2), stroke: ink.faint, 'stroke-width': 1.25 }),
  );
  svg.append(definitions, inside);
  const text = (x, y, words, more = {}) => svg.append(shape('text', { x, y, fill: ink.faint, 'font-family': ink.sans, 'font-size': 12, ...more }, words));
  ticksOf(place.range.x[0], place.range.x[1]).forEach(({ value, text: words }) => {
    svg.append(shape('line', { x1: place.x(value), y1: MARGIN.top, x2: place.x(value), y2: MARGIN.top + inner.height, stroke: ink.line, 'stroke-width': 0.5 }));
    text(place.x(value), MARGIN.top + inner.height + 17, words, { 'text-anchor': 'middle' });
  });
  ticksOf(place.range.y[0], place.range.y[1]).forEach(({ value, text: words }) => {
    svg.append(shape('line', { x1: MARGIN.left, y1: place.y(value), x2: MARGIN.left + inner.width, y2: place.y(value), stroke: ink.line, 'stroke-width': 0.5 }));
    text(MARGIN.left - 7, place.y(value) + 4, words, { 'text-anchor': 'end' });
  });
  svg.append(shape('rect', { x: MARGIN.left, y: MARGIN.top, width: inner.width, height: inner.height, fill: 'none', stroke: ink.line }));
  text(MARGIN.left + inner.width / 2, place.height - 12, 'how undecided single tokens are →', { 'text-anchor': 'middle' });
  const middle = MARGIN.top + inner.height / 2;
  text(15, middle, 'how balanced the load is →', { 'text-anchor': 'middle', transform: `rotate(-90 15 ${middle})` });
  if (place.range === WHOLE) {
    const halo = { stroke: ink.paper, 'stroke-width': 3, 'paint-order': 'stroke' };
    CORNERS.forEach(({ x, y, text: words, anchor, dx, dy }) => text(place.x(x) + dx, place.y(y) + dy, words, { 'text-anchor': anchor, 'font-style': 'italic', ...halo }));
    text(place.x(0.97), place.y(0.3), 'impossible', { 'text-anchor': 'end', ...halo });
    text(place.x(0.97), place.y(0.3) + 15, 'no load is less even than its tokens', { 'text-anchor': 'end', 'font-size': 11, ...halo });
  }
  const content = shape('g', { 'clip-path': `url(#${id})` });
  svg.append(content);
  return content;
}

function drawBand(content, place, router) {
  const { band } = router;
  const [left, right, top, bottom] = [place.x(band.x[0]), place.x(band.x[1]), place.y(band.y[1]), place.y(band.y[0])];
  content.append(shape('rect', {
    x: left, y: top, width: Math.max(right - left, 1), height: Math.max(bottom - top, 1), fill: router.colour, 'fill-opacity': 0.14, stroke: router.colour, 'stroke-dasharray': '3 2', 'stroke-width': 1,
  }));
}

function drawPath(content, place, path, strong) {
  const points = path.points.map(([x, y]) => `${place.x(x).toFixed(1)},${place.y(y).toFixed(1)}`).join(' ');
  content.append(shape('polyline', { points, fill: 'none', stroke: path.colour, 'stroke-width': strong ? 2.25 : 1.25, 'stroke-opacity': strong ? 1 : 0.6, 'stroke-linejoin': 'round' }));
  const [x, y] = path.points[0];
  content.append(shape('circle', { cx: place.x(x), cy: place.y(y), r: strong ? 3.5 : 2.5, fill: path.colour }));
}

function drawBars(content, place, router) {
  const bar = (x1, y1, x2, y2) => content.append(shape('line', { x1, y1, x2, y2, stroke: router.colour, 'stroke-width': 1.5 }));
  const [x, y] = [place.x(router.x), place.y(router.y)];
  if (router.xEnds) bar(place.x(router.xEnds[0]), y, place.x(router.xEnds[1]), y);
  if (router.yEnds) bar(x, place.y(router.yEnds[0]), x, place.y(router.yEnds[1]));
}

// The gap to the diagonal is the mutual information: drawn for the chosen router only.
function drawGap(content, place, router, ink) {
  const [x, top, bottom] = [place.x(router.x), place.y(router.y), place.y(router.x)];
  content.append(shape('line', { x1: x, y1: top, x2: x, y2: bottom, stroke: ink.text, 'stroke-width': 1.5, 'stroke-dasharray': '2 3' }));
  const inView = Math.min(bottom, MARGIN.top + place.inner.height);
  content.append(shape('text', {
    x: x + 7, y: (top + inView) / 2 + 8, fill: ink.text, 'font-family': ink.sans, 'font-size': 12, stroke: ink.paper, 'stroke-width': 3, 'paint-order': 'stroke',
  }, `specialised ${three(router.y - router.x)}`));
}

const RADIUS = 10;

function drawRouter(layer, place, router, isChosen, isActive, ink) {
  const [cx, cy] = [place.x(router.x), place.y(router.y)];
  if (cx < MARGIN.left - 1 || cx > MARGIN.left + place.inner.width + 1 || cy < MARGIN.top - 1 || cy > MARGIN.top + place.inner.height + 1) return;
  const group = shape('g', { 'data-key': router.key });
  if (isChosen || isActive) group.append(shape('circle', { cx, cy, r: RADIUS + 4, fill: 'none', stroke: ink.text, 'stroke-width': isChosen ? 2.5 : 1.25 }));
  if (router.live) group.append(shape('rect', { x: cx - RADIUS + 1, y: cy - RADIUS + 1, width: 2 * RADIUS - 2, height: 2 * RADIUS - 2, fill: router.colour, stroke: ink.paper, 'stroke-width': 1.5 }));
  else group.append(shape('circle', { cx, cy, r: RADIUS, fill: router.colour, stroke: ink.paper, 'stroke-width': 1.5 }));
  group.append(shape('text', { x: cx, y: cy + 4, 'text-anchor': 'middle', 'font-family': ink.sans, 'font-size': 12, 'font-weight': 650, fill: inkOn(parseColour(router.colour)) }, router.mark));
  layer.append(group);
}

// One moving point: a training that is replayed, or one that is running.
function drawMoving(content, place, moving, ink) {
  if (moving.trail.length > 1) drawPath(content, place, { points: moving.trail, colour: moving.colour }, true);
  const [x, y] = moving.trail[moving.trail.length - 1];
  const [cx, cy] = [place.x(x), place.y(y)];
  content.append(shape('path', { d: `M${cx} ${cy - 8} L${cx + 8} ${cy} L${cx} ${cy + 8} L${cx - 8} ${cy} Z`, fill: ink.paper, stroke: moving.colour, 'stroke-width': 3 }));
  content.append(shape('text', { x: cx + 12, y: cy + 4, fill: ink.text, 'font-family': ink.sans, 'font-size': 12, stroke: ink.paper, 'stroke-width': 3, 'paint-order': 'stroke' }, moving.text));
}

// Draws everything anew into an svg; cheap, since there are tens of shapes and not thousands.
function drawPlane(svg, root, width, model, view) {
  const ink = inksOf(root);
  const all = [...model.routers.map(({ x, y }) => [x, y]), ...model.paths.flatMap(({ points }) => points), ...(view.moving ? view.moving.trail : [])];
  const place = placePlane(width, view.close ? closeRange(all) : WHOLE);
  svg.setAttribute('viewBox', `0 0 ${place.width} ${place.height}`);
  svg.setAttribute('width', place.width);
  svg.setAttribute('height', place.height);
  svg.replaceChildren();
  const content = drawGround(svg, place, ink);
  const chosen = model.routers.find(({ key }) => key === view.chosen);
  if (view.bands) model.routers.filter(({ band }) => band).forEach((router) => drawBand(content, place, router));
  if (view.paths) model.paths.forEach((path) => drawPath(content, place, path, Boolean(chosen) && path.group === chosen.group));
  if (view.seeds) {
    model.routers.forEach((router) => router.dots.forEach(([x, y]) => content.append(shape('circle', { cx: place.x(x), cy: place.y(y), r: 3, fill: 'none', stroke: router.colour, 'stroke-width': 1.5 }))));
  }
  model.routers.forEach((router) => drawBars(content, place, router));
  if (chosen) drawGap(content, place, chosen, ink);
  const layer = shape('g', {});
  svg.append(layer);
  model.routers.forEach((router) => drawRouter(layer, place, router, router.key === view.chosen, router.key === view.active, ink));
  if (view.moving && view.moving.trail.length) drawMoving(content, place, view.moving, ink);
  return place;
}
