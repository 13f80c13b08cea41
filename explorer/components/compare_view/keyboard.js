// The keys of a comparison; see keys.js.

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
  const help = root.querySelector('.help');
  const gridKeys = createGridKeys(store);
  const roomKeys = {
    '[': () => store.moveBy(-1, 0),
    ']': () => store.moveBy(1, 0),
    Escape: () => store.unlock(),
    0: () => store.setMeasure(TOP),
    e: () => store.setMeasure(ENTROPY),
    '?': () => { if (!help.open) help.showModal(); },
  };

  function chooseExpert(number) {
    if (number <= store.state.comparison.experts.length) store.setMeasure(number - 1);
  }

  buildHelp(help, COMPARE_KEYS);
  onKeysOf(root.querySelector('.map-frame'), ({ key }) => gridKeys[key]);
  onKeysOfRoom(root, ({ key }) => {
    if (!store.state.comparison) return null;
    return roomKeys[key] || (/^[1-9]$/.test(key) ? () => chooseExpert(Number(key)) : null);
  });
}
