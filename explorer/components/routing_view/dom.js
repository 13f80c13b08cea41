// Small helpers to build the page out of text nodes; nothing here takes HTML.

function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

// A number or word with an explanation, shown on hover and on focus.
function explained(tag, className, text, hint) {
  const node = make(tag, className, text);
  node.dataset.tip = hint;
  node.tabIndex = 0;
  return node;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function badge(expert) {
  const node = make('span', 'badge', expert.letter);
  node.style.setProperty('--expert', expert.colour);
  return node;
}

// A long name, such as that of a repository, is cut at its end and said in full on hover.
function expertName(expert) {
  const node = make('span', 'expert-name', expert.name);
  node.dataset.tip = expert.name;
  return node;
}

// A button that stays pressed. Its state is set by whoever made it.
function toggle(label, hint, onClick) {
  const button = make('button', 'choice', label);
  button.type = 'button';
  button.dataset.tip = hint;
  button.addEventListener('click', onClick);
  return button;
}

function press(button, isPressed) {
  button.setAttribute('aria-pressed', String(isPressed));
}

// Appends what is missing and removes what is not wanted; nodes that stay are not touched.
function syncChildren(parent, list) {
  list.forEach((node, place) => {
    if (parent.childNodes[place] !== node) parent.insertBefore(node, parent.childNodes[place] || null);
  });
  while (parent.childNodes.length > list.length) parent.lastChild.remove();
}

const FRACTIONS = { digits: '⁰¹²³⁴⁵⁶⁷⁸⁹', lower: '₀₁₂₃₄₅₆₇₈₉' };

function partMark(token) {
  if (token.parts === 1) return '';
  return `${[...String(token.part)].map((digit) => FRACTIONS.digits[digit]).join('')}⁄`
    + `${[...String(token.parts)].map((digit) => FRACTIONS.lower[digit]).join('')}`;
}

// A token as one visible string: whitespace as marks, an empty token as ∅.
function visibleText(token) {
  const text = token.text.replace(/\n/g, '↵').replace(/\t/g, '→').replace(/\r/g, '␍');
  const shown = text.trim() === '' ? text.replace(/ /g, '·') : text.trim();
  return (shown || '∅') + partMark(token);
}

function clipText(text, length) {
  const letters = Array.from(text);
  return letters.length > length ? `${letters.slice(0, length - 1).join('')}…` : text;
}

// Buttons that belong together, under one name for a screen reader.
function choiceGroup(label, members) {
  const node = make('div', 'choices');
  node.setAttribute('role', 'group');
  node.setAttribute('aria-label', label);
  node.append(...members);
  return node;
}

// Draws a box anew; the part that had the focus, known by its data-key, has it again.
function keepingFocus(box, draw) {
  const key = box.contains(document.activeElement) ? document.activeElement.dataset.key : undefined;
  draw();
  if (key === undefined) return;
  const again = [...box.querySelectorAll('[data-key]')].find((node) => node.dataset.key === key);
  if (again) again.focus();
}

// A function that draws with the next frame, once, however often it is called before.
function oncePerFrame(draw) {
  let scheduled = false;
  return () => {
    if (scheduled) return;
    scheduled = true;
    requestAnimationFrame(() => {
      scheduled = false;
      draw();
    });
  };
}

// One tip for the whole component, which a screen reader hears as the description of its number, and Esc closes. It
// follows its number when focus or the wheel scrolls the page.
function attachTips(root) {
  const tip = root.querySelector('.tip');
  tip.id = `tip-${Math.random().toString(36).slice(2)}`;
  let current = null;

  function place() {
    if (!current) return;
    const box = current.getBoundingClientRect();
    const own = tip.getBoundingClientRect();
    const above = box.top - own.height - 6;
    tip.style.left = `${Math.min(Math.max(8, box.left), window.innerWidth - own.width - 8)}px`;
    tip.style.top = `${above > 4 ? above : box.bottom + 6}px`;
  }

  function show(target) {
    if (current && current !== target) current.removeAttribute('aria-describedby');
    current = target;
    tip.hidden = !target;
    if (!target) return;
    target.setAttribute('aria-describedby', tip.id);
    setText(tip, target.dataset.tip);
    place();
  }

  const over = (event) => show(event.target.closest('[data-tip]'));
  const leave = () => show(null);
  root.addEventListener('mouseover', over);
  root.addEventListener('focusin', over);
  root.addEventListener('mouseleave', leave);
  root.addEventListener('focusout', leave);
  document.addEventListener('keydown', function onKey(event) {
    if (!root.isConnected) document.removeEventListener('keydown', onKey);
    else if (event.key === 'Escape') leave();
  });
  window.addEventListener('scroll', place, { passive: true, capture: true });
}
