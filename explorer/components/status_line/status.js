'use strict';

const line = element.querySelector('.status-line');
const text = element.querySelector('.text');

function show() {
  const value = props.value || {};
  line.dataset.kind = value.kind || 'quiet';
  line.hidden = !value.text;
  // Writing the same text again would make a screen reader repeat it.
  if (text.textContent !== (value.text || '')) text.textContent = value.text || '';
}

watch('value', show);
show();
