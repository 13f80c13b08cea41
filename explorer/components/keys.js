// Keys, the same in every room with a map: those of the grid work while it has the focus, the others anywhere in the
// room that is open, except in a text field.

// By how many layers and columns a key moves the cell, and what locks it.
function createGridKeys(store) {
  const far = () => store.state.visible.length;
  return {
    ArrowLeft: () => store.moveBy(0, -1),
    ArrowRight: () => store.moveBy(0, 1),
    ArrowUp: () => store.moveBy(-1, 0),
    ArrowDown: () => store.moveBy(1, 0),
    Home: () => store.moveBy(0, -far()),
    End: () => store.moveBy(0, far()),
    Enter: () => { if (store.state.cell && !store.state.locked) store.lock(store.state.cell); },
    ' ': () => { if (store.state.cell) store.lock(store.state.cell); },
  };
}

function buildHelp(help, keys) {
  const list = make('dl');
  keys.forEach(([key, meaning]) => list.append(make('dt', '', key), make('dd', '', meaning)));
  const close = make('button', 'choice', 'Close');
  close.type = 'button';
  close.addEventListener('click', () => help.close());
  help.replaceChildren(make('h2', '', 'Keys'), list, close);
}

// A chosen radio button or a ticked box keeps the focus, and takes no letters.
function isTyping(target) {
  return Boolean(target.closest && target.closest('input:not([type=checkbox], [type=radio]), textarea, select, [contenteditable="true"]'));
}

const isPlain = (event) => !event.ctrlKey && !event.metaKey && !event.altKey;

// Calls `actionOf(event)` for the action of a key, if it has one.
function act(event, actionOf) {
  const action = isPlain(event) && actionOf(event);
  if (!action) return;
  action();
  // Esc must keep closing dialogs and menus.
  if (event.key !== 'Escape') event.preventDefault();
}

function onKeysOf(node, actionOf) {
  node.addEventListener('keydown', (event) => act(event, actionOf));
}

// A room that is not open takes no keys.
function onKeysOfRoom(root, actionOf) {
  document.addEventListener('keydown', function onKey(event) {
    if (!root.isConnected) { document.removeEventListener('keydown', onKey); return; }
    if (root.offsetParent === null || event.defaultPrevented || document.querySelector('dialog[open]') || isTyping(event.target)) return;
    act(event, actionOf);
  });
}
