// What is on screen and what is selected. Views read it and call its verbs; it redraws all views together.

const TOP = 'top';
const ENTROPY = 'entropy';

function createStore() {
  const state = {
    model: null,
    run: null,
    measure: TOP, // TOP, ENTROPY, or the index of an expert
    projection: MEAN,
    showTemplate: false,
    cell: null, // the selected { layer, token }, or null
    peeked: null, // the cell under the pointer while nothing is locked
    locked: false,
    followsNewest: true, // until somebody selects a cell
    visible: [], // indices of the tokens that are shown
    announce: false, // whether the last change is a selection that a screen reader shall hear
  };
  const listeners = [];
  let scheduled = false;

  function redraw() {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      listeners.forEach((listener) => listener(state));
    });
  }

  function isShown(token) {
    return state.showTemplate || (token.role !== TEMPLATE && !token.special);
  }

  function findVisible() {
    const indices = state.model.tokens.map((_, index) => index);
    const shown = indices.filter((index) => isShown(state.model.tokens[index]));
    state.visible = shown.length > 0 ? shown : indices;
  }

  function keptLayer() {
    const { layers } = state.model;
    return state.cell ? Math.min(state.cell.layer, layers.length - 1) : Math.floor(layers.length / 2);
  }

  // A trace that is whole opens at its most decided word: there the routing is easiest to read.
  function mostDecided() {
    const words = state.visible.filter((token) => /\p{L}{3}/u.test(state.model.tokens[token].text));
    const candidates = words.length > 0 ? words : state.visible;
    const margins = candidates.map((token) => ranking(meanGates(state.model, token, MEAN)).margin);
    return candidates[margins.indexOf(Math.max(...margins))];
  }

  function keepCellValid() {
    const isKnown = state.cell && state.visible.includes(state.cell.token);
    const isFollowing = state.followsNewest && state.model.state === 'generating';
    if (isKnown && !isFollowing) return;
    const token = isFollowing ? state.visible[state.visible.length - 1] : mostDecided();
    state.cell = { layer: keptLayer(), token };
  }

  // Another text: what was selected in the old one means nothing here, except for the layer.
  function startRun(model) {
    state.run = model.run;
    state.locked = false;
    state.peeked = null;
    state.followsNewest = true;
    if (state.cell) state.cell = { layer: state.cell.layer, token: -1 };
    if (state.projection >= model.projections.length) state.projection = MEAN;
    if (typeof state.measure === 'number' && state.measure >= model.experts.length) state.measure = TOP;
  }

  function load(model) {
    state.model = model;
    state.announce = false;
    if (!model) { state.cell = null; redraw(); return; }
    if (state.run !== model.run) startRun(model);
    findVisible();
    keepCellValid();
    redraw();
  }

  function select(cell, lock) {
    state.cell = cell;
    state.peeked = null;
    state.locked = lock;
    state.followsNewest = false;
    state.announce = true;
    redraw();
  }

  return {
    state,
    load,
    redraw,
    onChange: (listener) => listeners.push(listener),
    // The cell that all views show: the one under the pointer, else the selected one.
    active: () => (state.locked ? state.cell : state.peeked || state.cell),
    select: (cell) => select(cell, state.locked),
    lock: (cell) => {
      const again = state.locked && state.cell && cell.layer === state.cell.layer && cell.token === state.cell.token;
      select(cell, !again);
    },
    unlock: () => { state.locked = false; state.announce = false; redraw(); },
    peek: (cell) => {
      if (state.locked) return;
      state.peeked = cell;
      state.announce = false;
      redraw();
    },
    setMeasure: (measure) => { state.measure = measure; state.announce = false; redraw(); },
    setProjection: (projection) => { state.projection = projection; state.announce = false; redraw(); },
    toggleTemplate: () => {
      state.showTemplate = !state.showTemplate;
      state.announce = false;
      findVisible();
      keepCellValid();
      redraw();
    },
    moveBy: (layers, tokens) => {
      if (!state.model || !state.cell) return;
      const place = state.visible.indexOf(state.cell.token) + tokens;
      const layer = Math.min(Math.max(state.cell.layer + layers, 0), state.model.layers.length - 1);
      const token = state.visible[Math.min(Math.max(place, 0), state.visible.length - 1)];
      select({ layer, token }, state.locked);
    },
  };
}

function projectionName(model, projection) {
  return model.projections[projection].replace(/_proj$/, '');
}

function projectionText(model, projection) {
  if (projection !== MEAN) return `${projectionName(model, projection)} projection`;
  const names = model.projections.map((_, index) => projectionName(model, index));
  return `mean of ${names.join(', ')}`;
}
