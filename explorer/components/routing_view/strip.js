// The provenance strip: what produced the trace on screen.

function createStrip(root) {
  const strip = root.querySelector('.strip');
  let drawn = '';

  function item({ label, value, hint }) {
    const node = explained('div', 'strip-item', undefined, hint);
    node.append(make('span', 'strip-label', label), make('span', 'strip-value', value));
    return node;
  }

  return function draw({ model }) {
    const signature = model ? JSON.stringify(model.provenance) : '';
    if (signature === drawn) return;
    drawn = signature;
    strip.replaceChildren(...(model ? model.provenance.map(item) : []));
    if (model) strip.firstChild.dataset.state = model.state;
  };
}
