// The token card: the gates of all experts in both, for one token in one layer, and the divergence in all layers.

function comparisonSentence({ comparison, projection }, { layer, column }) {
  const cell = cellsOf(comparison, column, projection)[layer];
  const where = `layer ${comparison.layers[layer]}, ${projectionWords(comparison, projection)}`;
  const best = (side) => {
    const { winner, value } = leader(cell[side].gates);
    return winner < 0 ? 'no gate' : `${comparison.experts[winner].name} ${fixed(value)}`;
  };
  const { a: first, b: second } = comparison.names;
  if (!cell.b) return `${where}, ‘${nameOf(comparison, column, 'a')}’, only in ${first.letter}: ${best('a')}`;
  if (!cell.a) return `${where}, ‘${nameOf(comparison, column, 'b')}’, only in ${second.letter}: ${best('b')}`;
  const words = nameOf(comparison, column, 'a');
  const other = nameOf(comparison, column, 'b');
  return `${where}, ‘${words}’${other === words ? '' : ` and ‘${other}’`}: in ${first.letter} ${best('a')}, `
    + `in ${second.letter} ${best('b')}, divergence ${cell.jsd === null ? '–' : fixed(cell.jsd)}`;
}

function createCompareCard(root, store) {
  const parts = createTokenCard(root, store);
  let built = '';
  let rows = [];
  let bars = [];

  function buildExperts(comparison) {
    const { a, b } = comparison.names;
    const table = make('table');
    const head = make('tr');
    head.append(...[['Expert', ''], [a.letter, `Gate in ${a.letter}: the share of the expert update, 0 to 1.`],
      [b.letter, `Gate in ${b.letter}: the share of the expert update, 0 to 1.`],
      [`${b.letter} − ${a.letter}`, `How much larger the gate is in ${b.letter}.`]].map(([text, hint]) => {
      const cell = make('th');
      cell.scope = 'col';
      cell.append(hint ? explained('span', '', text, hint) : text);
      return cell;
    }));
    rows = comparison.experts.map((expert) => {
      const line = make('tr');
      const name = make('th');
      name.scope = 'row';
      name.append(badge(expert), expertName(expert));
      const numbers = [make('td', 'number'), make('td', 'number'), make('td', 'number')];
      line.append(name, ...numbers);
      return { line, numbers };
    });
    table.append(head, ...rows.map(({ line }) => line));
    parts.experts.replaceChildren(table);
  }

  function buildLayers(comparison) {
    const grid = make('div', 'divergence-grid');
    bars = comparison.layers.map((layer, index) => {
      const track = make('span', 'track');
      const bar = make('span', 'bar');
      track.append(bar);
      track.dataset.layer = String(index);
      const name = make('span', 'layer-name', index % 5 === 0 ? String(layer) : '');
      grid.append(name, track);
      return { name, track, bar, layer };
    });
    grid.addEventListener('click', (event) => {
      const track = event.target.closest('.track');
      if (track) store.select({ layer: Number(track.dataset.layer), column: store.active().column });
    });
    parts.layers.replaceChildren(make('h3', '', 'Divergence of this token in every layer, 0 to 1'), grid);
  }

  function build(comparison) {
    const signature = JSON.stringify([comparison.experts, comparison.layers, comparison.names]);
    if (signature === built) return;
    built = signature;
    buildExperts(comparison);
    buildLayers(comparison);
  }

  function drawHead(state, active) {
    const { comparison } = state;
    const { a, b } = comparison.columns[active.column];
    const [first, second] = [[a, 'a'], [b, 'b']].map(([positions, side]) => (
      positions.length ? nameOf(comparison, active.column, side) : null));
    const token = [...new Set([first, second])].filter((text) => text !== null).join(' │ ');
    const { letter: one } = comparison.names.a;
    const { letter: two } = comparison.names.b;
    // The tokens of a column follow each other.
    const place = (positions, letter) => {
      if (positions.length === 0) return `not in ${letter}`;
      const [from, to] = [positions[0] + 1, positions[positions.length - 1] + 1];
      return from === to ? `token ${from} of ${letter}` : `tokens ${from}–${to} of ${letter}`;
    };
    const where = [place(a, one), place(b, two)].join(', ');
    parts.drawHead({ token, where, sentence: comparisonSentence(state, active) }, state.announce);
  }

  function drawExperts({ comparison, projection }, { layer, column }) {
    const { a, b } = cellsOf(comparison, column, projection)[layer];
    rows.forEach(({ line, numbers }, expert) => {
      setText(numbers[0], a ? fixed(a.gates[expert], 3) : '–');
      setText(numbers[1], b ? fixed(b.gates[expert], 3) : '–');
      setText(numbers[2], a && b ? signed(b.gates[expert] - a.gates[expert]) : '–');
      line.classList.toggle('winner', [a, b].some((side) => side && leader(side.gates).winner === expert));
    });
  }

  function drawLayers({ comparison, projection }, active) {
    const cells = cellsOf(comparison, active.column, projection);
    bars.forEach(({ name, track, bar, layer }, index) => {
      const { jsd } = cells[index];
      const isActive = index === active.layer;
      bar.style.width = `${(jsd || 0) * 100}%`;
      setText(name, isActive || index % 5 === 0 ? String(layer) : '');
      name.classList.toggle('active', isActive);
      track.classList.toggle('active', isActive);
      track.title = `layer ${layer}: ${jsd === null ? 'only in one of them' : fixed(jsd, 3)}`;
    });
  }

  return function draw(state) {
    const active = store.active();
    if (!state.comparison || !active) return;
    build(state.comparison);
    drawHead(state, active);
    drawExperts(state, active);
    drawLayers(state, active);
  };
}
