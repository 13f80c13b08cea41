// Puts the views together. `element`, `props` and `watch` are given by gr.HTML.

const root = element.querySelector('.compare-view');
const store = createCompareStore();
const decode = createComparisonDecoder();

store.onChange(({ comparison }) => { root.dataset.empty = String(!comparison); });
[
  createFacts(root), createCompareSwitches(root, store), createLanes(root, store), createMaps(root, store),
  createCompareCard(root, store), createSums(root), createLoads(root),
].forEach((draw) => store.onChange(draw));
createCompareKeyboard(root, store);
const linkTo = createCompareLink(root, store, props.room_key);
attachTips(root);

// The canvas does not follow a change of theme by itself.
new MutationObserver(() => store.redraw()).observe(document.body, { attributes: true, attributeFilter: ['class'] });

function refresh() {
  const value = props.value || {};
  if (value.waiting) setText(root.querySelector('.empty p'), value.waiting);
  store.load(decode(props.value));
  linkTo(props.value);
}
watch('value', refresh);
refresh();
