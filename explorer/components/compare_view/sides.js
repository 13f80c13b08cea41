// Numbers of one side, always per router first and averaged then.

// Gates of one token at one site, [E].
function siteGates(model, position, site) {
  const count = model.experts.length;
  const { gates } = model.columns[position];
  return Array.from({ length: count }, (_, expert) => gates[site * count + expert]);
}

function averageRows(rows, count) {
  const total = new Array(count).fill(0);
  rows.forEach((row) => row.forEach((value, index) => { total[index] += value; }));
  return total.map((value) => value / Math.max(rows.length, 1));
}

// Mean of the values that are known; null where none is.
function meanOf(values) {
  const known = values.filter((value) => value !== null);
  return known.length > 0 ? known.reduce((total, value) => total + value, 0) / known.length : null;
}

const allLayers = (model) => [0, model.layers.length - 1];

// Mean gates of a token over all layers, [E].
function tokenGates(model, position, projection) {
  return meanGates(model, model.columns[position], projection, allLayers(model));
}

// Load of each expert, and how undecided, balanced and specialised the routers were, over some tokens and all layers.
function loadOfTokens(model, positions, projection) {
  return loadOf(model, positions.map((position) => model.columns[position]), projection, allLayers(model));
}

// Positions of the tokens that count in loads and numbers: no template, nothing special.
function ownTokens(model) {
  const own = model.tokens.map((_, position) => position)
    .filter((position) => model.tokens[position].role !== TEMPLATE && !model.tokens[position].special);
  return own.length > 0 ? own : model.tokens.map((_, position) => position);
}
