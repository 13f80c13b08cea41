// Sections that can be opened. A closed one is not drawn, so that what nobody looks at costs nothing.

function createSection(root, store, key, draw) {
  const section = root.querySelector(`[data-section="${key}"]`);
  const body = section.querySelector('.section-body');
  let drawn = '';

  // At once, not by the event `toggle`, which comes later: a frame drawn in between would close the section again.
  section.querySelector('summary').addEventListener('click', (event) => {
    event.preventDefault();
    store.toggleSection(key, !store.state.open.has(key));
  });
  new ResizeObserver(() => { if (section.open) { drawn = ''; store.redraw(); } }).observe(body);

  function update(state) {
    if (!state.model) return;
    const isOpen = state.open.has(key);
    if (section.open !== isOpen) section.open = isOpen;
    if (!isOpen) { drawn = ''; return; }
    const active = store.active();
    const isNew = drawn !== `${state.run}/${state.version}`;
    drawn = `${state.run}/${state.version}`;
    draw(state, body, active, isNew);
  }

  // For what a section keeps to itself, such as the order of a table.
  update.drawAgain = () => { drawn = ''; store.redraw(); };
  return update;
}

function nothing(body, text) {
  body.replaceChildren(make('p', 'nothing', text));
}

// A table of numbers as coloured cells, each with its number and a sentence; for matrices that are small.
function numberMatrix(label, columns, rows, cellOf) {
  const table = make('table', 'matrix');
  table.setAttribute('aria-label', label);
  const head = make('tr');
  head.append(make('td'), ...columns.map((column) => { const cell = make('th', '', column); cell.scope = 'col'; return cell; }));
  table.append(head, ...rows.map((row, place) => {
    const line = make('tr');
    const name = make('th');
    name.scope = 'row';
    name.append(row);
    line.append(name, ...columns.map((_, column) => {
      const { value, text, hint, colour } = cellOf(place, column);
      const cell = make('td', 'number', text);
      if (Number.isFinite(value)) {
        const fill = colour || cividis(value);
        cell.style.background = css(fill);
        cell.style.color = inkOn(fill);
      }
      cell.dataset.tip = hint;
      return cell;
    }));
    return line;
  }));
  return table;
}
