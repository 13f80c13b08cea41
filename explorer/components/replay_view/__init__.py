"""One prompt through the steps of a training: its tokens, its layer × token map, and a slider over the steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent
_SCRIPTS = ("../routing_view/dom.js", "../routing_view/colour.js", "frames.js", "main.js")


class ReplayView(gr.HTML):
    """Shows a payload of ``explorer.replays``, or nothing when the value is None.

    It tells the plane of its room where the prompt is, by the document's event ``loramixer:replay``.
    """

    def __init__(self, value: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["../base.css", "replay.css", "frames.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, _SCRIPTS),
            apply_default_css=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
