"""Two traces, one less the other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import plotly.graph_objects as go

from loramixer.aggregate import How, Unit, aggregate
from loramixer.comparison import compare
from loramixer.data.schema import Span
from loramixer.errors import FigureError
from loramixer.trace import RoutingTrace
from loramixer.viz.canvas import plotly_text
from loramixer.viz.maps import AT, borders_between, cell_map, colour_bar, free_bar, token_axes, token_canvas
from loramixer.viz.palette import difference_scale, expert_styles, magnitude_scale
from loramixer.viz.views import MEAN, Roles, expert_index, short_label, view

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
    unit: Unit = "subword",
    how: How = "mean",
    names: tuple[str, str] = ("A", "B"),
    spans_a: Sequence[Span] | None = None,
    spans_b: Sequence[Span] | None = None,
) -> go.Figure:
    """How two traces differ: an expert's gate in B less that in A, or how far apart B and A are.

    Equal tokens are compared one by one. Where the tokens differ, whole gold spans or equal words are, and the
    subtitle says so; see :func:`loramixer.comparison.compare`.

    Args:
        first: trace A.
        second: trace B, of the same experts and sites.
        measure: name of an expert, for its gate in B less that in A (blue is less, orange is more); or ``jsd``, for
            the Jensen–Shannon divergence of the gates of each router, mean over routers, 0 (alike) … 1 bit (nothing in
            common).
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``, of A.
        template: whether the tokens of the chat template are shown.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
        names: what A and B are called in title and hover texts.
        spans_a: gold spans in the text of A.
        spans_b: those in the text of B.

    Raises:
        TraceError: the traces have other experts or sites.
        FigureError: nothing of this part belongs together in A and B.
    """
    first, second = aggregate(first, unit, how), aggregate(second, unit, how)
    comparison = compare(first, second, spans_a, spans_b)
    part = view(first, projection=projection, layers=layers, roles=roles, template=template)
    chosen = set(part.positions.tolist())
    kept = [index for index, (positions, _) in enumerate(comparison.pairs) if chosen & set(positions)]
    if not kept:
        raise FigureError(
            "Nothing in this part of A belongs to anything in B; choose another part, such as the prompt."
        )
    single = comparison.alignment in ("token", "prefix")
    labels = part.labels if single else [short_label(comparison.labels[index]) for index in kept]
    # Pairs stand where their first token in A stands.
    places = np.array([comparison.pairs[index][0][0] for index in kept])
    part = replace(part, positions=places, labels=tuple(labels[: len(kept)]))
    a, b = plotly_text(names[0]), plotly_text(names[1])
    if measure == DIVERGENCE:
        values = _mean_over_sites(comparison.jsd_share[:, kept], part.sites)
        title = f"How far {b} routes from {a}"
        name, scale, ends = "Jensen–Shannon divergence, bits", magnitude_scale(), (0.0, 1.0)
        words = f"the gates of {a} and {b} are %{{z:.3f}} bits apart; 0 is alike, 1 is nothing in common"
        bar = colour_bar("JSD, bits")
    else:
        index = expert_index(part.experts, measure)
        style = expert_styles(part.experts)[index]
        values = _mean_over_sites(comparison.difference[:, kept, index], part.sites)
        end = max(0.05, float(np.nanmax(np.abs(values))))
        title = f"Gate of {style.letter} {plotly_text(measure)}: {b} − {a}"
        name, scale, ends = f"{b} − {a}", difference_scale(), (-end, end)
        words = f"{plotly_text(measure)} gets %{{z:+.2f}} of the weight in {b} compared with {a}"
        bar = free_bar(f"{b} − {a}", ends)
    figure = token_canvas(part, title, right=150, least=360 if comparison.alignment == "token" else 760)
    cell_map(figure, 1, part, values, scale, ends, name=name, words=AT + words, bar=bar)
    token_axes(figure, 1, part)
    borders_between(figure, 1, part, ())
    if comparison.alignment != "token":
        figure.update_layout(title={"subtitle": {"text": plotly_text(comparison.sentence)}})
    return figure


def _mean_over_sites(values: np.ndarray, sites: Sequence[Sequence[int]]) -> np.ndarray:
    """``[S, P] → [L, P]``; NaN where all routers of a layer say nothing."""
    rows: list[Any] = []
    for members in sites:
        known = np.isfinite(values[list(members)])
        total = np.where(known, values[list(members)], 0).sum(axis=0)
        rows.append(np.where(known.any(axis=0), total / np.maximum(known.sum(axis=0), 1), np.nan))
    return np.stack(rows)
