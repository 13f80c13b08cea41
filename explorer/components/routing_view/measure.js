// The number that the map shows in a cell, and its colour: gates or effects, on one scale or on one for each layer.

// The largest number of what is shown, so that small effects do not all look like nothing; gates end at 1.
function largestShown(state, measure) {
  if (!state.effect || measure === ENTROPY) return 1;
  const { model, projection, range, columns } = state;
  const count = model.experts.length;
  let found = 0;
  columns.forEach((column) => {
    const shares = layerShares(model, column, projection);
    for (let index = range[0] * count; index < (range[1] + 1) * count; index += 1) if (shares[index] > found) found = shares[index];
  });
  return found > 0 ? found : 1;
}

function valueAt(state, column, layer, measure) {
  const { model, projection, effect } = state;
  if (measure === ENTROPY) return layerEntropies(model, column, projection)[layer];
  const values = effect ? layerShares(model, column, projection) : layerGates(model, column, projection);
  return values[layer * model.experts.length + measure];
}

// Least and largest of each layer, [[least, largest], …]; the same for all where the scale is shared.
function scalesOf(state, measure) {
  const { model, range, columns, scale } = state;
  const top = largestShown(state, measure);
  return model.layers.map((_, layer) => {
    if (scale === 'shared' || layer < range[0] || layer > range[1]) return [0, top];
    let [least, largest] = [Infinity, -Infinity];
    columns.forEach((column) => {
      const value = valueAt(state, column, layer, measure);
      if (value < least) least = value;
      if (value > largest) largest = value;
    });
    return largest > least ? [least, largest] : [0, top];
  });
}

// Returns a function of (column, layer) that gives { fill: [r, g, b], letter }. Made once for each change of the view.
function createPainter(state, measure, paper) {
  const { model, projection, effect } = state;
  if (measure !== TOP) {
    const scales = scalesOf(state, measure);
    return (column, layer) => {
      const [least, largest] = scales[layer];
      return { fill: cividis((valueAt(state, column, layer, measure) - least) / (largest - least) || 0) };
    };
  }
  const colours = model.experts.map(({ colour }) => parseColour(colour));
  return (column, layer) => {
    const values = (effect ? sharesAt : gatesAt)(model, column, layer, projection);
    const { winner, value, margin } = leader(values);
    if (winner < 0) return { fill: paper };
    const ahead = effect ? margin / value : margin;
    return { fill: mix(paper, colours[winner], strength(ahead)), letter: model.experts[winner].letter };
  };
}
