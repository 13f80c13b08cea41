"""One line that says what is going on; screen readers say it when it changes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent

Status = dict[str, str]


def status(kind: str, text: str = "") -> Status:
    """Value of a status line. Kinds: quiet, busy, ready, note, error."""
    return {"kind": kind, "text": text}


class StatusLine(gr.HTML):
    """A live region. Its value is ``{"kind": "quiet" | "busy" | "ready" | "note" | "error", "text": …}``.

    Gradio evaluates templates as JavaScript, so text never goes through one; ``status.js`` sets it as plain text.
    """

    def __init__(self, value: Status | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value or status("quiet"),
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["status.css"]),
            js_on_load=read_assets(_FOLDER, ["status.js"]),
            apply_default_css=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
