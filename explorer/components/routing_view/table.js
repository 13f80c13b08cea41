// The numbers of the views as a table: sortable, a page of rows at a time, reachable by keys, part of the one selection.

const ROWS = 40;

function createTable(root, store) {
  let sort = { key: 'place', descending: false };
  let page = 0;
  let everyLayer = false;
  let nodes = null;
  let isDrawing = false;

  const state = () => store.state;
  const clear = (value) => (Number.isNaN(value) ? -Infinity : value);

  function columnsOf({ model, effect }) {
    const what = effect ? 'effect' : 'gate';
    return [
      { key: 'place', label: '#', hint: 'Position of the first token in the whole text, from 1.' },
      { key: 'text', label: 'Text', hint: 'The token, word or sentence.' },
      { key: 'role', label: 'Part', hint: 'Prompt, generated, or chat template.' },
      { key: 'layer', label: 'Layer', hint: 'A layer, or the mean over the layers that are shown.' },
      { key: 'first', label: 'First', hint: `The expert with the largest ${what}.` },
      ...model.experts.map((expert, index) => ({ key: `e${index}`, label: expert.letter, hint: `${what} of ${expert.name}`, expert: index })),
      { key: 'margin', label: 'Margin', hint: 'How far the first is ahead of the second.' },
      { key: 'entropy', label: 'Undecided', hint: 'Entropy of the gates, 0 to 1; over layers, its mean.' },
    ];
  }

  function rowOfNumbers(state, column, layer, values, entropy) {
    const { winner, margin } = leader(values);
    return { column, layer, values, margin, entropy, first: winner, place: column.tokens[0] + 1, text: column.text, role: column.role };
  }

  function rowsOf(state) {
    const { model, projection, range, columns, effect } = state;
    return columns.flatMap((column) => {
      if (!everyLayer) {
        const values = (effect ? meanShares : meanGates)(model, column, projection, range);
        return [rowOfNumbers(state, column, null, values, meanEntropy(model, column, projection, range))];
      }
      const entropies = layerEntropies(model, column, projection);
      const rows = [];
      for (let layer = range[0]; layer <= range[1]; layer += 1) {
        rows.push(rowOfNumbers(state, column, layer, (effect ? sharesAt : gatesAt)(model, column, layer, projection), entropies[layer]));
      }
      return rows;
    });
  }

  function sortedRows(state) {
    const rows = rowsOf(state);
    const expert = /^e\d+$/.test(sort.key) ? Number(sort.key.slice(1)) : null;
    const valueOf = (row) => (expert === null ? row[sort.key] : clear(row.values[expert]));
    const sign = sort.descending ? -1 : 1;
    const compare = (left, right) => {
      const [one, other] = [valueOf(left), valueOf(right)];
      return sign * (typeof one === 'string' ? one.localeCompare(other) : one - other) || left.place - right.place;
    };
    return rows.sort(compare);
  }

  function sortBy(key) {
    sort = { key, descending: sort.key === key ? !sort.descending : /^e\d+$|margin|entropy/.test(key) };
    page = 0;
    section.drawAgain();
  }

  function turn(by) {
    page += by;
    section.drawAgain();
  }

  function build(body) {
    const bar = make('div', 'table-bar');
    const layers = toggle('every layer', 'One row for every layer, instead of the mean over layers.', () => {
      everyLayer = !everyLayer;
      page = 0;
      section.drawAgain();
    });
    const [before, after] = [toggle('‹ before', 'The rows before these.', () => turn(-1)), toggle('next ›', 'The rows after these.', () => turn(1))];
    const count = make('span', 'caption');
    count.setAttribute('aria-live', 'polite');
    bar.append(layers, count, before, after);
    const frame = make('div', 'table-frame');
    frame.tabIndex = 0;
    frame.setAttribute('role', 'region');
    frame.setAttribute('aria-label', 'Table of the numbers; scrolls sideways');
    const table = make('table', 'numbers');
    const [head, rows] = [make('thead'), make('tbody')];
    table.append(head, rows);
    frame.append(table);
    rows.addEventListener('keydown', onKey);
    rows.addEventListener('focusin', (event) => { if (!isDrawing) selectRow(event.target.closest('tr'), false); });
    rows.addEventListener('click', (event) => selectRow(event.target.closest('tr'), true));
    body.replaceChildren(bar, frame);
    nodes = { layers, before, after, count, head, rows };
  }

  function selectRow(line, isLocking) {
    if (!line) return;
    const layer = line.dataset.layer === '' ? state().cell.layer : Number(line.dataset.layer);
    const cell = { layer, token: Number(line.dataset.token) };
    const { cell: own } = state();
    if (!isLocking && own && own.token === cell.token && own.layer === cell.layer) return;
    store.select(cell);
  }

  // Roving focus: one row is in the order of tabs, arrow keys go to its neighbours.
  function onKey(event) {
    const line = event.target.closest('tr');
    const target = { ArrowDown: line.nextElementSibling, ArrowUp: line.previousElementSibling, Home: line.parentNode.firstElementChild, End: line.parentNode.lastElementChild }[event.key];
    if (event.key === 'Enter') { store.lock(state().cell); event.preventDefault(); event.stopPropagation(); return; }
    if (!target) return;
    target.focus();
    event.preventDefault();
    event.stopPropagation();
  }

  function drawHead(current, columns) {
    const line = make('tr');
    line.append(...columns.map(({ key, label, hint, expert }) => {
      const cell = make('th');
      cell.scope = 'col';
      const isSorted = sort.key === key;
      cell.setAttribute('aria-sort', isSorted ? (sort.descending ? 'descending' : 'ascending') : 'none');
      const button = make('button', 'sort');
      button.type = 'button';
      button.dataset.key = key;
      button.dataset.tip = `${hint} Press to sort.`;
      if (expert === undefined) button.append(label); else button.append(badge(current.model.experts[expert]));
      if (expert !== undefined) button.setAttribute('aria-label', current.model.experts[expert].name);
      button.append(make('span', 'arrow', isSorted ? (sort.descending ? '▾' : '▴') : ''));
      button.addEventListener('click', () => sortBy(key));
      cell.append(button);
      return cell;
    }));
    keepingFocus(nodes.head, () => nodes.head.replaceChildren(line));
  }

  function lineOf(current, row) {
    const { model, effect } = current;
    const line = make('tr');
    Object.assign(line.dataset, { token: row.column.tokens[0], layer: row.layer === null ? '' : row.layer });
    line.tabIndex = -1;
    const number = effect ? (value) => percent(value, 2) : (value) => fixed(value, 3);
    const roles = { [TEMPLATE]: 'template', [GENERATED]: 'generated' };
    const first = make('td');
    if (row.first >= 0) first.append(badge(model.experts[row.first]));
    const cells = [
      make('td', 'number', String(row.place)), make('td', 'text', clipText(visibleText(row.column), 40)),
      make('td', '', roles[row.role] || 'prompt'), make('td', 'number', row.layer === null ? 'mean' : String(model.layers[row.layer])),
      first, ...Array.from(row.values, (value) => make('td', 'number', number(value))),
      make('td', 'number', number(row.margin)), make('td', 'number', fixed(row.entropy, 3)),
    ];
    line.append(...cells);
    return line;
  }

  function draw(current) {
    const rows = sortedRows(current);
    const pages = Math.max(1, Math.ceil(rows.length / ROWS));
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = rows.slice(page * ROWS, (page + 1) * ROWS);
    drawHead(current, columnsOf(current));
    nodes.rows.replaceChildren(...shown.map((row) => lineOf(current, row)));
    setText(nodes.count, `rows ${page * ROWS + 1} to ${page * ROWS + shown.length} of ${rows.length.toLocaleString('en')}`);
    nodes.before.disabled = page === 0;
    nodes.after.disabled = page === pages - 1;
    press(nodes.layers, everyLayer);
  }

  function mark(active) {
    let focusable = null;
    [...nodes.rows.children].forEach((line) => {
      const isActive = Boolean(active) && Number(line.dataset.token) === state().columns[state().columnOf[active.token]].tokens[0]
        && (line.dataset.layer === '' || Number(line.dataset.layer) === active.layer);
      line.classList.toggle('active', isActive);
      line.tabIndex = -1;
      if (isActive) focusable = line;
    });
    const reachable = focusable || nodes.rows.firstElementChild;
    if (reachable) reachable.tabIndex = 0;
    return reachable;
  }

  // The focus stays on the row of the selected cell, or the first where another page is shown; that selects nothing.
  function drawRows(current, active) {
    const focused = nodes.rows.contains(document.activeElement);
    isDrawing = true;
    draw(current);
    const reachable = mark(active);
    if (focused && reachable) reachable.focus();
    isDrawing = false;
  }

  const section = createSection(root, store, 'table', (current, body, active, isNew) => {
    if (!nodes) build(body);
    if (isNew) drawRows(current, active); else mark(active);
  });
  return section;
}
