"""Figures of routing traces: who takes which token, where, and how decidedly.

Every function takes a :class:`~loramixer.trace.RoutingTrace` and the part of it to show, and returns a Plotly figure
that :func:`~loramixer.viz.svg.to_svg`, :func:`~loramixer.viz.raster.to_png` and
:func:`~loramixer.viz.html.to_html` draw without a browser. Tokens stand at whole numbers with their texts as tick
labels, since Plotly merges equal labels and reads labels as HTML.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import plotly.graph_objects as go

from loramixer.aggregate import How, Unit
from loramixer.errors import FigureError
from loramixer.trace import RoutingTrace
from loramixer.viz.canvas import axes, axis_name, canvas, plotly_text, round_scale
from loramixer.viz.maps import (
    add_heat_map,
    borders_between,
    colour_bar,
    layer_ticks,
    panel_title,
    room_for_labels,
    rounded,
    token_axes,
    token_canvas,
    twin,
)
from loramixer.viz.palette import (
    NEUTRAL,
    ColourScale,
    ExpertStyle,
    expert_scale,
    expert_styles,
    expert_value,
    magnitude_scale,
)
from loramixer.viz.views import MEAN, Roles, View, expert_index, token_label, view

TOP, ENTROPY, MARGIN = "top", "entropy", "margin"


def token_map(
    trace: RoutingTrace,
    measure: str = TOP,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
    borders: Sequence[int] = (),
) -> go.Figure:
    """Layer × token: who takes each token in each layer.

    Args:
        trace: a routing trace.
        measure: ``top``, the expert with the largest gate, strong where it is far ahead; ``entropy``, how undecided
            the routers are, 0 … 1; ``margin``, how far the first expert is ahead of the second; or the name of an
            expert, for its gate.
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are shown.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
        borders: positions of tokens (in the trace) before which a line is drawn, such as the gold spans of a prompt.
    """
    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    styles = expert_styles(part.experts)
    names = {TOP: "Expert with the largest gate", ENTROPY: "How undecided the routers are",
             MARGIN: "Lead of the first expert over the second"}  # fmt: skip
    if measure not in names:
        style = styles[expert_index(part.experts, measure)]
        names[measure] = f"Gate of {style.letter} {plotly_text(measure)}"
    figure = token_canvas(part, f"{names[measure]}, by layer and token", right=150)
    _token_heat_map(figure, 1, part, measure, styles, bar=True)
    token_axes(figure, 1, part)
    borders_between(figure, 1, part, borders)
    if measure == TOP:
        _expert_legend(figure, styles)
        figure.update_layout(title={"subtitle": {"text": f"{part.words}; the stronger, the further ahead"}})
    return figure


def expert_maps(
    trace: RoutingTrace,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
    borders: Sequence[int] = (),
) -> go.Figure:
    """Layer × token, one map for each expert on one scale from 0 to 1.

    Args:
        trace: a routing trace.
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are shown.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
        borders: positions of tokens before which a line is drawn.
    """
    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    styles = expert_styles(part.experts)
    columns = min(len(styles), 2 if len(part.labels) > 40 or len(styles) == 4 else 3)
    lines = -(-len(styles) // columns)
    each = min(620.0, max(250.0, 11.0 * len(part.labels)))
    bottom = room_for_labels(part.labels) + 8
    tall = min(260.0, max(110.0, 7.0 * len(part.layers)))
    figure = canvas(
        "Gate of every expert, by layer and token",
        62 + columns * (each + 30) + 96,
        50 + lines * (tall + 34) + bottom,
        62,
        96,
    )
    figure.update_layout(margin={"t": 84, "b": bottom}, title={"subtitle": {"text": part.words}})
    plot_height = figure.layout.height - 84 - bottom
    for index, style in enumerate(styles):
        column, line = index % columns, index // columns
        across = (column / columns + 0.004, (column + 1) / columns - (30 / (columns * (each + 30))) * (columns > 1))
        top = 1 - line * (tall + 34) / plot_height
        up = max(0.0, top - tall / plot_height), top
        number = index + 1
        last = line == lines - 1 or index + columns >= len(styles)
        _token_heat_map(figure, number, part, style.name, styles, bar=index == 0)
        token_axes(figure, number, part, across, up, named=last, pixels=each, first=column == 0)
        borders_between(figure, number, part, borders)
        panel_title(figure, across, up, f"{style.letter} {plotly_text(style.name)}")
    return figure


def load_bars(
    trace: RoutingTrace,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
) -> go.Figure:
    """Layer × expert: the mean gate of every expert in every layer, beside the even load.

    Args:
        trace: a routing trace.
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template count.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
    """
    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    styles = expert_styles(part.experts)
    loads = part.shares.mean(axis=1)
    count = len(part.layers)
    figure = canvas("Load of every expert, by layer", 90 + 150 * len(styles), 150 + max(120, 13 * count), 62, 28)
    even = 1 / len(styles)
    figure.update_layout(
        margin={"t": 84, "b": 58}, bargap=0.2,
        title={"subtitle": {"text": f"{part.words}; dashed: even load {even:.2f}"}},
    )  # fmt: skip
    widest = max(0.05, float(loads.max()) * 1.08, even * 1.15)
    ticks = [tick for tick in round_scale([0.0, widest])[2] if 0 <= tick[0] <= widest][:5]
    for number, style in enumerate(styles, start=1):
        across = (number - 1) / len(styles) + 0.008, number / len(styles) - 0.008
        name = f"{style.letter} {plotly_text(style.name)}"
        names = {"xaxis": axis_name("x", number), "yaxis": axis_name("y", number), "showlegend": False}
        figure.add_trace(
            go.Bar(
                x=rounded(loads[:, number - 1]), y=list(range(count)), orientation="h", width=0.8, name=name,
                marker={"color": style.colour, "line": {"width": 0}}, customdata=list(part.layers),
                meta=twin([name], [f"layer {layer}" for layer in part.layers], "load"),
                hovertemplate=f"layer %{{customdata}}: on average %{{x:.3f}} of the weight goes to "
                f"{plotly_text(style.name)}, an even load is {even:.3f}<extra></extra>", **names,
            )
        )  # fmt: skip
        figure.add_trace(
            go.Scatter(
                x=[even, even], y=[-0.5, count - 0.5], mode="lines", hoverinfo="skip",
                line={"color": NEUTRAL, "width": 1.4, "dash": "dash"}, **names,
            )
        )  # fmt: skip
        rows = layer_ticks(part.layers, 13) if number == 1 else []
        title = "layer" if number == 1 else ""
        axes(
            figure, number, (0, widest), ticks, "load" if number == 1 else "", (count - 0.5, -0.5), rows, title, across
        )
        panel_title(figure, across, (0, 1), f"{name} {loads[:, number - 1].mean():.2f}")
    return figure


def token_card(trace: RoutingTrace, token: int, *, layers: tuple[int, int] | None = None) -> go.Figure:
    """Everything that the routers said about one token: its gates in every layer and projection, and their lead.

    Args:
        trace: a routing trace.
        token: position of the token in the trace, from 0.
        layers: first and last layer, both included; None for all.
    """
    if not 0 <= token < len(trace.tokens):
        raise FigureError(f"Token {token} was asked for; the trace has tokens 0 to {len(trace.tokens) - 1}.")
    first, last = layers or (trace.layers[0], trace.layers[-1])
    shown = [layer for layer in trace.layers if first <= layer <= last]
    if not shown:
        raise FigureError(f"No layer is left between {first} and {last}.")
    styles = expert_styles(trace.experts)
    experts = [f"{style.letter} {plotly_text(style.name)}" for style in styles]
    panels = len(trace.projections)
    widths = [38.0 * len(styles)] * panels + [150.0]
    gap, left, right = 26.0, 62, 96
    plot_width = sum(widths) + gap * panels
    label = plotly_text(token_label(trace.tokens, token))
    height = 150 + max(130, 15 * len(shown))
    figure = canvas(f"Token {token}, “{label}”: gate of every expert", left + plot_width + right, height, left, right)
    words = f"role: {trace.tokens.roles[token]}; columns: " + ", ".join(
        f"{s.letter} {plotly_text(s.name)}" for s in styles
    )
    figure.update_layout(margin={"t": 84, "b": 58}, title={"subtitle": {"text": words}})
    leads = np.full((panels, len(shown)), np.nan)
    start = 0.0
    for number, projection in enumerate(trace.projections, start=1):
        gates, logits = _of_token(trace, token, projection, shown)
        ordered = -np.sort(-np.nan_to_num(gates), axis=-1)
        known = ~np.isnan(gates).all(axis=-1)
        second = ordered[:, 1] if len(styles) > 1 else 0 * ordered[:, 0]
        leads[number - 1] = np.where(known, ordered[:, 0] - second, np.nan)
        ranks = 1 + (logits[:, None, :] > logits[:, :, None]).sum(axis=-1)
        across = start / plot_width, (start + widths[number - 1]) / plot_width
        start += widths[number - 1] + gap
        figure.add_trace(
            go.Heatmap(
                z=rounded(gates), x=list(range(len(styles))), y=list(range(len(shown))),
                text=[[_short_share(value) for value in line] for line in gates],
                texttemplate="%{text}", textfont={"size": 9},
                customdata=[
                    [
                        [plotly_text(style.name), layer, _logit_text(logits[row, index]), int(ranks[row, index]),
                         f"{leads[number - 1][row]:.2f}"]
                        for index, style in enumerate(styles)
                    ]
                    for row, layer in enumerate(shown)
                ],
                hovertemplate=f"{plotly_text(projection)} of layer %{{customdata[1]}}: %{{z:.3f}} of its update "
                "came from %{customdata[0]} (rank %{customdata[3]}; router score before the softmax, the logit, "
                "%{customdata[2]}; first expert leads by %{customdata[4]})<extra></extra>",
                colorscale=magnitude_scale(), zmin=0, zmax=1, showscale=number == 1, colorbar=colour_bar("gate"),
                xaxis=axis_name("x", number), yaxis=axis_name("y", number),
                meta=twin(experts, [f"layer {n}" for n in shown], f"gate, {projection}"),
            )
        )  # fmt: skip
        rows = layer_ticks(shown, 15) if number == 1 else []
        axes(
            figure, number, (-0.5, len(styles) - 0.5), [(i, s.letter) for i, s in enumerate(styles)], "",
            (len(shown) - 0.5, -0.5), rows, "layer" if number == 1 else "", across,
        )  # fmt: skip
        panel_title(figure, across, (0, 1), plotly_text(projection))
    number = panels + 1
    across = start / plot_width, 1.0
    for index, projection in enumerate(trace.projections):
        points = {"x": rounded(leads[index]), "y": list(range(len(shown)))}
        figure.add_trace(
            go.Scatter(
                **points, mode="markers", marker={"color": NEUTRAL, "size": 4}, opacity=0.55, showlegend=False,
                name=plotly_text(projection), xaxis=axis_name("x", number), yaxis=axis_name("y", number),
                hovertemplate=f"{plotly_text(projection)}: the first expert leads by %{{x:.2f}}<extra></extra>",
            )
        )  # fmt: skip
    with_any = ~np.isnan(leads).all(axis=0)
    means = [float(np.nanmean(leads[:, row])) if with_any[row] else None for row in range(len(shown))]
    figure.add_trace(
        go.Scatter(
            x=means, y=list(range(len(shown))), mode="lines", line={"color": NEUTRAL, "width": 1.6}, showlegend=False,
            name="mean", xaxis=axis_name("x", number), yaxis=axis_name("y", number),
            hovertemplate="mean over the projections: the first expert leads by %{x:.2f}<extra></extra>",
        )
    )  # fmt: skip
    ends = [(0.0, "0"), (0.5, "0.5"), (1.0, "1")]
    axes(figure, number, (0, 1), ends, "", (len(shown) - 0.5, -0.5), [], "", across)
    panel_title(figure, across, (0, 1), "lead: dots, and mean")
    return figure


def agreement_matrix(
    trace: RoutingTrace,
    *,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
) -> go.Figure:
    """How often the routers of two projections of a layer put the same expert first: mean, and layer by layer.

    Args:
        trace: a routing trace with two routed projections or more.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template count.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
    """
    names = trace.projections
    if len(names) < 2:
        raise FigureError(f"The trace has one routed projection ({names[0]}), so there is nothing to agree with.")
    whole = view(trace, layers=layers, roles=roles, template=template, unit=unit, how=how)
    top = np.full((len(names), len(whole.layers), len(whole.positions)), -1)
    for index, name in enumerate(names):
        part = view(trace, projection=name, layers=layers, roles=roles, template=template, unit=unit, how=how)
        for row, layer in enumerate(part.layers):
            top[index, whole.layers.index(layer)] = part.top[row]
    pairs = [(a, b) for a in range(len(names)) for b in range(a + 1, len(names))]
    by_layer = np.array([[_agreement(top[a, row], top[b, row]) for a, b in pairs] for row in range(len(whole.layers))])
    mean = np.eye(len(names))
    for column, (a, b) in enumerate(pairs):
        known = by_layer[:, column][~np.isnan(by_layer[:, column])]
        mean[a, b] = mean[b, a] = known.mean() if known.size else np.nan
    side, wide, gap = 56.0 * len(names), 46.0 * len(pairs), 90.0
    plot_width, tall = side + gap + wide, max(side + 20, 13.0 * len(whole.layers))
    figure = canvas("How often two projections put the same expert first", 92 + plot_width + 96, 190 + tall, 92, 96)
    figure.update_layout(margin={"t": 84, "b": 96}, title={"subtitle": {"text": whole.counts}})
    short = [plotly_text(name) for name in names]
    for number, (values, across, up) in enumerate(
        [(mean, (0, side / plot_width), (1 - side / (tall + 10), 1)), (by_layer, (1 - wide / plot_width, 1), (0, 1))],
        1,
    ):
        columns = short if number == 1 else [f"{short[a]}–{short[b]}" for a, b in pairs]
        rows = short if number == 1 else [str(layer) for layer in whole.layers]
        link = " and " if number == 1 else ", "
        what = "in %{customdata}" if number == 1 else "in layer %{customdata}"
        figure.add_trace(
            go.Heatmap(
                z=rounded(values), x=list(range(len(columns))), y=list(range(len(rows))),
                text=[["" if np.isnan(v) else f"{v:.2f}" for v in line] for line in values],
                texttemplate="%{text}", textfont={"size": 11 if number == 1 else 9},
                customdata=[
                    [f"{row}{link}{column}" for column in columns] for row in rows
                ],
                hovertemplate=f"the same expert is first {what} for %{{z:.0%}} of the tokens<extra></extra>",
                colorscale=magnitude_scale(), zmin=0, zmax=1, showscale=number == 1, colorbar=colour_bar("agreement"),
                xaxis=axis_name("x", number), yaxis=axis_name("y", number),
                meta=twin([*columns], [*rows], "agreement"),
            )
        )  # fmt: skip
        ticks = list(enumerate(rows)) if number == 1 else layer_ticks(whole.layers, 13)
        axes(
            figure, number, (-0.5, len(columns) - 0.5), list(enumerate(columns)), "", (len(rows) - 0.5, -0.5), ticks,
            "" if number == 1 else "layer", across, up,
        )  # fmt: skip
        figure.update_layout({f"xaxis{axis_name('x', number)[1:]}": {"tickangle": -90, "tickfont": {"size": 10}}})
        panel_title(figure, across, up, "mean over layers" if number == 1 else "layer by layer")
    return figure


def _agreement(first: np.ndarray, second: np.ndarray) -> float:
    known = (first >= 0) & (second >= 0)
    return float((first == second)[known].mean()) if known.any() else float("nan")


def _of_token(
    trace: RoutingTrace, token: int, projection: str, layers: Sequence[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Gates and logits ``[L, E]`` of one projection; NaN and minus infinity where an expert is absent."""
    gates = np.full((len(layers), len(trace.experts)), np.nan, dtype=np.float32)
    logits = np.full_like(gates, -np.inf)
    for index, site in enumerate(trace.sites):
        if site.projection == projection and site.layer in layers:
            row = layers.index(site.layer)
            logits[row] = trace.logits[index, token]
            gates[row] = np.where(np.isfinite(logits[row]), trace.gates[index, token], np.nan)
    return gates, logits


def _token_heat_map(
    figure: go.Figure, number: int, part: View, measure: str, styles: Sequence[ExpertStyle], bar: bool
) -> None:
    texts: list[list[str]] | None = None
    labels = [plotly_text(label) for label in part.labels]
    head = "%{customdata}: "
    scale: ColourScale = magnitude_scale()
    ends, name = (0.0, 1.0), "gate"
    if measure == TOP:
        values = np.where(part.top < 0, np.nan, expert_value(part.top, part.margins))
        scale, ends = expert_scale(styles), (0.0, float(len(styles)))
        shares = part.gates.max(axis=-1)
        texts = [
            ["" if top < 0 else f"{styles[top].letter} {share:.2f}" for top, share in zip(*line, strict=True)]
            for line in zip(part.top, shares, strict=True)
        ]
        name = "first expert and its gate"
        words = f"{head}most weight goes to %{{text}}; a strong colour is far ahead of the second"
    elif measure == ENTROPY:
        values, name = part.entropies, "entropy / log K"
        words = f"{head}%{{z:.2f}} undecided: 0 is one expert alone, 1 is all experts alike"
    elif measure == MARGIN:
        values, name = part.margins, "lead"
        words = f"{head}the first expert is ahead of the second by %{{z:.2f}} of the weight"
    else:
        values = part.gates[..., expert_index(part.experts, measure)]
        words = f"{head}%{{z:.2f}} of the expert update came from {plotly_text(measure)}"
    add_heat_map(
        figure, number, values, scale, ends, columns=labels, rows=[f"layer {layer}" for layer in part.layers],
        name=name, words=words, texts=texts, bar=colour_bar(name) if bar and measure != TOP else None,
    )  # fmt: skip


def _expert_legend(figure: go.Figure, styles: Sequence[ExpertStyle]) -> None:
    for style in styles:
        figure.add_trace(
            go.Scatter(
                x=[None], y=[None], mode="markers", name=f"{style.letter} {plotly_text(style.name)}", hoverinfo="skip",
                marker={"color": style.colour, "size": 10, "symbol": "square"}, showlegend=True,
            )
        )  # fmt: skip


def _short_share(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.2f}".removeprefix("0")


def _logit_text(value: float) -> str:
    return f"{value:.2f}" if np.isfinite(value) else "none: no such expert here"
