"""Figures in notebooks: interactive where that works, a picture where it does not (code hosts show no Plotly)."""

from __future__ import annotations

import base64
import json
from typing import Any

from loramixer.viz.drawing import shown_text
from loramixer.viz.raster import to_small_png


def show(figure: Any, alt: str = "", *, scale: float = 1.0) -> None:
    """Display a figure in a notebook, with a picture and a text beside the interactive version.

    Without a notebook it prints the text, and how to save the figure.

    Args:
        figure: a figure of this package.
        alt: what there is to see, in a sentence; title and subtitle by default.
        scale: pixels of the picture for each pixel of a screen.
    """
    bundle = mime_bundle(figure, alt, scale=scale)
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:
        shell = None
    else:
        shell = get_ipython()
    if shell is None:
        print(f"{bundle['text/plain']}\n(This is no notebook: save the figure with viz.to_png, to_svg or to_html.)")
        return
    display(bundle, raw=True)


def mime_bundle(figure: Any, alt: str = "", *, scale: float = 1.0) -> dict[str, Any]:
    """The figure as Plotly JSON, as a small PNG (base64) and as a sentence, keyed by their MIME types."""
    content = json.loads(figure.to_json())
    # Plotly's own "share" button would send the text of the prompt to its servers.
    content["config"] = {"showSendToCloud": False, "displaylogo": False}
    return {
        "application/vnd.plotly.v1+json": content,
        "image/png": base64.b64encode(to_small_png(figure, scale)).decode("ascii"),
        "text/plain": alt or figure_text(figure),
    }


def figure_text(figure: Any) -> str:
    """Title and subtitle of a figure as one text."""
    title = figure.layout.title
    parts = [title.text or "", (title.subtitle.text if title.subtitle else "") or ""]
    return shown_text(" — ".join(part for part in parts if part))
