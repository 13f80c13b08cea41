// What the maps of one trace and of two have in common: a canvas that covers its frame and draws only the columns in
// view, behind an axis of layers, and a spacer that gives the frame its scroll width.

const AXIS_WIDTH = 38;
const CELL_WIDTH = 15; // constant, so that nothing that is drawn moves while columns are added

// Places of the columns in view, of `count`.
function columnsInView(frame, count) {
  const first = Math.max(0, Math.floor(frame.scrollLeft / CELL_WIDTH));
  const last = Math.min(count, Math.ceil((frame.scrollLeft + frame.clientWidth - AXIS_WIDTH) / CELL_WIDTH) + 1);
  return Array.from({ length: Math.max(0, last - first) }, (_, index) => first + index);
}

function scrollToColumn(frame, place) {
  const left = place * CELL_WIDTH;
  const room = frame.clientWidth - AXIS_WIDTH;
  if (left < frame.scrollLeft) frame.scrollLeft = left - CELL_WIDTH;
  else if (left + 2 * CELL_WIDTH > frame.scrollLeft + room) frame.scrollLeft = left + 2 * CELL_WIDTH - room;
}

// Gives canvases and spacer the size of the frame for so many columns; true where that cleared the canvases.
function fitCanvases(frame, canvases, columns, height) {
  const ratio = window.devicePixelRatio || 1;
  frame.querySelector('.map-space').style.width = `${AXIS_WIDTH + columns * CELL_WIDTH}px`;
  const view = frame.clientWidth;
  const size = [Math.round(view * ratio), Math.round(height * ratio)];
  const isNew = canvases[0].width !== size[0] || canvases[0].height !== size[1];
  canvases.forEach((canvas) => {
    if (isNew) {
      [canvas.width, canvas.height] = size;
      canvas.style.width = `${view}px`;
      canvas.style.height = `${height}px`;
    }
    canvas.getContext('2d').setTransform(ratio, 0, 0, ratio, 0, 0);
  });
  if (isNew) frame.style.height = `${height + frame.offsetHeight - frame.clientHeight}px`;
  return isNew;
}

// Two strokes, dark and light, so that the frame of a cell shows on every colour.
function frameBox(context, ink, x, y, width, height, isStrong) {
  [[isStrong ? 4 : 3, ink.paper], [isStrong ? 2 : 1.5, ink.text]].forEach(([line, colour]) => {
    context.lineWidth = line;
    context.strokeStyle = colour;
    context.strokeRect(x - 0.5, y - 0.5, width, height);
  });
}
