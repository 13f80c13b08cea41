// The numbers of the plane as a table that sorts.

const COLUMNS = [
  ['router', 'router', (router) => router.title, (router) => router.title],
  ['undecided', 'undecided', (router) => router.x, (router) => three(router.x)],
  ['balanced', 'balanced', (router) => router.y, (router) => three(router.y)],
  ['specialised', 'specialised', (router) => router.y - router.x, (router) => three(router.y - router.x)],
  ['loss', 'test loss', (router) => (router.loss ? router.loss.value : null), (router) => (router.loss ? withEnds(router.loss.value, router.loss.ends) : '–')],
  ['seeds', 'seeds', (router) => router.seeds, (router) => (router.seeds ? String(router.seeds) : '–')],
];

function createTable(root, choose) {
  const frame = root.querySelector('.table-frame');
  const order = { column: 'loss', falling: false };
  let shown = { routers: [], chosen: null };

  function sorted(routers) {
    const key = COLUMNS.find(([name]) => name === order.column)[2];
    const compare = (a, b) => {
      if (a === null || b === null) return (a === null) - (b === null); // without a number: last, whatever the order
      const difference = typeof a === 'string' ? a.localeCompare(b) : a - b;
      return order.falling ? -difference : difference;
    };
    return [...routers].sort((a, b) => compare(key(a), key(b)));
  }

  function head() {
    const row = make('tr');
    COLUMNS.forEach(([name, label]) => {
      const cell = make('th');
      cell.scope = 'col';
      const isSorted = name === order.column;
      cell.setAttribute('aria-sort', isSorted ? (order.falling ? 'descending' : 'ascending') : 'none');
      const button = make('button', 'sort', `${label}${isSorted ? (order.falling ? ' ↓' : ' ↑') : ''}`);
      button.type = 'button';
      button.dataset.key = `sort ${name}`;
      if (HINTS[name]) button.dataset.tip = HINTS[name];
      button.addEventListener('click', () => {
        order.falling = isSorted && !order.falling;
        order.column = name;
        draw(shown.routers, shown.chosen, true);
      });
      cell.append(button);
      row.append(cell);
    });
    return row;
  }

  function line(router, chosen) {
    const row = make('tr', router.key === chosen ? 'chosen' : '');
    COLUMNS.forEach(([name, , , text]) => {
      const cell = make(name === 'router' ? 'th' : 'td');
      if (name === 'router') {
        cell.scope = 'row';
        const button = make('button', 'row-name', router.title);
        button.type = 'button';
        button.dataset.key = router.key;
        button.addEventListener('click', () => choose(router.key));
        cell.append(markOf(router), button);
      } else cell.textContent = text(router);
      row.append(cell);
    });
    return row;
  }

  function draw(routers, chosen, again) {
    if (!again && shown.routers === routers && shown.chosen === chosen) return;
    shown = { routers, chosen };
    const table = make('table');
    const [top, body] = [make('thead'), make('tbody')];
    top.append(head());
    sorted(routers).forEach((router) => body.append(line(router, chosen)));
    table.append(top, body);
    keepingFocus(frame, () => frame.replaceChildren(table));
  }

  return draw;
}
