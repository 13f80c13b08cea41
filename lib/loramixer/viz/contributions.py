"""The gate beside what it did: how much an expert really adds to the output of a projection."""

from __future__ import annotations

import numpy as np
import plotly.graph_objects as go

from loramixer.aggregate import How, Unit
from loramixer.errors import FigureError
from loramixer.metrics import HIGH_GATE, NO_EFFECT, gated_without_effect
from loramixer.trace import RoutingTrace
from loramixer.viz.canvas import axis_name, plotly_text
from loramixer.viz.maps import (
    AT,
    borders_between,
    cell_map,
    colour_bar,
    free_bar,
    panel_title,
    side_by_side,
    token_axes,
)
from loramixer.viz.palette import expert_styles, magnitude_scale
from loramixer.viz.views import MEAN, Roles, expert_index, view


def contribution_map(
    trace: RoutingTrace,
    expert: str,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
) -> go.Figure:
    """An expert's gate, and what the expert really added to the output; crosses mark a high gate without effect.

    Args:
        trace: a trace that was recorded with ``contributions=True``.
        expert: its name.
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are shown.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.

    Raises:
        FigureError: the trace has no contributions, or no such expert.
    """
    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    index = expert_index(part.experts, expert)
    if part.contributions is None or part.trace.contributions is None:
        raise FigureError(
            "This trace has no contributions: it was recorded without them; trace again with contributions=True."
        )
    style = expert_styles(part.experts)[index]
    added = part.contributions[..., index]
    flags = gated_without_effect(part.trace.gates, part.trace.contributions)[:, part.positions, index]
    flagged = np.stack([flags[list(sites)].mean(axis=0) >= 0.5 for sites in part.sites])
    name = f"{style.letter} {plotly_text(style.name)}"
    figure, panels = side_by_side(part, f"Gate and contribution of {name}", 2, right=200)
    figure.update_layout(
        title={"subtitle": {"text": f"{part.words}; ×: gate from {HIGH_GATE:g}, under {NO_EFFECT:.0%} of the update"}}
    )
    largest = float(np.quantile(added, 0.99)) or 1.0
    for number, values, end, title, words in (
        (1, part.gates[..., index], 1.0, "gate", f"the routers gave {style.name} %{{z:.2f}} of the weight"),
        (2, added, largest, "contribution", f"{style.name} added %{{z:.3f}} lengths of the frozen output"),
    ):
        across, up = panels[number - 1]
        bar = colour_bar("gate") if number == 1 else free_bar("added / frozen", (0.0, end))
        bar |= {"len": (up[1] - up[0]), "y": sum(up) / 2} if up != (0, 1) else {"x": 1.02 + 0.08 * (number - 1)}
        cell_map(
            figure,
            number,
            part,
            values,
            magnitude_scale(),
            (0.0, end),
            name=title,
            words=AT + plotly_text(words),
            bar=bar,
        )
        token_axes(figure, number, part, across, up, first=across[0] == 0)
        borders_between(figure, number, part, ())
        panel_title(figure, across, up, title)
        rows, columns = np.nonzero(flagged)
        marker = {"symbol": "x", "size": 6, "color": ("#000000", "#FFFFFF")[number - 1]}
        if len(rows):
            figure.add_trace(
                go.Scatter(
                    x=columns.tolist(), y=rows.tolist(), mode="markers", name="high gate, no effect",
                    showlegend=False, marker=marker,
                    hovertext="a high gate, and next to no effect", hoverinfo="text",
                    xaxis=axis_name("x", number), yaxis=axis_name("y", number),
                )
            )  # fmt: skip
    return figure
