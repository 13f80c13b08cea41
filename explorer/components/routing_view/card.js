// The token card: exact numbers of all experts for the selected router, and every layer and projection at a glance.

function sentenceOf(state, cell) {
  const { model, projection } = state;
  const subject = subjectOf(state, cell);
  const gates = gatesAt(model, subject, cell.layer, projection);
  const order = ranking(gates);
  const shares = order.slice(0, 2).map((expert) => `${model.experts[expert].name} ${fixed(gates[expert])}`);
  const what = subject.isSpan ? `mean of ${subject.tokens.length} tokens` : state.unit === 'subword' ? 'token' : state.unit;
  return `layer ${model.layers[cell.layer]}, ${projectionText(model, projection)}, `
    + `${what} ‘${clipText(visibleText(subject), 60)}’: ${shares.join(', ')}`;
}

function createCard(root, store) {
  const parts = createTokenCard(root, store);
  let built = '';
  let rows = [];
  let facts = null;
  let bars = [];
  let drawn = '';

  const EFFECT_HINT = 'Effect: the length of what this expert added to the output, in percent of what the frozen projection gave. Effects need not sum to anything.';
  const LOGIT_HINT = 'Logit: the raw score of the router, before it becomes a gate. Only differences within one router count.';

  function buildExperts(model) {
    const table = make('table');
    const head = make('tr');
    const cells = [['Expert', ''], ['Gate', 'Gate: the share of the expert update that comes from this expert, 0 to 1.'],
      ...(model.hasShares ? [['Effect', EFFECT_HINT]] : []),
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
      name.append(badge(expert), expertName(expert));
      const gate = make('td', 'gate');
      const track = make('span', 'gate-track');
      const bar = make('span', 'bar');
      bar.style.setProperty('--expert', expert.colour);
      const number = make('span', 'number');
      track.append(bar);
      gate.append(track, number);
      const effect = make('td', 'number');
      const logit = make('td', 'number');
      const rank = make('td', 'number');
      line.append(name, gate, ...(model.hasShares ? [effect] : []), logit, rank);
      return { line, bar, number, effect, logit, rank };
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
    const names = model.projections.map((_, projection) => projectionName(model, projection));
    grid.style.setProperty('--experts', String(model.experts.length));
    grid.style.setProperty('--projections', String(names.length));
    grid.append(make('span', 'layer-name', ''), ...model.experts.map((expert) => {
      const head = make('span', 'layer-head');
      head.append(badge(expert));
      return head;
    }), ...names.map((name) => make('span', 'layer-head projection', name)));
    bars = model.layers.map((layer, index) => {
      const name = make('span', 'layer-name', layer % 5 === 0 ? String(layer) : '');
      const lane = model.experts.map((expert, place) => {
        const track = make('span', 'track');
        const bar = make('span', 'bar');
        bar.style.setProperty('--expert', expert.colour);
        track.append(bar);
        Object.assign(track.dataset, { layer: index, expert: place });
        return { track, bar };
      });
      const firsts = names.map((_, projection) => {
        const cell = make('span', 'first-cell');
        Object.assign(cell.dataset, { layer: index, projection });
        return cell;
      });
      const nodes = [name, ...lane.map(({ track }) => track), ...firsts];
      grid.append(...nodes);
      return { name, lane, firsts, layer, nodes };
    });
    grid.addEventListener('mouseover', explainCell);
    grid.addEventListener('click', (event) => {
      const cell = event.target.closest('[data-layer]');
      if (!cell) return;
      if (cell.dataset.projection) store.change({ projection: Number(cell.dataset.projection) });
      store.select({ layer: Number(cell.dataset.layer), token: store.active().token });
    });
    const title = make('h3', '', 'Every layer: gates, and who is first in each projection');
    parts.layers.replaceChildren(title, grid);
  }

  // Texts of so many cells are made when somebody points at one.
  function explainCell(event) {
    const node = event.target.closest('[data-layer]');
    if (!node) return;
    const { model, projection } = store.state;
    const subject = subjectOf(store.state, store.active());
    const layer = Number(node.dataset.layer);
    if (node.dataset.expert) {
      const expert = Number(node.dataset.expert);
      const gate = gatesAt(model, subject, layer, projection)[expert];
      node.dataset.tip = `layer ${model.layers[layer]}, ${projectionText(model, projection)}: `
        + `${fixed(gate, 3)} of the expert update comes from ${model.experts[expert].name}`;
      return;
    }
    const at = Number(node.dataset.projection);
    const gates = gatesAt(model, subject, layer, at);
    const logits = logitsAt(model, subject, layer, at);
    const lines = ranking(gates).map((expert, place) => `${place + 1}. ${model.experts[expert].name}: gate ${fixed(gates[expert], 3)}`
      + (logits ? `, logit ${Number.isNaN(logits[expert]) ? 'absent' : signed(logits[expert])}` : ''));
    node.dataset.tip = `layer ${model.layers[layer]}, ${projectionName(model, at)}: margin ${fixed(leader(gates).margin)}. ${lines.join('; ')}`;
  }

  function build(model) {
    const signature = JSON.stringify([model.experts, model.layers, model.projections, model.hasShares]);
    if (signature === built) return;
    built = signature;
    buildExperts(model);
    buildLayers(model);
  }

  function drawExperts({ model, projection }, subject, layer) {
    const gates = gatesAt(model, subject, layer, projection);
    const shares = sharesAt(model, subject, layer, projection);
    const logits = logitsAt(model, subject, layer, projection);
    const order = ranking(gates);
    const idle = [];
    const total = shares ? sumOf(shares) : 0;
    rows.forEach(({ line, bar, number, effect, logit, rank }, expert) => {
      bar.style.width = `${Math.min(gates[expert], 1) * 100}%`;
      setText(number, fixed(gates[expert], 3));
      if (shares) {
        setText(effect, percent(shares[expert]));
        const isFlagged = isIdle(gates[expert], shares[expert], total);
        effect.classList.toggle('idle', isFlagged);
        if (isFlagged) idle.push(model.experts[expert].name);
      }
      setText(logit, logits === null ? '–' : Number.isNaN(logits[expert]) ? 'absent' : signed(logits[expert]));
      logit.dataset.tip = logits === null ? 'Choose one projection to see the score of its router.' : LOGIT_HINT;
      setText(rank, gates[expert] === 0 ? '–' : String(order.indexOf(expert) + 1));
      rank.dataset.tip = gates[expert] === 0 ? 'Not among the chosen experts: its gate is 0.' : 'Place by the gate.';
      line.classList.toggle('winner', expert === order[0]);
    });
    setText(parts.idle, idle.length > 0
      ? `High gate, hardly any effect: ${idle.join(', ')} (${IDLE_WORDS}).`
      : '');
    setText(facts.margin, `margin ${fixed(leader(gates).margin)}`);
    setText(facts.entropy, `undecided ${fixed(layerEntropies(model, subject, projection)[layer])}`);
  }

  function drawLayers({ model, projection, range }, subject, active) {
    const colours = model.experts.map(({ colour }) => colour);
    bars.forEach(({ name, lane, firsts, layer, nodes }, index) => {
      const isShown = index >= range[0] && index <= range[1];
      nodes.forEach((node) => { node.hidden = !isShown; });
      if (!isShown) return;
      const gates = gatesAt(model, subject, index, projection);
      const isActive = index === active.layer;
      setText(name, isActive || layer % 5 === 0 ? String(layer) : '');
      name.classList.toggle('active', isActive);
      lane.forEach(({ track, bar }, expert) => {
        bar.style.width = `${Math.min(gates[expert], 1) * 100}%`;
        track.classList.toggle('active', isActive);
      });
      firsts.forEach((cell, at) => {
        const { winner, margin } = leader(gatesAt(model, subject, index, at));
        setText(cell, winner < 0 ? '' : model.experts[winner].letter);
        cell.style.setProperty('--expert', winner < 0 ? 'transparent' : colours[winner]);
        cell.style.setProperty('--strength', strength(margin).toFixed(2));
        cell.classList.toggle('active', isActive && (projection === MEAN || projection === at));
      });
    });
  }

  function roleText(token) {
    if (token.role === GENERATED) return 'generated';
    return token.role === TEMPLATE ? 'chat template' : 'prompt';
  }

  function placeText(state, subject, active) {
    const { model } = state;
    if (subject.isSpan) return `${subject.tokens.length} tokens, ${subject.tokens[0] + 1} to ${subject.tokens[subject.tokens.length - 1] + 1}; mean over them`;
    const role = roleText(subject);
    if (subject.tokens.length > 1) return `${subject.tokens.length} tokens, ${subject.tokens[0] + 1} to ${subject.tokens[subject.tokens.length - 1] + 1}, ${role}; joined by ${state.how}`;
    const split = subject.parts > 1 ? `, byte part ${subject.part} of ${subject.parts} of one character` : '';
    return `token ${active.token + 1} of ${model.tokens.length}, ${role}${split}`;
  }

  function drawHead(state, subject, active) {
    parts.drawHead({
      token: clipText(visibleText(subject), 90), where: placeText(state, subject, active), sentence: sentenceOf(state, active),
    }, state.announce && state.model.state !== 'generating');
  }

  return function draw(state) {
    const active = store.active();
    if (!state.model || !active) return;
    const subject = subjectOf(state, active);
    const shown = [state.version, active.layer, active.token, state.spanStart, state.locked, state.announce].join('/');
    if (shown === drawn) return;
    drawn = shown;
    build(state.model);
    drawHead(state, subject, active);
    drawExperts(state, subject, active.layer);
    drawLayers(state, subject, active);
  };
}
