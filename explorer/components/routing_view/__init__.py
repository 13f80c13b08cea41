"""The views of a routing trace: text lane, layer × token map, token card and load, with one selection for all.

They are one component because a selection that lives in the browser needs no round trip, and because a component whose
template never changes is never mounted anew while a trace grows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "decode.js",
    "numbers.js",
    "colour.js",
    "dom.js",
    "store.js",
    "strip.js",
    "switches.js",
    "lane.js",
    "map.js",
    "card.js",
    "load.js",
    "keyboard.js",
    "main.js",
)
"""In the order in which they need each other; together they are the body of one function."""


class RoutingView(gr.HTML):
    """Shows a payload of ``explorer.payload``, or an empty state when the value is None.

    The assets must not hold what Gradio's templates evaluate (double braces, backticks, ``${``); the scripts may.
    """

    def __init__(self, value: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["view.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, _SCRIPTS),
            apply_default_css=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
