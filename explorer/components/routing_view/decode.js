// The browser's end of explorer/payload.py.

const SCHEMA_VERSION = 2;
const GATE_SCALE = 65535;
const LOGIT_SCALE = 256;
const SHARE_SCALE = 16384;
const ABSENT = -32768;
const NO_SHARE = 65535;
const TEMPLATE = 0;
const GENERATED = 2;

// The parts of one token's column, each [S, E]: gates, logits (NaN where the expert is absent), and the share of the
// base output where contributions were recorded (NaN where the base output is 0).
function decodeColumn(text, parts) {
  const binary = atob(text);
  const bytes = new Uint8Array(binary.length);
  for (let index = 0; index < binary.length; index += 1) bytes[index] = binary.charCodeAt(index);
  const size = bytes.length / parts.length;
  const whole = new Uint16Array(bytes.buffer, 0, size / 2);
  const scores = new Int16Array(bytes.buffer, size, size / 2);
  const column = {
    gates: Float32Array.from(whole, (value) => value / GATE_SCALE),
    logits: Float32Array.from(scores, (value) => (value === ABSENT ? NaN : value / LOGIT_SCALE)),
    shares: null,
    cache: new Map(),
  };
  if (parts.includes('shares')) {
    const shares = new Uint16Array(bytes.buffer, 2 * size, size / 2);
    column.shares = Float32Array.from(shares, (value) => (value === NO_SHARE ? NaN : value / SHARE_SCALE));
  }
  return column;
}

function decodeToken(line) {
  const [text, role, part, parts, special, word, sentence, gold] = JSON.parse(line);
  return { text, role, part, parts, special: special === 1, word, sentence, gold };
}

// Sites by projection (first the mean over all, then one by one) and layer.
function indexSites(head) {
  const all = head.layers.map(() => []);
  const single = head.projections.map(() => head.layers.map(() => []));
  head.sites.forEach(([layer, projection], site) => {
    all[layer].push(site);
    single[projection][layer].push(site);
  });
  return [all, ...single];
}

function readHead(payload) {
  const head = JSON.parse(payload.head);
  const bytes = 2 * head.sites.length * head.experts.length * head.parts.length;
  return {
    ...head,
    run: payload.run,
    hasShares: head.parts.includes('shares'),
    sitesBy: indexSites(head),
    width: Math.ceil(bytes / 3) * 4,
    lines: [],
    tokens: [],
    columns: [],
  };
}

// Returns the model of a payload. What is already known of a run is decoded only once.
function createDecoder() {
  let known = null;
  return function decode(payload) {
    if (!payload) { known = null; return null; }
    if (payload.schema !== SCHEMA_VERSION) throw new Error('The page and the server differ in version; reload the page.');
    if (!known || known.run !== payload.run) known = readHead(payload);
    const count = payload.columns.length / known.width;
    for (let index = known.columns.length; index < count; index += 1) {
      known.columns.push(decodeColumn(payload.columns.substr(index * known.width, known.width), known.parts));
    }
    payload.tokens.split('\n').forEach((line, index) => {
      if (known.lines[index] === line) return;
      known.lines[index] = line;
      known.tokens[index] = decodeToken(line);
    });
    known.state = payload.state;
    known.provenance = JSON.parse(payload.provenance);
    return known;
  };
}
