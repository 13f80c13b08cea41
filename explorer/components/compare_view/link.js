// The address of the view: the room's own part comes with its value, how it is looked at is added here.

function createCompareLink(root, store, room) {
  let query = '';
  let timer = null;
  let wanted = readWanted();

  // What the address asks for when the page opens; it is used once, by the first comparison.
  function readWanted() {
    const params = new URLSearchParams(window.location.search);
    return params.get('room') === room ? params : null;
  }

  function apply() {
    const { comparison } = store.state;
    if (!wanted || !comparison) return;
    const params = wanted;
    wanted = null;
    const expert = comparison.experts.findIndex(({ name }) => name === params.get('m'));
    if (expert >= 0) store.setMeasure(expert);
    else if ([TOP, ENTROPY].includes(params.get('m'))) store.setMeasure(params.get('m'));
    const projection = comparison.projections.findIndex((_, index) => shortProjection(comparison, index) === params.get('q'));
    if (projection >= 0) store.setProjection(projection);
    if (params.get('tpl') === '1') store.toggleTemplate();
    const layer = comparison.layers.indexOf(Number(params.get('cl') || NaN));
    const column = Number(params.get('cc') || NaN);
    if (layer < 0 || !store.state.visible.includes(column)) return;
    if (params.get('lk') === '1') store.lock({ layer, column });
    else store.select({ layer, column });
  }

  function viewPart({ comparison, measure, projection, showTemplate, cell, locked }) {
    if (!comparison) return {};
    return {
      m: typeof measure === 'number' ? comparison.experts[measure].name : measure,
      q: projection === MEAN ? '' : shortProjection(comparison, projection),
      tpl: showTemplate ? '1' : '',
      cl: cell ? String(comparison.layers[cell.layer]) : '',
      cc: cell ? String(cell.column) : '',
      lk: locked ? '1' : '',
    };
  }

  function write() {
    clearTimeout(timer);
    timer = null;
    if (!query || root.offsetParent === null) return;
    const url = new URL(window.location);
    const kept = [...url.searchParams].filter(([name]) => name.startsWith('__') || name === 'hide');
    const view = Object.entries(viewPart(store.state)).filter(([, value]) => value !== '');
    url.search = new URLSearchParams([...kept, ...new URLSearchParams(query), ...view]).toString();
    if (url.href !== window.location.href) window.history.replaceState(window.history.state, '', url);
  }

  function writeSoon() {
    if (timer === null) timer = setTimeout(write, 250);
  }

  document.addEventListener('loramixer:flush-link', () => { if (root.isConnected) write(); });
  // Opening the room makes its address the address of the page.
  new ResizeObserver(() => { if (root.offsetParent !== null) writeSoon(); }).observe(root);
  store.onChange(writeSoon);

  return function load(value) {
    if (value && value.query) query = value.query;
    root.dataset.prompt = (value && value.prompt) || '';
    root.dataset.promptNote = (value && value.prompt_note) || '';
    apply();
    writeSoon();
  };
}
