"""The link of the view on screen, with or without the prompt, and a button that copies it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent


class ShareMenu(gr.HTML):
    """Copies the address bar: every room keeps its view there (``explorer.link.WRITE``).

    Args:
        prompt_from: CSS selector of what holds the prompt, in its ``value`` or in ``data-prompt``; None where a link
            has no prompt. The prompt goes into the link only while its box is ticked.
    """

    def __init__(self, prompt_from: str | None = None, **arguments: Any) -> None:
        super().__init__(
            value=None,
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["share.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, ["share.js"]),
            apply_default_css=False,
            prompt_from=prompt_from or "",
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """There is no value."""
        return {"type": "null"}
