// Puts the plane, the card and the table together. `element`, `props`, `watch` and `trigger` are given by gr.HTML.

const root = element.querySelector('.plane-view');
const plane = root.querySelector('.plane');
const svg = plane.querySelector('svg');
const options = root.querySelector('.options');
const view = { chosen: null, active: null, close: false, paths: true, seeds: true, bands: true, moving: null };
const LAYERS = [['paths', 'p', 'Training paths'], ['seeds', 's', 'Single seeds'], ['bands', 'b', 'Shuffled-token boxes']];
const REACH = 14; // pixels around a point
let model = { routers: [], paths: [] };
let version = null;
let place = null;

function ask(event, detail) {
  if (event === 'open_router') trigger('open_router', detail);
  else if (event === 'pin_router') trigger('pin_router', detail);
  else trigger('change_view', detail);
}

function tellView() {
  ask('change_view', { router: view.chosen || '', close: view.close, hidden: LAYERS.filter(([name]) => !view[name]).map(([, letter]) => letter).join('') });
}

const find = (key) => model.routers.find((router) => router.key === key);
const drawCard = createRouterCard(root, ask);
const drawTable = createTable(root, (key) => choose(key));

function redraw(announce) {
  if (plane.clientWidth === 0) return;
  place = drawPlane(svg, root, plane.clientWidth, model, view);
  drawCard(find(view.chosen) || find(view.active), announce);
  drawTable(model.routers, view.chosen);
  options.querySelectorAll('[role=option]').forEach((option) => {
    option.setAttribute('aria-selected', String(option.dataset.key === view.chosen));
    if (option.dataset.key === view.active) plane.setAttribute('aria-activedescendant', option.id);
  });
}

function choose(key) {
  view.chosen = view.chosen === key ? null : key;
  view.active = key;
  redraw(true);
  tellView();
}

function buildSwitches() {
  const box = root.querySelector('.choices');
  const button = (text, isOn, act) => {
    const node = make('button', 'choice', text);
    node.type = 'button';
    const show = () => node.setAttribute('aria-pressed', String(isOn()));
    node.addEventListener('click', () => { act(); redraw(); tellView(); box.querySelectorAll('button').forEach((other) => other.dispatchEvent(new Event('show'))); });
    node.addEventListener('show', show);
    show();
    box.append(node);
  };
  box.replaceChildren();
  button('Whole plane', () => !view.close, () => { view.close = false; });
  button('Close up', () => view.close, () => { view.close = true; });
  LAYERS.forEach(([name, , text]) => button(text, () => view[name], () => { view[name] = !view[name]; }));
}

function buildOptions() {
  options.replaceChildren(...model.routers.map((router, index) => {
    const node = make('div', '', sentenceOfRouter(router));
    node.id = `${plane.id || 'router'}-${index}-${router.key.replace(/\W/g, '_')}`;
    node.dataset.key = router.key;
    node.setAttribute('role', 'option');
    node.setAttribute('aria-selected', 'false');
    return node;
  }));
}

function buildSaving() {
  const rows = () => [
    ['router', 'undecided', 'undecided_low', 'undecided_high', 'balanced', 'balanced_low', 'balanced_high', 'specialised', 'test_loss', 'test_loss_low', 'test_loss_high', 'seeds', 'what'],
    ...model.routers.map((router) => [router.title, router.x, ...(router.xEnds || ['', '']), router.y, ...(router.yEnds || ['', '']), router.y - router.x,
      ...(router.loss ? [router.loss.value, ...(router.loss.ends || ['', ''])] : ['', '', '']), router.seeds, router.facts]),
  ];
  root.querySelector('.saving').replaceChildren(
    saveButton('Save SVG', () => saveBlob(new Blob([pictureText(svg, root)], { type: 'image/svg+xml' }), 'plane.svg')),
    saveButton('Save PNG', () => savePng(svg, root, 'plane.png')),
    saveButton('Save CSV', () => saveBlob(new Blob([csvText(rows())], { type: 'text/csv' }), 'plane.csv')),
    ...(model.python ? [pythonBlock(model.python)] : []),
  );
}

// The next router in a direction: sideways by x, up and down by y.
function walk(axis, step) {
  const ordered = [...model.routers].sort((a, b) => a[axis] - b[axis]);
  if (!ordered.length) return;
  const place = ordered.findIndex(({ key }) => key === (view.active || view.chosen));
  const next = place < 0 ? 0 : Math.min(Math.max(place + step, 0), ordered.length - 1);
  view.active = ordered[next].key;
  const moves = Boolean(view.chosen) && view.chosen !== view.active;
  if (moves) view.chosen = view.active;
  redraw(true);
  if (moves) tellView();
}

const KEY_ACTIONS = {
  ArrowLeft: () => walk('x', -1),
  ArrowRight: () => walk('x', 1),
  ArrowUp: () => walk('y', 1),
  ArrowDown: () => walk('y', -1),
  Enter: () => { if (view.active) choose(view.active); },
  ' ': () => { if (view.active) choose(view.active); },
  Escape: () => { view.chosen = null; redraw(true); tellView(); },
};

plane.addEventListener('keydown', (event) => {
  const act = KEY_ACTIONS[event.key];
  if (!act || event.ctrlKey || event.metaKey || event.altKey) return;
  act();
  if (event.key !== 'Escape') event.preventDefault();
});
plane.addEventListener('focus', () => { if (!view.active && model.routers.length) walk('x', 0); });

// By distance and not by the node under the pointer: nodes are drawn anew, and points may lie on each other.
function routerAt(event) {
  if (!place) return null;
  const box = svg.getBoundingClientRect();
  const [x, y] = [event.clientX - box.left, event.clientY - box.top];
  const near = model.routers.map((router) => ({ key: router.key, away: Math.hypot(place.x(router.x) - x, place.y(router.y) - y) }))
    .filter(({ away }) => away <= REACH).sort((a, b) => a.away - b.away);
  return near.length ? near[0].key : null;
}

plane.addEventListener('mousemove', (event) => {
  const key = routerAt(event);
  plane.style.cursor = key ? 'pointer' : '';
  if (key === view.active || (!key && document.activeElement === plane)) return;
  view.active = key;
  redraw();
});
plane.addEventListener('mouseleave', () => { if (document.activeElement !== plane) { view.active = null; redraw(); } });
plane.addEventListener('click', (event) => {
  const key = routerAt(event);
  if (key) choose(key);
});

// A replay beside the plane says where its fixed prompt is at this step; an empty trail takes the point away.
function onReplay(event) {
  if (!root.isConnected) { document.removeEventListener('loramixer:replay', onReplay); return; }
  if (plane.offsetParent === null) return; // it is for the room that is open
  view.moving = event.detail.trail.length ? event.detail : null;
  redraw();
}
document.addEventListener('loramixer:replay', onReplay);

function load() {
  const value = props.value || { routers: [], paths: [], notice: '' };
  model = value;
  root.dataset.empty = String(value.routers.length === 0);
  const notice = root.querySelector('.notice');
  notice.hidden = !value.notice;
  setText(notice, value.notice || '');
  setText(root.querySelector('.picture .caption'), value.caption || '');
  setText(root.querySelector('.numbers .caption'), value.tableCaption || '');
  if (value.view && value.version !== version) {
    version = value.version;
    view.chosen = value.view.router || null;
    view.close = Boolean(value.view.close);
    LAYERS.forEach(([name, letter]) => { view[name] = !(value.view.hidden || '').includes(letter); });
    buildSwitches();
  }
  if (view.chosen && !find(view.chosen)) view.chosen = null;
  if (view.active && !find(view.active)) view.active = null;
  buildOptions();
  buildSaving();
  redraw();
}

buildSwitches();
attachTips(root);
new ResizeObserver(() => redraw()).observe(plane);
new MutationObserver(() => redraw()).observe(document.body, { attributes: true, attributeFilter: ['class'] });
watch('value', load);
load();
