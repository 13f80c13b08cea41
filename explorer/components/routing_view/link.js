// The view in the address: the fields of explorer/view_link.py, read once and written whenever the view has changed.

const LINK_VERSION = '1';
const WRITE_AFTER = 250; // milliseconds; browsers refuse addresses that change too often

function readField({ kind, choices, low, high, default: fallback }, text) {
  if (text === null) return fallback;
  if (kind === 'flag') return text === '1';
  if (kind === 'int') {
    const value = Number.parseInt(text, 10);
    return Number.isInteger(value) && value >= low && value <= high ? value : fallback;
  }
  return choices.length > 0 && !choices.includes(text) ? fallback : text;
}

function createLink(root, store, fields) {
  const asked = new URLSearchParams(window.location.search);
  const isOurs = ['explore', null].includes(asked.get('room'));
  let timer = null;

  function read() {
    if (!isOurs) return;
    const values = Object.fromEntries(fields.map((field) => [field.name, readField(field, asked.get(field.key))]));
    const { template, phase, unit, how, scale } = values;
    Object.assign(store.state, { template, phase, unit, how, scale, open: new Set(values.open.split(',').filter(Boolean)) });
    // Which text the cell is of: it means nothing in another one.
    const text = { example: asked.get('x') || '', prompt: asked.get('p') || '', isRun: asked.has('r') };
    store.want({ ...values, text });
  }

  function valuesOf(state) {
    const { model, measure, projection, range, cell, locked } = state;
    const isWhole = range[0] === 0 && range[1] === model.layers.length - 1;
    // While it follows the newest token it is at another one a moment later.
    const isChosen = Boolean(cell) && !(state.followsNewest && model.state === 'generating');
    return {
      measure: typeof measure === 'number' ? model.experts[measure].name : measure,
      effect: state.effect,
      projection: projection === MEAN ? 'mean' : model.projections[projection],
      template: state.template,
      phase: state.phase,
      unit: state.unit,
      how: state.how,
      layers: isWhole ? '' : range.map((index) => model.layers[index]).join('-'),
      scale: state.scale,
      layer: isChosen ? model.layers[cell.layer] : -1,
      token: isChosen ? cell.token : -1,
      span_start: isChosen && state.spanStart !== null ? state.spanStart : -1,
      locked,
      open: [...state.open].join(),
    };
  }

  function query() {
    const { state } = store;
    const pairs = [['v', LINK_VERSION], ['room', 'explore']];
    if (!state.model) return pairs;
    const { request } = state.model;
    Object.entries(request.link || {}).forEach(([key, value]) => pairs.push([key, value]));
    const values = valuesOf(state);
    fields.forEach(({ key, name, default: fallback }) => {
      const value = values[name];
      if (value !== fallback) pairs.push([key, value === true ? '1' : String(value)]);
    });
    return pairs;
  }

  function write() {
    clearTimeout(timer);
    timer = null;
    if (!root.isConnected || root.offsetParent === null) return;
    const url = new URL(window.location);
    const kept = [...url.searchParams].filter(([name]) => name.startsWith('__') || name === 'hide');
    url.search = new URLSearchParams([...kept, ...query()]).toString();
    if (url.href === window.location.href) return; // another room may have written its own in between
    window.history.replaceState(window.history.state, '', url);
  }

  function flush() {
    if (!root.isConnected) { document.removeEventListener('loramixer:flush-link', flush); return; }
    write();
  }

  let isOpen = true;
  new ResizeObserver(() => {
    const wasOpen = isOpen;
    isOpen = root.offsetParent !== null;
    // Explore is on screen for a moment when the page opens, also in another room; that must not change the address.
    if (isOpen && !wasOpen) write();
  }).observe(root);
  document.addEventListener('loramixer:flush-link', flush);
  read();

  return function follow(state) {
    root.dataset.prompt = state.model ? state.model.request.prompt || '' : '';
    if (!state.touched || timer !== null) return;
    timer = setTimeout(write, WRITE_AFTER);
  };
}
