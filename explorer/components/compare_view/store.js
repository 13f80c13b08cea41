// What is on screen and what is selected in both traces. Views read it and call its verbs.

function createCompareStore() {
  const state = {
    comparison: null,
    measure: 0, // TOP, ENTROPY, or the index of an expert
    projection: MEAN,
    showTemplate: false,
    cell: null, // the selected { layer, column }, or null
    peeked: null, // the cell under the pointer while nothing is locked
    locked: false,
    visible: [], // indices of the columns that are shown
    announce: false, // whether the last change is a selection that a screen reader shall hear
  };
  const listeners = [];
  let measureIsChosen = false;
  const redraw = oncePerFrame(() => listeners.forEach((listener) => listener(state)));

  function isShown(model, position) {
    const token = model.tokens[position];
    return token.role !== TEMPLATE && !token.special;
  }

  function findVisible() {
    const { comparison } = state;
    const indices = comparison.columns.map((_, index) => index);
    const shown = indices.filter((index) => {
      const { a, b } = comparison.columns[index];
      return state.showTemplate
        || a.some((position) => isShown(comparison.a, position)) || b.some((position) => isShown(comparison.b, position));
    });
    state.visible = shown.length > 0 ? shown : indices;
  }

  // A comparison opens at the column where the two differ most; words first, since they are read most easily.
  function mostDifferent() {
    const { comparison, visible, projection } = state;
    const pairs = visible.filter((column) => comparison.columns[column].a.length && comparison.columns[column].b.length);
    const words = pairs.filter((column) => /\p{L}{3}/u.test(wordsOf(comparison.a, comparison.columns[column].a)));
    const candidates = [words, pairs, visible].find((list) => list.length > 0);
    const values = candidates.map((column) => meanOf(cellsOf(comparison, column, projection).map((cell) => cell.jsd)) || 0);
    const column = candidates[values.indexOf(Math.max(...values))];
    const layers = cellsOf(comparison, column, projection).map((cell) => cell.jsd || 0);
    return { layer: layers.indexOf(Math.max(...layers)), column };
  }

  // The expert whose load differs most says most.
  function mostChangedExpert() {
    const { comparison } = state;
    const [a, b] = [comparison.a, comparison.b].map((model) => loadOfTokens(model, ownTokens(model), MEAN).load);
    const changes = a.map((value, expert) => Math.abs(b[expert] - value));
    return changes.indexOf(Math.max(...changes));
  }

  function load(comparison) {
    const former = state.comparison;
    state.comparison = comparison;
    state.announce = false;
    if (!comparison) { state.cell = null; redraw(); return; }
    const isSameText = former && former.columns.length === comparison.columns.length && former.a.run === comparison.a.run;
    if (state.projection >= comparison.projections.length) state.projection = MEAN;
    if (typeof state.measure === 'number' && state.measure >= comparison.experts.length) measureIsChosen = false;
    findVisible();
    if (!isSameText) {
      state.locked = false;
      state.peeked = null;
      if (!measureIsChosen) state.measure = mostChangedExpert();
    }
    if (!isSameText || !state.cell || !state.visible.includes(state.cell.column)) state.cell = mostDifferent();
    redraw();
  }

  function select(cell, lock) {
    state.cell = cell;
    state.peeked = null;
    state.locked = lock;
    state.announce = true;
    redraw();
  }

  function change(changes) {
    Object.assign(state, changes, { announce: false });
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
      const again = state.locked && state.cell && cell.layer === state.cell.layer && cell.column === state.cell.column;
      select(cell, !again);
    },
    unlock: () => change({ locked: false }),
    peek: (cell) => {
      const { peeked, locked } = state;
      const isSame = cell && peeked && cell.layer === peeked.layer && cell.column === peeked.column;
      if (!locked && !isSame && (cell || peeked)) change({ peeked: cell });
    },
    setMeasure: (measure) => { measureIsChosen = true; change({ measure }); },
    setProjection: (projection) => change({ projection }),
    toggleTemplate: () => {
      state.showTemplate = !state.showTemplate;
      findVisible();
      if (!state.visible.includes(state.cell.column)) state.cell = mostDifferent();
      change({ peeked: null });
    },
    moveBy: (layers, columns) => {
      if (!state.comparison || !state.cell) return;
      const place = state.visible.indexOf(state.cell.column) + columns;
      const layer = Math.min(Math.max(state.cell.layer + layers, 0), state.comparison.layers.length - 1);
      select({ layer, column: state.visible[Math.min(Math.max(place, 0), state.visible.length - 1)] }, state.locked);
    },
  };
}
