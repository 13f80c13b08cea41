// What the token cards of one trace and of two have in common: the parts of token_card.html, and their head.

function createTokenCard(root, store) {
  const find = (name) => root.querySelector(`.card-${name}`);
  const [token, where, sentence, live] = ['token', 'where', 'sentence', 'live'].map(find);
  const lock = root.querySelector('.lock');
  lock.dataset.tip = 'Keep this token while the pointer moves. Enter locks, Esc unlocks.';
  lock.addEventListener('click', () => { if (store.state.cell) store.lock(store.state.cell); });

  // `isHeard`: whether a screen reader shall hear the sentence.
  function drawHead(texts, isHeard) {
    setText(token, texts.token);
    setText(where, texts.where);
    setText(sentence, texts.sentence);
    if (isHeard) setText(live, texts.sentence);
    setText(lock, store.state.locked ? 'Locked' : 'Lock');
    press(lock, store.state.locked);
  }

  return { experts: find('experts'), layers: find('layers'), idle: find('idle'), drawHead };
}
