// What is on screen and what is selected. Views read it and call its verbs; it redraws all views together.

const TOP = 'top';
const ENTROPY = 'entropy';

function createStore() {
  const state = {
    model: null,
    run: null,
    measure: TOP, // TOP, ENTROPY, or the index of an expert
    effect: false, // whether measures speak of what experts added instead of their gates
    projection: MEAN,
    template: false, // whether template and special tokens are shown
    phase: 'both', // both, prefill or generation
    unit: 'subword', // subword, word or sentence
    how: 'mean', // how the tokens of a word become one: mean, max or first
    range: [0, 0], // indices of the first and last layer that are shown
    scale: 'shared', // shared, or layer for each layer's own
    cell: null, // the selected { layer, token }, both indices, or null
    spanStart: null, // the token at the other end of a brushed span, or null
    peeked: null, // the cell under the pointer while nothing is locked
    locked: false,
    followsNewest: true, // until somebody selects a cell
    visible: [], // indices of the tokens that are shown
    columns: [], // what the map draws: tokens, words or sentences of visible tokens
    columnOf: [], // index of the column of each token; -1 where it is not shown
    open: new Set(), // keys of the sections that are open
    announce: false, // whether the last change is a selection that a screen reader shall hear
    version: 0, // counts changes of what is drawn, selections aside
    touched: false, // whether the visitor has changed anything
  };
  const listeners = [];
  const made = new Map(); // columns by unit, how and tokens
  let wanted = null; // what a link asks for, until a trace arrives that has it
  const redraw = oncePerFrame(() => listeners.forEach((listener) => listener(state)));

  function isShown(token) {
    if (state.phase === 'prefill' && token.role === GENERATED) return false;
    if (state.phase === 'generation' && token.role !== GENERATED) return false;
    return state.template || (token.role !== TEMPLATE && !token.special);
  }

  function makeColumn(tokens) {
    const key = [state.unit, state.how, tokens[0], tokens.length].join('/');
    const { model } = state;
    const texts = tokens.map((index) => model.tokens[index]);
    // A character of several tokens is corrected once it is whole.
    const known = made.get(key);
    if (!known || known.texts.some((token, place) => token !== texts[place])) {
      const whole = texts.filter((token) => token.part === token.parts).map((token) => token.text).join('');
      const text = tokens.length > 1 && whole.trim() ? whole : texts[0].text;
      const joined = joinColumns(tokens.map((index) => model.columns[index]), state.how);
      made.set(key, { ...joined, ...texts[0], text, texts, tokens, parts: tokens.length > 1 ? 1 : texts[0].parts });
    }
    return made.get(key);
  }

  // Tokens of a word that are shown; a token that is not ends no word.
  function findColumns() {
    const { model } = state;
    const indices = model.tokens.map((_, index) => index);
    const shown = indices.filter((index) => isShown(model.tokens[index]));
    state.visible = shown.length > 0 ? shown : indices;
    const groups = [];
    let last = null;
    state.visible.forEach((index) => {
      const number = state.unit === 'subword' ? index : model.tokens[index][state.unit];
      if (number === last) groups[groups.length - 1].push(index);
      else groups.push([index]);
      last = number;
    });
    state.columns = groups.map(makeColumn);
    state.columnOf = new Array(model.tokens.length).fill(-1);
    state.columns.forEach(({ tokens }, column) => tokens.forEach((token) => { state.columnOf[token] = column; }));
    if (!isInColumns(state.spanStart)) state.spanStart = null;
    if (state.peeked && !isInColumns(state.peeked.token)) state.peeked = null;
    state.version += 1;
  }

  // A token that is not shown stands in no column, and no view can draw it.
  function isInColumns(token) {
    return state.columnOf[token] >= 0;
  }

  const meanOf = (column) => meanGates(state.model, column, MEAN, [0, state.model.layers.length - 1]);

  // A trace that is whole opens at its most decided word: there the routing is easiest to read.
  function mostDecided() {
    const words = state.columns.filter((column) => /\p{L}{3}/u.test(column.text));
    const candidates = words.length > 0 ? words : state.columns;
    const margins = candidates.map((column) => leader(meanOf(column)).margin);
    return candidates[margins.indexOf(Math.max(...margins))].tokens[0];
  }

  function clampLayer(layer) {
    return Math.min(Math.max(layer, state.range[0]), state.range[1]);
  }

  function keepCellValid() {
    const isKnown = state.cell && isInColumns(state.cell.token);
    const isFollowing = state.followsNewest && state.model.state === 'generating';
    const layer = clampLayer(state.cell ? state.cell.layer : Math.floor(state.model.layers.length / 2));
    if (isKnown && !isFollowing) { state.cell = { layer, token: state.cell.token }; return; }
    const token = isFollowing ? state.visible[state.visible.length - 1] : mostDecided();
    state.cell = { layer, token };
    state.spanStart = null;
  }

  // Another text: what was selected in the old one means nothing here, except for the layer.
  function startRun(model) {
    const before = state.range;
    const isOther = !state.layers || state.layers !== model.layers.join();
    state.layers = model.layers.join();
    state.range = isOther ? [0, model.layers.length - 1] : before;
    state.run = model.run;
    made.clear();
    state.locked = false;
    state.peeked = null;
    state.spanStart = null;
    state.followsNewest = true;
    if (state.cell) state.cell = { layer: Math.min(state.cell.layer, model.layers.length - 1), token: -1 };
    if (state.projection >= model.projections.length) state.projection = MEAN;
    if (typeof state.measure === 'number' && state.measure >= model.experts.length) state.measure = TOP;
    if (!model.hasShares) state.effect = false;
  }

  function load(model) {
    state.model = model;
    state.announce = false;
    if (!model) { state.cell = null; state.version += 1; redraw(); return; }
    if (state.run !== model.run) {
      // The page opens with one run, and a link may bring its own; whatever comes then is the visitor's.
      const isOfLink = wanted && (wanted.text.example || wanted.text.prompt) && isTextOfLink(model);
      if (state.run !== null && !isOfLink) touch();
      startRun(model);
    }
    if (wanted) applyWanted(model);
    findColumns();
    keepCellValid();
    if (wanted) applyWantedCell(model);
    redraw();
  }

  // The names of a link, found in a trace; what the trace has not got keeps its value.
  function applyWanted(model) {
    const expert = model.experts.findIndex(({ name }) => name === wanted.measure);
    if (expert >= 0) state.measure = expert;
    else if (wanted.measure === ENTROPY) state.measure = ENTROPY;
    const projection = model.projections.indexOf(wanted.projection);
    if (projection >= 0) state.projection = projection;
    state.effect = wanted.effect && model.hasShares;
    const ends = (wanted.layers || '').split('-').map((name) => model.layers.indexOf(Number(name)));
    if (ends.length === 2 && ends[0] >= 0 && ends[1] >= ends[0]) state.range = ends;
  }

  // A link of a run without its prompt is of no text that is here.
  function isTextOfLink({ request }) {
    const { example, prompt, isRun } = wanted.text;
    if (!example && !prompt) return !isRun;
    return (example && example === (request.link || {}).x) || (prompt && prompt === request.prompt);
  }

  function applyWantedCell(model) {
    if (!isTextOfLink(model)) return;
    const layer = model.layers.indexOf(wanted.layer);
    if (!isInColumns(wanted.token) || layer < 0) return;
    state.cell = { layer: clampLayer(layer), token: wanted.token };
    state.spanStart = isInColumns(wanted.span_start) ? wanted.span_start : null;
    state.locked = wanted.locked;
    state.followsNewest = false;
  }

  function touch() {
    state.touched = true;
    wanted = null;
  }

  function select(cell, lock, spanStart = null) {
    touch();
    state.cell = cell;
    state.spanStart = spanStart === cell.token ? null : spanStart;
    state.peeked = null;
    state.locked = lock;
    state.followsNewest = false;
    state.announce = true;
    redraw();
  }

  // A change of what is shown. Columns are found anew where the choice of tokens changes.
  function change(values) {
    touch();
    Object.assign(state, values);
    state.announce = false;
    state.peeked = null;
    state.version += 1;
    if (state.model) { findColumns(); keepCellValid(); }
    redraw();
  }

  function step(layers, columns) {
    const place = Math.min(Math.max(state.columnOf[state.cell.token] + columns, 0), state.columns.length - 1);
    return { layer: clampLayer(state.cell.layer + layers), token: columns === 0 ? state.cell.token : state.columns[place].tokens[0] };
  }

  return {
    state,
    load,
    redraw,
    change,
    onChange: (listener) => listeners.push(listener),
    want: (values) => { wanted = values; },
    // The cell that all views show: the one under the pointer, else the selected one.
    active: () => (state.locked ? state.cell : state.peeked || state.cell),
    select: (cell) => select(cell, state.locked),
    lock: (cell) => {
      const again = state.locked && state.cell && cell.layer === state.cell.layer && cell.token === state.cell.token;
      select(cell, !again);
    },
    unlock: () => { touch(); state.locked = false; state.spanStart = null; state.announce = false; redraw(); },
    peek: (cell) => {
      if (state.locked || state.spanStart !== null) return;
      state.peeked = cell && isInColumns(cell.token) ? cell : null;
      state.announce = false;
      redraw();
    },
    // The other end of the span stays where the brush began.
    brush: (cell) => select(cell, false, state.spanStart === null ? state.cell.token : state.spanStart),
    moveBy: (layers, columns) => { if (state.model && state.cell) select(step(layers, columns), state.locked); },
    brushBy: (columns) => {
      if (!state.model || !state.cell) return;
      select(step(0, columns), false, state.spanStart === null ? state.cell.token : state.spanStart);
    },
    toggleSection: (key, isOpen) => {
      if (state.open.has(key) === isOpen) return;
      touch();
      if (isOpen) state.open.add(key); else state.open.delete(key);
      redraw();
    },
  };
}

// What a cell stands for: its column, or the mean over the brushed span that ends in it.
function subjectOf(state, cell) {
  if (state.spanStart === null || cell !== state.cell) return state.columns[state.columnOf[cell.token]];
  const ends = [state.columnOf[state.spanStart], state.columnOf[cell.token]].sort((left, right) => left - right);
  const members = state.columns.slice(ends[0], ends[1] + 1);
  const tokens = members.flatMap((column) => column.tokens);
  const key = `span${tokens.join()}`;
  return remember(members[0], key, () => ({
    ...members[0],
    ...joinColumns(tokens.map((token) => state.model.columns[token]), 'mean'),
    tokens,
    text: members.map((column) => column.text).join(''),
    parts: 1,
    isSpan: true,
    cache: new Map(),
  }));
}

function projectionName(model, projection) {
  return model.projections[projection].replace(/_proj$/, '');
}

function projectionText(model, projection) {
  if (projection !== MEAN) return `${projectionName(model, projection)} projection`;
  if (model.projections.length === 1) return `${projectionName(model, 0)} projection`;
  const names = model.projections.map((_, index) => projectionName(model, index));
  return `mean of ${names.join(', ')}`;
}

function rangeText({ model, range }) {
  const [first, last] = range.map((index) => model.layers[index]);
  if (range[1] - range[0] + 1 === model.layers.length) return `${model.layers.length} layers`;
  return first === last ? `layer ${first}` : `layers ${first} to ${last}`;
}
