"""A training while it runs: its curves, and its path on the entropy–balance plane."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "../routing_view/dom.js",
    "../routing_view/colour.js",
    "../plane_view/shapes.js",
    "../plane_view/plane.js",
    "../plane_view/saving.js",
    "curves.js",
    "main.js",
)


class TrainingView(gr.HTML):
    """Shows a payload of ``explorer.rooms.train.payload``, or how to begin when the value is None."""

    def __init__(self, value: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["../base.css", "training.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, _SCRIPTS),
            apply_default_css=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
