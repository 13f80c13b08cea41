// What is compared: the facts in which the two differ, those in which they do not, and how tokens were matched.

function createFacts(root) {
  const table = root.querySelector('.facts-table');
  const same = root.querySelector('.facts-same');
  const aligned = root.querySelector('.aligned');
  let drawn = null;

  function cell(tag, text, hint) {
    const node = make(tag);
    node.append(hint ? explained('span', '', text, hint) : text);
    return node;
  }

  function build({ facts, names }) {
    const grid = make('table');
    const head = make('tr');
    head.append(make('th', 'hidden-head', ''), ...['a', 'b'].map((side) => {
      const node = make('th');
      node.scope = 'col';
      node.append(make('span', `side side-${side}`, names[side].letter), make('span', 'side-title', names[side].title));
      return node;
    }));
    grid.append(head, ...facts.map(({ label, a, b, hint }) => {
      const row = make('tr');
      const name = cell('th', label, hint);
      name.scope = 'row';
      row.append(name, make('td', '', a), make('td', '', b));
      return row;
    }));
    return grid;
  }

  return function draw({ comparison }) {
    if (!comparison || drawn === comparison) return;
    drawn = comparison;
    table.replaceChildren(build(comparison));
    setText(same, comparison.same ? `The same in both: ${comparison.same}.` : '');
    aligned.replaceChildren(...(comparison.badge ? [make('span', 'routing-only', comparison.badge)] : []), comparison.sentence);
  };
}
