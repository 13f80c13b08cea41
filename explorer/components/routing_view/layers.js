// Layer × expert load: the mean gate of every expert in every layer, against the even share.

function createLayers(root, store) {
  let rows = [];
  let built = '';

  function build({ model }, body) {
    const signature = JSON.stringify([model.experts, model.layers]);
    if (built === signature) return;
    built = signature;
    const even = 1 / model.experts.length;
    const grid = make('div', 'load-grid');
    grid.tabIndex = 0;
    grid.setAttribute('role', 'region');
    grid.setAttribute('aria-label', 'Load by layer; scrolls sideways');
    grid.style.setProperty('--experts', String(model.experts.length));
    grid.append(make('span', 'layer-name', 'layer'), ...model.experts.map((expert) => {
      const head = make('span', 'layer-head');
      head.append(badge(expert), expertName(expert));
      return head;
    }));
    rows = model.layers.map((layer, index) => {
      const name = make('span', 'layer-name', String(layer));
      const cells = model.experts.map((expert) => {
        const cell = make('span', 'load-cell');
        const track = make('span', 'track even');
        track.style.setProperty('--uniform', `${even * 100}%`);
        const bar = make('span', 'bar');
        bar.style.setProperty('--expert', expert.colour);
        const number = make('span', 'number');
        track.append(bar);
        cell.append(track, number);
        return { cell, bar, number };
      });
      const nodes = [name, ...cells.map(({ cell }) => cell)];
      nodes.forEach((node) => node.addEventListener('click', () => {
        store.select({ layer: index, token: store.active().token });
      }));
      grid.append(...nodes);
      return { cells, nodes };
    });
    const note = `Bar: mean gate of the layer’s routers over all columns that are shown. Line: the even share, 1/${model.experts.length} = ${fixed(even)}. Click a row to go to its layer.`;
    body.replaceChildren(grid, make('p', 'caption', note));
  }

  return createSection(root, store, 'layers', (state, body, active, isNew) => {
    build(state, body);
    const { model, range, projection, columns } = state;
    const count = model.experts.length;
    const loads = isNew ? layerLoads(model, columns, projection) : null;
    rows.forEach(({ cells, nodes }, layer) => {
      nodes.forEach((node) => {
        node.hidden = layer < range[0] || layer > range[1];
        node.classList.toggle('active', Boolean(active) && active.layer === layer);
      });
      if (loads === null) return;
      cells.forEach(({ cell, bar, number }, expert) => {
        const load = loads[layer * count + expert];
        bar.style.width = `${Math.min(load, 1) * 100}%`;
        setText(number, fixed(load));
        cell.dataset.tip = `layer ${model.layers[layer]}: on average ${fixed(load, 3)} of the expert update comes from `
          + `${model.experts[expert].name}; an even share is ${fixed(1 / count, 3)}`;
      });
    });
  });
}
