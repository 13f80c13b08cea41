// Both traces by column. A column holds the tokens of A and of B that belong together; one side may be empty.
// Everything here is per router first and averaged then, so that routers which disagree never cancel.

// Returns the comparison of a payload; a trace that is known already is not decoded again.
function createComparisonDecoder() {
  const decoders = { a: createDecoder(), b: createDecoder() };
  return function decode(payload) {
    if (!payload || payload.waiting !== undefined) return null;
    const [a, b] = [decoders.a(payload.a), decoders.b(payload.b)];
    const head = JSON.parse(payload.head);
    return {
      id: payload.id,
      a,
      b,
      experts: a.experts,
      layers: a.layers,
      projections: a.projections,
      columns: head.columns.map(([first, second]) => ({ a: first, b: second })),
      names: head.names,
      sentence: head.sentence,
      spans: head.spans.map((pair) => pair && { a: pair[0], b: pair[1] }), // of each column { a, b }, the topics of whole spans, or null; empty without spans
      badge: head.badge,
      facts: head.facts,
      same: head.same,
      answer: head.answer,
      control: head.control || null,
      found: new Map(),
    };
  };
}

function meanOfTokens(model, positions, site) {
  return averageRows(positions.map((position) => siteGates(model, position, site)), model.experts.length);
}

// Jensen–Shannon divergence in bits, 0…1; null where a site has no gate at all.
function divergence(first, second) {
  const [p, q] = [first, second].map((row) => row.map((value) => value / sumOf(row)));
  if (![...p, ...q].every(Number.isFinite)) return null;
  const bits = (row) => row.reduce((total, value) => (value > 0 ? total - value * Math.log2(value) : total), 0);
  const middle = p.map((value, index) => (value + q[index]) / 2);
  return Math.max(0, bits(middle) - (bits(p) + bits(q)) / 2);
}

// One side of one cell: mean gates [E] and mean entropy over the routers of the layer that are on.
function sideOfCell(model, positions, layer, projection) {
  if (positions.length === 0) return null;
  const rows = sitesOf(model, layer, projection).map((site) => meanOfTokens(model, positions, site));
  const on = rows.filter((row) => sumOf(row) > 0);
  return { rows, gates: averageRows(on, model.experts.length), entropy: meanOf(on.map((row) => entropyOf(row))) || 0 };
}

// The cells of a column in all layers: { a, b, jsd }; remembered, since nothing in a comparison changes.
function cellsOf(comparison, column, projection) {
  const key = `${column}/${projection}`;
  if (!comparison.found.has(key)) {
    const { a, b } = comparison.columns[column];
    comparison.found.set(key, comparison.layers.map((_, layer) => {
      const first = sideOfCell(comparison.a, a, layer, projection);
      const second = sideOfCell(comparison.b, b, layer, projection);
      const isPair = first && second;
      return { a: first, b: second, jsd: isPair ? meanOf(first.rows.map((row, site) => divergence(row, second.rows[site]))) : null };
    }));
  }
  return comparison.found.get(key);
}

// What the band B − A shows of a cell: of one expert, of the entropy, or of the expert that is ahead in A.
function differenceOf(cell, measure) {
  if (!cell.a || !cell.b) return null;
  if (measure === ENTROPY) return cell.b.entropy - cell.a.entropy;
  const expert = measure === TOP ? leader(cell.a.gates).winner : measure;
  if (expert < 0) return null;
  return cell.b.gates[expert] - cell.a.gates[expert];
}

// The least of these steps that covers a value: a scale with a round end.
function roundScale(value) {
  return [0.05, 0.1, 0.25, 0.5, 1].find((end) => value <= end + 1e-9) || 1;
}

// Ends of the scales of the bands B − A and divergence, over all visible columns.
function scalesOf(comparison, columns, measure, projection) {
  const key = `scales/${measure}/${projection}/${columns.length}`;
  if (!comparison.found.has(key)) {
    let [difference, jsd] = [0, 0];
    columns.forEach((column) => cellsOf(comparison, column, projection).forEach((cell) => {
      difference = Math.max(difference, Math.abs(differenceOf(cell, measure) || 0));
      jsd = Math.max(jsd, cell.jsd || 0);
    }));
    comparison.found.set(key, { difference: roundScale(difference), jsd: roundScale(jsd) });
  }
  return comparison.found.get(key);
}

// Mean divergence, and the share of routed tokens whose top expert differs, over the columns that both have.
function changesOf(comparison, columns, projection) {
  const key = `changes/${projection}/${columns.length}`;
  if (!comparison.found.has(key)) {
    const pairs = columns.filter((column) => {
      const { a, b } = comparison.columns[column];
      return a.length > 0 && b.length > 0;
    });
    let [changed, decisions] = [0, 0];
    const divergences = pairs.flatMap((column) => cellsOf(comparison, column, projection).map((cell) => {
      cell.a.rows.forEach((row, site) => {
        const [before, after] = [leader(row).winner, leader(cell.b.rows[site]).winner];
        if (before < 0 || after < 0) return;
        decisions += 1;
        if (before !== after) changed += 1;
      });
      return cell.jsd;
    }));
    comparison.found.set(key, {
      pairs: pairs.length, jsd: meanOf(divergences), changed: decisions > 0 ? changed / decisions : null,
    });
  }
  return comparison.found.get(key);
}
