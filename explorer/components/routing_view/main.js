// Puts the views together. `element`, `props` and `watch` are given by gr.HTML.

const root = element.querySelector('.routing-view');
const store = createStore();
const decode = createDecoder();

store.onChange(({ model }) => {
  root.dataset.empty = String(!model);
  root.dataset.state = model ? model.state : 'empty';
});
[
  createStrip(root), createSwitches(root, store), createLane(root, store), createMap(root, store), createCard(root, store),
  createLoad(root), createSpans(root, store), createExperts(root, store), createLayers(root, store),
  createAgreement(root, store), createEffect(root, store), createTable(root, store), createLink(root, store, props.fields),
].forEach((draw) => store.onChange(draw));
createKeyboard(root, store);
createDrop(root);
attachTips(root);

// The canvas does not follow a change of theme by itself.
new MutationObserver(() => store.redraw()).observe(document.body, { attributes: true, attributeFilter: ['class'] });

const refresh = () => store.load(decode(props.value));
watch('value', refresh);
refresh();
