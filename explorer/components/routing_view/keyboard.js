// The keys of one trace; see keys.js.

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
  const help = root.querySelector('.help');

  const gridKeys = createGridKeys(store);

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

  const brushKeys = { ArrowLeft: () => store.brushBy(-1), ArrowRight: () => store.brushBy(1) };
  const moveOrBrush = (keys) => (event) => (event.shiftKey && brushKeys[event.key]) || keys[event.key];

  buildHelp(help, KEYS);
  // In the text only the keys of its one direction: up and down scroll it.
  const { ArrowUp: up, ArrowDown: down, ...laneKeys } = gridKeys;
  onKeysOf(root.querySelector('.lane-text'), moveOrBrush(laneKeys));
  onKeysOf(root.querySelector('.map-frame'), moveOrBrush(gridKeys));
  onKeysOfRoom(root, ({ key }) => pageKeys[key] || (/^[1-9]$/.test(key) ? () => chooseExpert(Number(key)) : null));
}
