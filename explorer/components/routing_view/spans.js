// Gold spans: parts of an example prompt whose topic is known, and whether the routers followed it.

function createSpans(root, store) {
  const section = root.querySelector('[data-section="spans"]');

  // Neighbouring columns of one topic: { gold, columns }.
  function spansOf({ columns }) {
    const spans = [];
    columns.forEach((column, place) => {
      if (column.gold < 0) return;
      const last = spans[spans.length - 1];
      if (last && last.gold === column.gold && last.end === place - 1) {
        last.columns.push(column);
        last.end = place;
      } else spans.push({ gold: column.gold, columns: [column], end: place });
    });
    return spans;
  }

  function firstOf({ model, projection, range }, column) {
    return leader(meanGates(model, column, projection, range)).winner;
  }

  function meanOf({ model, projection, range }, columns) {
    const total = new Float64Array(model.experts.length);
    columns.forEach((column) => meanGates(model, column, projection, range).forEach((value, expert) => { total[expert] += value / columns.length; }));
    return total;
  }

  function clipSpan(span, length) {
    return clipText(span.columns.map(({ text, part, parts }) => (part === parts ? text : '')).join('').trim(), length);
  }

  // Columns after the border of two spans until the router follows; null where it never does inside the span.
  function lagOf(state, span) {
    const place = span.columns.findIndex((column) => firstOf(state, column) === span.gold);
    return place < 0 ? null : place;
  }

  function confusion(state, spans) {
    const { model } = state;
    const rows = spans.map((span) => {
      const name = make('span', 'span-name');
      name.append(badge(model.experts[span.gold]), make('span', '', `‘${clipSpan(span, 34)}’`));
      return name;
    });
    const means = spans.map((span) => meanOf(state, span.columns));
    return numberMatrix('Mean gate of every expert in every span', model.experts.map(({ name }) => name), rows, (row, expert) => ({
      value: means[row][expert],
      text: fixed(means[row][expert]),
      hint: `In the span about ${model.experts[spans[row].gold].name}, ${fixed(means[row][expert], 3)} of the expert update came from ${model.experts[expert].name} (mean over its ${spans[row].columns.length} columns and ${rangeText(state)}).`,
    }));
  }

  // As loramixer.spans counts it: the gate mass that lies with each expert's commonest topic.
  function purityOf(state, spans) {
    const { model, projection, range } = state;
    const mass = new Map();
    let total = 0;
    spans.forEach(({ gold, columns }) => columns.forEach((column) => {
      const own = mass.get(gold) || new Float64Array(model.experts.length);
      meanGates(model, column, projection, range).forEach((value, expert) => { own[expert] += value; total += value; });
      mass.set(gold, own);
    }));
    const rows = [...mass.values()];
    const largest = model.experts.map((_, expert) => Math.max(...rows.map((row) => row[expert])));
    return largest.reduce((sum, value) => sum + value, 0) / total;
  }

  function facts(state, spans) {
    const { model } = state;
    const total = spans.reduce((sum, span) => sum + span.columns.length, 0);
    const own = spans.reduce((sum, span) => sum + meanOf(state, span.columns)[span.gold] * span.columns.length, 0) / total;
    const list = make('dl', 'load-numbers');
    const add = (name, value, hint) => {
      const pair = explained('div', 'load-number', undefined, hint);
      pair.append(make('dt', '', name), make('dd', 'number', value));
      list.append(pair);
    };
    const unit = UNITS.find(([key]) => key === state.unit)[1];
    const base = Math.max(...spans.map((span) => span.columns.length)) / total;
    add('purity', fixed(purityOf(state, spans)), `Purity: the share of the gates that lies with each expert’s commonest topic, up to 1. With two spans of this length, routing that ignores the topic gives about ${fixed(base)}.`);
    add('own expert', fixed(own), `Mean gate of the expert that the span is about, over ${total} ${unit}. An even share is ${fixed(1 / model.experts.length)}.`);
    spans.slice(1).forEach((span) => {
      const lag = lagOf(state, span);
      const { name } = model.experts[span.gold];
      add(`switch to ${name}`, lag === null ? 'never' : `${lag}`, lag === null
        ? `The router never puts ${name} first inside this span of ${span.columns.length} ${unit}.`
        : `Switch lag: ${lag} ${unit} of the span pass until ${name} has the largest mean gate. 0: at once.`);
    });
    return list;
  }

  const update = createSection(root, store, 'spans', (state, body, active, isNew) => {
    if (!isNew) return;
    const spans = spansOf(state);
    if (spans.length === 0) { nothing(body, 'The spans are in the prompt, and the prompt is not shown now.'); return; }
    const frame = make('div', 'matrix-frame');
    frame.tabIndex = 0;
    frame.append(confusion(state, spans));
    body.replaceChildren(frame, facts(state, spans), make('p', 'caption',
      'The topics of the spans were marked by hand; the router does not see them. The borders are drawn in the text and in the map.'));
  });

  return function draw(state) {
    section.hidden = !state.model || !state.model.tokens.some(({ gold }) => gold >= 0);
    if (!section.hidden) update(state);
  };
}
