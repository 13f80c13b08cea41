"""Training curves of routers: the task, every term of the loss, and what became of the routing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import plotly.graph_objects as go

from loramixer.errors import FigureError
from loramixer.viz.canvas import axes, axis_name, canvas, plotly_text, round_scale
from loramixer.viz.palette import NEUTRAL, expert_styles

Rows = Sequence[Mapping[str, Any]]

TITLES = {
    "task_loss": "task loss, nats per token",
    "balance": "balance term K Σ p̄ f̄",
    "token_entropy": "token entropy E[H(p)], nats",
    "load_entropy": "load entropy H(p̄), nats",
    "mutual_information": "I(token; expert), nats",
    "routing_loss": "routing loss, weighted",
    "own_expert_share": "own-expert share",
}
"""Panels that are known, in order; further terms of a loss get a panel with their own name."""

NOT_SHOWN = (
    "step", "epoch", "learning_rate", "grad_norm", "seconds", "tokens", "tokens_with_padding", "tokens_per_second",
    "seconds_left", "loss_warmup",
)  # fmt: skip


def training_curves(runs: Any, *, title: str = "Training of the routers") -> go.Figure:
    """Curves of one run or of several.

    Args:
        runs: a :class:`~loramixer.training.run_log.RunLog`, its ``steps``, or a mapping of names to either.
        title: of the figure.

    Raises:
        FigureError: nothing has been logged yet.
    """
    named = runs if isinstance(runs, Mapping) else {"": runs}
    logs: dict[str, Rows] = {str(name): list(getattr(run, "steps", run)) for name, run in named.items()}
    if not any(logs.values()):
        raise FigureError("No step has been logged yet, so there is no curve to draw.")
    panels = _panels(logs)
    columns = min(3, len(panels))
    lines = -(-len(panels) // columns)
    domains = list(dict.fromkeys(name for rows in logs.values() for row in rows for name in _shares(row)))
    named_lines = [f"A {name}" for name in logs] if len(logs) > 1 else [f"own share: {name}" for name in domains]
    right = max(170, 50 + 7 * max(map(len, named_lines))) if named_lines else 20
    wide, tall = 270.0, 170.0
    figure = canvas(title, 70 + columns * wide + right, 62 + lines * (tall + 62), 70, right)
    plot_width, plot_height = columns * wide, figure.layout.height - 62 - 58
    figure.update_layout(margin={"t": 62, "b": 58})
    styles = {style.name: style for style in expert_styles(list(logs))}
    shown: set[str] = set()
    last = max(float(row["step"]) for rows in logs.values() for row in rows)
    first = min(float(row["step"]) for rows in logs.values() for row in rows)
    for index, quantity in enumerate(panels):
        number, column, line = index + 1, index % columns, index // columns
        across = column * wide / plot_width, (column * wide + wide - 58) / plot_width
        top = 1 - line * (tall + 62) / plot_height
        up = max(0.0, top - tall / plot_height), top
        curves = []
        for name, rows in logs.items():
            if quantity == "own_expert_share" and len(logs) == 1:
                for style in expert_styles(domains):
                    values = [_shares(row).get(style.name) for row in rows]
                    curves.append((f"own share: {style.name}", style.colour, rows, values))
            else:
                colour = styles[name].colour if len(logs) > 1 else NEUTRAL
                label = f"{styles[name].letter} {name}" if len(logs) > 1 else ""
                curves.append((label, colour, rows, [_value(row, quantity) for row in rows]))
        seen = [value for *_, values in curves for value in values if value is not None]
        for label, colour, rows, values in curves:
            figure.add_trace(
                go.Scatter(
                    x=[row["step"] for row in rows], y=values, mode="lines" if len(rows) > 1 else "markers",
                    name=plotly_text(label or TITLES.get(quantity, quantity)), line={"color": colour, "width": 1.8},
                    marker={"color": colour, "size": 7}, showlegend=bool(label) and label not in shown,
                    legendgroup=label or None, xaxis=axis_name("x", number), yaxis=axis_name("y", number),
                    hovertemplate=f"step %{{x}}: %{{y:.4f}}{', ' * bool(label) + plotly_text(label)}<extra></extra>",
                )
            )  # fmt: skip
            shown.add(label)
        low, high, up_ticks = round_scale(seen)
        ends = (first, last) if last > first else (first - 1, last + 1)
        steps = [tick for tick in round_scale([first, last])[2] if ends[0] <= tick[0] <= ends[1]][::2]
        is_last = index + columns >= len(panels)
        axes(figure, number, ends, steps, "step" if is_last else "", (low, high), up_ticks, "", across, up)
        figure.add_annotation(
            x=across[0], y=up[1], xref="paper", yref="paper", showarrow=False, xanchor="left", yanchor="bottom",
            text=plotly_text(TITLES.get(quantity, quantity.replace("_", " "))),
        )  # fmt: skip
    return figure


def _panels(logs: Mapping[str, Rows]) -> list[str]:
    found: dict[str, None] = {}
    for rows in logs.values():
        for row in rows:
            found.update((name, None) for name in row if name not in NOT_SHOWN and _value(row, name) is not None)
            if _value(row, "mutual_information") is not None:
                found["mutual_information"] = None
    if "task_loss" in found:
        found.pop("loss", None)  # the sum of task and routing loss
    known = [name for name in TITLES if name in found]
    return known + [name for name in found if name not in TITLES]


def _value(row: Mapping[str, Any], quantity: str) -> float | None:
    if quantity == "own_expert_share":
        shares = list(_shares(row).values())
        return float(np.mean(shares)) if shares else None
    value = row.get(quantity)
    if value is None and quantity == "mutual_information":
        high, low = row.get("load_entropy"), row.get("token_entropy")
        value = None if high is None or low is None else high - low
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def _shares(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: float(share) for name, share in (row.get("own_expert_share") or {}).items() if share is not None}
