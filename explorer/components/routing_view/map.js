// The layer × token map on a canvas. The canvas covers the frame and draws only the columns in view, so that long
// texts cost no more than short ones; a spacer behind it gives the frame its scroll width.

const AXIS_WIDTH = 38;
const HEAD_HEIGHT = 16;
const LABEL_HEIGHT = 74;
const CELL_WIDTH = 15; // constant, so that nothing that is drawn moves while columns are added
const CELL_HEIGHT = { least: 6, most: 16, total: 330 };
const LETTER_SIZE = 10;

function createMap(root, store) {
  const frame = root.querySelector('.map-frame');
  const canvas = frame.querySelector('canvas');
  const space = frame.querySelector('.map-space');
  const row = frame.querySelector('.map-row');
  const cell = frame.querySelector('.map-cell');
  const keys = root.querySelector('.keys');
  const context = canvas.getContext('2d');
  const drawLegend = createLegend(root.querySelector('.legend'));
  cell.id = `cell-${Math.random().toString(36).slice(2)}`;
  frame.setAttribute('aria-activedescendant', cell.id);
  let geometry = null;
  let lastColumn = -1;

  function measureUp(state) {
    const columns = state.visible.length;
    const layers = state.model.layers.length;
    const { least, most, total } = CELL_HEIGHT;
    const height = Math.min(Math.max(Math.floor(total / layers), least), most);
    return { width: CELL_WIDTH, height, columns, layers, view: frame.clientWidth, bottom: HEAD_HEIGHT + layers * height };
  }

  function resize() {
    const ratio = window.devicePixelRatio || 1;
    const height = geometry.bottom + LABEL_HEIGHT;
    space.style.width = `${AXIS_WIDTH + geometry.columns * geometry.width}px`;
    const size = [Math.round(geometry.view * ratio), Math.round(height * ratio)];
    if (canvas.width !== size[0] || canvas.height !== size[1]) {
      [canvas.width, canvas.height] = size;
      canvas.style.width = `${geometry.view}px`;
      canvas.style.height = `${height}px`;
      frame.style.height = `${height + frame.offsetHeight - frame.clientHeight}px`;
    }
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
  }

  function inks() {
    const style = getComputedStyle(root);
    return {
      text: style.getPropertyValue('--ink').trim(),
      faint: style.getPropertyValue('--ink-faint').trim(),
      paper: style.getPropertyValue('--paper').trim(),
      mono: style.getPropertyValue('--mono').trim(),
      sans: style.getPropertyValue('--sans').trim(),
    };
  }

  function colourOf(state, token, layer, paper) {
    if (state.measure === ENTROPY) return { fill: cividis(entropyAt(state.model, token, layer, state.projection)) };
    const gates = gatesAt(state.model, token, layer, state.projection);
    if (state.measure !== TOP) return { fill: cividis(gates[state.measure]) };
    const ahead = ranking(gates);
    const expert = state.model.experts[ahead.winner];
    return { fill: mix(paper, parseColour(expert.colour), strength(ahead.margin)), letter: expert.letter };
  }

  const xOf = (column) => AXIS_WIDTH + column * geometry.width - frame.scrollLeft;
  const yOf = (layer) => HEAD_HEIGHT + layer * geometry.height;

  function drawCells(state, columns, ink) {
    const paper = parseColour(ink.paper);
    const hasRoom = geometry.width >= LETTER_SIZE && geometry.height >= LETTER_SIZE;
    context.font = `600 ${LETTER_SIZE - 1}px ${ink.mono}`;
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    columns.forEach((column) => {
      for (let layer = 0; layer < geometry.layers; layer += 1) {
        const { fill, letter } = colourOf(state, state.visible[column], layer, paper);
        context.fillStyle = css(fill);
        context.fillRect(xOf(column), yOf(layer), geometry.width - 1, geometry.height - 1);
        if (letter && hasRoom) {
          context.fillStyle = inkOn(fill);
          context.fillText(letter, xOf(column) + (geometry.width - 1) / 2, yOf(layer) + geometry.height / 2);
        }
      }
    });
  }

  function drawLabels(state, columns, ink, active) {
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    columns.forEach((column) => {
      const index = state.visible[column];
      const isActive = active && active.token === index;
      const token = state.model.tokens[index];
      context.save();
      context.translate(xOf(column) + (geometry.width - 1) / 2, geometry.bottom + 5);
      context.rotate(-Math.PI / 2);
      context.font = `${isActive ? '700' : '400'} 11px ${ink.mono}`;
      context.fillStyle = isActive || token.role === GENERATED ? ink.text : ink.faint;
      context.fillText(shorten(visibleText(token), 10), 0, 0);
      context.restore();
    });
  }

  function shorten(text, length) {
    const letters = Array.from(text);
    return letters.length > length ? `${letters.slice(0, length - 1).join('')}…` : text;
  }

  function drawBoundary(state, ink) {
    const first = state.visible.findIndex((index) => state.model.tokens[index].role === GENERATED);
    context.font = `11px ${ink.sans}`;
    context.fillStyle = ink.faint;
    context.textBaseline = 'middle';
    context.textAlign = 'left';
    if (first !== 0) context.fillText('prompt', Math.max(AXIS_WIDTH, xOf(0)), HEAD_HEIGHT / 2 - 1);
    if (first < 0) return;
    const x = xOf(first);
    context.fillStyle = ink.text;
    const label = x > AXIS_WIDTH ? x + 3 : AXIS_WIDTH;
    if (x < AXIS_WIDTH + 60 && x > AXIS_WIDTH - 1 && first > 0) {
      context.clearRect(AXIS_WIDTH, 0, 62, HEAD_HEIGHT - 1);
    } else if (x <= AXIS_WIDTH) context.clearRect(AXIS_WIDTH, 0, 62, HEAD_HEIGHT - 1);
    context.fillText('generated', label, HEAD_HEIGHT / 2 - 1);
    if (x >= AXIS_WIDTH) context.fillRect(x - 1.5, 0, 2, geometry.bottom + LABEL_HEIGHT);
  }

  function drawAxis(state, ink, active) {
    context.clearRect(0, 0, AXIS_WIDTH, geometry.bottom + LABEL_HEIGHT);
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    state.model.layers.forEach((name, layer) => {
      const isActive = active && active.layer === layer;
      const crowded = active && Math.abs(active.layer - layer) * geometry.height < 12;
      if (!isActive && (crowded || layer % 5 !== 0)) return;
      context.font = `${isActive ? '700' : '400'} 11px ${ink.sans}`;
      context.fillStyle = isActive ? ink.text : ink.faint;
      context.fillText(String(name), AXIS_WIDTH - 6, yOf(layer) + geometry.height / 2);
    });
    context.save();
    context.font = `11px ${ink.sans}`;
    context.fillStyle = ink.faint;
    context.textAlign = 'center';
    context.translate(7, HEAD_HEIGHT + (geometry.layers * geometry.height) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText('layer', 0, 0);
    context.restore();
  }

  // Two strokes, dark and light, so that the frame of the cell shows on every colour.
  function drawFocus(state, ink, active) {
    const column = active ? state.visible.indexOf(active.token) : -1;
    if (column < 0) return;
    const [x, y] = [xOf(column), yOf(active.layer)];
    context.lineWidth = 1;
    context.strokeStyle = ink.text;
    context.strokeRect(x - 0.5, HEAD_HEIGHT - 1.5, geometry.width, geometry.layers * geometry.height + 1);
    context.lineWidth = state.locked ? 4 : 3;
    context.strokeStyle = ink.paper;
    context.strokeRect(x - 0.5, y - 0.5, geometry.width, geometry.height);
    context.lineWidth = state.locked ? 2 : 1.5;
    context.strokeStyle = ink.text;
    context.strokeRect(x - 0.5, y - 0.5, geometry.width, geometry.height);
  }

  function columnsInView() {
    const first = Math.max(0, Math.floor(frame.scrollLeft / geometry.width));
    const last = Math.min(geometry.columns, Math.ceil((frame.scrollLeft + geometry.view - AXIS_WIDTH) / geometry.width) + 1);
    return Array.from({ length: Math.max(0, last - first) }, (_, index) => first + index);
  }

  function paint(state) {
    const ink = inks();
    const active = store.active();
    const columns = columnsInView();
    context.clearRect(0, 0, geometry.view, geometry.bottom + LABEL_HEIGHT);
    drawCells(state, columns, ink);
    drawLabels(state, columns, ink, active);
    drawBoundary(state, ink);
    drawFocus(state, ink, active);
    drawAxis(state, ink, active);
  }

  // Keeps the selected column in view when it changes, and the newest one while it is followed.
  function scrollToActive(state) {
    const column = state.cell ? state.visible.indexOf(state.cell.token) : -1;
    if (column === lastColumn || state.peeked) return;
    lastColumn = column;
    const left = column * geometry.width;
    const room = geometry.view - AXIS_WIDTH;
    if (left < frame.scrollLeft) frame.scrollLeft = left - geometry.width;
    else if (left + 2 * geometry.width > frame.scrollLeft + room) frame.scrollLeft = left + 2 * geometry.width - room;
  }

  function describe(state) {
    frame.setAttribute('aria-rowcount', String(geometry.layers));
    frame.setAttribute('aria-colcount', String(geometry.columns));
    if (!state.cell) return;
    row.setAttribute('aria-rowindex', String(state.cell.layer + 1));
    cell.setAttribute('aria-colindex', String(state.visible.indexOf(state.cell.token) + 1));
    cell.setAttribute('aria-selected', String(state.locked));
    setText(cell, sentenceOf(state, state.cell));
    setText(keys, state.locked
      ? 'This cell is locked. Esc, or a second click, lets the pointer lead again.'
      : 'Point to look, click to lock. Arrow keys move, ? shows all keys.');
  }

  function cellUnder(event) {
    const box = frame.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - frame.clientLeft - AXIS_WIDTH + frame.scrollLeft) / geometry.width);
    const layer = Math.floor((event.clientY - box.top - frame.clientTop - HEAD_HEIGHT) / geometry.height);
    const isInside = event.clientX - box.left > AXIS_WIDTH && column >= 0 && column < geometry.columns && layer >= 0;
    if (!isInside) return null;
    // A label stands for its token in the layer that is selected.
    return { layer: layer < geometry.layers ? layer : store.state.cell.layer, token: store.state.visible[column] };
  }

  frame.addEventListener('mousemove', (event) => { if (geometry) store.peek(cellUnder(event)); });
  frame.addEventListener('mouseleave', () => store.peek(null));
  frame.addEventListener('click', (event) => {
    const found = geometry && cellUnder(event);
    if (found) store.lock(found);
  });
  frame.addEventListener('scroll', () => { if (geometry && store.state.model) paint(store.state); }, { passive: true });
  new ResizeObserver(() => store.redraw()).observe(frame);

  return function draw(state) {
    if (!state.model || frame.clientWidth === 0) return;
    geometry = measureUp(state);
    resize();
    scrollToActive(state);
    describe(state);
    drawLegend(state);
    paint(state);
  };
}

// What the colours of the map mean.
function createLegend(legend) {
  let drawn = '';

  function scale(left, right, hint) {
    const bar = explained('span', 'colour-bar', '', hint);
    bar.style.background = cividisGradient();
    return [make('span', '', left), bar, make('span', '', right)];
  }

  function content({ model, measure }) {
    if (measure === TOP) return [make('span', '', 'Colour and letter: the expert with the largest gate. Paler: closer to the second.')];
    if (measure === ENTROPY) {
      return scale('0 decided', '1 undecided', 'Entropy of the gates over its largest value; with mean, averaged over routers.');
    }
    const { name } = model.experts[measure];
    return scale(`gate of ${name} 0`, '1', `The share of the expert update that comes from ${name}, 0 to 1. One scale for all cells.`);
  }

  return function draw(state) {
    const signature = JSON.stringify([state.measure, state.model.experts]);
    if (signature === drawn) return;
    drawn = signature;
    legend.replaceChildren(...content(state));
  };
}
