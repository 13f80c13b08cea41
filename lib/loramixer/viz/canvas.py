"""The empty figure that every picture starts from: canvas, axes with stated range and ticks, error bars.

Whatever states its ranges and ticks is drawn the same by Plotly and by :mod:`loramixer.viz.drawing`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import plotly.graph_objects as go

from loramixer.viz.drawing import plain_values
from loramixer.viz.palette import NEUTRAL, PAGES


def canvas(title: str, width: float, height: float, left: float, right: float) -> go.Figure:
    return go.Figure(
        layout={
            "title": {"text": title}, "width": round(width), "height": round(height),
            "margin": {"l": left, "r": right, "t": 62, "b": 58}, "font": {"color": NEUTRAL, "size": 12},
            "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)", "hovermode": "closest",
        }
    )  # fmt: skip


def axes(
    figure: go.Figure, number: int, x_range: Sequence[float], x_ticks: Sequence[tuple[float, str]], x_title: str,
    y_range: Sequence[float], y_ticks: Sequence[tuple[float, str]], y_title: str,
    across: tuple[float, float] = (0, 1), up: tuple[float, float] = (0, 1),
) -> None:  # fmt: skip
    for letter, ends, ticks, title, domain, other in (
        ("x", x_range, x_ticks, x_title, across, "y"),
        ("y", y_range, y_ticks, y_title, up, "x"),
    ):
        name = axis_name(letter, number)
        figure.update_layout(
            {
                f"{letter}axis{name[1:]}": {
                    "range": list(ends), "domain": list(domain), "anchor": axis_name(other, number),
                    "tickvals": [value for value, _ in ticks], "ticktext": [text for _, text in ticks],
                    "title": {"text": title}, "gridcolor": "rgba(118,118,118,0.2)", "zeroline": False,
                }
            }
        )  # fmt: skip


def axis_name(letter: str, number: int) -> str:
    return letter if number == 1 else f"{letter}{number}"


def error_bars(points: Sequence[tuple[float, float | None, float | None]]) -> dict[str, Any]:
    """Error bars of ``(value, low, high)``."""
    return {
        "type": "data",
        "array": [0 if high is None else high - value for value, _, high in points],
        "arrayminus": [0 if low is None else value - low for value, low, _ in points],
    }


def round_scale(values: Sequence[float]) -> tuple[float, float, list[tuple[float, str]]]:
    """A range around the values, and about four round ticks in it."""
    low, high = min(values), max(values)
    room = (high - low) * 0.08 or abs(high) * 0.1 or 0.1
    low, high = low - room, high + room
    step = 10 ** math.floor(math.log10((high - low) / 3))
    step *= next((factor for factor in (5, 2) if (high - low) / (step * factor) >= 3), 1)
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first = math.ceil(low / step)
    ticks = [number * step for number in range(first, math.floor(high / step) + 1)]
    return low, high, [(tick, f"{tick:.{digits}f}") for tick in ticks]


def plotly_text(text: str) -> str:
    """A text as Plotly shows it literally: it reads labels as HTML."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def themed(figure: go.Figure, theme: str) -> go.Figure:
    """A copy whose texts and axes have the ink of a light or a dark page, for interactive display.

    As they are, figures write in a grey that is legible on white and on black; the ink of the page is easier to read.

    Args:
        figure: a figure of this package.
        theme: ``light`` or ``dark``.
    """
    content = figure.to_json().replace(f'"{NEUTRAL}"', f'"{PAGES[theme].ink}"')
    return go.Figure(plain_values(json.loads(content)))
