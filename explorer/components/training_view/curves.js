// Small line charts that share their steps. Charts are kept and only redrawn, so that nothing is mounted anew.

const CHART = { height: 150, left: 46, right: 12, top: 8, bottom: 22 };
const DASHES = ['', '6 3', '2 3', '8 3 2 3'];

function createCharts(box, root) {
  const charts = new Map();

  function chartOf(curve) {
    if (!charts.has(curve.name)) {
      const figure = make('figure', 'chart');
      const title = explained('figcaption', 'chart-title', curve.name, curve.hint);
      const svg = shape('svg', { role: 'img' });
      const legend = make('p', 'chart-legend');
      figure.append(title, svg, legend);
      box.append(figure);
      charts.set(curve.name, { figure, svg, legend });
    }
    return charts.get(curve.name);
  }

  function drawLegend(legend, curve) {
    const texts = curve.lines.map((line) => `${line.name} ${line.points.length ? line.points[line.points.length - 1][1].toFixed(3) : '–'}`);
    const signature = texts.join('|');
    if (legend.dataset.drawn === signature) return;
    legend.dataset.drawn = signature;
    legend.replaceChildren(...curve.lines.map((line, index) => {
      const item = make('span', 'legend-item');
      const swatch = shape('svg', { width: 22, height: 8, 'aria-hidden': 'true' });
      swatch.append(shape('line', { x1: 0, y1: 4, x2: 22, y2: 4, stroke: line.colour, 'stroke-width': 2.5, 'stroke-dasharray': DASHES[index % DASHES.length] }));
      item.append(swatch, make('span', '', texts[index]));
      return item;
    }));
  }

  function drawChart(curve, steps) {
    const { figure, svg, legend } = chartOf(curve);
    drawLegend(legend, curve);
    const width = figure.clientWidth;
    const values = curve.lines.flatMap(({ points }) => points.map((point) => point[1]));
    svg.replaceChildren();
    svg.setAttribute('aria-label', `${curve.name}: ${legend.textContent}`);
    if (!width || !values.length) return;
    let [low, high] = [Math.min(...values), Math.max(...values)];
    const room = (high - low) * 0.08 || Math.abs(high) * 0.1 || 0.1;
    [low, high] = [low - room, high + room];
    const ink = inksOf(root);
    const inner = { width: width - CHART.left - CHART.right, height: CHART.height - CHART.top - CHART.bottom };
    const x = (step) => CHART.left + (step / Math.max(steps, 1)) * inner.width;
    const y = (value) => CHART.top + (1 - (value - low) / (high - low)) * inner.height;
    svg.setAttribute('viewBox', `0 0 ${width} ${CHART.height}`);
    svg.setAttribute('width', width);
    svg.setAttribute('height', CHART.height);
    const text = (px, py, words, anchor) => svg.append(shape('text', { x: px, y: py, fill: ink.faint, 'font-family': ink.sans, 'font-size': 11, 'text-anchor': anchor }, words));
    ticksOf(low, high).forEach(({ value, text: words }) => {
      svg.append(shape('line', { x1: CHART.left, x2: CHART.left + inner.width, y1: y(value), y2: y(value), stroke: ink.line, 'stroke-width': 0.75 }));
      text(CHART.left - 6, y(value) + 4, words, 'end');
    });
    text(CHART.left, CHART.height - 6, '0', 'middle');
    text(CHART.left + inner.width, CHART.height - 6, `step ${steps}`, 'end');
    curve.lines.forEach((line, index) => {
      const points = line.points.map(([step, value]) => `${x(step).toFixed(1)},${y(value).toFixed(1)}`).join(' ');
      svg.append(shape('polyline', { points, fill: 'none', stroke: line.colour, 'stroke-width': 2, 'stroke-linejoin': 'round', 'stroke-dasharray': DASHES[index % DASHES.length] }));
      const last = line.points[line.points.length - 1];
      if (last) svg.append(shape('circle', { cx: x(last[0]), cy: y(last[1]), r: 3, fill: line.colour }));
    });
  }

  return function draw(curves, steps) {
    const names = curves.map(({ name }) => name);
    [...charts].forEach(([name, { figure }]) => { if (!names.includes(name)) { figure.remove(); charts.delete(name); } });
    curves.forEach((curve) => drawChart(curve, steps));
  };
}
