// `element`, `props` and `watch` are given by gr.HTML.

const root = element.querySelector('.replay-view');

let told = { value: null, step: 0 };

// The plane of every room listens, so only the replay of the room that is open may speak. `element` is asked, since an
// empty replay is not shown either, and must take its point away.
function tell(state) {
  told = state;
  if (element.offsetParent === null) return;
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
new ResizeObserver(() => tell(told)).observe(element); // the room was opened
watch('value', load);
load();
