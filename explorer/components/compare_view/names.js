// Words for what is on screen.

const TOP = 'top';
const ENTROPY = 'entropy';

function shortProjection(model, projection) {
  return model.projections[projection].replace(/_proj$/, '');
}

function projectionWords(model, projection) {
  if (projection !== MEAN) return `${shortProjection(model, projection)} projection`;
  return `mean of ${model.projections.map((_, index) => shortProjection(model, index)).join(', ')}`;
}

function measureWords(comparison, measure) {
  if (measure === TOP) return 'top expert';
  return measure === ENTROPY ? 'entropy' : `gate of ${comparison.experts[measure].name}`;
}

// What one side of a column is called: the topic where whole spans are compared, else its words.
function nameOf(comparison, column, side) {
  const span = comparison.spans[column];
  return span ? span[side] : wordsOf(comparison[side], comparison.columns[column][side]);
}

// The text of some tokens as one visible string; parts of one character count once.
function wordsOf(model, positions) {
  const tokens = positions.map((position) => model.tokens[position]);
  if (tokens.length === 1) return visibleText(tokens[0]);
  const text = tokens.filter((token) => token.part === 1).map((token) => token.text).join('');
  return visibleText({ text, part: 1, parts: 1 });
}
