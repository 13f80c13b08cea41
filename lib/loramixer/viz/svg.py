"""Static pictures without a browser: writes the figures of :mod:`loramixer.viz.figures` as SVG.

It draws what those figures are made of and no more: ``scatter`` traces (lines, markers, texts, error bars, filled
outlines), ``heatmap`` traces with texts, annotations, and axes whose range and ticks are given. Plotly's own static
export needs Chrome.
"""

from __future__ import annotations

from html import escape
from typing import Any

FONT = "system-ui, sans-serif"


class _Axis:
    """One axis: from its numbers to pixels."""

    def __init__(self, layout: dict[str, Any], start: float, length: float) -> None:
        self.layout = layout
        first, last = layout.get("domain") or (0, 1)
        self.begin, self.end = start + first * length, start + last * length
        self.low, self.high = layout["range"]

    def __call__(self, value: float) -> float:
        return self.begin + (value - self.low) / (self.high - self.low) * (self.end - self.begin)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        values = list(self.layout.get("tickvals") or ())
        texts = self.layout.get("ticktext") or values
        return [(value, str(text)) for value, text in zip(values, texts, strict=True)]


def to_svg(figure: Any) -> str:
    """Draw a figure of :mod:`loramixer.viz.figures` as one SVG text; colours are legible on white and on black.

    Args:
        figure: a plotly figure whose axes state ``range`` and ``tickvals``.
    """
    content = figure.to_plotly_json()
    layout = content["layout"]
    width, height, margin = layout["width"], layout["height"], layout["margin"]
    plot_width, plot_height = width - margin["l"] - margin["r"], height - margin["t"] - margin["b"]
    ink = layout["font"]["color"]
    horizontal = {
        name: _Axis(axis, margin["l"], plot_width) for name, axis in layout.items() if name.startswith("xaxis")
    }
    # Up is positive in a plot and negative in a picture.
    vertical = {
        name: _Axis(axis, height - margin["b"], -plot_height)
        for name, axis in layout.items()
        if name.startswith("yaxis")
    }
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{FONT}" font-size="{layout["font"]["size"]}" fill="{ink}" role="img">',
        f"<title>{_plain(layout['title']['text'])}</title>",
        _text(margin["l"], 22, layout["title"]["text"], "start", size=15),
    ]
    for name, axis in horizontal.items():
        parts += _horizontal_axis(axis, vertical["y" + name[1:]], ink)
    for name, axis in vertical.items():
        parts += _vertical_axis(axis, horizontal["x" + name[1:]], ink)
    for trace in content["data"]:
        x = horizontal["xaxis" + (trace.get("xaxis") or "x")[1:]]
        y = vertical["yaxis" + (trace.get("yaxis") or "y")[1:]]
        parts += _heat_map(trace, x, y) if trace["type"] == "heatmap" else _scatter(trace, x, y, ink)
    for note in layout.get("annotations") or ():
        if note.get("xref") == "paper":
            left, top = margin["l"] + note["x"] * plot_width, margin["t"] + (1 - note["y"]) * plot_height
        else:
            left = horizontal["xaxis" + (note.get("xref") or "x")[1:]](note["x"])
            top = vertical["yaxis" + (note.get("yref") or "y")[1:]](note["y"])
        anchor = {"left": "start", "right": "end"}.get(note.get("xanchor"), "middle")
        parts.append(_text(left, top, note["text"], anchor))
    parts += _legend(content["data"], width - margin["r"] + 14, margin["t"] + 8)
    return "\n".join([*parts, "</svg>", ""])


def _horizontal_axis(axis: _Axis, other: _Axis, ink: str) -> list[str]:
    bottom, top = other.begin, other.end
    parts = [_line(axis.begin, bottom, axis.end, bottom, ink)]
    for value, text in axis.ticks:
        parts.append(_line(axis(value), bottom, axis(value), top, ink, opacity=0.15))
        parts.append(_text(axis(value), bottom + 16, text, "middle"))
    title = (axis.layout.get("title") or {}).get("text")
    return [*parts, _text((axis.begin + axis.end) / 2, bottom + 34, title, "middle")] if title else parts


def _vertical_axis(axis: _Axis, other: _Axis, ink: str) -> list[str]:
    parts = [_line(other.begin, axis.begin, other.begin, axis.end, ink)]
    for value, text in axis.ticks:
        parts.append(_line(other.begin, axis(value), other.end, axis(value), ink, opacity=0.15))
        parts.append(_text(other.begin - 7, axis(value) + 4, text, "end"))
    title = (axis.layout.get("title") or {}).get("text")
    return [*parts, _text(other.begin, axis.end - 10, title, "start")] if title else parts


def _heat_map(trace: dict[str, Any], x: _Axis, y: _Axis) -> list[str]:
    (_, light), (_, dark) = trace["colorscale"]
    low, high = trace["zmin"], trace["zmax"]
    parts = []
    for row, (values, texts) in enumerate(zip(trace["z"], trace["text"], strict=True)):
        for column, (value, text) in enumerate(zip(values, texts, strict=True)):
            if value is None:
                continue
            share = min(1.0, max(0.0, (value - low) / (high - low))) if high > low else 0.0
            left, top = x(column - 0.5), y(row + 0.5)
            parts.append(
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{x(column + 0.5) - left:.1f}" '
                f'height="{y(row - 0.5) - top:.1f}" fill="{_blend(light, dark, share)}"/>'
            )
            parts.append(_text(x(column), y(row) + 4, text, "middle", "#FFFFFF" if share > 0.55 else "#000000"))
    return parts


def _scatter(trace: dict[str, Any], x: _Axis, y: _Axis, ink: str) -> list[str]:
    points = [(x(left), y(up)) for left, up in zip(trace["x"], trace["y"], strict=True) if up is not None]
    mode, line, marker = trace.get("mode") or "", trace.get("line") or {}, trace.get("marker") or {}
    colour = line.get("color") or marker.get("color") or ink
    opacity = trace.get("opacity") or 1
    parts = []
    if trace.get("fill") == "toself":
        corners = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(f'<polygon points="{corners}" fill="{colour}" fill-opacity="0.18"/>')
    elif "lines" in mode:
        dash = ' stroke-dasharray="5 4"' if line.get("dash") else ""
        path = " ".join(f"{left:.1f},{top:.1f}" for left, top in points)
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="{line.get("width") or 2}" '
            f'opacity="{opacity}"{dash}/>'
        )
    for axis, name in ((x, "error_x"), (y, "error_y")):
        bars = trace.get(name) or {}
        if not bars.get("array"):
            continue
        for value, (left, top), up, down in zip(
            trace[name[-1]], points, bars["array"], bars.get("arrayminus") or bars["array"], strict=True
        ):
            low, high = axis(value - down), axis(value + up)
            ends = (low, top, high, top) if axis is x else (left, low, left, high)
            parts.append(_line(*ends, colour, width=1.6))
    if "markers" in mode:
        size = (marker.get("size") or 8) / 2
        parts += [f'<circle cx="{left:.1f}" cy="{top:.1f}" r="{size}" fill="{colour}"/>' for left, top in points]
    if "text" in mode:
        centred = trace.get("textposition") == "middle center"
        for (left, top), text in zip(points, trace["text"], strict=True):
            place = (left, top + 4, text, "middle", "#FFFFFF") if centred else (left + 9, top - 7, text, "start")
            parts.append(_text(*place))
    return parts


def _legend(traces: list[dict[str, Any]], left: float, top: float) -> list[str]:
    parts = []
    for trace in traces:
        if not trace.get("name") or trace.get("showlegend") is False:
            continue
        colour = (trace.get("line") or {}).get("color") or (trace.get("marker") or {}).get("color")
        parts.append(f'<rect x="{left}" y="{top - 9}" width="10" height="10" rx="2" fill="{colour}"/>')
        parts.append(_text(left + 16, top, trace["name"], "start"))
        top += 18
    return parts


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, opacity: float = 1, width: float = 1) -> str:
    ends = " ".join(f'{name}="{value:.1f}"' for name, value in (("x1", x1), ("y1", y1), ("x2", x2), ("y2", y2)))
    return f'<line {ends} stroke="{colour}" stroke-width="{width}" opacity="{opacity}"/>'


def _text(x: float, y: float, text: str, anchor: str, colour: str = "", size: int = 0) -> str:
    extra = (f' fill="{colour}"' if colour else "") + (f' font-size="{size}"' if size else "")
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}"{extra}>{_plain(text)}</text>'


def _plain(text: str) -> str:
    return escape(str(text))


def _blend(light: str, dark: str, share: float) -> str:
    pairs = [(int(light[i : i + 2], 16), int(dark[i : i + 2], 16)) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(first + share * (last - first)):02X}" for first, last in pairs)
