"""The numbers of a view: as one tidy table for analysis, and as the tables that stand beside a picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from loramixer.aggregate import How, Unit
from loramixer.trace import RoutingTrace
from loramixer.viz.drawing import plain_values, shown_text
from loramixer.viz.views import MEAN, Roles, view

if TYPE_CHECKING:
    import pandas as pd

MOST_ROWS = 2000
"""Longest table beside a picture."""


def trace_table(
    trace: RoutingTrace,
    *,
    projection: str = MEAN,
    layers: tuple[int, int] | None = None,
    roles: Roles = "both",
    template: bool = False,
    unit: Unit = "subword",
    how: How = "mean",
) -> pd.DataFrame:
    """What a view of a trace shows, one row per layer, token and expert; ``RoutingTrace.to_frame`` has every site.

    Columns: ``layer``, ``projection``, ``token`` (position in the trace), ``text``, ``role``, ``expert``, ``gate``,
    ``logit`` (minus infinity where the expert is absent), ``rank`` (1 is the expert with the largest gate), ``lead``
    (of the first expert over the second), ``undecided`` (entropy over its largest value, 0 … 1), and ``contribution``
    in lengths of the frozen output where the trace has it.

    Args:
        trace: a routing trace.
        projection: name of a projection, or ``mean`` over those of the layer.
        layers: first and last layer, both included; None for all.
        roles: ``prefill``, ``generation`` or ``both``.
        template: whether the tokens of the chat template are in it.
        unit: ``subword`` for single tokens, ``word`` or ``sentence``.
        how: what stands for the tokens of a word or sentence: their ``mean``, ``max`` or ``first``.
    """
    import pandas as pd

    part = view(trace, projection=projection, layers=layers, roles=roles, template=template, unit=unit, how=how)
    shape = part.gates.shape
    layer, token, expert = np.indices(shape).reshape(3, -1)
    texts = np.array([part.trace.tokens[position] for position in part.positions], dtype=object)
    roles_of = np.array([part.trace.tokens.roles[position] for position in part.positions], dtype=object)
    # Equal gates keep the order of the experts.
    ranks = np.argsort(np.argsort(-part.gates, axis=-1, kind="stable"), axis=-1) + 1
    table = {
        "layer": np.array(part.layers)[layer],
        "projection": projection,
        "token": part.positions[token],
        "text": texts[token],
        "role": roles_of[token],
        "expert": np.array(part.experts, dtype=object)[expert],
        "gate": part.gates.reshape(-1),
        "logit": part.logits.reshape(-1),
        "rank": ranks.reshape(-1),
        "lead": np.repeat(part.margins.reshape(-1), shape[2]),
        "undecided": np.repeat(part.entropies.reshape(-1), shape[2]),
    }
    if part.contributions is not None:
        table["contribution"] = part.contributions.reshape(-1)
    return pd.DataFrame(table)


@dataclass(frozen=True)
class FigureTable:
    """A table of texts.

    Attributes:
        caption: what its numbers are.
        columns: heads of the columns; the first is that of the row names.
        rows: the row's name, then its numbers.
    """

    caption: str
    columns: list[str]
    rows: list[list[str]]


def figure_tables(figure: Any) -> list[FigureTable]:
    """The numbers of a figure of this package: one table for each heat map, one for all bars, one for all points."""
    content = plain_values(figure.to_plotly_json())
    layout, tables = content["layout"], []
    bars: dict[tuple[str, ...], list[tuple[str, Any]]] = {}
    points: list[list[str]] = []
    for trace in content["data"]:
        if trace.get("meta") == "guide" or trace.get("hoverinfo") == "skip":
            continue
        if trace["type"] == "heatmap":
            tables.append(_of_heat_map(trace, layout))
        elif trace["type"] == "bar":
            names = tuple((trace.get("meta") or {}).get("rows") or [_number(place) for place in trace["y"]])
            bars.setdefault(names, []).append((shown_text(trace.get("name") or ""), trace["x"]))
        elif trace.get("x") is not None and trace.get("fill") != "toself":
            points += _of_points(trace)
    for names, series in bars.items():
        rows = [[shown_text(name), *(_number(values[row]) for _, values in series)] for row, name in enumerate(names)]
        tables.append(FigureTable("", ["", *(name for name, _ in series)], rows))
    if points:
        x, y = (shown_text(((layout.get(f"{n}axis") or {}).get("title") or {}).get("text") or n) for n in "xy")
        tables.append(FigureTable("", ["", x, y, "from", "to"], points[:MOST_ROWS]))
        if len(points) > MOST_ROWS:
            tables[-1].rows.append([f"… {len(points) - MOST_ROWS:,} more points", "", "", "", ""])
    return tables


def _of_heat_map(trace: dict[str, Any], layout: dict[str, Any]) -> FigureTable:
    names = trace.get("meta") or {
        "value": "",
        "columns": _ticks(layout, "x", trace, len(trace["z"][0])),
        "rows": _ticks(layout, "y", trace, len(trace["z"])),
    }
    texts = trace.get("text")
    rows = [
        [shown_text(name), *(shown_text(text) for text in texts[row])]
        if texts is not None
        else [shown_text(name), *(_number(value) for value in trace["z"][row])]
        for row, name in enumerate(names["rows"])
    ]
    return FigureTable(shown_text(names["value"]), ["", *map(shown_text, names["columns"])], rows)


def _ticks(layout: dict[str, Any], letter: str, trace: dict[str, Any], count: int) -> list[str]:
    axis = layout[f"{letter}axis" + (trace.get(f"{letter}axis") or letter)[1:]]
    texts = list(axis.get("ticktext") or [])
    return texts if len(texts) == count else [str(index) for index in range(count)]


def _of_points(trace: dict[str, Any]) -> list[list[str]]:
    name, bars = shown_text(trace.get("name") or trace.get("hovertext") or ""), trace.get("error_y") or {}
    if bars.get("array") is None:
        bars = trace.get("error_x") or {}
    ends = "y" if (trace.get("error_y") or {}).get("array") is not None else "x"
    rows = []
    for index, (x, y) in enumerate(zip(trace["x"], trace["y"], strict=True)):
        if x is None:
            continue
        low = high = ""
        if bars.get("array") is not None and trace[ends][index] is not None:
            less = bars["array"] if bars.get("arrayminus") is None else bars["arrayminus"]
            low, high = _number(trace[ends][index] - less[index]), _number(trace[ends][index] + bars["array"][index])
        rows.append([name, _number(x), _number(y), low, high])
    return rows


def _number(value: Any) -> str:
    if value is None or (isinstance(value, float | np.floating) and not np.isfinite(value)):
        return ""
    return str(int(value)) if float(value).is_integer() and abs(value) >= 2 else f"{float(value):.4g}"
