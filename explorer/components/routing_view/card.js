// The token card: all experts in all layers for one token, and exact numbers for the selected layer.

function sentenceOf(state, { layer, token }) {
  const { model, projection } = state;
  const gates = gatesAt(model, token, layer, projection);
  const { order } = ranking(gates);
  const shares = order.slice(0, 2).map((expert) => `${model.experts[expert].name} ${fixed(gates[expert])}`);
  return `layer ${model.layers[layer]}, ${projectionText(model, projection)}, `
    + `token ‘${visibleText(model.tokens[token])}’: ${shares.join(', ')}`;
}

function createCard(root, store) {
  const find = (name) => root.querySelector(`.card-${name}`);
  const parts = {
    token: find('token'), where: find('where'), sentence: find('sentence'), live: find('live'),
    experts: find('experts'), layers: find('layers'), lock: root.querySelector('.lock'),
  };
  let built = '';
  let rows = [];
  let facts = null;
  let bars = [];

  const LOGIT_HINT = 'Logit: the raw score of the router, before it becomes a gate. Only differences within one router count.';

  function buildExperts(model) {
    const table = make('table');
    const head = make('tr');
    const cells = [['Expert', ''], ['Gate', 'Gate: the share of the expert update that comes from this expert, 0 to 1.'],
      ['Logit', LOGIT_HINT], ['Rank', 'Place of the expert by its gate; 1 is the first.']];
    head.append(...cells.map(([name, hint]) => {
      const cell = make('th');
      cell.scope = 'col';
      cell.append(hint ? explained('span', '', name, hint) : name);
      return cell;
    }));
    rows = model.experts.map((expert) => {
      const line = make('tr');
      const name = make('th');
      name.scope = 'row';
      name.append(badge(expert), make('span', 'expert-name', expert.name));
      const gate = make('td', 'gate');
      const track = make('span', 'gate-track');
      const bar = make('span', 'bar');
      bar.style.setProperty('--expert', expert.colour);
      const number = make('span', 'number');
      track.append(bar);
      gate.append(track, number);
      const logit = make('td', 'number');
      const rank = make('td', 'number');
      line.append(name, gate, logit, rank);
      return { line, bar, number, logit, rank };
    });
    table.append(head, ...rows.map(({ line }) => line));
    facts = {
      margin: explained('span', 'fact', '', 'Margin: how far the first gate is ahead of the second, 0 to 1.'),
      entropy: explained('span', 'fact', '', 'Undecided: entropy of the gates over its largest value; 0 is one expert only, 1 is all alike.'),
    };
    const line = make('p', 'facts');
    line.append(facts.margin, facts.entropy);
    parts.experts.replaceChildren(table, line);
  }

  function buildLayers(model) {
    const grid = make('div', 'layer-grid');
    grid.style.setProperty('--experts', String(model.experts.length));
    grid.append(make('span', 'layer-name', ''), ...model.experts.map((expert) => {
      const head = make('span', 'layer-head');
      head.append(badge(expert));
      return head;
    }));
    bars = model.layers.map((layer, index) => {
      const name = make('span', 'layer-name', layer % 5 === 0 ? String(layer) : '');
      const lane = model.experts.map((expert) => {
        const track = make('span', 'track');
        const bar = make('span', 'bar');
        bar.style.setProperty('--expert', expert.colour);
        track.append(bar);
        track.dataset.layer = String(index);
        return { track, bar };
      });
      grid.append(name, ...lane.map(({ track }) => track));
      return { name, lane, layer };
    });
    grid.addEventListener('click', (event) => {
      const track = event.target.closest('.track');
      if (track) store.select({ layer: Number(track.dataset.layer), token: store.active().token });
    });
    parts.layers.replaceChildren(make('h3', '', 'All layers'), grid);
  }

  function build(model) {
    const signature = JSON.stringify([model.experts, model.layers]);
    if (signature === built) return;
    built = signature;
    buildExperts(model);
    buildLayers(model);
  }

  function drawExperts({ model, projection }, { layer, token }) {
    const gates = gatesAt(model, token, layer, projection);
    const logits = logitsAt(model, token, layer, projection);
    const { order, margin } = ranking(gates);
    rows.forEach(({ line, bar, number, logit, rank }, expert) => {
      bar.style.width = `${gates[expert] * 100}%`;
      setText(number, fixed(gates[expert], 3));
      setText(logit, logits === null ? '–' : logits[expert] === null ? 'absent' : signed(logits[expert]));
      logit.title = logits === null ? 'Choose one projection to see the score of its router.' : LOGIT_HINT;
      setText(rank, gates[expert] === 0 ? '–' : String(order.indexOf(expert) + 1));
      rank.title = gates[expert] === 0 ? 'Not among the chosen experts: its gate is 0.' : '';
      line.classList.toggle('winner', expert === order[0]);
    });
    setText(facts.margin, `margin ${fixed(margin)}`);
    setText(facts.entropy, `undecided ${fixed(entropyAt(model, token, layer, projection))}`);
  }

  function drawLayers({ model, projection }, active) {
    bars.forEach(({ name, lane, layer }, index) => {
      const gates = gatesAt(model, active.token, index, projection);
      const isActive = index === active.layer;
      setText(name, isActive || layer % 5 === 0 ? String(layer) : '');
      name.classList.toggle('active', isActive);
      lane.forEach(({ track, bar }, expert) => {
        bar.style.width = `${gates[expert] * 100}%`;
        track.classList.toggle('active', isActive);
        track.title = `layer ${layer}, ${model.experts[expert].name}: ${fixed(gates[expert], 3)}`;
      });
    });
  }

  function roleText(token) {
    if (token.role === GENERATED) return 'generated';
    return token.role === TEMPLATE ? 'chat template' : 'prompt';
  }

  function drawHead(state, active) {
    const { model } = state;
    const token = model.tokens[active.token];
    setText(parts.token, visibleText(token));
    const split = token.parts > 1 ? `, byte part ${token.part} of ${token.parts} of one character` : '';
    setText(parts.where, `token ${active.token + 1} of ${model.tokens.length}, ${roleText(token)}${split}`);
    const sentence = sentenceOf(state, active);
    setText(parts.sentence, sentence);
    if (state.announce && model.state !== 'generating') setText(parts.live, sentence);
    setText(parts.lock, state.locked ? 'Locked' : 'Lock');
    parts.lock.setAttribute('aria-pressed', String(state.locked));
  }

  parts.lock.dataset.tip = 'Keep this token while the pointer moves. Enter locks, Esc unlocks.';
  parts.lock.addEventListener('click', () => { if (store.state.cell) store.lock(store.state.cell); });

  return function draw(state) {
    const active = store.active();
    if (!state.model || !active) return;
    build(state.model);
    drawHead(state, active);
    drawExperts(state, active);
    drawLayers(state, active);
  };
}
