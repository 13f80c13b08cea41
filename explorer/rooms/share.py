"""Share and export, the same fold in every room: a link to the view, files of it, and Python that makes it again.

A room keeps its view in the address (``explorer.link.WRITE``, or its component does); everything here reads it there,
so that link, files and code always speak of what is on screen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import gradio as gr

from explorer.components.share_menu import PromptInLink, ShareMenu
from explorer.components.status_line import StatusLine
from explorer.sessions import session_of
from loramixer.errors import LoraMixerError

READ_ADDRESS = """(query, ...rest) => {
  document.dispatchEvent(new Event('loramixer:flush-link'));
  return [window.location.search.slice(1), ...rest];
}"""
"""JavaScript of an event whose first input becomes the query string of the address."""

SAVE_FILE = """(file) => {
  if (!file || !file.url) return;
  const anchor = document.createElement('a');
  anchor.href = file.url;
  anchor.download = file.orig_name || '';
  anchor.click();
}"""
"""JavaScript that saves a file at once; where a browser refuses that, the button with its name is still there."""


@dataclass(frozen=True)
class ExportFormat:
    """One kind of file.

    Attributes:
        key: what the maker of files calls it, such as ``png``.
        label: on its button.
        hint: one sentence about what is in it.
    """

    key: str
    label: str
    hint: str


FORMATS = (
    ExportFormat("png", "PNG", "A picture of the view."),
    ExportFormat("svg", "SVG", "A drawing of the view, sharp at any size."),
    ExportFormat("html", "HTML", "One file with every figure and its numbers; opens without a network."),
    ExportFormat("csv", "CSV", "All numbers of the view as a table."),
    ExportFormat("parquet", "Parquet", "The same table, small and typed."),
    ExportFormat("npz", "Trace", "The whole trace with its provenance; drop it on this page to open it again."),
)
"""What Explore offers; a room takes those that make sense for it."""

MakeFile = Callable[..., str | Path]
"""``make(format key, query values, session, *values of inputs)``: writes one file, with ``Page.exports``, and returns
its path; raises a LoraMixerError with one sentence when there is nothing to write."""

MakeCode = Callable[..., str]
"""``make(query values, session, *values of inputs)``: Python that makes the view again."""


def share_and_export(
    room: str,
    *,
    formats: Sequence[ExportFormat] = (),
    make_file: MakeFile | None = None,
    make_code: MakeCode | None = None,
    inputs: Sequence[gr.components.Component] = (),
    prompt: PromptInLink | None = None,
) -> None:
    """What stands in the fold, and its wiring; the room makes the fold, closed, of the class ``share-fold``.

    Args:
        room: key of the room; ids begin with it.
        formats: files that are offered; they need ``make_file``.
        make_file: writes one.
        make_code: writes the Python of the view; None offers none.
        inputs: components whose values are given to both, after the values of the address.
        prompt: that the link may hold; None where there is none.
    """
    private: dict[str, Any] = {"api_visibility": "private", "show_progress": "hidden", "queue": False}
    ShareMenu(prompt, elem_id=f"{room}-link")
    address = gr.Textbox(visible=False)
    if make_file is not None and formats:
        _file_buttons(room, formats, make_file, address, inputs, private)
    if make_code is not None:
        _code_button(room, make_code, address, inputs, private)


def _file_buttons(
    room: str,
    formats: Sequence[ExportFormat],
    make_file: MakeFile,
    address: gr.Textbox,
    inputs: Sequence[gr.components.Component],
    private: dict[str, Any],
) -> None:
    with gr.Row(elem_classes="export-buttons"):
        buttons = {
            entry.key: gr.Button(entry.label, size="sm", min_width=56, elem_id=f"{room}-export-{entry.key}")
            for entry in formats
        }
    gr.HTML(_hints(formats), apply_default_css=False)
    line = StatusLine(elem_id=f"{room}-export-status")
    ready = gr.DownloadButton("Save", visible=False, size="sm", elem_id=f"{room}-export-ready")
    for key, button in buttons.items():
        button.click(
            _exporting(key, make_file), [address, *inputs], [ready, line], js=READ_ADDRESS, **private
        ).success(None, ready, None, js=SAVE_FILE, **private)


def _hints(formats: Sequence[ExportFormat]) -> str:
    """What is in each file, to be unfolded."""
    entries = "".join(f"<dt>{escape(entry.label)}</dt><dd>{escape(entry.hint)}</dd>" for entry in formats)
    return f"<details class='note'><summary>What is in each file</summary><dl>{entries}</dl></details>"


def _code_button(
    room: str,
    make_code: MakeCode,
    address: gr.Textbox,
    inputs: Sequence[gr.components.Component],
    private: dict[str, Any],
) -> None:
    show = gr.Button("Python that makes this view", size="sm", elem_id=f"{room}-export-python")
    code = gr.Textbox(
        label="Python", visible=False, lines=8, max_lines=16, buttons=["copy"], elem_id=f"{room}-python",
        elem_classes="code-text", interactive=False,
    )  # fmt: skip

    # The request comes first: Gradio puts it where its parameter stands, and the number of values differs.
    def write(request: gr.Request, query: str, *values: Any) -> Any:
        try:
            return gr.Textbox(make_code(query_values(query), session_of(request), *values), visible=True)
        except LoraMixerError as error:
            return gr.Textbox(f"# {error}", visible=True)

    show.click(write, [address, *inputs], code, js=READ_ADDRESS, **private)


def _exporting(key: str, make_file: MakeFile) -> Callable[..., tuple[Any, dict[str, str]]]:
    def export(request: gr.Request, query: str, *values: Any) -> tuple[Any, dict[str, str]]:
        try:
            path = Path(make_file(key, query_values(query), session_of(request), *values))
        except LoraMixerError as error:
            return gr.DownloadButton(value=None, visible=False), {"kind": "error", "text": str(error)}
        size = path.stat().st_size
        text = f"{path.name}, {size / 1e6:.1f} MB" if size >= 1e5 else f"{path.name}, {max(size, 1000) / 1e3:.0f} kB"
        return gr.DownloadButton(f"Save {path.name}", value=path, visible=True), {"kind": "quiet", "text": text}

    return export


def query_values(query: str) -> dict[str, str]:
    """A query string as a flat mapping; of a repeated key the last counts."""
    return dict(parse_qsl(query.removeprefix("?"), keep_blank_values=True))
