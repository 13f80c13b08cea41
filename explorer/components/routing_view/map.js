// The layer × token map on two canvases. The upper one holds what follows the selection, so that moving it draws no cell
// again.

const HEAD_HEIGHT = 16;
const LABEL_HEIGHT = 74;
const CELL_HEIGHT = { least: 6, most: 16, total: 330 };
const LETTER_SIZE = 10;

function createMap(root, store) {
  const frame = root.querySelector('.map-frame');
  const [canvas, overlay] = frame.querySelectorAll('canvas');
  const row = frame.querySelector('.map-row');
  const cell = frame.querySelector('.map-cell');
  const keys = root.querySelector('.keys');
  const context = canvas.getContext('2d');
  const above = overlay.getContext('2d');
  const drawLegend = createLegend(root.querySelector('.legend'));
  cell.id = `cell-${Math.random().toString(36).slice(2)}`;
  frame.setAttribute('aria-activedescendant', cell.id);
  let geometry = null;
  let lastColumn = -1;
  let painter = null;
  let painted = '';

  function measureUp(state) {
    const columns = state.columns.length;
    const [first, last] = state.range;
    const layers = last - first + 1;
    const { least, most, total } = CELL_HEIGHT;
    const height = Math.min(Math.max(Math.floor(total / layers), least), most);
    return { height, columns, layers, first, view: frame.clientWidth, bottom: HEAD_HEIGHT + layers * height };
  }

  const xOf = (column) => AXIS_WIDTH + column * CELL_WIDTH - frame.scrollLeft;
  const yOf = (layer) => HEAD_HEIGHT + (layer - geometry.first) * geometry.height;
  const columnOf = (state, cell) => (cell ? state.columnOf[cell.token] : -1);

  function drawCells(state, columns, ink) {
    const hasRoom = geometry.height >= LETTER_SIZE;
    context.font = `600 ${LETTER_SIZE - 1}px ${ink.mono}`;
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    const half = [(CELL_WIDTH - 1) / 2, geometry.height / 2];
    columns.forEach((place) => {
      const x = xOf(place);
      for (let layer = geometry.first; layer < geometry.first + geometry.layers; layer += 1) {
        const { fill, letter } = painter(state.columns[place], layer);
        const y = yOf(layer);
        context.fillStyle = css(fill);
        context.fillRect(x, y, CELL_WIDTH - 1, geometry.height - 1);
        if (letter && hasRoom) {
          context.fillStyle = inkOn(fill);
          context.fillText(letter, x + half[0], y + half[1]);
        }
      }
    });
  }

  function drawLabel(onto, state, place, ink, isActive) {
    const column = state.columns[place];
    onto.save();
    onto.translate(xOf(place) + (CELL_WIDTH - 1) / 2, geometry.bottom + 5);
    onto.rotate(-Math.PI / 2);
    onto.textAlign = 'right';
    onto.textBaseline = 'middle';
    onto.font = `${isActive ? '700' : '400'} 11px ${ink.mono}`;
    onto.fillStyle = isActive || column.role === GENERATED ? ink.text : ink.faint;
    onto.fillText(clipText(visibleText(column), 10), 0, 0);
    onto.restore();
  }

  // A rule under the cells in the colour of the expert that a span of the prompt is about, with ticks at its ends.
  function drawGold(state, columns, ink) {
    columns.forEach((place) => {
      const { gold } = state.columns[place];
      if (gold < 0) return;
      const [x, y] = [xOf(place), geometry.bottom];
      const begins = place === 0 || state.columns[place - 1].gold !== gold;
      const ends = place === state.columns.length - 1 || state.columns[place + 1].gold !== gold;
      context.fillStyle = state.model.experts[gold].colour;
      context.fillRect(x - (begins ? 0 : 1), y, CELL_WIDTH - (ends ? 1 : 0), 3);
      context.fillStyle = ink.text;
      if (begins) context.fillRect(x - 1.5, HEAD_HEIGHT - 3, 1.5, geometry.layers * geometry.height + 6);
      if (ends) context.fillRect(x + CELL_WIDTH - 1.5, HEAD_HEIGHT - 3, 1.5, geometry.layers * geometry.height + 6);
    });
  }

  function drawBoundary(state, ink) {
    const first = state.columns.findIndex(({ role }) => role === GENERATED);
    context.font = `11px ${ink.sans}`;
    context.textBaseline = 'middle';
    context.textAlign = 'left';
    context.fillStyle = ink.faint;
    if (first !== 0) context.fillText('prompt', Math.max(AXIS_WIDTH, xOf(0)), HEAD_HEIGHT / 2 - 1);
    if (first < 0) return;
    const x = xOf(first);
    if (x < AXIS_WIDTH + 60) context.clearRect(AXIS_WIDTH, 0, 62, HEAD_HEIGHT - 3);
    context.fillStyle = ink.text;
    context.fillText('generated', Math.max(AXIS_WIDTH, x + 3), HEAD_HEIGHT / 2 - 1);
    if (x >= AXIS_WIDTH) context.fillRect(x - 1.5, 0, 2, geometry.bottom + LABEL_HEIGHT);
  }

  function layerName(onto, state, layer, ink, isActive) {
    onto.textAlign = 'right';
    onto.textBaseline = 'middle';
    onto.font = `${isActive ? '700' : '400'} 11px ${ink.sans}`;
    onto.fillStyle = isActive ? ink.text : ink.faint;
    onto.fillText(String(state.model.layers[layer]), AXIS_WIDTH - 6, yOf(layer) + geometry.height / 2);
  }

  // The canvas is clear below the axis: cells that are scrolled under it must not shine through.
  function drawAxis(state, ink) {
    context.clearRect(0, 0, AXIS_WIDTH, geometry.bottom + LABEL_HEIGHT);
    const step = geometry.layers > 12 ? 5 : 1;
    for (let layer = geometry.first; layer < geometry.first + geometry.layers; layer += 1) {
      if (state.model.layers[layer] % step === 0) layerName(context, state, layer, ink, false);
    }
    context.save();
    context.font = `11px ${ink.sans}`;
    context.fillStyle = ink.faint;
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    context.translate(7, HEAD_HEIGHT + (geometry.layers * geometry.height) / 2);
    context.rotate(-Math.PI / 2);
    context.fillText('layer', 0, 0);
    context.restore();
  }

  function drawSpan(state, ink) {
    if (state.spanStart === null) return;
    const ends = [state.columnOf[state.spanStart], columnOf(state, state.cell)].sort((left, right) => left - right);
    frameBox(above, ink, xOf(ends[0]), yOf(state.cell.layer), (ends[1] - ends[0] + 1) * CELL_WIDTH, geometry.height, true);
  }

  function drawSelection(state, ink) {
    above.clearRect(0, 0, geometry.view, geometry.bottom + LABEL_HEIGHT);
    const active = store.active();
    const place = columnOf(state, active);
    if (place < 0 || active.layer < geometry.first || active.layer >= geometry.first + geometry.layers) return;
    const [x, y] = [xOf(place), yOf(active.layer)];
    if (x >= AXIS_WIDTH - 1) {
      above.lineWidth = 1;
      above.strokeStyle = ink.text;
      above.strokeRect(x - 0.5, HEAD_HEIGHT - 1.5, CELL_WIDTH, geometry.layers * geometry.height + 1);
      drawSpan(state, ink);
      frameBox(above, ink, x, y, CELL_WIDTH, geometry.height, state.locked);
      above.fillStyle = ink.paper;
      above.fillRect(x - 1, geometry.bottom + 4, CELL_WIDTH + 1, LABEL_HEIGHT);
      drawLabel(above, state, place, ink, true);
    }
    above.fillStyle = ink.paper;
    above.fillRect(15, y + geometry.height / 2 - 8, AXIS_WIDTH - 19, 16);
    layerName(above, state, active.layer, ink, true);
  }

  function paint(state) {
    const ink = inksOf(root);
    const signature = [state.run, state.version, frame.scrollLeft, ink.paper].join('/');
    if (signature !== painted) {
      if (!painted.startsWith(`${state.run}/${state.version}/`) || !painted.endsWith(ink.paper)) {
        painter = createPainter(state, state.measure, parseColour(ink.paper));
      }
      painted = signature;
      const columns = columnsInView(frame, geometry.columns);
      context.clearRect(0, 0, geometry.view, geometry.bottom + LABEL_HEIGHT);
      drawCells(state, columns, ink);
      drawGold(state, columns, ink);
      columns.forEach((place) => drawLabel(context, state, place, ink, false));
      drawBoundary(state, ink);
      drawAxis(state, ink);
    }
    drawSelection(state, ink);
  }

  // Keeps the selected column in view when it changes, and the newest one while it is followed.
  function scrollToActive(state) {
    const column = columnOf(state, state.cell);
    if (column === lastColumn || state.peeked) return;
    lastColumn = column;
    scrollToColumn(frame, column);
  }

  function describe(state) {
    frame.setAttribute('aria-rowcount', String(geometry.layers));
    frame.setAttribute('aria-colcount', String(geometry.columns));
    if (!state.cell) return;
    row.setAttribute('aria-rowindex', String(state.cell.layer - geometry.first + 1));
    cell.setAttribute('aria-colindex', String(columnOf(state, state.cell) + 1));
    cell.setAttribute('aria-selected', String(state.locked));
    setText(cell, sentenceOf(state, state.cell));
    setText(keys, keyHint(state));
  }

  function keyHint(state) {
    if (state.spanStart !== null) return 'A span is selected; the card shows its mean. Esc, or a click, ends it.';
    if (state.locked) return 'This cell is locked. Esc, or a second click, lets the pointer lead again.';
    return 'Point to look, click to lock, shift-click for a span. Arrow keys move, ? shows all keys.';
  }

  function cellUnder(event) {
    const box = frame.getBoundingClientRect();
    const column = Math.floor((event.clientX - box.left - frame.clientLeft - AXIS_WIDTH + frame.scrollLeft) / CELL_WIDTH);
    const layer = Math.floor((event.clientY - box.top - frame.clientTop - HEAD_HEIGHT) / geometry.height);
    const isInside = event.clientX - box.left > AXIS_WIDTH && column >= 0 && column < geometry.columns && layer >= 0;
    if (!isInside) return null;
    // A label stands for its token in the layer that is selected.
    const inside = layer < geometry.layers ? layer + geometry.first : store.state.cell.layer;
    return { layer: inside, token: store.state.columns[column].tokens[0] };
  }

  frame.addEventListener('mousemove', (event) => { if (geometry) store.peek(cellUnder(event)); });
  frame.addEventListener('mouseleave', () => store.peek(null));
  frame.addEventListener('click', (event) => {
    const found = geometry && cellUnder(event);
    if (!found) return;
    if (event.shiftKey) store.brush(found); else store.lock(found);
  });
  frame.addEventListener('scroll', () => { if (geometry && store.state.model) paint(store.state); }, { passive: true });
  new ResizeObserver(() => store.redraw()).observe(frame);

  return function draw(state) {
    if (!state.model || frame.clientWidth === 0) return;
    geometry = measureUp(state);
    if (fitCanvases(frame, [canvas, overlay], geometry.columns, geometry.bottom + LABEL_HEIGHT)) painted = '';
    scrollToActive(state);
    describe(state);
    drawLegend(state);
    paint(state);
  };
}

// What the colours of the map mean.
function createLegend(legend) {
  let drawn = -1;

  function scale(left, right, hint) {
    const bar = explained('span', 'colour-bar', '', hint);
    bar.style.background = cividisGradient();
    return [make('span', '', left), bar, make('span', '', right)];
  }

  function content(state) {
    const { model, measure, effect } = state;
    if (measure === TOP) {
      return [make('span', '', effect
        ? 'Colour and letter: the expert that added most. Paler: closer to the second.'
        : 'Colour and letter: the expert with the largest gate. Paler: closer to the second.')];
    }
    const own = state.scale === 'layer' ? ' Each layer is stretched from its own least to its own largest value.' : ' One scale for all cells.';
    const ends = (least, largest) => (state.scale === 'layer' ? ['least of the layer', 'largest of the layer'] : [least, largest]);
    if (measure === ENTROPY) {
      const [left, right] = ends('0 decided', '1 undecided');
      return scale(left, right, `Entropy of the gates over its largest value; with mean, averaged over routers.${own}`);
    }
    const { name } = model.experts[measure];
    const largest = effect ? percent(largestShown(state, measure)) : '1';
    const [left, right] = ends('0', largest);
    return effect
      ? scale(`effect of ${name} ${left}`, right, `The length of what ${name} added over that of the base output.${own}`)
      : scale(`gate of ${name} ${left}`, right, `The share of the expert update that comes from ${name}, 0 to 1.${own}`);
  }

  return function draw(state) {
    if (drawn === state.version) return;
    drawn = state.version;
    legend.replaceChildren(...content(state));
  };
}
