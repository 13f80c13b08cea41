"""Two routing traces as one view: A, B, B − A and their divergence, with one selection and shared scales.

Shares the decoding, colours, numbers and small helpers of ``routing_view``.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets, with_token_card

_FOLDER = Path(__file__).parent
_SHARED = _FOLDER.parent / "routing_view"
_SHARED_SCRIPTS = ("decode.js", "numbers.js", "colour.js", "dom.js")
_SCRIPTS = (
    "names.js",
    "sides.js",
    "pairs.js",
    "store.js",
    "facts.js",
    "switches.js",
    "lanes.js",
    "../canvas.js",
    "maps.js",
    "../token_card.js",
    "card.js",
    "loads.js",
    "../keys.js",
    "keyboard.js",
    "link.js",
    "main.js",
)
"""In the order in which they need each other; together they are the body of one function."""


class CompareView(gr.HTML):
    """Shows a payload of ``explorer.comparison_payload``, or ``{"waiting": sentence}`` as long as there is none.

    The assets must not hold what Gradio's templates evaluate (double braces, backticks, ``${``); the scripts may.

    Args:
        room_key: of the room whose address the view keeps up to date. Not named after a word that stands quoted in the
            scripts: Gradio takes such an attribute for an event, and then copies the whole page with every visit.
        value: the payload.
        empty_title: heading of the empty state.
        arguments: as for ``gr.HTML``.
    """

    def __init__(
        self,
        room_key: str,
        value: dict[str, Any] | None = None,
        empty_title: str = "Nothing to compare yet",
        **arguments: Any,
    ) -> None:
        template = with_token_card(read_assets(_FOLDER, ["template.html"]), "Selected token in both")
        super().__init__(
            value=value,
            html_template=template.replace("EMPTY_TITLE", empty_title),
            css_template=read_assets(_SHARED, ["../base.css", "view.css"]) + read_assets(_FOLDER, ["compare.css"]),
            js_on_load="'use strict';\n"
            + read_assets(_SHARED, _SHARED_SCRIPTS)
            + "\n"
            + read_assets(_FOLDER, _SCRIPTS),
            apply_default_css=False,
            room_key=room_key,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
