// The text lane: prompt and answer as running text, each token coloured by the expert that is ahead.

function createLane(root, store) {
  const text = root.querySelector('.lane-text');
  const caption = root.querySelector('.lane .caption');
  const blocks = { prompt: block('Prompt'), answer: block('Answer') };
  let nodes = [];
  let run = null;

  function block(label) {
    const node = make('div', 'lane-block');
    const body = make('p', 'lane-body');
    node.append(make('h3', '', label), body);
    text.append(node);
    return { node, body };
  }

  function add(index) {
    const node = make('span', 'token');
    node.dataset.token = String(index);
    const glyphs = make('span', 'glyphs');
    const letter = make('span', 'letter');
    node.append(glyphs, letter);
    nodes[index] = { node, glyphs, letter, signature: '', text: null };
    return nodes[index];
  }

  function fillGlyphs(glyphs, token) {
    const pieces = (token.text || '∅').split(/([ \n\t\r])/).filter((piece) => piece !== '');
    const marks = { ' ': '·', '\n': '↵', '\t': '→', '\r': '␍' };
    glyphs.replaceChildren(...pieces.map((piece) => (marks[piece] ? make('span', 'space', marks[piece]) : piece)));
    if (token.parts > 1) glyphs.append(make('span', 'part', partMark(token)));
  }

  function describe(model, token, index, ahead, projection) {
    const expert = model.experts[ahead.winner];
    const gate = meanGates(model, index, projection)[ahead.winner];
    return `${visibleText(token)}: ${expert.name} ${fixed(gate)}, ahead by ${fixed(ahead.margin)} `
      + `(mean of ${model.layers.length} layers, ${projectionText(model, projection)})`;
  }

  function update(state, index) {
    const { model, projection } = state;
    const token = model.tokens[index];
    const entry = nodes[index] || add(index);
    const ahead = ranking(meanGates(model, index, projection));
    const signature = [token.text, token.part, token.parts, projection].join('\u0000');
    if (signature === entry.signature) return entry;
    entry.signature = signature;
    fillGlyphs(entry.glyphs, token);
    const expert = model.experts[ahead.winner];
    setText(entry.letter, expert.letter);
    entry.node.style.setProperty('--expert', expert.colour);
    entry.node.style.setProperty('--strength', strength(ahead.margin).toFixed(3));
    entry.node.dataset.tip = describe(model, token, index, ahead, projection);
    entry.node.classList.toggle('template', token.role === TEMPLATE || token.special);
    entry.node.classList.toggle('continued', token.part > 1);
    return entry;
  }

  // Appends what is missing and removes what is not shown; nodes that stay are not touched.
  function arrange(state) {
    const wanted = { prompt: [], answer: [] };
    state.visible.forEach((index) => {
      const token = state.model.tokens[index];
      const list = token.role === GENERATED ? wanted.answer : wanted.prompt;
      list.push(update(state, index).node);
      if (token.text.includes('\n') && token.part === token.parts) list.push(breakAfter(index));
    });
    Object.entries(wanted).forEach(([name, list]) => syncChildren(blocks[name].body, list));
    blocks.answer.node.hidden = wanted.answer.length === 0;
  }

  function breakAfter(index) {
    nodes[index].lineBreak = nodes[index].lineBreak || make('br');
    return nodes[index].lineBreak;
  }

  function syncChildren(parent, list) {
    list.forEach((node, place) => {
      if (parent.childNodes[place] !== node) parent.insertBefore(node, parent.childNodes[place] || null);
    });
    while (parent.childNodes.length > list.length) parent.lastChild.remove();
  }

  function mark(state) {
    const active = store.active();
    text.querySelectorAll('.token.active').forEach((node) => node.classList.remove('active'));
    if (!active || !nodes[active.token]) return;
    nodes[active.token].node.classList.add('active');
    if (state.followsNewest && state.model.state === 'generating') text.scrollTop = text.scrollHeight;
  }

  function tokenUnder(event) {
    const node = event.target.closest('.token');
    return node ? Number(node.dataset.token) : null;
  }

  function withLayer(token) {
    return { layer: store.state.cell.layer, token };
  }

  text.addEventListener('mouseover', (event) => {
    const token = tokenUnder(event);
    store.peek(token === null ? null : withLayer(token));
  });
  text.addEventListener('mouseleave', () => store.peek(null));
  text.addEventListener('click', (event) => {
    const token = tokenUnder(event);
    if (token !== null) store.lock(withLayer(token));
  });

  return function draw(state) {
    if (!state.model) return;
    if (run !== state.model.run) {
      run = state.model.run;
      nodes = [];
      Object.values(blocks).forEach(({ body }) => body.replaceChildren());
    }
    setText(caption, `Colour and letter: the expert with the largest gate, averaged over ${state.model.layers.length} `
      + `layers (${projectionText(state.model, state.projection)}). Stronger tint: further ahead of the second.`);
    arrange(state);
    mark(state);
  };
}
