"""The views of a routing trace: text, map, card, load and the sections below them, with one selection for all.

They are one component because a selection that lives in the browser needs no round trip, and because a component whose
template never changes is never mounted anew while a trace grows.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets, with_token_card
from explorer.view_link import component_fields

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "decode.js", "numbers.js", "colour.js", "dom.js", "store.js", "measure.js", "strip.js", "switches.js", "lane.js",
    "../canvas.js", "map.js", "../token_card.js", "card.js", "load.js", "sections.js", "spans.js", "experts.js",
    "layers.js", "agreement.js", "effect.js", "table.js", "link.js", "../keys.js", "keyboard.js", "drop.js", "main.js",
)  # fmt: skip
"""In the order in which they need each other; together they are the body of one function."""


class RoutingView(gr.HTML):
    """Shows a payload of ``explorer.payload``, or an empty state when the value is None.

    The address of the page holds how the trace is looked at, in the fields of ``explorer.view_link``. The assets must
    not hold what Gradio's templates evaluate (double braces, backticks, ``${``); the scripts may.
    """

    def __init__(self, value: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template=with_token_card(read_assets(_FOLDER, ["template.html"]), "Selected token"),
            css_template=read_assets(_FOLDER, ["../base.css", "view.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, _SCRIPTS),
            apply_default_css=False,
            fields=component_fields(),
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
