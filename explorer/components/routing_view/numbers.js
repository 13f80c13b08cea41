// Pure functions of the model. A projection is its index, or MEAN for the mean over all projections of a layer. A column
// is one token, or a word or sentence of several; its arrays hold all sites and experts, [S, E].

const MEAN = -1;

function sitesOf(model, layer, projection) {
  return model.sitesBy[projection + 1][layer];
}

function sitesOfLayers(model, [first, last], projection) {
  const sites = [];
  for (let layer = first; layer <= last; layer += 1) sites.push(...sitesOf(model, layer, projection));
  return sites;
}

// Entropy of one row in 0…1 of its largest value.
function entropyOf(values, start = 0, count = values.length) {
  if (count < 2) return 0;
  let nats = 0;
  for (let index = start; index < start + count; index += 1) {
    const value = values[index];
    if (value > 0) nats -= value * Math.log(value);
  }
  return Math.max(0, nats / Math.log(count));
}

function remember(column, key, make) {
  if (!column.cache.has(key)) column.cache.set(key, make());
  return column.cache.get(key);
}

// Gates for entropies and loads, [S, E], as loramixer.aggregate.gate_shares has them: the largest gates of a word need not
// sum to 1, so they are taken over their sum.
function weightsOf(model, column) {
  if (!column.isLargest) return column.gates;
  return remember(column, 'weights', () => {
    const count = model.experts.length;
    return column.gates.map((value, index) => value / (sumOf(column.gates, index - (index % count), count) || 1));
  });
}

// Entropy of every site, [S].
function siteEntropies(model, column) {
  const count = model.experts.length;
  return remember(column, 'entropy', () => {
    const weights = weightsOf(model, column);
    return Float32Array.from(model.sites, (_, site) => entropyOf(weights, site * count, count));
  });
}

// Whether the router of a site gives somebody something.
function isOn(model, column, site) {
  const count = model.experts.length;
  return remember(column, 'on', () => model.sites.map((_, index) => sumOf(column.gates, index * count, count) > 0))[site];
}

// Those of some sites that are on; all of them where none is, as loramixer.metrics.routers_that_are_on has it: a router
// that is off has no part in means of gates and entropies.
function sitesThatAreOn(model, column, sites) {
  const on = sites.filter((site) => isOn(model, column, site));
  return on.length > 0 ? on : sites;
}

// Mean over some sites, [E]; NaN is left out, and stays where there is nothing else.
function meanOverSites(model, values, sites) {
  const count = model.experts.length;
  return Float32Array.from(model.experts, (_, expert) => {
    let total = 0;
    let known = 0;
    for (const site of sites) {
      const value = values[site * count + expert];
      if (!Number.isNaN(value)) { total += value; known += 1; }
    }
    return known > 0 ? total / known : NaN;
  });
}

// The same for the sites of each layer, [L, E]; `pick` chooses among them.
function meanOfEachLayer(model, values, projection, pick = (sites) => sites) {
  const result = new Float32Array(model.layers.length * model.experts.length);
  model.layers.forEach((_, layer) => {
    result.set(meanOverSites(model, values, pick(sitesOf(model, layer, projection))), layer * model.experts.length);
  });
  return result;
}

// The same for the sites of each layer that are on.
function meanOfRouters(model, column, values, projection) {
  return meanOfEachLayer(model, values, projection, (sites) => sitesThatAreOn(model, column, sites));
}

// Gates of all layers, [L, E].
function layerGates(model, column, projection) {
  return remember(column, `gates${projection}`, () => meanOfRouters(model, column, column.gates, projection));
}

// What each expert added over what the frozen projection gave, [L, E]; null where it was not recorded.
function layerShares(model, column, projection) {
  if (!column.shares) return null;
  return remember(column, `shares${projection}`, () => meanOfEachLayer(model, column.shares, projection));
}

function meanAt(values, sites) {
  return sites.reduce((sum, site) => sum + values[site], 0) / Math.max(sites.length, 1);
}

// Mean entropy of the routers of each layer, [L]: routers that disagree must not look undecided.
function layerEntropies(model, column, projection) {
  return remember(column, `entropies${projection}`, () => {
    const entropies = siteEntropies(model, column);
    return Float32Array.from(model.layers, (_, layer) => (
      meanAt(entropies, sitesThatAreOn(model, column, sitesOf(model, layer, projection)))));
  });
}

function rowOf(values, layer, count) {
  return values.subarray(layer * count, (layer + 1) * count);
}

function gatesAt(model, column, layer, projection) {
  return rowOf(layerGates(model, column, projection), layer, model.experts.length);
}

function sharesAt(model, column, layer, projection) {
  const shares = layerShares(model, column, projection);
  return shares && rowOf(shares, layer, model.experts.length);
}

// Logits of one router, [E], NaN where the expert is absent; null for a mean, since routers have no common zero.
function logitsAt(model, column, layer, projection) {
  const sites = sitesOf(model, layer, projection);
  if (projection === MEAN && model.projections.length > 1) return null;
  return sites.length === 1 ? rowOf(column.logits, sites[0], model.experts.length) : null;
}

// Mean gates of a column over the routers of a range of layers, [E]: a layer with more routers counts for more, as in
// loramixer.metrics.load.
function meanGates(model, column, projection, range) {
  return remember(column, `mean${projection}/${range.join('/')}`, () =>
    meanOverSites(model, column.gates, sitesThatAreOn(model, column, sitesOfLayers(model, range, projection))));
}

function meanShares(model, column, projection, range) {
  return column.shares && remember(column, `effect${projection}/${range.join('/')}`, () =>
    meanOverSites(model, column.shares, sitesOfLayers(model, range, projection)));
}

// Mean entropy of the routers of a range of layers.
function meanEntropy(model, column, projection, range) {
  return meanAt(siteEntropies(model, column), sitesThatAreOn(model, column, sitesOfLayers(model, range, projection)));
}

// The first of all experts and how far it is ahead of the second; winner −1 where no expert has any.
function leader(values) {
  let winner = -1;
  let first = 0;
  let second = 0;
  for (let expert = 0; expert < values.length; expert += 1) {
    const value = values[expert];
    if (value > first) { second = first; first = value; winner = expert; } else if (value > second) second = value;
  }
  return { winner, value: first, margin: first - second };
}

function ranking(values) {
  return Array.from(values, (_, index) => index).sort((left, right) => values[right] - values[left] || left - right);
}

// One column out of several tokens, as loramixer.aggregate makes it: the mean of every number, the largest of each (gates
// of a word may then sum to more than 1, see weightsOf), or those of the first token. An expert is absent where it is so for all.
function joinColumns(members, how) {
  if (members.length === 1 || how === 'first') return members[0];
  const join = how === 'max' ? largest : average;
  const part = (name) => (members[0][name] ? join(members.map((column) => column[name])) : null);
  return { gates: part('gates'), logits: part('logits'), shares: part('shares'), isLargest: how === 'max', cache: new Map() };
}

function average(arrays) {
  return arrays[0].map((_, index) => {
    let total = 0;
    let known = 0;
    for (const array of arrays) if (!Number.isNaN(array[index])) { total += array[index]; known += 1; }
    return known > 0 ? total / known : NaN;
  });
}

function largest(arrays) {
  return arrays[0].map((_, index) => {
    let found = NaN;
    for (const array of arrays) if (!(array[index] <= found) && !Number.isNaN(array[index])) found = array[index];
    return found;
  });
}

// Load of each expert and the three numbers of loramixer.metrics.plane_point: per router first, then their mean. A router
// that is off has none of them.
function loadOf(model, columns, projection, range) {
  const count = model.experts.length;
  const sites = sitesOfLayers(model, range, projection);
  const load = new Float64Array(count);
  let undecided = 0;
  let balanced = 0;
  const share = new Float64Array(count);
  const routed = sites.filter((site) => columns.some((column) => isOn(model, column, site)));
  routed.forEach((site) => {
    share.fill(0);
    columns.forEach((column) => {
      const weights = weightsOf(model, column);
      for (let expert = 0; expert < count; expert += 1) share[expert] += weights[site * count + expert];
      undecided += siteEntropies(model, column)[site] / columns.length;
    });
    for (let expert = 0; expert < count; expert += 1) {
      share[expert] /= Math.max(columns.length, 1);
      load[expert] += share[expert];
    }
    balanced += entropyOf(share);
  });
  const routers = Math.max(routed.length, 1);
  return {
    load: load.map((value) => value / routers),
    undecided: undecided / routers,
    balanced: balanced / routers,
    specialised: (balanced - undecided) / routers,
    routers: routed.length,
  };
}

// Load of each expert in every layer, [L, E].
function layerLoads(model, columns, projection) {
  const total = new Float64Array(model.layers.length * model.experts.length);
  columns.forEach((column) => {
    const weights = remember(column, `weights${projection}`, () => meanOfRouters(model, column, weightsOf(model, column), projection));
    for (let index = 0; index < total.length; index += 1) total[index] += weights[index];
  });
  return total.map((value) => value / Math.max(columns.length, 1));
}

const HIGH_GATE = 0.3;
const NO_EFFECT = 0.05;
const IDLE_WORDS = `a gate of at least ${HIGH_GATE}, but under ${100 * NO_EFFECT} % of what all experts added there`;

// Where an expert is chosen and adds next to nothing, as loramixer.metrics.gated_without_effect has it.
function isIdle(gate, share, total) {
  return gate >= HIGH_GATE && (share < NO_EFFECT * total || total === 0);
}

function sumOf(values, start = 0, count = values.length) {
  let total = 0;
  for (let index = start; index < start + count; index += 1) if (values[index] > 0) total += values[index];
  return total;
}

function fixed(value, digits = 2) {
  return Number.isFinite(value) ? value.toFixed(digits) : '–';
}

// With its sign; what rounds to nothing has none.
function signed(value) {
  const text = fixed(Math.abs(value));
  if (!(Number(text) > 0)) return text;
  return value < 0 ? `\u2212${text}` : `+${text}`;
}

function percent(value, digits = 1) {
  return Number.isFinite(value) ? `${(100 * value).toFixed(digits)} %` : '–';
}
