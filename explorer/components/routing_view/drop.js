// A trace file that is dropped anywhere on the room goes to the button that opens files.

function createDrop(root) {
  const room = root.closest('.room') || root;
  const hasFile = (event) => [...(event.dataTransfer?.types || [])].includes('Files');
  const input = () => document.querySelector('#view-actions input[type=file]');

  // The prompt box and other inputs keep what is dropped on them.
  function isOurs(event) {
    return hasFile(event) && input() && !event.target.closest('input, textarea');
  }

  room.addEventListener('dragover', (event) => {
    if (!isOurs(event)) return;
    event.preventDefault();
    root.classList.add('is-dropping');
  });
  room.addEventListener('dragleave', (event) => {
    if (!room.contains(event.relatedTarget)) root.classList.remove('is-dropping');
  });
  room.addEventListener('drop', (event) => {
    root.classList.remove('is-dropping');
    if (!isOurs(event)) return;
    event.preventDefault();
    const field = input();
    const one = new DataTransfer();
    one.items.add(event.dataTransfer.files[0]);
    field.files = one.files;
    field.dispatchEvent(new Event('change', { bubbles: true }));
  });
}
