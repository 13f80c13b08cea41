// Load of each expert against uniform, and how undecided, balanced and specialised the routers were.

function createLoad(root) {
  const caption = root.querySelector('.load .caption');
  const barsNode = root.querySelector('.load-bars');
  const numbersNode = root.querySelector('.load-numbers');
  let built = '';
  let rows = [];
  let numbers = {};
  let lastVersion = -1;

  const PARTS = [['all', 'all that is shown'], ['prompt', 'prompt'], ['generated', 'generated']];
  const HINTS = {
    undecided: 'Undecided: mean entropy of single tokens, 0 to 1. 0: every token goes to one expert. 1: every token is spread evenly.',
    balanced: 'Balanced: entropy of the mean load of a router, 0 to 1. 1: all experts are used equally over the text.',
    specialised: 'Specialised: balanced minus undecided, the mutual information of token and expert, 0 to 1. High: different tokens go to different experts. Short texts make it look higher than it is.',
  };

  function buildRow(expert, uniform) {
    const line = make('div', 'load-row');
    const name = make('span', 'load-name');
    name.append(badge(expert), expertName(expert));
    const tracks = make('div', 'load-tracks');
    tracks.style.setProperty('--uniform', `${uniform * 100}%`);
    const bars = PARTS.map(([key]) => {
      const track = make('div', `load-track ${key}`);
      const bar = make('span', 'bar');
      bar.style.setProperty('--expert', expert.colour);
      track.append(bar);
      tracks.append(track);
      return { track, bar };
    });
    const number = explained('span', 'number', '', '');
    line.append(name, tracks, number);
    return { line, bars, number };
  }

  function build(model) {
    const signature = JSON.stringify(model.experts);
    if (signature === built) return;
    built = signature;
    lastVersion = -1;
    rows = model.experts.map((expert) => buildRow(expert, 1 / model.experts.length));
    const note = make('p', 'caption', `Thick bar: all that is shown; thin bars: prompt, then generated. Line: uniform, 1/${model.experts.length} = ${fixed(1 / model.experts.length)}.`);
    barsNode.replaceChildren(...rows.map(({ line }) => line), note);
    numbers = {};
    numbersNode.replaceChildren(...Object.entries(HINTS).map(([name, hint]) => {
      const pair = explained('div', 'load-number', undefined, hint);
      numbers[name] = make('dd', 'number');
      pair.append(make('dt', '', name), numbers[name]);
      return pair;
    }));
  }

  function partition({ columns }) {
    return {
      all: columns,
      prompt: columns.filter(({ role }) => role !== GENERATED),
      generated: columns.filter(({ role }) => role === GENERATED),
    };
  }

  function unitText(state, count) {
    return `${count} ${UNITS.find(([unit]) => unit === state.unit)[1]}`;
  }

  return function draw(state) {
    const { model, projection, range, version } = state;
    if (!model) return;
    build(model);
    if (version === lastVersion) return;
    lastVersion = version;
    const groups = partition(state);
    const found = Object.fromEntries(Object.entries(groups).map(([key, columns]) => [key, loadOf(model, columns, projection, range)]));
    rows.forEach(({ bars, number }, expert) => {
      PARTS.forEach(([key, label], index) => {
        const share = groups[key].length > 0 ? found[key].load[expert] : 0;
        bars[index].bar.style.width = `${Math.min(share, 1) * 100}%`;
        bars[index].track.dataset.tip = `${label} (n = ${unitText(state, groups[key].length)}): ${fixed(share, 3)}`;
      });
      setText(number, fixed(found.all.load[expert]));
      number.dataset.tip = `Load of ${model.experts[expert].name}: its mean gate over ${unitText(state, groups.all.length)} and `
        + `${found.all.routers} routers. Prompt ${fixed(found.prompt.load[expert])}, generated ${fixed(found.generated.load[expert])}.`;
    });
    Object.keys(HINTS).forEach((name) => setText(numbers[name], fixed(found.all[name])));
    setText(caption, `n = ${unitText(state, groups.all.length)} (${groups.prompt.length} prompt, ${groups.generated.length} generated) × ${found.all.routers} routers`);
  };
}
