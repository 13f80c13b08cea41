// Gate beside effect: what the routers gave each expert, and how much the expert then changed the output.

const MOST_FLAGS = 12;

function createEffect(root, store) {
  // Every router and token that is shown, one projection or all: visit(column, layer, site).
  function visit(state, each) {
    state.columns.forEach((column) => {
      for (let layer = state.range[0]; layer <= state.range[1]; layer += 1) {
        sitesOf(state.model, layer, state.projection).forEach((site) => each(column, layer, site));
      }
    });
  }

  function collect(state) {
    const { model } = state;
    const count = model.experts.length;
    const sums = model.experts.map(() => ({ gate: 0, effect: 0, chosen: 0, idle: 0 }));
    const flags = [];
    let cells = 0;
    visit(state, (column, layer, site) => {
      cells += 1;
      const total = sumOf(column.shares, site * count, count);
      for (let expert = 0; expert < count; expert += 1) {
        const [gate, share] = [column.gates[site * count + expert], column.shares[site * count + expert]];
        sums[expert].gate += gate;
        if (Number.isNaN(share)) continue;
        sums[expert].effect += share;
        if (gate >= HIGH_GATE) sums[expert].chosen += 1;
        if (isIdle(gate, share, total)) {
          sums[expert].idle += 1;
          flags.push({ column, layer, projection: model.sites[site][1], expert, gate, share });
        }
      }
    });
    return { sums, flags, cells };
  }

  // The label takes the place of the head where the grid is narrow.
  function barRow(label, expert, value, largest, text, hint) {
    const track = make('span', 'track');
    const bar = make('span', 'bar');
    bar.style.setProperty('--expert', expert.colour);
    bar.style.width = `${largest > 0 ? (100 * value) / largest : 0}%`;
    track.append(bar);
    return [make('span', 'bar-label', label), track, explained('span', 'number', text, hint)];
  }

  function overview({ model }, { sums, cells }) {
    const grid = make('div', 'effect-grid');
    ['Expert', 'Gate, mean', '', 'Effect, mean', '', 'High gate, hardly any effect'].forEach((text) => grid.append(make('span', 'head', text)));
    const largest = Math.max(...sums.map(({ effect }) => effect));
    model.experts.forEach((expert, index) => {
      const { gate, effect, chosen, idle } = sums[index];
      const name = make('span', 'load-name');
      name.append(badge(expert), expertName(expert));
      const share = chosen > 0 ? idle / chosen : NaN;
      grid.append(name,
        ...barRow('gate, mean', expert, gate, cells, fixed(gate / cells), `${expert.name} got ${fixed(gate / cells, 3)} of the expert update on average over ${cells.toLocaleString('en')} router decisions.`),
        ...barRow('effect, mean', expert, effect, largest, percent(effect / cells, 2), `What ${expert.name} added had on average ${percent(effect / cells, 2)} of the length of the frozen projection’s output. The longest bar is the largest of the experts.`),
        explained('span', 'number flag-count', chosen > 0 ? `${idle} of ${chosen}` : '–',
          chosen > 0 ? `${expert.name} had a gate of at least ${HIGH_GATE} in ${chosen} router decisions; in ${idle} of them (${percent(share, 0)}) it added under ${100 * NO_EFFECT} % of what all experts added there.`
            : `${expert.name} never had a gate of at least ${HIGH_GATE} here.`));
    });
    return grid;
  }

  function flagList({ model }, flags) {
    if (flags.length === 0) return [make('p', 'caption', `Nothing to flag: no router decision has ${IDLE_WORDS}.`)];
    flags.sort((left, right) => right.gate - left.gate || left.share - right.share);
    const list = make('ul', 'flags');
    list.append(...flags.slice(0, MOST_FLAGS).map(({ column, layer, projection, expert, gate, share }) => {
      const item = make('li');
      const text = `‘${clipText(visibleText(column), 24)}’, layer ${model.layers[layer]}, ${projectionName(model, projection)}: `
        + `${model.experts[expert].name} gate ${fixed(gate)}, effect ${percent(share, 2)}`;
      const button = toggle('', 'Go to this router and token.', () => {
        store.change({ projection });
        store.select({ layer, token: column.tokens[0] });
      });
      button.dataset.key = [layer, projection, column.tokens[0], expert].join('/');
      button.append(badge(model.experts[expert]), make('span', '', text));
      item.append(button);
      return item;
    }));
    const more = flags.length > MOST_FLAGS ? ` The ${MOST_FLAGS} with the largest gates are listed.` : '';
    return [make('h3', '', `High gate, hardly any effect: ${flags.length.toLocaleString('en')} router decisions.${more}`), list];
  }

  function draw(state, body) {
    if (!state.model.hasShares) {
      nothing(body, 'This trace holds gates only. Tick “Record effects” beside the prompt and press Generate to see what every expert really added.');
      return;
    }
    const found = collect(state);
    const note = make('p', 'caption', 'A gate says how much the router asked for; the effect is the length of what came, ‖g·BAx‖ over ‖Wx‖. An expert can be chosen and still change nothing.');
    keepingFocus(body, () => body.replaceChildren(overview(state, found), ...flagList(state, found.flags), note));
  }

  return createSection(root, store, 'effect', (state, body, active, isNew) => { if (isNew) draw(state, body); });
}
