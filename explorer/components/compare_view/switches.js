// The switches: what the maps show, which projection, and whether template tokens are shown.

function createCompareSwitches(root, store) {
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

  function expertChoice(expert, index) {
    const hint = `The gate of ${expert.name} in both, and how it differs. Key ${index + 1}.`;
    const button = choice('', hint, (state) => state.measure === index, () => store.setMeasure(index));
    button.append(badge(expert), make('span', '', expert.name));
    return button;
  }

  function build(comparison) {
    buttons = [];
    measures.replaceChildren(choiceGroup('What the maps show', [
      ...comparison.experts.map(expertChoice),
      choice('Top expert', 'The expert with the largest gate; B − A is the change of the gate of the one that is ahead '
        + 'in the first. Key 0.', (state) => state.measure === TOP, () => store.setMeasure(TOP)),
      choice('Entropy', 'How undecided the routers are: 0 is one expert only, 1 is all experts alike. Key e.',
        (state) => state.measure === ENTROPY, () => store.setMeasure(ENTROPY)),
    ]));
    const single = comparison.projections.map((_, index) => choice(shortProjection(comparison, index),
      `The routers of the ${shortProjection(comparison, index)} projection, one in each layer.`,
      (state) => state.projection === index, () => store.setProjection(index)));
    const mean = choice('mean', `Averaged over the routers of ${comparison.projections.length} projections in each layer.`,
      (state) => state.projection === MEAN, () => store.setProjection(MEAN));
    const template = choice('Template tokens',
      'Show the tokens that the chat template adds and special tokens; they are routed too.',
      (state) => state.showTemplate, () => store.toggleTemplate());
    const help = choice('?', 'Keys. Press ? anywhere in this room.', () => false, () => root.querySelector('.help').showModal());
    help.setAttribute('aria-label', 'Keys');
    help.classList.add('round');
    common.replaceChildren(make('span', 'switch-label', 'Projection'), choiceGroup('Projection', [...single, mean]), template, help);
  }

  return function draw(state) {
    const { comparison } = state;
    if (!comparison) return;
    const signature = JSON.stringify([comparison.experts, comparison.projections]);
    if (signature !== built) { built = signature; build(comparison); }
    buttons.forEach(({ button, isChosen }) => button.setAttribute('aria-pressed', String(isChosen(state))));
  };
}
