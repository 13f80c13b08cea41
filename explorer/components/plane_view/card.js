// The card of the chosen router: what it was trained with, its numbers with a sentence each, and where to take it.

const HINTS = {
  undecided: 'How undecided single tokens are: the mean entropy of a token’s gates over the largest possible. 0: every token has one expert. 1: every token splits evenly.',
  balanced: 'How even the load is: the entropy of the mean gates over the largest possible. 0: one expert does everything. 1: all do the same.',
  specialised: 'Balanced minus undecided: how much a token tells about its expert (mutual information over log K). The gap to the diagonal.',
  loss: 'Loss on test rows that nothing was trained on, in nats per answer token; lower is better. Behind it the 95 % interval.',
  seeds: 'How many trainings with another random start the numbers are the mean of.',
  band: 'Where a text of so many tokens would fall if its tokens were drawn at random from all texts. Few tokens cannot spread as evenly as many: read a single text against this box.',
};

const withEnds = (value, ends) => (ends ? `${three(value)}  [${three(ends[0])}, ${three(ends[1])}]` : three(value));

function numbersOf(router) {
  const rows = [
    ['undecided', withEnds(router.x, router.xEnds), HINTS.undecided],
    ['balanced', withEnds(router.y, router.yEnds), HINTS.balanced],
    ['specialised', three(router.y - router.x), HINTS.specialised],
  ];
  if (router.loss) rows.push(['test loss', withEnds(router.loss.value, router.loss.ends), HINTS.loss]);
  if (router.seeds) rows.push(['seeds', String(router.seeds), HINTS.seeds]);
  if (router.band) {
    const { x, y, tokens } = router.band;
    rows.push([`shuffled, n = ${tokens}`, `undecided ${three(x[0])}–${three(x[1])}, balanced ${three(y[0])}–${three(y[1])}`, HINTS.band]);
  }
  return rows;
}

function sentenceOfRouter(router) {
  const loss = router.loss ? `, test loss ${three(router.loss.value)}` : '';
  return `${router.title}: undecided ${three(router.x)}, balanced ${three(router.y)}, specialised ${three(router.y - router.x)}${loss}.`;
}

// The number of a router in its colour: round for what the experiments measured, square for what was measured just now.
function markOf(router) {
  const mark = make('span', router.live ? 'mark-number live' : 'mark-number', router.mark);
  mark.style.background = router.colour;
  mark.style.color = inkOn(parseColour(router.colour));
  return mark;
}

function createRouterCard(root, ask) {
  const body = root.querySelector('.card-body');
  const live = root.querySelector('.card-live');
  let drawn = '';

  function action(text, event, router) {
    const button = make('button', 'action', text);
    button.type = 'button';
    button.addEventListener('click', () => ask(event, { mixer: router.mixer }));
    return button;
  }

  function content(router) {
    const title = make('p', 'card-title');
    title.append(markOf(router), make('span', '', router.title));
    const list = make('dl', 'card-numbers');
    numbersOf(router).forEach(([name, value, hint]) => list.append(explained('dt', '', name, hint), make('dd', '', value)));
    const nodes = [title, make('p', 'card-loss', router.lossText)];
    if (router.sign) nodes.push(make('p', 'card-sign', router.sign));
    nodes.push(list, make('p', 'caption', router.facts));
    const actions = make('div', 'actions');
    if (router.mixer) actions.append(action('Open in Explore', 'open_router', router), action('Pin in Compare', 'pin_router', router));
    else actions.append(make('p', 'caption', 'This router is not installed, only its numbers are. Room Train makes one like it.'));
    return [...nodes, actions];
  }

  const hello = 'Point at a router, or walk with the arrow keys, and press Enter: its numbers appear here, and it can be opened in Explore.';

  return function draw(router, announce) {
    const signature = JSON.stringify(router || null);
    if (signature !== drawn) {
      drawn = signature;
      body.replaceChildren(...(router ? content(router) : [make('p', 'caption', hello)]));
    }
    if (announce) setText(live, router ? sentenceOfRouter(router) : '');
  };
}
