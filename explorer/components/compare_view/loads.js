// Both in a few numbers, and the loads of the experts side by side.

const SUM_HINTS = {
  undecided: 'Undecided: mean entropy of single tokens, 0 to 1. 0: every token goes to one expert. 1: every token is spread evenly.',
  balanced: 'Balanced: entropy of the mean load of a router, 0 to 1. 1: all experts are used equally over the text.',
  specialised: 'Specialised: balanced minus undecided, the mutual information of token and expert, 0 to 1. Short texts make it look higher than it is.',
};
const JSD_HINT = 'Jensen–Shannon divergence in bits, mean over routers and over the tokens that both have: 0 the same '
  + 'gates, 1 no expert in common.';
const CHANGED_HINT = 'Of all decisions of all routers about the tokens that both have: how often another expert is ahead.';

const ANSWER_HINT = 'Of the words of both answers: how many have no partner in the other answer.';

function createSums(root) {
  const caption = root.querySelector('.sums .caption');
  const table = root.querySelector('.sums-table');
  let drawn = '';

  function line(name, hint, values) {
    const row = make('tr');
    const head = make('th');
    head.scope = 'row';
    head.append(explained('span', '', name, hint));
    row.append(head, ...values.map((value) => make('td', 'number', value)));
    return row;
  }

  function headRow(texts) {
    const row = make('tr');
    row.append(...texts.map((text) => {
      const cell = make('th', '', text);
      cell.scope = 'col';
      return cell;
    }));
    return row;
  }

  const shown = {
    jsd: (value) => (value === null ? '–' : fixed(value, 3)),
    changed: (value) => (value === null ? '–' : `${fixed(value * 100, 1)} %`),
    answer: (value) => (value === null ? '–' : `${fixed(value * 100, 1)} %`),
  };

  // One number, and below it the same number of the control. The control was counted over all projections.
  function effectRows({ comparison, projection, showTemplate }, key, name, hint, value) {
    const { control } = comparison;
    const rows = [line(name, hint, [shown[key](value)])];
    const isAlike = key === 'answer' || (projection === MEAN && !showTemplate);
    if (control && isAlike) rows.push(line(control.label, control.hint, [shown[key](control[key])]));
    return rows;
  }

  function build(state) {
    const { comparison, projection, visible } = state;
    const { a, b } = comparison.names;
    const [first, second] = [comparison.a, comparison.b].map((model) => loadOfTokens(model, ownTokens(model), projection));
    const both = make('table');
    both.append(headRow(['', a.letter, b.letter, `${b.letter} − ${a.letter}`]), ...Object.entries(SUM_HINTS).map(([name, hint]) =>
      line(name, hint, [fixed(first[name]), fixed(second[name]), signed(second[name] - first[name])])));
    const changes = changesOf(comparison, visible, projection);
    const differences = make('table');
    differences.append(
      ...effectRows(state, 'jsd', 'mean divergence', JSD_HINT, changes.jsd),
      ...effectRows(state, 'changed', 'another expert ahead', CHANGED_HINT, changes.changed),
      ...(comparison.answer === null ? [] : effectRows(state, 'answer', 'words that differ', ANSWER_HINT, comparison.answer)),
    );
    table.replaceChildren(both, differences);
    const unit = comparison.spans.length > 0 ? `span${changes.pairs === 1 ? '' : 's'}` : 'tokens or words';
    setText(caption, `${projectionWords(comparison, projection)}; ${changes.pairs} ${unit} in both`);
  }

  return function draw(state) {
    if (!state.comparison) return;
    const signature = [state.comparison.id, state.projection, state.visible.length].join('/');
    if (signature === drawn) return;
    drawn = signature;
    build(state);
  };
}

function createLoads(root) {
  const caption = root.querySelector('.load .caption');
  const bars = root.querySelector('.load-bars');
  let drawn = '';

  function row(comparison, expert, index, loads, uniform) {
    const node = make('div', 'load-row');
    const name = make('span', 'load-name');
    name.append(badge(expert), expertName(expert));
    const tracks = make('div', 'load-tracks');
    tracks.style.setProperty('--uniform', `${uniform * 100}%`);
    ['a', 'b'].forEach((side, place) => {
      const track = make('div', `load-track all load-${side}`);
      const bar = make('span', 'bar');
      bar.style.setProperty('--expert', expert.colour);
      bar.style.width = `${loads[place][index] * 100}%`;
      track.append(bar);
      track.title = `${comparison.names[side].letter}: ${fixed(loads[place][index], 3)}`;
      tracks.append(track);
    });
    const [before, after] = [loads[0][index], loads[1][index]];
    const { a, b } = comparison.names;
    const number = explained('span', 'number', `${fixed(before)} → ${fixed(after)}`,
      `Load of ${expert.name}: its mean gate, ${fixed(before, 3)} in ${a.letter} and ${fixed(after, 3)} in ${b.letter} (${signed(after - before)}).`);
    node.append(name, tracks, number);
    return node;
  }

  return function draw(state) {
    const { comparison, projection } = state;
    if (!comparison) return;
    const signature = [comparison.id, projection].join('/');
    if (signature === drawn) return;
    drawn = signature;
    const tokens = [ownTokens(comparison.a), ownTokens(comparison.b)];
    const loads = [loadOfTokens(comparison.a, tokens[0], projection).load, loadOfTokens(comparison.b, tokens[1], projection).load];
    const uniform = 1 / comparison.experts.length;
    const { a, b } = comparison.names;
    bars.replaceChildren(
      ...comparison.experts.map((expert, index) => row(comparison, expert, index, loads, uniform)),
      make('p', 'caption', `Upper bar: ${a.letter}; lower, hatched bar: ${b.letter}. Line: uniform, 1/${comparison.experts.length} = ${fixed(uniform)}.`),
    );
    setText(caption, `n = ${tokens[0].length} tokens in ${a.letter}, ${tokens[1].length} in ${b.letter}`);
  };
}
