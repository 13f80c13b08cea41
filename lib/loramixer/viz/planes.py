"""The entropy–balance plane: how decided single tokens are, against how even the load is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import plotly.graph_objects as go

from loramixer.aggregate import gate_shares
from loramixer.errors import FigureError
from loramixer.metrics import PlaneBand, PlanePoint, plane_point
from loramixer.trace import RoutingTrace
from loramixer.viz.canvas import axes, canvas, error_bars, plotly_text
from loramixer.viz.palette import NEUTRAL, ExpertStyle, channels, expert_styles, text_on
from loramixer.viz.views import Roles, chosen_tokens

Interval = tuple[float, float, float]
"""Value, low, high."""


def plane(
    points: Mapping[str, PlanePoint | RoutingTrace],
    *,
    bands: Mapping[str, PlaneBand] | None = None,
    paths: Mapping[str, Sequence[PlanePoint]] | None = None,
    roles: Roles = "both",
    template: bool = False,
    title: str = "Entropy–balance plane",
) -> go.Figure:
    """Routers as points: undecided to the right, evenly loaded up; the height above the diagonal is specialisation.

    Args:
        points: name → a point, or a trace whose routers are placed (each by itself, then their mean).
        bands: name → where a text of as many tokens falls when they are drawn at random, see
            :func:`loramixer.metrics.shuffled_token_band`; a name without a point gets a grey box.
        paths: name → points along a training run, first to last.
        roles: of the tokens of traces that count.
        template: whether the template tokens of traces count.
        title: of the figure.

    Raises:
        FigureError: nothing to show, or a trace where no router is on; sites without any gate are left out.
    """
    if not points and not paths:
        raise FigureError("The plane has nothing to show; give at least one point or path.")
    placed = {name: _placed(point, roles, template) for name, point in points.items()}
    experts = next(iter(placed.values()), None) or next(iter((paths or {}).values()))[0]
    bands = bands or {}
    tokens = sorted({band.tokens for band in bands.values()})
    note = f"Boxes: {'/'.join(map(str, tokens))} shuffled tokens" if tokens else ""
    figure = empty_plane(title, note)
    names = list(dict.fromkeys([*placed, *(paths or {})]))
    styles = {style.name: style for style in expert_styles(names)}
    width = float(np.log(max(2, experts.experts)))
    for name, band in bands.items():
        across, up = (tuple(end / width for end in ends) for ends in (band.token_entropy, band.load_entropy))
        style = styles.get(name, ExpertStyle(name, "", NEUTRAL))
        add_band(figure, (across[0], across[1]), (up[0], up[1]), style, band.tokens)
    for name, path in (paths or {}).items():
        places = [(point.undecided, point.balanced) for point in path]
        add_path(figure, places, styles[name], f"{plotly_text(name)}, while training", named=name not in placed)
    for name, point in placed.items():
        add_point(figure, styles[name], (point.undecided,) * 3, (point.balanced,) * 3)
    return figure


def empty_plane(title: str, note: str = "") -> go.Figure:
    """Axes, the diagonal, the triangle that no router can reach, and the names of the corners."""
    figure = canvas(title, 860, 620, left=70, right=250)
    figure.update_layout(margin={"t": 74})
    figure.add_trace(
        go.Scatter(
            x=[0, 1, 1], y=[0, 0, 1], fill="toself", mode="lines", line={"color": NEUTRAL, "width": 0},
            showlegend=False, hoverinfo="skip", fillcolor="rgba(118,118,118,0.18)", meta="guide",
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[0, 1], y=[0, 1], mode="lines", line={"color": NEUTRAL, "width": 1, "dash": "dash"}, showlegend=False,
            hoverinfo="skip", meta="guide",
        )
    )  # fmt: skip
    corners = [
        (0.02, 0.03, "one expert takes everything", "left"),
        (0.98, 1.05, "balanced and undecided", "right"),
        (0.02, 1.05, "balanced specialists", "left"),
        (0.98, 0.08, "impossible: the load is at least", "right"),
        (0.98, 0.035, "as even as a single token’s gates", "right"),
    ]
    for x, y, text, side in corners:
        figure.add_annotation(x=x, y=y, xref="x", yref="y", text=text, showarrow=False, xanchor=side)
    ticks = [(part / 4, f"{part / 4:g}") for part in range(5)]
    axes(
        figure, 1, (0, 1.02), ticks, "token entropy E[H(p)] / log K: undecided →", (0, 1.1), ticks,
        "load entropy H(p̄) / log K: balanced →",
    )  # fmt: skip
    words = "Height above the dashed line: specialisation, I(token; expert) / log K"
    figure.update_layout(title={"subtitle": {"text": f"{words}. {note}" if note else words}})
    return figure


def add_point(figure: go.Figure, style: ExpertStyle, across: Interval, up: Interval) -> None:
    """A router with its intervals; equal ends draw none."""
    name = plotly_text(style.name)
    figure.add_trace(
        go.Scatter(
            x=[across[0]], y=[up[0]], mode="markers+text", text=[style.letter], textposition="middle center",
            marker={"color": style.colour, "size": 17}, textfont={"color": text_on(*channels(style.colour))},
            name=f"{style.letter} {name}", error_x=_bars(across), error_y=_bars(up),
            hovertemplate=f"{name}: token entropy %{{x:.3f}}, load entropy %{{y:.3f}} of the largest possible; "
            f"specialisation {up[0] - across[0]:.3f}<extra></extra>",
        )
    )  # fmt: skip


def add_band(
    figure: go.Figure, across: tuple[float, float], up: tuple[float, float], style: ExpertStyle, tokens: float
) -> None:
    """The box where texts of that many tokens fall when their tokens are drawn at random."""
    (left, right), (low, high) = across, up
    figure.add_trace(
        go.Scatter(
            x=[left, right, right, left], y=[low, low, high, high], fill="toself", mode="lines",
            line={"color": style.colour, "width": 0}, showlegend=False,
            hovertext=f"texts of {tokens:.0f} tokens drawn at random", name=f"{plotly_text(style.name)}, shuffled",
        )
    )  # fmt: skip


def add_path(
    figure: go.Figure, places: Sequence[tuple[float, float]], style: ExpertStyle, words: str, named: bool = False,
    dash: str | None = None,
) -> None:  # fmt: skip
    """The way of a router through its training; its first point is an open circle."""
    figure.add_trace(
        go.Scatter(
            x=[x for x, _ in places], y=[y for _, y in places], mode="lines", showlegend=named,
            line={"color": style.colour, "width": 1.4, "dash": dash}, opacity=0.6, hovertext=words, name=words,
        )
    )  # fmt: skip
    figure.add_trace(
        go.Scatter(
            x=[places[0][0]], y=[places[0][1]], mode="markers", showlegend=False, hovertext=f"{words}: its beginning",
            marker={"color": style.colour, "size": 9, "symbol": "circle-open"}, name=f"{words}: its beginning",
        )
    )  # fmt: skip


def _bars(interval: Interval) -> dict | None:
    value, low, high = interval
    return error_bars([interval]) if low is not None and (low, high) != (value, value) else None


def _placed(point: PlanePoint | RoutingTrace, roles: Roles, template: bool) -> PlanePoint:
    if isinstance(point, RoutingTrace):
        gates = gate_shares(point)[:, chosen_tokens(point, roles, template)]
        if not gates.any():
            raise FigureError(
                "No router of this trace has a gate, so it has no place; trace with routers that are on."
            )
        return plane_point(gates)
    return point
