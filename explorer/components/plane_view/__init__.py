"""The entropy–balance plane: routers as points, trainings as paths, a card for the chosen router, and a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent
_SCRIPTS = (
    "../routing_view/dom.js",
    "../routing_view/colour.js",
    "shapes.js",
    "plane.js",
    "card.js",
    "table.js",
    "saving.js",
    "main.js",
)


class PlaneView(gr.HTML):
    """Shows a payload of ``explorer.rooms.tradeoff.payload``.

    Events:
        open_router: ``{"mixer": name}``, the router shall be opened in Explore.
        pin_router: ``{"mixer": name}``, the router shall be pinned in Compare.
        change_view: ``{"router": key, "close": bool, "hidden": letters}``, what is shown has changed.
    """

    def __init__(self, value: dict[str, Any] | None = None, **arguments: Any) -> None:
        super().__init__(
            value=value,
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["../base.css", "plane.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, _SCRIPTS),
            apply_default_css=False,
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """The value is an object."""
        return {"type": "object"}
