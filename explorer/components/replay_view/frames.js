// One prompt at many steps. A frame holds the soft gates of all layers and tokens, the mean over the projections of a
// layer, as uint8 in the order [layer, token, expert]; the experts' shares add up to 255.

const FRAME_SECONDS = 0.35;
const AXIS = 34;
const LABELS = 66;

function createFrames(root, onStep) {
  const part = (name) => root.querySelector(`.frames-${name}`);
  const [slider, play, canvas] = [part('slider'), part('play'), part('map').querySelector('canvas')];
  const still = window.matchMedia('(prefers-reduced-motion: reduce)');
  const state = { value: null, key: null, decoded: [], step: 0, follows: true, timer: null, measure: 'top' };

  function frameAt(index) {
    if (!state.decoded[index]) {
      const binary = atob(state.value.frames[index]);
      state.decoded[index] = Uint8Array.from(binary, (letter) => letter.charCodeAt(0));
    }
    return state.decoded[index];
  }

  function gatesAt(frame, layer, token) {
    const { experts, tokens } = state.value;
    const start = (layer * tokens.length + token) * experts.length;
    return Array.from(frame.subarray(start, start + experts.length), (value) => value / 255);
  }

  function meanGates(frame, tokens) {
    const { experts, layers } = state.value;
    const total = experts.map(() => 0);
    layers.forEach((_, layer) => tokens.forEach((token) => gatesAt(frame, layer, token).forEach((gate, index) => { total[index] += gate; })));
    return total.map((value) => value / (layers.length * tokens.length));
  }

  function rank(gates) {
    const sorted = [...gates].sort((a, b) => b - a);
    return { winner: gates.indexOf(sorted[0]), margin: sorted[0] - (sorted[1] || 0) };
  }

  function drawLane(frame) {
    const lane = part('lane');
    const { tokens, experts } = state.value;
    while (lane.children.length < tokens.length) lane.append(make('span', 'frames-token'));
    while (lane.children.length > tokens.length) lane.lastChild.remove();
    tokens.forEach((token, index) => {
      const { winner, margin } = rank(meanGates(frame, [index]));
      const node = lane.children[index];
      setText(node, token.replace(/\n/g, '↵'));
      node.style.setProperty('--expert', experts[winner].colour);
      node.style.setProperty('--strength', strength(margin).toFixed(2));
    });
  }

  function cellColour(gates, paper) {
    if (state.measure === 'entropy') {
      const entropy = gates.reduce((sum, gate) => sum - (gate > 0 ? gate * Math.log(gate) : 0), 0);
      return cividis(entropy / Math.log(gates.length));
    }
    if (state.measure !== 'top') return cividis(gates[state.measure]);
    const { winner, margin } = rank(gates);
    return mix(paper, parseColour(state.value.experts[winner].colour), strength(margin));
  }

  function drawMap(frame) {
    const { layers, tokens } = state.value;
    const room = part('map').clientWidth;
    if (!room) return;
    const ratio = window.devicePixelRatio || 1;
    const wide = Math.min(26, Math.max(9, Math.floor((room - AXIS) / tokens.length)));
    const high = Math.min(16, Math.max(4, Math.floor(220 / layers.length)));
    const [width, height] = [AXIS + wide * tokens.length, high * layers.length + LABELS];
    [canvas.width, canvas.height] = [width * ratio, height * ratio];
    [canvas.style.width, canvas.style.height] = [`${width}px`, `${height}px`];
    const context = canvas.getContext('2d');
    context.setTransform(ratio, 0, 0, ratio, 0, 0);
    const ink = inksOf(root);
    const paper = parseColour(ink.paper);
    layers.forEach((name, layer) => {
      tokens.forEach((_, token) => {
        context.fillStyle = css(cellColour(gatesAt(frame, layer, token), paper));
        context.fillRect(AXIS + token * wide, layer * high, wide - 1, high - 1);
      });
      if (layer % 5) return;
      context.fillStyle = ink.faint;
      context.font = `11px ${ink.sans}`;
      context.textAlign = 'right';
      context.textBaseline = 'middle';
      context.fillText(String(name), AXIS - 6, layer * high + high / 2);
    });
    context.font = `11px ${ink.mono}`;
    context.fillStyle = ink.faint;
    tokens.forEach((text, token) => {
      context.save();
      context.translate(AXIS + token * wide + wide / 2, high * layers.length + 4);
      context.rotate(-Math.PI / 2);
      context.textAlign = 'right';
      context.textBaseline = 'middle';
      context.fillText(text.trim().slice(0, 9) || '·', 0, 0);
      context.restore();
    });
  }

  function sentence(frame) {
    const { experts, tokens, steps, points } = state.value;
    const load = meanGates(frame, tokens.map((_, index) => index));
    const shares = experts.map(({ name }, index) => `${name} ${load[index].toFixed(2)}`).join(', ');
    const point = points[state.step];
    return `Step ${steps[state.step]}: undecided ${point[0].toFixed(3)}, balanced ${point[1].toFixed(3)}; load ${shares}.`;
  }

  function draw() {
    if (!state.value || !state.value.frames.length) return;
    const frame = frameAt(state.step);
    const last = state.value.steps.length - 1;
    slider.max = String(last);
    slider.value = String(state.step);
    slider.setAttribute('aria-valuetext', `step ${state.value.steps[state.step]}`);
    setText(part('step'), `step ${state.value.steps[state.step]} of ${state.value.lastStep}`);
    setText(play, state.timer ? 'Pause' : still.matches ? 'Next step' : 'Play');
    drawLane(frame);
    drawMap(frame);
    const words = sentence(frame);
    canvas.setAttribute('aria-label', `Layer by token map. ${words}`);
    if (!state.timer) setText(part('sentence'), words); // while it plays, nothing is read out
    onStep(state);
  }

  function buildMeasures() {
    const box = part('measures');
    const choices = [['top', 'top expert'], ...state.value.experts.map(({ letter, name }, index) => [index, `${letter} ${name}`]), ['entropy', 'undecided']];
    box.replaceChildren(...choices.map(([measure, text]) => {
      const button = make('button', 'choice', text);
      button.type = 'button';
      if (typeof measure === 'number') {
        button.style.setProperty('--expert', state.value.experts[measure].colour);
        button.classList.add('of-expert');
      }
      press(button, measure === state.measure);
      button.addEventListener('click', () => {
        state.measure = measure;
        [...box.children].forEach((other) => press(other, other === button));
        draw();
      });
      return button;
    }));
  }

  function goTo(step) {
    const last = state.value.steps.length - 1;
    state.step = Math.min(Math.max(step, 0), last);
    state.follows = state.step === last;
    draw();
  }

  function pause() {
    clearInterval(state.timer);
    state.timer = null;
    draw();
  }

  play.addEventListener('click', () => {
    if (!state.value) return;
    if (state.timer) { pause(); return; }
    const last = state.value.steps.length - 1;
    if (still.matches) { goTo(state.step >= last ? 0 : state.step + 1); return; }
    if (state.step >= last) goTo(0);
    state.timer = setInterval(() => {
      if (!root.isConnected || state.step >= state.value.steps.length - 1) { pause(); return; }
      goTo(state.step + 1);
    }, FRAME_SECONDS * 1000);
    draw();
  });
  slider.addEventListener('input', () => { if (state.timer) pause(); goTo(Number(slider.value)); });
  new ResizeObserver(() => draw()).observe(part('map'));
  new MutationObserver(() => draw()).observe(document.body, { attributes: true, attributeFilter: ['class'] });

  return {
    draw,
    load(value) {
      if (state.timer && (!value || value.key !== state.key)) pause();
      state.value = value && value.frames.length ? value : null;
      if (!state.value) { state.key = null; onStep(state); return; }
      if (value.key !== state.key) {
        state.key = value.key;
        state.decoded = [];
        state.step = 0;
        state.follows = true;
        state.measure = 'top';
        buildMeasures();
        if (!value.grows) state.follows = false;
      }
      if (value.grows && state.follows) state.step = value.steps.length - 1;
      state.step = Math.min(state.step, value.steps.length - 1);
      setText(part('title'), value.title);
      setText(part('note'), value.note);
      draw();
    },
  };
}
