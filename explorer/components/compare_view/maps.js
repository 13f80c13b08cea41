// Four layer × token maps on one canvas, one below the other, over the same tokens: A, B, B − A and the divergence.

const BAND_HEAD = 20;
const LABEL_HEIGHT = 82;
const CELL_HEIGHT = { least: 3, most: 12, total: 132 };
const LETTER_SIZE = 9;
const BANDS = ['a', 'b', 'difference', 'jsd'];
const BLUE = parseColour('#0072B2');
const ORANGE = parseColour('#E69F00');

// Blue below zero, the ground at zero, orange above; `share` is −1…1.
function diverging(share, ground) {
  const strength = Math.min(Math.abs(share), 1);
  return mix(ground, share < 0 ? BLUE : ORANGE, strength);
}

function createMaps(root, store) {
  const frame = root.querySelector('.map-frame');
  const canvas = frame.querySelector('canvas');
  const row = frame.querySelector('.map-row');
  const cellNode = frame.querySelector('.map-cell');
  const keys = root.querySelector('.keys');
  const context = canvas.getContext('2d');
  const drawLegends = createLegends(root.querySelector('.legends'));
  cellNode.id = `cell-${Math.random().toString(36).slice(2)}`;
  frame.setAttribute('aria-activedescendant', cellNode.id);
  let geometry = null;
  let lastColumn = -1;

  function measureUp(state) {
    const layers = state.comparison.layers.length;
    const height = Math.min(Math.max(Math.floor(CELL_HEIGHT.total / layers), CELL_HEIGHT.least), CELL_HEIGHT.most);
    const band = BAND_HEAD + layers * height;
    return { height, layers, band, columns: state.visible.length, view: frame.clientWidth, bottom: BANDS.length * band };
  }

  // Colour of a cell in a band, null where that side has no such token.
  function colourOf(state, band, cell, scales, paper) {
    if (band === 'jsd') return cell.jsd === null ? null : { fill: cividis(cell.jsd / scales.jsd) };
    if (band === 'difference') {
      const difference = differenceOf(cell, state.measure);
      return difference === null ? null : { fill: diverging(difference / scales.difference, paper) };
    }
    const side = cell[band];
    if (!side) return null;
    if (state.measure === ENTROPY) return { fill: cividis(side.entropy) };
    if (state.measure !== TOP) return { fill: cividis(side.gates[state.measure]) };
    const { winner, margin } = leader(side.gates);
    if (winner < 0) return { fill: paper };
    const expert = state.comparison.experts[winner];
    return { fill: mix(paper, parseColour(expert.colour), strength(margin)), letter: expert.letter };
  }

  const xOf = (place) => AXIS_WIDTH + place * CELL_WIDTH - frame.scrollLeft;
  const yOf = (band, layer) => band * geometry.band + BAND_HEAD + layer * geometry.height;

  function drawAbsent(x, y, ink) {
    context.fillStyle = ink.track;
    context.fillRect(x, y, CELL_WIDTH - 1, geometry.height - 1);
  }

  function drawCells(state, places, ink) {
    const paper = parseColour(ink.paper);
    const scales = scalesOf(state.comparison, state.visible, state.measure, state.projection);
    const hasRoom = geometry.height >= LETTER_SIZE;
    context.font = `600 ${LETTER_SIZE}px ${ink.mono}`;
    context.textAlign = 'center';
    context.textBaseline = 'middle';
    places.forEach((place) => {
      const cells = cellsOf(state.comparison, state.visible[place], state.projection);
      BANDS.forEach((band, number) => cells.forEach((cell, layer) => {
        const [x, y] = [xOf(place), yOf(number, layer)];
        const colour = colourOf(state, band, cell, scales, paper);
        if (!colour) { drawAbsent(x, y, ink); return; }
        context.fillStyle = css(colour.fill);
        context.fillRect(x, y, CELL_WIDTH - 1, geometry.height - 1);
        if (colour.letter && hasRoom) {
          context.fillStyle = inkOn(colour.fill);
          context.fillText(colour.letter, x + (CELL_WIDTH - 1) / 2, y + geometry.height / 2);
        }
      }));
    });
  }

  // The label of a column: − for what only the first has, + for what only the second has.
  function labelOf(comparison, column) {
    const { a, b } = comparison.columns[column];
    if (b.length === 0) return `−${nameOf(comparison, column, 'a')}`;
    const second = nameOf(comparison, column, 'b');
    if (a.length === 0) return `+${second}`;
    const first = nameOf(comparison, column, 'a');
    return first === second ? first : `${first}│${second}`;
  }

  function drawLabels(state, places, ink, active) {
    context.textAlign = 'right';
    context.textBaseline = 'middle';
    places.forEach((place) => {
      const column = state.visible[place];
      const isActive = active && active.column === column;
      context.save();
      context.translate(xOf(place) + (CELL_WIDTH - 1) / 2, geometry.bottom + 5);
      context.rotate(-Math.PI / 2);
      context.font = `${isActive ? '700' : '400'} 11px ${ink.mono}`;
      context.fillStyle = isActive || isGenerated(state.comparison, column) ? ink.text : ink.faint;
      context.fillText(clipText(labelOf(state.comparison, column), 11), 0, 0);
      context.restore();
    });
  }

  function isGenerated(comparison, column) {
    const { a, b } = comparison.columns[column];
    const token = a.length > 0 ? comparison.a.tokens[a[0]] : comparison.b.tokens[b[0]];
    return token.role === GENERATED;
  }

  function drawBoundary(state, ink) {
    const first = state.visible.findIndex((column) => isGenerated(state.comparison, column));
    if (first <= 0 || xOf(first) < AXIS_WIDTH) return;
    context.fillStyle = ink.text;
    context.fillRect(xOf(first) - 1.5, 0, 2, geometry.bottom + LABEL_HEIGHT);
  }

  function bandTitle(comparison, band, measure) {
    const { a, b } = comparison.names;
    const what = measureWords(comparison, measure);
    if (band === 'a') return `${a.letter}  ${a.title}: ${what}`;
    if (band === 'b') return `${b.letter}  ${b.title}: ${what}`;
    if (band === 'jsd') return 'divergence (JSD)';
    return measure === TOP ? `${b.letter} − ${a.letter}: gate of the expert ahead in ${a.letter}` : `${b.letter} − ${a.letter}: ${what}`;
  }

  function drawAxis(state, ink, active) {
    context.clearRect(0, 0, AXIS_WIDTH, geometry.bottom + LABEL_HEIGHT);
    BANDS.forEach((band, number) => {
      context.font = `600 11px ${ink.sans}`;
      context.textAlign = 'left';
      context.textBaseline = 'middle';
      context.fillStyle = ink.text;
      context.clearRect(0, number * geometry.band, geometry.view, BAND_HEAD - 1);
      context.fillText(bandTitle(state.comparison, band, state.measure), AXIS_WIDTH, number * geometry.band + BAND_HEAD / 2);
      context.textAlign = 'right';
      state.comparison.layers.forEach((name, layer) => {
        const isActive = active && active.layer === layer;
        const isCrowded = active && Math.abs(active.layer - layer) * geometry.height < 12;
        if (!isActive && (isCrowded || layer % 10 !== 0)) return;
        context.font = `${isActive ? '700' : '400'} 11px ${ink.sans}`;
        context.fillStyle = isActive ? ink.text : ink.faint;
        context.fillText(String(name), AXIS_WIDTH - 6, yOf(number, layer) + geometry.height / 2);
      });
    });
  }

  function drawFocus(state, ink, active) {
    const place = active ? state.visible.indexOf(active.column) : -1;
    if (place < 0 || xOf(place) < AXIS_WIDTH - 1) return;
    BANDS.forEach((_, number) => {
      const [x, y] = [xOf(place), yOf(number, active.layer)];
      context.lineWidth = 1;
      context.strokeStyle = ink.text;
      context.strokeRect(x - 0.5, yOf(number, 0) - 1.5, CELL_WIDTH, geometry.layers * geometry.height + 1);
      frameBox(context, ink, x, y, CELL_WIDTH, geometry.height, state.locked);
    });
  }

  function paint(state) {
    const ink = inksOf(root);
    const active = store.active();
    const places = columnsInView(frame, geometry.columns);
    context.clearRect(0, 0, geometry.view, geometry.bottom + LABEL_HEIGHT);
    drawCells(state, places, ink);
    drawLabels(state, places, ink, active);
    drawAxis(state, ink, active);
    drawBoundary(state, ink);
    drawFocus(state, ink, active);
  }

  function scrollToActive(state) {
    const place = state.cell ? state.visible.indexOf(state.cell.column) : -1;
    if (place === lastColumn || state.peeked) return;
    lastColumn = place;
    scrollToColumn(frame, place);
  }

  function describe(state) {
    frame.setAttribute('aria-rowcount', String(geometry.layers));
    frame.setAttribute('aria-colcount', String(geometry.columns));
    if (!state.cell) return;
    row.setAttribute('aria-rowindex', String(state.cell.layer + 1));
    cellNode.setAttribute('aria-colindex', String(state.visible.indexOf(state.cell.column) + 1));
    cellNode.setAttribute('aria-selected', String(state.locked));
    setText(cellNode, comparisonSentence(state, state.cell));
    setText(keys, state.locked
      ? 'This cell is locked. Esc, or a second click, lets the pointer lead again.'
      : 'Point to look, click to lock. Arrow keys move, ? shows all keys. Grey cells: this one has no such token.');
  }

  function cellUnder(event) {
    const box = frame.getBoundingClientRect();
    const left = event.clientX - box.left - frame.clientLeft;
    const place = Math.floor((left - AXIS_WIDTH + frame.scrollLeft) / CELL_WIDTH);
    const top = event.clientY - box.top - frame.clientTop;
    if (left <= AXIS_WIDTH || place < 0 || place >= geometry.columns || top < 0) return null;
    const column = store.state.visible[place];
    const layer = Math.floor(((top % geometry.band) - BAND_HEAD) / geometry.height);
    // A title or label stands for its token in the layer that is selected.
    const isCell = top < geometry.bottom && layer >= 0 && layer < geometry.layers;
    return { layer: isCell ? layer : store.state.cell.layer, column };
  }

  frame.addEventListener('mousemove', (event) => { if (geometry) store.peek(cellUnder(event)); });
  frame.addEventListener('mouseleave', () => store.peek(null));
  frame.addEventListener('click', (event) => {
    const found = geometry && cellUnder(event);
    if (found) store.lock(found);
  });
  frame.addEventListener('scroll', () => { if (geometry && store.state.comparison) paint(store.state); }, { passive: true });
  new ResizeObserver(() => store.redraw()).observe(frame);

  return function draw(state) {
    if (!state.comparison || frame.clientWidth === 0) return;
    geometry = measureUp(state);
    fitCanvases(frame, [canvas], geometry.columns, geometry.bottom + LABEL_HEIGHT);
    scrollToActive(state);
    describe(state);
    drawLegends(state, inksOf(root).paper);
    paint(state);
  };
}

// What the colours of the four maps mean.
function createLegends(node) {
  let drawn = '';

  function scale(title, left, gradient, right, hint) {
    const item = make('span', 'legend');
    const bar = explained('span', 'colour-bar', '', hint);
    bar.style.background = gradient;
    item.append(make('span', '', title), make('span', '', left), bar, make('span', '', right));
    return item;
  }

  function content({ comparison, measure, visible, projection }, paper) {
    const { a, b } = comparison.names;
    const scales = scalesOf(comparison, visible, measure, projection);
    const end = String(scales.difference);
    const ground = css(parseColour(paper));
    const what = measureWords(comparison, measure);
    const sides = measure === TOP
      ? make('span', 'legend', `${a.letter} and ${b.letter}: colour and letter of the expert with the largest gate; paler when the second is close`)
      : scale(`${a.letter} and ${b.letter}: ${what}`, '0', cividisGradient(), '1', 'One scale for both maps.');
    return [
      sides,
      scale(`${b.letter} − ${a.letter}`, `−${end}`, `linear-gradient(to right, ${css(BLUE)}, ${ground}, ${css(ORANGE)})`, `+${end}`,
        `Blue: less in ${b.letter}; orange: more in ${b.letter}. Zero is always in the middle; the ends fit the largest difference.`),
      scale('divergence', '0', cividisGradient(), String(scales.jsd),
        'Jensen–Shannon divergence of the two gates in bits, averaged over routers: 0 the same experts, 1 no expert in common.'),
    ];
  }

  return function draw(state, paper) {
    const signature = JSON.stringify([state.comparison.id, state.measure, state.projection, state.visible.length, paper]);
    if (signature === drawn) return;
    drawn = signature;
    node.replaceChildren(...content(state, paper));
  };
}
