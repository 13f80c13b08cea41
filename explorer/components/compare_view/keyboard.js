// Keys. Those of the grid work while it has the focus, the others anywhere in this room except in a text field.

const COMPARE_KEYS = [
  ['← → ↑ ↓', 'move the cell on the maps'],
  ['Home End', 'first and last token'],
  ['[ ]', 'layer before and after'],
  ['1 … 9', 'show the gate of one expert'],
  ['0', 'show the top expert'],
  ['e', 'show the entropy'],
  ['Enter', 'lock the cell'],
  ['Esc', 'unlock'],
  ['?', 'show these keys'],
];

function createCompareKeyboard(root, store) {
  const frame = root.querySelector('.map-frame');
  const help = root.querySelector('.help');
  const far = () => store.state.visible.length;

  const gridKeys = {
    ArrowLeft: () => store.moveBy(0, -1),
    ArrowRight: () => store.moveBy(0, 1),
    ArrowUp: () => store.moveBy(-1, 0),
    ArrowDown: () => store.moveBy(1, 0),
    Home: () => store.moveBy(0, -far()),
    End: () => store.moveBy(0, far()),
    Enter: () => { if (store.state.cell && !store.state.locked) store.lock(store.state.cell); },
    ' ': () => { if (store.state.cell) store.lock(store.state.cell); },
  };
  const roomKeys = {
    '[': () => store.moveBy(-1, 0),
    ']': () => store.moveBy(1, 0),
    Escape: () => store.unlock(),
    0: () => store.setMeasure(TOP),
    e: () => store.setMeasure(ENTROPY),
    '?': () => { if (!help.open) help.showModal(); },
  };

  function chooseExpert(key) {
    const { comparison } = store.state;
    if (comparison && Number(key) <= comparison.experts.length) store.setMeasure(Number(key) - 1);
  }

  function isTyping(target) {
    return Boolean(target.closest && target.closest('input, textarea, select, [contenteditable="true"]'));
  }

  function onPage(event) {
    if (!root.isConnected) { document.removeEventListener('keydown', onPage); return; }
    if (root.offsetParent === null || event.defaultPrevented || help.open || isTyping(event.target)) return;
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    const action = roomKeys[event.key] || (/^[1-9]$/.test(event.key) ? () => chooseExpert(event.key) : null);
    if (!action || !store.state.comparison) return;
    action();
    // Esc must keep closing dialogs and menus.
    if (event.key !== 'Escape') event.preventDefault();
  }

  const list = make('dl');
  COMPARE_KEYS.forEach(([key, meaning]) => list.append(make('dt', '', key), make('dd', '', meaning)));
  const close = make('button', 'choice', 'Close');
  close.type = 'button';
  close.addEventListener('click', () => help.close());
  help.replaceChildren(make('h2', '', 'Keys'), list, close);

  frame.addEventListener('keydown', (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || !gridKeys[event.key]) return;
    gridKeys[event.key]();
    event.preventDefault();
  });
  document.addEventListener('keydown', onPage);
}
