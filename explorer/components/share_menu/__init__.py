"""The link of the view on screen, with or without the prompt, and a button that copies it."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import gradio as gr

from explorer.components.assets import read_assets

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class PromptInLink:
    """What a link holds of the prompt while its box is ticked.

    Attributes:
        selector: CSS selector of what holds it, in its ``value`` or in ``data-prompt``.
        key: name of the parameter in the address.
        label: of the box.
    """

    selector: str
    key: str = "p"
    label: str = "with the prompt"


class ShareMenu(gr.HTML):
    """Copies the address bar: every room keeps its view there (``explorer.link.WRITE``).

    Args:
        prompt: that a link may hold; None where there is none.
    """

    def __init__(self, prompt: PromptInLink | None = None, **arguments: Any) -> None:
        super().__init__(
            value=None,
            html_template=read_assets(_FOLDER, ["template.html"]),
            css_template=read_assets(_FOLDER, ["share.css"]),
            js_on_load="'use strict';\n" + read_assets(_FOLDER, ["share.js"]),
            apply_default_css=False,
            prompt=None if prompt is None else asdict(prompt),
            **arguments,
        )

    def api_info(self) -> dict[str, Any]:
        """There is no value."""
        return {"type": "null"}
