// The switches: what the map shows, which projection, and whether template tokens are shown.

function createSwitches(root, store) {
  const measures = root.querySelector('.measures');
  const common = root.querySelector('.switches');
  let built = '';
  let buttons = [];

  function choice(label, hint, isChosen, choose) {
    const button = make('button', 'choice', label);
    button.type = 'button';
    button.dataset.tip = hint;
    button.addEventListener('click', choose);
    buttons.push({ button, isChosen });
    return button;
  }

  function group(label, members) {
    const node = make('div', 'choices');
    node.setAttribute('role', 'group');
    node.setAttribute('aria-label', label);
    node.append(...members);
    return node;
  }

  function expertChoice(expert, index) {
    const hint = `The gate of ${expert.name}, 0 to 1, in every cell. Key ${index + 1}.`;
    const button = choice('', hint, (state) => state.measure === index, () => store.setMeasure(index));
    button.append(badge(expert), make('span', '', expert.name));
    return button;
  }

  function measureGroup(model) {
    return group('What the map shows', [
      choice('Top expert', 'The expert with the largest gate in every cell, stronger when it is further ahead. Key 0.',
        (state) => state.measure === TOP, () => store.setMeasure(TOP)),
      ...model.experts.map(expertChoice),
      choice('Entropy', 'How undecided the router is: 0 is one expert only, 1 is all experts alike.',
        (state) => state.measure === ENTROPY, () => store.setMeasure(ENTROPY)),
    ]);
  }

  function projectionGroup(model) {
    const single = model.projections.map((_, index) => choice(projectionName(model, index),
      `The routers of the ${projectionName(model, index)} projection, one in each layer.`,
      (state) => state.projection === index, () => store.setProjection(index)));
    const mean = choice('mean', `Averaged over the routers of ${model.projections.length} projections in each layer.`,
      (state) => state.projection === MEAN, () => store.setProjection(MEAN));
    return group('Projection', [...single, mean]);
  }

  function build(model) {
    buttons = [];
    measures.replaceChildren(measureGroup(model));
    const template = choice('Template tokens',
      'Show the tokens that the chat template adds and special tokens; they are routed too.',
      (state) => state.showTemplate, () => store.toggleTemplate());
    common.replaceChildren(make('span', 'switch-label', 'Projection'), projectionGroup(model), template);
    const help = choice('?', 'Keys. Press ? anywhere on the page.', () => false, () => root.querySelector('.help').showModal());
    help.setAttribute('aria-label', 'Keys');
    help.classList.add('round');
    common.append(help);
  }

  return function draw(state) {
    if (!state.model) return;
    const signature = JSON.stringify([state.model.experts, state.model.projections]);
    if (signature !== built) { built = signature; build(state.model); }
    buttons.forEach(({ button, isChosen }) => button.setAttribute('aria-pressed', String(isChosen(state))));
  };
}
