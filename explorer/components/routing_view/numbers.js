// Pure functions of the model. A projection is its index, or MEAN for the mean over all projections of a layer.

const MEAN = -1;

function sitesOf(model, layer, projection) {
  const row = model.siteOf[layer];
  return (projection === MEAN ? row : [row[projection]]).filter((site) => site >= 0);
}

function gatesOfSite(model, token, site) {
  const count = model.experts.length;
  const { gates } = model.columns[token];
  return Array.from({ length: count }, (_, expert) => gates[site * count + expert] / GATE_SCALE);
}

function meanOfRows(rows, count) {
  const total = new Array(count).fill(0);
  rows.forEach((row) => row.forEach((value, index) => { total[index] += value; }));
  return total.map((value) => value / Math.max(rows.length, 1));
}

// Gates of one layer, [E].
function gatesAt(model, token, layer, projection) {
  const rows = sitesOf(model, layer, projection).map((site) => gatesOfSite(model, token, site));
  return meanOfRows(rows, model.experts.length);
}

// Logits of one router, [E], null where the expert is absent; null for a mean, since routers have no common zero.
function logitsAt(model, token, layer, projection) {
  const site = projection === MEAN ? -1 : model.siteOf[layer][projection];
  if (site < 0) return null;
  const count = model.experts.length;
  const { logits } = model.columns[token];
  return Array.from({ length: count }, (_, expert) => {
    const value = logits[site * count + expert];
    return value === ABSENT ? null : value / LOGIT_SCALE;
  });
}

// Mean gates of a token over all layers, [E]; remembered, since a column never changes.
function meanGates(model, token, projection) {
  const key = token * 64 + projection + 1;
  if (!model.means.has(key)) {
    const rows = model.layers.flatMap((_, layer) =>
      sitesOf(model, layer, projection).map((site) => gatesOfSite(model, token, site)));
    model.means.set(key, meanOfRows(rows, model.experts.length));
  }
  return model.means.get(key);
}

// Entropy in 0…1 of its largest value.
function entropyOf(gates) {
  if (gates.length < 2) return 0;
  const nats = gates.reduce((sum, value) => (value > 0 ? sum - value * Math.log(value) : sum), 0);
  return Math.max(0, nats / Math.log(gates.length));
}

// Mean entropy of the routers of one layer: routers that disagree must not look undecided.
function entropyAt(model, token, layer, projection) {
  const values = sitesOf(model, layer, projection).map((site) => entropyOf(gatesOfSite(model, token, site)));
  return values.reduce((sum, value) => sum + value, 0) / Math.max(values.length, 1);
}

function ranking(gates) {
  const order = gates.map((_, index) => index).sort((left, right) => gates[right] - gates[left] || left - right);
  const margin = order.length > 1 ? gates[order[0]] - gates[order[1]] : gates[order[0]];
  return { order, winner: order[0], margin };
}

// Load of each expert and the three numbers of loramixer.metrics.plane_point: per router first, then their mean.
function loadOf(model, tokens, projection) {
  const sites = model.layers.flatMap((_, layer) => sitesOf(model, layer, projection));
  let undecided = 0;
  let balanced = 0;
  const shares = sites.map((site) => {
    const rows = tokens.map((token) => gatesOfSite(model, token, site));
    const share = meanOfRows(rows, model.experts.length);
    undecided += rows.reduce((sum, row) => sum + entropyOf(row), 0) / Math.max(rows.length, 1);
    balanced += entropyOf(share);
    return share;
  });
  const count = Math.max(sites.length, 1);
  return {
    load: meanOfRows(shares, model.experts.length),
    undecided: undecided / count,
    balanced: balanced / count,
    specialised: (balanced - undecided) / count,
    routers: sites.length,
  };
}

function fixed(value, digits = 2) {
  return value.toFixed(digits);
}

function signed(value) {
  return value < 0 ? `\u2212${fixed(-value)}` : `+${fixed(value)}`;
}
