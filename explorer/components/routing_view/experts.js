// One small map for each expert, all on the same scale: where in the text and in the layers an expert is used.

const SMALL = { height: 3, least: 190 };

function createExperts(root, store) {
  let maps = [];
  let built = '';

  function build(state, body) {
    const signature = JSON.stringify(state.model.experts);
    if (built === signature) return;
    built = signature;
    const grid = make('div', 'small-maps');
    maps = state.model.experts.map((expert, index) => {
      const figure = make('figure', 'small-map');
      const head = make('figcaption');
      const mean = explained('span', 'number', '', '');
      head.append(badge(expert), expertName(expert), mean);
      const frame = make('div', 'small-frame');
      const canvas = make('canvas');
      canvas.setAttribute('role', 'img');
      const mark = make('span', 'small-mark');
      frame.append(canvas, mark);
      figure.append(head, frame);
      grid.append(figure);
      attach(frame, index);
      return { canvas, mark, mean, frame };
    });
    const note = make('p', 'caption');
    const bar = make('span', 'colour-bar');
    bar.style.background = cividisGradient();
    const [least, most] = [make('span', '', ''), make('span', '', '')];
    const legend = make('div', 'legend');
    legend.append(least, bar, most);
    body.replaceChildren(legend, grid, note);
    maps.legend = { least, most, note };
  }

  function cellUnder(event, frame) {
    const { state } = store;
    const box = frame.getBoundingClientRect();
    const place = Math.floor(((event.clientX - box.left) / box.width) * state.columns.length);
    const layers = state.range[1] - state.range[0] + 1;
    const layer = state.range[0] + Math.floor(((event.clientY - box.top) / box.height) * layers);
    if (place < 0 || place >= state.columns.length || layer < state.range[0] || layer > state.range[1]) return null;
    return { layer, token: state.columns[place].tokens[0] };
  }

  function attach(frame, expert) {
    frame.addEventListener('mousemove', (event) => store.peek(cellUnder(event, frame)));
    frame.addEventListener('mouseleave', () => store.peek(null));
    frame.addEventListener('click', (event) => {
      const cell = cellUnder(event, frame);
      if (cell) store.lock(cell);
    });
    frame.addEventListener('dblclick', () => store.change({ measure: expert }));
  }

  // One pixel a cell, enlarged by the style of the canvas.
  function paint(state, { canvas }, expert) {
    const layers = state.range[1] - state.range[0] + 1;
    [canvas.width, canvas.height] = [state.columns.length, layers];
    const context = canvas.getContext('2d');
    const image = context.createImageData(canvas.width, canvas.height);
    const painter = createPainter(state, expert, [0, 0, 0]);
    state.columns.forEach((column, place) => {
      for (let layer = 0; layer < layers; layer += 1) {
        const { fill } = painter(column, layer + state.range[0]);
        image.data.set([...fill, 255], 4 * (layer * canvas.width + place));
      }
    });
    context.putImageData(image, 0, 0);
    canvas.style.height = `${Math.max(layers * SMALL.height, 24)}px`;
  }

  function drawNumbers(state) {
    const { model, projection, range, columns, effect } = state;
    const what = effect ? 'effect' : 'gate';
    maps.forEach(({ canvas, mean }, expert) => {
      const values = columns.map((column) => (effect ? meanShares : meanGates)(model, column, projection, range)[expert]);
      const average = values.reduce((sum, value) => sum + value, 0) / values.length;
      const text = effect ? percent(average) : fixed(average);
      setText(mean, text);
      mean.dataset.tip = `Mean ${what} of ${model.experts[expert].name} over all cells that are shown: ${text}.`;
      canvas.setAttribute('aria-label', `${model.experts[expert].name}: ${what} by layer and token, mean ${text}; the table has all numbers`);
    });
    const largest = effect ? percent(largestShown(state, 0)) : '1';
    const own = state.scale === 'layer';
    setText(maps.legend.least, own ? `${what} least of the layer` : `${what} 0`);
    setText(maps.legend.most, own ? 'largest of the layer' : largest);
    setText(maps.legend.note, `Columns are the ${UNITS.find(([unit]) => unit === state.unit)[1]} of the map above, rows its layers. `
      + `${own ? 'Each layer has its own scale.' : 'One scale for all experts.'} Click a cell to lock it, double-click to see that expert in the map above.`);
  }

  return createSection(root, store, 'experts', (state, body, active, isNew) => {
    build(state, body);
    if (isNew) {
      maps.forEach((map, expert) => paint(state, map, expert));
      drawNumbers(state);
    }
    const layers = state.range[1] - state.range[0] + 1;
    const place = active ? state.columnOf[active.token] : -1;
    maps.forEach(({ mark }) => {
      mark.hidden = place < 0;
      if (place < 0) return;
      mark.style.left = `${(100 * place) / state.columns.length}%`;
      mark.style.width = `${100 / state.columns.length}%`;
      mark.style.top = `${(100 * (active.layer - state.range[0])) / layers}%`;
      mark.style.height = `${100 / layers}%`;
    });
  });
}
