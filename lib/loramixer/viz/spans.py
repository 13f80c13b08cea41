"""Gold spans against experts: did each domain's tokens go to its expert?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from loramixer.data.schema import Span
from loramixer.spans import SpanRouting, span_routing
from loramixer.trace import RoutingTrace
from loramixer.viz.canvas import axes, canvas, plotly_text
from loramixer.viz.maps import add_heat_map, colour_bar
from loramixer.viz.palette import expert_styles, magnitude_scale
from loramixer.viz.views import short_label


def span_confusion(trace: RoutingTrace, spans: Sequence[Span], *, by_domain: bool = False) -> go.Figure:
    """Gold span × expert: the mean gate of each expert over the tokens of each span, mean over routers that are on.

    The subtitle has the purity and the normalised mutual information of domain and expert, each with what they are
    when tokens are shuffled between the spans, and how many tokens the routers take to follow a border.

    Args:
        trace: a trace of single tokens or of words.
        spans: gold spans in the text of the trace, see :func:`loramixer.spans.spans_in_trace`.
        by_domain: whether spans of one domain are taken together.

    Raises:
        TraceError: spans that do not fit the text, or that hold no token, or no router that is on.
    """
    found = span_routing(trace, spans)
    shares = found.domain_confusion if by_domain else found.confusion
    known = np.isfinite(shares)
    values = np.where(known.any(axis=0), np.nansum(shares, axis=0) / np.maximum(known.sum(axis=0), 1), np.nan)
    group = found.domain_of_token if by_domain else found.span_of_token
    rows = [
        f"{plotly_text(domain)} (n = {int((group == index).sum())})"
        for index, domain in enumerate(found.domains if by_domain else [span.domain for span in found.spans])
    ]
    styles = expert_styles(trace.experts)
    columns = [f"{style.letter} {plotly_text(short_label(style.name))}" for style in styles]
    left = 30 + 7 * max(len(row) for row in rows)
    words = _numbers(found)
    width = max(left + 92 * len(columns) + 96, left + round(6.6 * len(words)))
    figure = canvas("Gold spans and where their tokens went", width, 150 + 40 * len(rows), left, 96)
    figure.update_layout(margin={"t": 92, "b": 44}, title={"subtitle": {"text": words}})
    add_heat_map(
        figure, 1, values, magnitude_scale(), (0.0, 1.0), columns=columns, rows=rows, name="mean gate",
        words="%{customdata}: %{z:.3f} of the weight, mean over tokens and routers", bar=colour_bar("mean gate"),
        texts=[["" if np.isnan(value) else f"{value:.2f}" for value in line] for line in values],
    )  # fmt: skip
    figure.update_traces(texttemplate="%{text}", selector={"type": "heatmap"})
    axes(
        figure, 1, (-0.5, len(columns) - 0.5), list(enumerate(columns)), "", (len(rows) - 0.5, -0.5),
        list(enumerate(rows)), "",
    )  # fmt: skip
    return figure


def _numbers(found: SpanRouting) -> str:
    """Purity, information and lag in words."""
    bands = found.null()
    parts = []
    for name, words, values in (
        ("purity", "purity", found.purity),
        ("mutual_information", "NMI", found.mutual_information),
    ):
        value = float(values.mean())
        if name in bands and np.isfinite(value):
            parts.append(f"{words} {value:.2f} (shuffled {bands[name].low:.2f}–{bands[name].high:.2f})")
    if found.lags:
        parts.append(f"switch lag {float(np.mean([lag.tokens.mean() for lag in found.lags])):.1f} tokens")
    return "; ".join(parts) or f"n = {found.n} tokens"
