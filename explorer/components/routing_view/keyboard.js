// Keys. Those of the grid work while it has the focus, the others anywhere except in a text field.

const KEYS = [
  ['← → ↑ ↓', 'move the cell on the map'],
  ['Home End', 'first and last token'],
  ['[ ]', 'layer before and after'],
  ['1 … 9', 'show the gate of one expert'],
  ['0', 'show the top expert'],
  ['Enter', 'lock the cell'],
  ['Esc', 'unlock'],
  ['c', 'pin this trace for Compare'],
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
    if (store.state.model && number <= store.state.model.experts.length) store.setMeasure(number - 1);
  }

  const pageKeys = {
    '[': () => store.moveBy(-1, 0),
    ']': () => store.moveBy(1, 0),
    Escape: () => store.unlock(),
    0: () => store.setMeasure(TOP),
    c: () => document.querySelector('#pin')?.click(),
    '/': () => document.querySelector('#prompt textarea')?.focus(),
    '?': () => { if (!help.open) help.showModal(); },
  };

  function isTyping(target) {
    return Boolean(target.closest && target.closest('input, textarea, select, [contenteditable="true"]'));
  }

  function handle(keys, event) {
    const action = keys[event.key] || (keys === pageKeys && /^[1-9]$/.test(event.key) && (() => chooseExpert(Number(event.key))));
    if (!action) return;
    action();
    // Esc must keep closing dialogs and menus.
    if (event.key !== 'Escape') event.preventDefault();
  }

  function onPage(event) {
    if (!root.isConnected) { document.removeEventListener('keydown', onPage); return; }
    if (root.offsetParent === null || event.ctrlKey || event.metaKey || event.altKey || help.open || isTyping(event.target)) return;
    handle(pageKeys, event);
  }

  buildHelp();
  frame.addEventListener('keydown', (event) => {
    if (!event.ctrlKey && !event.metaKey && !event.altKey) handle(gridKeys, event);
  });
  document.addEventListener('keydown', onPage);
}
