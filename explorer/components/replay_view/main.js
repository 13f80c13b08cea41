// `element`, `props` and `watch` are given by gr.HTML.

const root = element.querySelector('.replay-view');

function tell(state) {
  const { value, step } = state;
  const detail = value
    ? { trail: value.points.slice(0, step + 1), colour: value.colour, text: `prompt, step ${value.steps[step]}` }
    : { trail: [] };
  document.dispatchEvent(new CustomEvent('loramixer:replay', { detail }));
}

const frames = createFrames(root, tell);

function load() {
  root.dataset.empty = String(!props.value);
  frames.load(props.value);
}

attachTips(root);
watch('value', load);
load();
