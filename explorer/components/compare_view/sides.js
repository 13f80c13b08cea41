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

// The expert with the largest gate, and how far it is ahead; of equal gates the first expert counts.
function leaderOf(row) {
  let winner = 0;
  row.forEach((value, expert) => { if (value > row[winner]) winner = expert; });
  const second = Math.max(0, ...row.filter((_, expert) => expert !== winner));
  return { winner, margin: row[winner] - second };
}

function allSites(model, projection) {
  return model.layers.flatMap((_, layer) => sitesOf(model, layer, projection));
}

// Mean gates of a token over all layers, [E].
function tokenGates(model, position, projection) {
  const rows = allSites(model, projection).map((site) => siteGates(model, position, site));
  return averageRows(rows, model.experts.length);
}

// Load of each expert and the three numbers of loramixer.metrics.plane_point.
function sumsOf(model, positions, projection) {
  const sites = allSites(model, projection);
  const shares = [];
  let undecided = 0;
  let balanced = 0;
  sites.forEach((site) => {
    const rows = positions.map((position) => siteGates(model, position, site));
    const share = averageRows(rows, model.experts.length);
    undecided += rows.reduce((sum, row) => sum + entropyOf(row), 0) / Math.max(rows.length, 1);
    balanced += entropyOf(share);
    shares.push(share);
  });
  const count = Math.max(sites.length, 1);
  return {
    load: averageRows(shares, model.experts.length),
    undecided: undecided / count,
    balanced: balanced / count,
    specialised: (balanced - undecided) / count,
  };
}

// Positions of the tokens that count in loads and numbers: no template, nothing special.
function ownTokens(model) {
  const own = model.tokens.map((_, position) => position)
    .filter((position) => model.tokens[position].role !== TEMPLATE && !model.tokens[position].special);
  return own.length > 0 ? own : model.tokens.map((_, position) => position);
}
