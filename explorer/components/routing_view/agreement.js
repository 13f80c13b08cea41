// How often two projections of a layer put the same expert first, layer by layer and on average.

function createAgreement(root, store) {
  // Share of the columns in which both have a first expert and it is the same; NaN where there are none.
  function agreement(state, layer, [left, right]) {
    const { model, columns } = state;
    let known = 0;
    let same = 0;
    columns.forEach((column) => {
      const one = leader(gatesAt(model, column, layer, left)).winner;
      const other = leader(gatesAt(model, column, layer, right)).winner;
      if (one < 0 || other < 0) return;
      known += 1;
      if (one === other) same += 1;
    });
    return known > 0 ? same / known : NaN;
  }

  function mean(values) {
    const known = values.filter(Number.isFinite);
    return known.length > 0 ? known.reduce((sum, value) => sum + value, 0) / known.length : NaN;
  }

  function draw(state, body) {
    const { model, range } = state;
    const names = model.projections.map((_, projection) => projectionName(model, projection));
    if (names.length < 2) {
      nothing(body, `This trace has one routed projection (${names[0]}), so there is nothing to agree with.`);
      return;
    }
    const pairs = names.flatMap((_, left) => names.slice(left + 1).map((__, more) => [left, left + 1 + more]));
    const layers = model.layers.map((_, layer) => layer).slice(range[0], range[1] + 1);
    const table = layers.map((layer) => pairs.map((pair) => agreement(state, layer, pair)));
    const averages = pairs.map((_, pair) => mean(table.map((row) => row[pair])));
    const averageOf = (left, right) => (left === right ? 1
      : averages[pairs.findIndex(([one, other]) => one === Math.min(left, right) && other === Math.max(left, right))]);
    const cell = (value, where) => ({
      value, text: fixed(value), hint: `${where}: the same expert is first for ${percent(value, 0)} of the columns that are shown`,
    });
    const whole = numberMatrix('Agreement of projections, mean over layers', names, names, (left, right) => (left === right
      ? { value: 1, text: '1', hint: `${names[left]} with itself` }
      : cell(averageOf(left, right), `${names[left]} and ${names[right]}, mean over ${rangeText(state)}`)));
    const pairNames = pairs.map(([left, right]) => `${names[left]}–${names[right]}`);
    const single = numberMatrix('Agreement of projections by layer', pairNames, layers.map((layer) => String(model.layers[layer])),
      (row, pair) => cell(table[row][pair], `layer ${model.layers[layers[row]]}, ${pairNames[pair]}`));
    const line = make('div', 'side-by-side');
    const parts = [['Mean over layers', whole], ['Layer by layer', single]].map(([title, matrix]) => {
      const part = make('div', 'matrix-frame');
      part.tabIndex = 0;
      part.append(make('h3', '', title), matrix);
      return part;
    });
    line.append(...parts);
    const chance = fixed(1 / model.experts.length);
    body.replaceChildren(line, make('p', 'caption', `1: two projections always put the same expert first. Two that chose evenly and independently would agree in ${chance} of all cases. n = ${state.columns.length}.`));
  }

  return createSection(root, store, 'agreement', (state, body, active, isNew) => { if (isNew) draw(state, body); });
}
