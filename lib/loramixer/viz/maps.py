"""What all maps of tokens share: their size, axes, borders, colour bars and one heat map with its sentence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from loramixer.viz.canvas import axes, axis_name, canvas, plotly_text
from loramixer.viz.palette import ColourScale
from loramixer.viz.views import View

SHARE_TICKS = [(0.0, "0"), (0.25, "0.25"), (0.5, "0.5"), (0.75, "0.75"), (1.0, "1")]
AT = "%{customdata}: "
"""Begins the sentence under the pointer: token and layer of the cell."""

LABEL_SIZE = 10
"""Of token labels, in pixels."""


def token_canvas(part: View, title: str, right: int, least: float = 360.0) -> go.Figure:
    """A canvas whose cells are wide enough to read and whose width stays below two screens."""
    wide = min(1560.0, max(least, 12.0 * len(part.labels)))
    tall = max(90.0, min(18.0, max(9.0, 420 / len(part.layers))) * len(part.layers))
    bottom = room_for_labels(part.labels) + 8
    figure = canvas(title, 62 + wide + right, 74 + tall + bottom, 62, right)
    figure.update_layout(margin={"t": 74, "b": bottom}, title={"subtitle": {"text": part.words}})
    return figure


def side_by_side(part: View, title: str, panels: int, right: int) -> tuple[go.Figure, list[Any]]:
    """Maps beside each other where the tokens are few, above each other where they are many; and their places."""
    bottom = room_for_labels(part.labels) + 8
    tall = max(110.0, min(16.0, max(8.0, 300 / len(part.layers))) * len(part.layers))
    if len(part.labels) <= 40:
        wide = max(240.0, 13.0 * len(part.labels))
        width = panels * wide + (panels - 1) * 40
        figure = canvas(title, 62 + width + right, 84 + tall + bottom, 62, right)
        places: list[Any] = [
            ((n * (wide + 40) / width, (n * (wide + 40) + wide) / width), (0, 1)) for n in range(panels)
        ]
    else:
        wide = min(1560.0, 12.0 * len(part.labels))
        height = panels * tall + (panels - 1) * (bottom + 30)
        figure = canvas(title, 62 + wide + right, 84 + height + bottom, 62, right)
        tops = [1 - n * (tall + bottom + 30) / height for n in range(panels)]
        places = [((0, 1), (max(0.0, top - tall / height), top)) for top in tops]
    figure.update_layout(margin={"t": 84, "b": bottom}, title={"subtitle": {"text": part.words}})
    return figure, places


def room_for_labels(labels: Sequence[str]) -> int:
    return round(14 + 0.6 * LABEL_SIZE * max(len(label) for label in labels))


def add_heat_map(
    figure: go.Figure, number: int, values: np.ndarray, scale: ColourScale, ends: tuple[float, float], *,
    columns: Sequence[str], rows: Sequence[str], name: str, words: str, texts: list[list[str]] | None = None,
    bar: dict[str, Any] | None = None,
) -> None:  # fmt: skip
    """One heat map; each cell's ``customdata`` says where it is, ``words`` is the sentence under the pointer."""
    figure.add_trace(
        go.Heatmap(
            z=rounded(values), x=list(range(len(columns))), y=list(range(len(rows))), text=texts, colorscale=scale,
            zmin=ends[0], zmax=ends[1], showscale=bar is not None, colorbar=bar, hoverongaps=False,
            customdata=[[f"“{column}”, {row}" for column in columns] for row in rows],
            hovertemplate=f"{words}<extra></extra>",
            xaxis=axis_name("x", number), yaxis=axis_name("y", number), meta=twin(columns, rows, name),
        )
    )  # fmt: skip


def token_axes(
    figure: go.Figure, number: int, part: View, across: tuple[float, float] = (0, 1),
    up: tuple[float, float] = (0, 1), named: bool = True, pixels: float | None = None, first: bool = True,
) -> None:  # fmt: skip
    count, rows = len(part.labels), len(part.layers)
    layout = figure.layout
    pixels = pixels or (layout.width - layout.margin.l - layout.margin.r) * (across[1] - across[0])
    stride = max(1, -(-(LABEL_SIZE + 1) * count // int(pixels)))
    ticks = [(index, plotly_text(label)) for index, label in enumerate(part.labels) if index % stride == 0]
    tall = (layout.height - layout.margin.t - layout.margin.b) * (up[1] - up[0]) / rows
    lines = layer_ticks(part.layers, tall) if first else []
    title = "layer" if first else ""
    axes(
        figure, number, (-0.5, count - 0.5), ticks if named else [], "", (rows - 0.5, -0.5), lines, title, across, up
    )  # fmt: skip
    figure.update_layout(
        {
            f"xaxis{axis_name('x', number)[1:]}": {
                "tickangle": -90, "tickfont": {"size": LABEL_SIZE}, "showgrid": False
            },
            f"yaxis{axis_name('y', number)[1:]}": {"showgrid": False},
        }
    )  # fmt: skip


def layer_ticks(layers: Sequence[int], pixels: float) -> list[tuple[float, str]]:
    """Rows with their layers, as many as can be read."""
    stride = next((step for step in (1, 2, 5, 10, 20, 50) if step * pixels >= 14), 100)
    return [(row, str(layer)) for row, layer in enumerate(layers) if layer % stride == 0 or len(layers) == 1]


def borders_between(figure: go.Figure, number: int, part: View, borders: Sequence[int]) -> None:
    """Lines between tokens: where the answer begins, and those that were asked for."""
    places: list[tuple[int, str, str | None]] = [
        (part.place_of(border), "border of a span", "dash") for border in borders
    ]
    if part.first_generated is not None:
        places.append((part.first_generated, "the answer begins", None))
    for place, words, dash in places:
        if not 0 < place < len(part.labels):
            continue
        for colour, width in (("#000000", 3.4), ("#FFFFFF", 1.6)):  # visible on every colour
            figure.add_trace(
                go.Scatter(
                    x=[place - 0.5] * 2, y=[-0.5, len(part.layers) - 0.5], mode="lines", showlegend=False,
                    hovertext=words, hoverinfo="text", meta="guide", xaxis=axis_name("x", number),
                    yaxis=axis_name("y", number), line={"color": colour, "width": width, "dash": dash},
                )
            )  # fmt: skip


def panel_title(figure: go.Figure, across: tuple[float, float], up: tuple[float, float], text: str) -> None:
    figure.add_annotation(
        x=sum(across) / 2,
        y=up[1],
        xref="paper",
        yref="paper",
        text=text,
        showarrow=False,
        xanchor="center",
        yanchor="bottom",
    )


def colour_bar(title: str) -> dict[str, Any]:
    return {
        "title": {"text": title}, "thickness": 12, "len": 1.0, "y": 0.5, "outlinewidth": 0,
        "tickvals": [tick for tick, _ in SHARE_TICKS], "ticktext": [text for _, text in SHARE_TICKS],
    }  # fmt: skip


def free_bar(title: str, ends: tuple[float, float]) -> dict[str, Any]:
    """A colour bar of any range, with five marks."""
    marks = [float(mark) for mark in np.linspace(ends[0], ends[1], 5)]
    return {**colour_bar(title), "tickvals": marks, "ticktext": [f"{mark:.2g}" for mark in marks]}


def twin(columns: Sequence[str], rows: Sequence[str], value: str) -> dict[str, Any]:
    """What a heat map's rows, columns and numbers are called in a table; as Plotly texts."""
    return {"columns": list(columns), "rows": list(rows), "value": value}


def rounded(values: np.ndarray) -> np.ndarray:
    return np.round(np.asarray(values, dtype=np.float32), 4)


def cell_map(
    figure: go.Figure, number: int, part: View, values: np.ndarray, scale: ColourScale, ends: tuple[float, float],
    **texts: Any,
) -> None:  # fmt: skip
    """A heat map of a view, layers by tokens; ``texts`` as for :func:`add_heat_map`."""
    columns = [plotly_text(label) for label in part.labels]
    rows = [f"layer {layer}" for layer in part.layers]
    add_heat_map(figure, number, values, scale, ends, columns=columns, rows=rows, **texts)
