"""Drawing, shared by the notebooks and the explorer; without torch and without gradio.

``from loramixer import viz; viz.token_map(trace)`` is all that a notebook needs: the names below are imported when
they are first used, since Plotly takes a while.
"""

from importlib import import_module
from typing import Any

_PLACES = {
    "agreement_matrix": "traces",
    "contribution_map": "contributions",
    "difference_map": "differences",
    "expert_maps": "traces",
    "load_bars": "traces",
    "plane": "planes",
    "token_card": "traces",
    "token_map": "traces",
    "training_curves": "curves",
    "figure_tables": "tables",
    "figure_text": "notebook",
    "recipe": "recipes",
    "show": "notebook",
    "span_confusion": "spans",
    "text_difference": "text",
    "text_difference_plain": "text",
    "text_lane": "text",
    "text_lane_plain": "text",
    "themed": "canvas",
    "to_html": "html",
    "to_png": "raster",
    "to_small_png": "raster",
    "to_svg": "svg",
    "trace_table": "tables",
    "watch": "live",
}
"""Public name → module that holds it."""

TRACE_FIGURES = (
    "agreement_matrix", "contribution_map", "difference_map", "expert_maps", "load_bars", "token_card", "token_map",
)  # fmt: skip
"""Figures of one trace, or of two."""

__all__ = sorted(_PLACES)  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(import_module(f"loramixer.viz.{_PLACES[name]}"), name)
    raise AttributeError(f"module 'loramixer.viz' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted([*globals(), *_PLACES])
