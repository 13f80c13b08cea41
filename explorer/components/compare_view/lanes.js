// Both texts side by side, each token coloured by the expert that is ahead; what only one of them has is marked.

function createLanes(root, store) {
  const pair = root.querySelector('.lane-pair');
  const caption = root.querySelector('.lanes .caption');
  const lanes = { a: lane('a'), b: lane('b') };
  let drawn = '';
  let marked = [];

  function lane(side) {
    const node = make('div', `compare-lane lane-${side}`);
    const head = make('h3', 'lane-head');
    const text = make('div', 'lane-text');
    text.tabIndex = 0;
    text.setAttribute('role', 'group');
    text.setAttribute('aria-label', `Text ${side.toUpperCase()}, token by token`);
    const blocks = ['Prompt', 'Answer'].map((label) => {
      const block = make('div', 'lane-block');
      const body = make('p', 'lane-body');
      body.dir = 'auto';
      block.append(make('h4', '', label), body);
      text.append(block);
      return { block, body };
    });
    node.append(head, text);
    pair.append(node);
    return { head, text, blocks, nodes: new Map() };
  }

  // Column by position of the token, and whether the other side has something else there; other words of a span do not count.
  function places(comparison, side) {
    const other = side === 'a' ? 'b' : 'a';
    const found = new Map();
    comparison.columns.forEach((column, index) => {
      const isOnly = column[other].length === 0
        || (!comparison.spans[index] && nameOf(comparison, index, side) !== nameOf(comparison, index, other));
      column[side].forEach((position) => found.set(position, { column: index, isOnly }));
    });
    return found;
  }

  function tokenNode(model, position, { column, isOnly }, projection, name) {
    const token = model.tokens[position];
    const { winner, value, margin } = leader(tokenGates(model, position, projection));
    const expert = winner < 0 ? null : model.experts[winner];
    const node = make('span', 'token');
    const glyphs = make('span', 'glyphs', token.text.replace(/\n/g, '↵').replace(/ /g, '\u00a0') || '∅');
    if (token.parts > 1) glyphs.append(make('span', 'part', partMark(token)));
    node.append(glyphs, make('span', 'letter', expert ? expert.letter : '–'));
    node.dataset.column = String(column);
    node.classList.toggle('only', isOnly);
    node.classList.toggle('template', token.role === TEMPLATE || token.special);
    node.style.setProperty('--expert', expert ? expert.colour : 'transparent');
    node.style.setProperty('--strength', strength(margin).toFixed(3));
    const ahead = expert ? `${expert.name} ${fixed(value)}, ahead by ${fixed(margin)}` : 'no expert has a gate';
    node.dataset.tip = `${visibleText(token)}: ${ahead}`
      + (isOnly ? `. Only in ${name}.` : '');
    return node;
  }

  function fill(state, side) {
    const { comparison, projection } = state;
    const { head, blocks, nodes } = lanes[side];
    const model = comparison[side];
    const shown = new Set(state.visible);
    const found = places(comparison, side);
    const bodies = [[], []];
    nodes.clear();
    [...found].sort(([left], [right]) => left - right).forEach(([position, place]) => {
      if (!shown.has(place.column)) return;
      const token = model.tokens[position];
      const node = tokenNode(model, position, place, projection, comparison.names[side].letter);
      nodes.set(place.column, [...(nodes.get(place.column) || []), node]);
      const body = bodies[token.role === GENERATED ? 1 : 0];
      body.push(node);
      if (token.text.includes('\n') && token.part === token.parts) body.push(make('br'));
    });
    head.replaceChildren(make('span', `side side-${side}`, comparison.names[side].letter), comparison.names[side].title);
    blocks.forEach(({ block, body }, index) => {
      body.replaceChildren(...bodies[index]);
      block.hidden = bodies[index].length === 0;
    });
  }

  function mark() {
    const active = store.active();
    marked.forEach((node) => node.classList.remove('active'));
    marked = active ? Object.values(lanes).flatMap(({ nodes }) => nodes.get(active.column) || []) : [];
    marked.forEach((node) => node.classList.add('active'));
  }

  function cellUnder(event) {
    const node = event.target.closest('.token');
    return node && store.state.cell ? { layer: store.state.cell.layer, column: Number(node.dataset.column) } : null;
  }

  pair.addEventListener('mouseover', (event) => store.peek(cellUnder(event)));
  pair.addEventListener('mouseleave', () => store.peek(null));
  pair.addEventListener('click', (event) => {
    const cell = cellUnder(event);
    if (cell) store.lock(cell);
  });

  // Text that is marked with the mouse in the first lane: whole tokens, their words and positions, go to whoever listens.
  function markedWords() {
    const selection = window.getSelection();
    const ends = [selection.anchorNode, selection.focusNode].map((node) => {
      const place = node && (node.nodeType === 1 ? node : node.parentElement);
      return place && place.closest('.lane-a .token');
    });
    if (selection.isCollapsed || !ends.every((node) => node && pair.contains(node))) return null;
    const { comparison } = store.state;
    const [first, last] = ends.map((node) => Number(node.dataset.column)).sort((left, right) => left - right);
    const positions = comparison.columns.slice(first, last + 1).flatMap(({ a }) => a);
    const tokens = positions.map((position) => comparison.a.tokens[position]).filter((token) => token.part === 1);
    const text = tokens.map((token) => token.text).join('').trim();
    return text ? { text, first: Math.min(...positions), end: Math.max(...positions) + 1 } : null;
  }

  lanes.a.text.addEventListener('mouseup', () => {
    const words = markedWords();
    if (words) trigger('mark', words);
  });

  return function draw(state) {
    const { comparison, projection, visible } = state;
    if (!comparison) return;
    const signature = [comparison.id, projection, visible.length].join('/');
    if (signature !== drawn) {
      drawn = signature;
      fill(state, 'a');
      fill(state, 'b');
      setText(caption, 'Colour and letter: the expert with the largest gate, averaged over layers '
        + `(${projectionWords(comparison, projection)}). Dashed box: text that only this one has.`);
    }
    mark();
  };
}
