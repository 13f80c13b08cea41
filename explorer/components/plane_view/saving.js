// Saves what is on screen: the picture as SVG or PNG, the numbers as CSV, and the Python that draws it again.

function saveBlob(blob, name) {
  const link = make('a');
  link.href = URL.createObjectURL(blob);
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function pictureText(svg, root) {
  const copy = svg.cloneNode(true);
  copy.setAttribute('xmlns', SVG);
  copy.prepend(shape('rect', { width: '100%', height: '100%', fill: inksOf(root).paper }));
  return new XMLSerializer().serializeToString(copy);
}

function savePng(svg, root, name) {
  const image = new Image();
  const [width, height] = [svg.width.baseVal.value, svg.height.baseVal.value];
  image.onload = () => {
    const canvas = document.createElement('canvas');
    [canvas.width, canvas.height] = [2 * width, 2 * height];
    canvas.getContext('2d').drawImage(image, 0, 0, canvas.width, canvas.height);
    canvas.toBlob((blob) => saveBlob(blob, name));
  };
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(pictureText(svg, root))}`;
}

function csvText(rows) {
  const quoted = (value) => (/[",\n]/.test(value) ? `"${value.replace(/"/g, '""')}"` : value);
  return `${rows.map((row) => row.map((value) => quoted(value === null || value === undefined ? '' : String(value))).join(',')).join('\n')}\n`;
}

function saveButton(text, action) {
  const button = make('button', 'choice', text);
  button.type = 'button';
  button.addEventListener('click', action);
  return button;
}

// A folded piece of Python with a button that copies it; without a clipboard the text can be selected.
function pythonBlock(text) {
  const block = make('details', 'python');
  const code = make('pre', '', text);
  code.tabIndex = 0;
  const copy = saveButton('Copy', async () => {
    try {
      await navigator.clipboard.writeText(text);
      setText(copy, 'Copied');
    } catch { getSelection().selectAllChildren(code); }
  });
  block.append(make('summary', '', 'Python that makes this view'), copy, code);
  return block;
}
