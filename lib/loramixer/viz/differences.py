"""Two traces of the same tokens, one less the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import plotly.graph_objects as go

from loramixer.errors import FigureError
from loramixer.metrics import jensen_shannon
from loramixer.trace import RoutingTrace
from loramixer.viz.canvas import plotly_text
from loramixer.viz.maps import AT, borders_between, cell_map, colour_bar, free_bar, token_axes, token_canvas
from loramixer.viz.palette import difference_scale, expert_styles, magnitude_scale
from loramixer.viz.views import MEAN, Roles, View, expert_index, view

DIVERGENCE = "jsd"


def difference_map(
    first: RoutingTrace,
    second: RoutingTrace,
    measure: str = DIVERGENCE,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    names: tuple[str, str] = ("A", "B"),
) -> go.Figure:
    """How two traces of the same tokens differ: an expert's gate in B less that in A, or how far apart B and A are.

    Args:
        first: trace A.
        second: trace B, of the same tokens and experts.
        measure: name of an expert, for its gate in B less that in A (blue is less, orange is more); or ``jsd``, for
            the Jensen–Shannon divergence of the gates of each router, mean over routers, 0 (alike) … 1 bit (nothing in
            common).
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are shown.
        names: what A and B are called in title and hover texts.

    Raises:
        FigureError: the traces have other tokens, sites or experts.
    """
    chosen: dict[str, Any] = {"projection": projection, "layers": layers, "roles": roles, "template": template}
    before, after = view(first, **chosen), view(second, **chosen)
    _check_comparable(before, after)
    a, b = plotly_text(names[0]), plotly_text(names[1])
    if measure == DIVERGENCE:
        apart = jensen_shannon(first.gates[:, before.positions], second.gates[:, after.positions]) / np.log(2)
        values = np.stack([apart[list(sites)].mean(axis=0) for sites in before.sites])
        title = f"How far {b} routes from {a}"
        name, scale, ends = "Jensen–Shannon divergence, bits", magnitude_scale(), (0.0, 1.0)
        words = f"the gates of {a} and {b} are %{{z:.3f}} bits apart; 0 is alike, 1 is nothing in common"
        bar = colour_bar("JSD, bits")
    else:
        index = expert_index(before.experts, measure)
        style = expert_styles(before.experts)[index]
        values = after.gates[..., index] - before.gates[..., index]
        end = max(0.05, float(np.abs(values).max()))
        title = f"Gate of {style.letter} {plotly_text(measure)}: {b} − {a}"
        name, scale, ends = f"{b} − {a}", difference_scale(), (-end, end)
        words = f"{plotly_text(measure)} gets %{{z:+.2f}} of the weight in {b} compared with {a}"
        bar = free_bar(f"{b} − {a}", ends)
    figure = token_canvas(before, title, right=150)
    cell_map(figure, 1, before, values, scale, ends, name=name, words=AT + words, bar=bar)
    token_axes(figure, 1, before)
    borders_between(figure, 1, before, ())
    return figure


def _check_comparable(before: View, after: View) -> None:
    first, second = before.trace, after.trace
    if first.experts != second.experts:
        raise FigureError(
            f"The traces have other experts ({', '.join(first.experts)} and {', '.join(second.experts)}), so their "
            "gates cannot be compared."
        )
    if [(s.layer, s.projection) for s in first.sites] != [(s.layer, s.projection) for s in second.sites]:
        raise FigureError("The traces have other routed projections, so their gates cannot be compared.")
    if not np.array_equal(first.tokens.ids[before.positions], second.tokens.ids[after.positions]):
        raise FigureError(
            "The traces have other tokens here, so they cannot be laid over each other token by token; show a part "
            "that they share, such as the prompt, or align them first."
        )
