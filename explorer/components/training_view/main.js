// `element`, `props` and `watch` are given by gr.HTML.

const root = element.querySelector('.training-view');
const plane = root.querySelector('.plane');
const svg = plane.querySelector('svg');
const view = { chosen: null, active: null, close: true, paths: true, seeds: false, bands: false, moving: null };
const drawCharts = createCharts(root.querySelector('.charts'), root);
let model = null;
let savedFor = null;

function drawTraining() {
  if (!plane.clientWidth || !model) return;
  const paths = model.path.length ? [{ group: null, colour: model.colour, points: model.path }] : [];
  drawPlane(svg, root, plane.clientWidth, { routers: [], paths }, view);
  const last = model.path[model.path.length - 1];
  svg.setAttribute('aria-label', last
    ? `Entropy–balance plane. After step ${model.step}: undecided ${three(last[0])}, balanced ${three(last[1])}, specialised ${three(last[1] - last[0])}.`
    : 'Entropy–balance plane, no step yet.');
}

function drawProgress() {
  const track = root.querySelector('.progress-track');
  track.setAttribute('aria-valuemax', String(model.steps || 1));
  track.setAttribute('aria-valuenow', String(model.step));
  root.querySelector('.progress-bar').style.width = `${model.steps ? (100 * model.step) / model.steps : 0}%`;
  setText(root.querySelector('.progress-text'), model.text);
}

function redraw() {
  if (!model) return;
  drawProgress();
  drawCharts(model.curves, model.steps);
  drawTraining();
}

function buildSwitches() {
  const box = root.querySelector('.choices');
  [['Whole plane', false], ['Close up', true]].forEach(([text, close]) => {
    const button = saveButton(text, () => {
      view.close = close;
      box.querySelectorAll('button').forEach((other) => other.setAttribute('aria-pressed', String(other === button)));
      drawTraining();
    });
    button.setAttribute('aria-pressed', String(view.close === close));
    box.append(button);
  });
}

function buildSaving() {
  if (savedFor === `${model.key}${model.python}`) return;
  savedFor = `${model.key}${model.python}`;
  root.querySelector('.saving').replaceChildren(
    saveButton('Save plane as SVG', () => saveBlob(new Blob([pictureText(svg, root)], { type: 'image/svg+xml' }), 'training-plane.svg')),
    pythonBlock(model.python),
  );
}

function onReplay(event) {
  if (!root.isConnected) { document.removeEventListener('loramixer:replay', onReplay); return; }
  if (plane.offsetParent === null) return; // it is for the room that is open
  view.moving = event.detail.trail.length ? event.detail : null;
  drawTraining();
}
document.addEventListener('loramixer:replay', onReplay);

function load() {
  model = props.value || null;
  root.dataset.empty = String(!model);
  if (!model) { view.moving = null; return; }
  buildSaving();
  redraw();
}

buildSwitches();
attachTips(root);
new ResizeObserver(redraw).observe(plane);
new MutationObserver(redraw).observe(document.body, { attributes: true, attributeFilter: ['class'] });
watch('value', load);
load();
