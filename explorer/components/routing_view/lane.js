// The text lane: prompt and answer as running text, each token coloured by the expert that is ahead.

function createLane(root, store) {
  const text = root.querySelector('.lane-text');
  const caption = root.querySelector('.lane .caption');
  const blocks = { prompt: block('Prompt'), answer: block('Answer') };
  let nodes = [];
  let run = null;
  let nodesOf = {};
  let version = -1;

  function block(label) {
    const node = make('div', 'lane-block');
    const body = make('p', 'lane-body');
    body.dir = 'auto'; // the tokens of a text that is read from the right stand from the right
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
    nodes[index] = { node, glyphs, letter, signature: '', written: '' };
    return nodes[index];
  }

  function fillGlyphs(glyphs, token) {
    const pieces = (token.text || '∅').split(/([ \n\t\r])/).filter((piece) => piece !== '');
    const marks = { ' ': '·', '\n': '↵', '\t': '→', '\r': '␍' };
    glyphs.replaceChildren(...pieces.map((piece) => (marks[piece] ? make('span', 'space', marks[piece]) : piece)));
    if (token.parts > 1) glyphs.append(make('span', 'part', partMark(token)));
  }

  function describe(state, column, values, ahead) {
    const { model } = state;
    const where = `(mean of ${rangeText(state)}, ${projectionText(model, state.projection)})`;
    if (ahead.winner < 0) return `${visibleText(column)}: no expert has a share ${where}`;
    const expert = model.experts[ahead.winner];
    return state.effect
      ? `${visibleText(column)}: ${expert.name} added ${percent(ahead.value)} of the base output, `
        + `${percent(ahead.margin)} more than the second ${where}`
      : `${visibleText(column)}: ${expert.name} ${fixed(ahead.value)}, ahead by ${fixed(ahead.margin)} ${where}`;
  }

  function update(state, place) {
    const { model, projection, range, effect } = state;
    const column = state.columns[place];
    const index = column.tokens[0];
    const entry = nodes[index] || add(index);
    markGold(entry, state, place);
    const signature = [column.text, column.tokens.length, column.part, column.parts, projection, range, effect, state.how].join('\u0000');
    if (signature === entry.signature) return entry;
    entry.signature = signature;
    const values = effect ? meanShares(model, column, projection, range) : meanGates(model, column, projection, range);
    const ahead = leader(values);
    const expert = model.experts[ahead.winner];
    const written = [column.text, column.part, column.parts].join('\u0000');
    if (written !== entry.written) fillGlyphs(entry.glyphs, column);
    entry.written = written;
    setText(entry.letter, expert ? expert.letter : '–');
    entry.node.style.setProperty('--expert', expert ? expert.colour : 'transparent');
    entry.node.style.setProperty('--strength', strength(effect ? ahead.margin / ahead.value : ahead.margin).toFixed(3));
    entry.node.dataset.tip = describe(state, column, values, ahead);
    entry.node.classList.toggle('template', column.role === TEMPLATE || column.special);
    return entry;
  }

  // A border where a gold span of the prompt begins or ends.
  function markGold(entry, state, place) {
    const gold = (at) => (state.columns[at] ? state.columns[at].gold : -1);
    const own = gold(place);
    entry.node.classList.toggle('gold-start', own >= 0 && gold(place - 1) !== own);
    entry.node.classList.toggle('gold-end', own >= 0 && gold(place + 1) !== own);
    entry.node.classList.toggle('gold', own >= 0);
    if (own >= 0) entry.node.style.setProperty('--gold', state.model.experts[own].colour);
  }

  function arrange(state) {
    const wanted = { prompt: [], answer: [] };
    state.columns.forEach((column, place) => {
      const list = column.role === GENERATED ? wanted.answer : wanted.prompt;
      const { node } = update(state, place);
      list.push(node);
      if (column.text.includes('\n') && column.part === column.parts) list.push(breakAfter(column.tokens[0]));
    });
    Object.entries(wanted).forEach(([name, list]) => {
      syncChildren(blocks[name].body, list);
      blocks[name].node.hidden = list.length === 0;
    });
  }

  function breakAfter(index) {
    nodes[index].lineBreak = nodes[index].lineBreak || make('br');
    return nodes[index].lineBreak;
  }

  function mark(state) {
    const active = store.active();
    text.querySelectorAll('.token.active, .token.in-span').forEach((node) => node.classList.remove('active', 'in-span'));
    if (!active) return;
    const first = state.columns[state.columnOf[active.token]].tokens[0];
    nodes[first].node.classList.add('active');
    subjectOf(state, active).tokens.forEach((token) => {
      const column = state.columns[state.columnOf[token]];
      if (state.spanStart !== null) nodes[column.tokens[0]].node.classList.add('in-span');
    });
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
    if (token === null) return;
    if (event.shiftKey) store.brush(withLayer(token)); else store.lock(withLayer(token));
  });

  // A text that is being selected must not also be a brushed span.
  text.addEventListener('mousedown', (event) => { if (event.shiftKey) event.preventDefault(); });

  function explain(state) {
    const where = `${rangeText(state)} (${projectionText(state.model, state.projection)})`;
    return state.effect
      ? `Colour and letter: the expert that added most, averaged over ${where}. Stronger tint: more than the second.`
      : `Colour and letter: the expert with the largest gate, averaged over ${where}. Stronger tint: further ahead of the second.`;
  }

  return function draw(state) {
    if (!state.model) return;
    if (run !== state.model.run) {
      run = state.model.run;
      version = -1;
      nodesOf = {};
      Object.values(blocks).forEach(({ body }) => body.replaceChildren());
    }
    // Going back to tokens from words finds their nodes again.
    nodesOf[state.unit] = nodesOf[state.unit] || [];
    nodes = nodesOf[state.unit];
    if (version !== state.version) {
      version = state.version;
      setText(caption, explain(state));
      arrange(state);
    }
    mark(state);
  };
}
