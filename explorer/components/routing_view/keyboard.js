// Keys. Those of the grid work while it has the focus, the others anywhere except in a text field.

const KEYS = [
  ['← → ↑ ↓', 'move the cell, in the map or in the text'],
  ['Shift ← →', 'brush a span of tokens; the card shows its mean'],
  ['Home End', 'first and last token'],
  ['[ ]', 'layer before and after'],
  ['1 … 9', 'show the gate of one expert'],
  ['0', 'show the top expert'],
  ['e', 'entropy'],
  ['g', 'gate or effect'],
  ['p', 'next projection, then the mean'],
  ['w', 'tokens, words, sentences'],
  ['t', 'template tokens'],
  ['Enter', 'lock the cell'],
  ['Esc', 'unlock, end the span'],
  ['c', 'pin this view for Compare'],
  ['/', 'go to the prompt'],
  ['?', 'show these keys'],
];

function createKeyboard(root, store) {
  const frame = root.querySelector('.map-frame');
  const help = root.querySelector('.help');

  function buildHelp() {
    const list = make('dl');
    KEYS.forEach(([key, meaning]) => list.append(make('dt', '', key), make('dd', '', meaning)));
    const close = make('button', 'choice', 'Close');
    close.type = 'button';
    close.addEventListener('click', () => help.close());
    help.replaceChildren(make('h2', '', 'Keys'), list, close);
  }

  const lastPlace = () => store.state.visible.length;
  const gridKeys = {
    ArrowLeft: () => store.moveBy(0, -1),
    ArrowRight: () => store.moveBy(0, 1),
    ArrowUp: () => store.moveBy(-1, 0),
    ArrowDown: () => store.moveBy(1, 0),
    Home: () => store.moveBy(0, -lastPlace()),
    End: () => store.moveBy(0, lastPlace()),
    Enter: () => { if (store.state.cell && !store.state.locked) store.lock(store.state.cell); },
    ' ': () => { if (store.state.cell) store.lock(store.state.cell); },
  };

  function chooseExpert(number) {
    if (store.state.model && number <= store.state.model.experts.length) store.change({ measure: number - 1 });
  }

  function nextProjection() {
    const { model, projection } = store.state;
    if (model) store.change({ projection: projection + 1 < model.projections.length ? projection + 1 : MEAN });
  }

  function nextUnit() {
    const names = UNITS.map(([unit]) => unit);
    store.change({ unit: names[(names.indexOf(store.state.unit) + 1) % names.length] });
  }

  function pin() {
    if (!store.state.model) return;
    document.querySelector('#pin button, button#pin')?.click();
  }

  const pageKeys = {
    '[': () => store.moveBy(-1, 0),
    ']': () => store.moveBy(1, 0),
    Escape: () => { if (store.state.locked || store.state.spanStart !== null) store.unlock(); },
    0: () => store.change({ measure: TOP }),
    e: () => store.change({ measure: ENTROPY }),
    g: () => { if (store.state.model?.hasShares) store.change({ effect: !store.state.effect }); },
    p: nextProjection,
    w: nextUnit,
    t: () => store.change({ template: !store.state.template }),
    c: pin,
    '/': () => document.querySelector('#prompt textarea')?.focus(),
    '?': () => { if (!help.open) help.showModal(); },
  };

  function isTyping(target) {
    return Boolean(target.closest && target.closest('input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable="true"]'));
  }

  const brushKeys = { ArrowLeft: () => store.brushBy(-1), ArrowRight: () => store.brushBy(1) };

  function handle(keys, event) {
    const action = keys[event.key] || (keys === pageKeys && /^[1-9]$/.test(event.key) && (() => chooseExpert(Number(event.key))));
    if (!action) return;
    action();
    // Esc must keep closing dialogs and menus.
    if (event.key !== 'Escape') event.preventDefault();
  }

  function onPage(event) {
    if (!root.isConnected) { document.removeEventListener('keydown', onPage); return; }
    // A room that is not open takes no keys.
    if (root.offsetParent === null || help.open || document.querySelector('dialog[open]')) return;
    if (event.ctrlKey || event.metaKey || event.altKey || isTyping(event.target)) return;
    handle(pageKeys, event);
  }

  // In the text only the keys of its one direction: up and down scroll it.
  const { ArrowUp: up, ArrowDown: down, ...laneKeys } = gridKeys;
  root.querySelector('.lane-text').addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    handle(event.shiftKey && brushKeys[event.key] ? brushKeys : laneKeys, event);
  });
  buildHelp();
  frame.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    handle(event.shiftKey && brushKeys[event.key] ? brushKeys : gridKeys, event);
  });
  document.addEventListener('keydown', onPage);
}
