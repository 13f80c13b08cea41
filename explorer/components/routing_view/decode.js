// The browser's end of explorer/payload.py.

const SCHEMA_VERSION = 1;
const GATE_SCALE = 65535;
const LOGIT_SCALE = 256;
const ABSENT = -32768;
const TEMPLATE = 0;
const GENERATED = 2;

function decodeColumn(text) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index += 1) bytes[index] = binary.charCodeAt(index);
  const half = bytes.length / 2;
  return { gates: new Uint16Array(bytes.buffer, 0, half / 2), logits: new Int16Array(bytes.buffer, half, half / 2) };
}

function decodeTokens(rows) {
  return rows.map(([text, role, part, parts, special]) => ({ text, role, part, parts, special: special === 1 }));
}

// Site index by layer and projection; -1 where a layer has no router on that projection.
function indexSites(payload) {
  const table = payload.layers.map(() => payload.projections.map(() => -1));
  payload.sites.forEach(([layer, projection], site) => { table[layer][projection] = site; });
  return table;
}

// Returns the model of a payload. Columns of the run that is already known are decoded only once.
function createDecoder() {
  let known = null;
  return function decode(payload) {
    if (!payload) { known = null; return null; }
    if (payload.schema !== SCHEMA_VERSION) throw new Error('The page and the server differ in version; reload the page.');
    if (!known || known.run !== payload.run) {
      known = {
        run: payload.run,
        experts: payload.experts,
        layers: payload.layers,
        projections: payload.projections,
        siteOf: indexSites(payload),
        columns: [],
        means: new Map(),
      };
    }
    for (let index = known.columns.length; index < payload.columns.length; index += 1) {
      known.columns.push(decodeColumn(payload.columns[index]));
    }
    known.state = payload.state;
    known.provenance = payload.provenance;
    known.tokens = decodeTokens(payload.tokens);
    return known;
  };
}
