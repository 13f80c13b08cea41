// The link is read from the address bar at the moment when somebody wants it. `element` and `props` are given by gr.HTML.

const tick = element.querySelector('.with-prompt input');
const field = element.querySelector('.share-link');
const note = element.querySelector('.share-note');
element.querySelector('.with-prompt').hidden = !props.prompt;
element.querySelector('.with-prompt span').textContent = props.prompt ? props.prompt.label : '';

function source() {
  return props.prompt && document.querySelector(props.prompt.selector);
}

function prompt() {
  const found = source();
  return found ? found.dataset.prompt || found.value || '' : '';
}

function link() {
  // A room may wait a moment before it writes its view into the address.
  document.dispatchEvent(new Event('loramixer:flush-link'));
  const url = new URL(window.location);
  // What the host adds, such as a theme or the signature of a private Space, is for this visitor alone.
  [...url.searchParams.keys()].filter((name) => name.startsWith('__')).forEach((name) => url.searchParams.delete(name));
  if (!props.prompt) return url.toString();
  url.searchParams.delete(props.prompt.key);
  if (tick.checked && prompt()) url.searchParams.set(props.prompt.key, prompt());
  return url.toString();
}

function refresh() {
  field.value = link();
  note.textContent = '';
}

async function copy() {
  refresh();
  try {
    await navigator.clipboard.writeText(field.value);
  } catch {
    // Without a secure context there is no clipboard, but what is selected can be copied.
    field.select();
    if (!document.execCommand('copy')) {
      note.textContent = 'The link is selected; copy it with Ctrl+C.';
      return;
    }
  }
  const withPrompt = tick.checked && prompt();
  note.textContent = withPrompt
    ? `Copied. Everybody who has the link can read the prompt in it. ${source().dataset.promptNote || ''}`.trim()
    : 'Copied. The link holds the view and the settings, not the prompt.';
}

tick.addEventListener('change', refresh);
field.addEventListener('focus', () => { refresh(); field.select(); });
element.querySelector('.copy-link').addEventListener('click', copy);
refresh();
