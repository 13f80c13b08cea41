// The switches: what the map shows, which projection, and, folded, which tokens and layers.

const PHASES = [
  ['both', 'both', 'Show the prompt and the answer.'],
  ['prefill', 'prompt', 'Show only what the model read (prefill).'],
  ['generation', 'answer', 'Show only what the model wrote (generation).'],
];
const UNITS = [
  ['subword', 'tokens', 'One column for each token of the model.'],
  ['word', 'words', 'One column for each word: its tokens are joined.'],
  ['sentence', 'sentences', 'One column for each sentence: its tokens are joined.'],
];
const HOWS = [
  ['mean', 'mean', 'A word’s number is the mean over its tokens.'],
  ['max', 'max', 'A word’s number is the largest of its tokens; gates may then sum to more than 1.'],
  ['first', 'first', 'A word’s number is that of its first token.'],
];
const SCALES = [
  ['shared', 'shared', 'One scale for all layers.'],
  ['layer', 'per layer', 'Each layer from its own least to its own largest value: compares tokens, not layers.'],
];

function createSwitches(root, store) {
  const measures = root.querySelector('.measures');
  const common = root.querySelector('.switches-line');
  const options = root.querySelector('.options-body');
  const note = root.querySelector('.switch-note');
  let built = '';
  let buttons = [];
  let ends = [];

  function choice(label, hint, isChosen, choose) {
    const button = toggle(label, hint, choose);
    buttons.push({ button, isChosen });
    return button;
  }

  function expertChoice(expert, index) {
    const hint = `One number of ${expert.name} in every cell. Key ${index + 1}.`;
    const button = choice('', hint, (state) => state.measure === index, () => store.change({ measure: index }));
    button.append(badge(expert), make('span', '', expert.name));
    return button;
  }

  function measureGroup(model) {
    return choiceGroup('What the map shows', [
      choice('Top expert', 'The expert that is ahead in every cell, stronger when it is further ahead. Key 0.',
        (state) => state.measure === TOP, () => store.change({ measure: TOP })),
      ...model.experts.map(expertChoice),
      choice('Entropy', 'How undecided the router is: 0 is one expert only, 1 is all experts alike.',
        (state) => state.measure === ENTROPY, () => store.change({ measure: ENTROPY })),
    ]);
  }

  function effectGroup() {
    return choiceGroup('Gate or effect', [
      choice('gate', 'Gate: the share of the expert update that the router gives to an expert.',
        (state) => !state.effect, () => store.change({ effect: false })),
      choice('effect', 'Effect: the length of what an expert really added, over that of the frozen projection’s output.',
        (state) => state.effect, () => store.change({ effect: true })),
    ]);
  }

  function projectionGroup(model) {
    const single = model.projections.map((_, index) => choice(projectionName(model, index),
      `The routers of the ${projectionName(model, index)} projection, one in each layer.`,
      (state) => state.projection === index, () => store.change({ projection: index })));
    const mean = choice('mean', `Averaged over the routers of ${model.projections.length} projections in each layer.`,
      (state) => state.projection === MEAN, () => store.change({ projection: MEAN }));
    return choiceGroup('Projection', [...single, mean]);
  }

  function listGroup(label, name, entries) {
    return [make('span', 'switch-label', label), choiceGroup(label, entries.map(([value, text, hint]) =>
      choice(text, hint, (state) => state[name] === value, () => store.change({ [name]: value }))))];
  }

  // Two lists of layers, first and last; the other end moves along when they would cross.
  function rangeGroup(model) {
    ends = ['first', 'last'].map((name, place) => {
      const list = make('select', 'layer-end');
      list.setAttribute('aria-label', `${name} layer`);
      list.append(...model.layers.map((layer, index) => new Option(String(layer), String(index))));
      list.addEventListener('change', () => {
        const range = [...store.state.range];
        range[place] = Number(list.value);
        if (range[0] > range[1]) range[1 - place] = range[place];
        store.change({ range });
      });
      return list;
    });
    const all = toggle('all', 'Show all layers.', () => store.change({ range: [0, model.layers.length - 1] }));
    buttons.push({ button: all, isChosen: ({ range }) => range[0] === 0 && range[1] === model.layers.length - 1 });
    return [make('span', 'switch-label', 'Layers'), choiceGroup('Layers', [ends[0], make('span', '', 'to'), ends[1], all])];
  }

  function build(model) {
    buttons = [];
    measures.replaceChildren(measureGroup(model), ...(model.hasShares ? [effectGroup()] : []));
    const help = choice('?', 'Keys. Press ? anywhere on the page.', () => false, () => root.querySelector('.help').showModal());
    help.setAttribute('aria-label', 'Keys');
    help.removeAttribute('aria-pressed');
    help.classList.add('round');
    buttons.pop();
    const template = choice('Template tokens',
      'Show the tokens that the chat template adds and special tokens; they are routed too.',
      (state) => state.template, () => store.change({ template: !store.state.template }));
    common.replaceChildren(make('span', 'switch-label', 'Projection'), projectionGroup(model), template, help);
    options.replaceChildren(
      ...listGroup('Part', 'phase', PHASES), ...listGroup('Columns', 'unit', UNITS), ...listGroup('Joined by', 'how', HOWS),
      ...rangeGroup(model), ...listGroup('Scale', 'scale', SCALES),
    );
  }

  function notes(state) {
    const found = [];
    const roles = state.visible.map((index) => state.model.tokens[index].role === GENERATED);
    if (state.phase === 'generation' && roles.includes(false)) found.push('Nothing was generated here, so the prompt is shown.');
    if (state.unit !== 'subword') found.push(`Columns are ${state.unit}s, joined by ${state.how}.`);
    if (state.unit !== 'subword' && state.how === 'max') found.push('Loads and entropies are of these gates over their sum.');
    if (state.range[1] - state.range[0] + 1 < state.model.layers.length) found.push(`All means are over ${rangeText(state)}.`);
    return found.join(' ');
  }

  return function draw(state) {
    if (!state.model) return;
    const signature = JSON.stringify([state.model.experts, state.model.projections, state.model.layers, state.model.hasShares]);
    if (signature !== built) { built = signature; build(state.model); }
    buttons.forEach(({ button, isChosen }) => press(button, isChosen(state)));
    ends.forEach((list, place) => { list.value = String(state.range[place]); });
    setText(note, notes(state));
  };
}
