"""From a Plotly figure to shapes in pixels, which :mod:`loramixer.viz.svg` and :mod:`loramixer.viz.raster` write.

It knows what the figures of this package are made of and no more: ``scatter`` traces (lines, markers, texts, error
bars, filled outlines), ``bar`` and ``heatmap`` traces, colour bars, annotations, and axes whose range and ticks are
given. Plotly's own static export needs Chrome.
"""

from __future__ import annotations

import base64
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from html import unescape
from typing import Any, Literal

import numpy as np

from loramixer.errors import FigureError
from loramixer.viz.palette import text_on

INK = "ink"
"""Stands for the colour of texts and axes, which depends on the page."""

SHADES = 128
"""Steps of a colour scale that are told apart."""

DASHES = {"dash": (5, 4), "dot": (2, 3), "longdash": (10, 4)}
"""Plotly's names of dashed lines → length of a mark and of a gap, pixels."""

Anchor = Literal["start", "middle", "end"]
Points = list[tuple[float, float]]


@dataclass(frozen=True)
class Line:
    """A line through points, whole or ``dashed`` as in :data:`DASHES`."""

    points: Points
    colour: str = INK
    width: float = 1.0
    opacity: float = 1.0
    dashed: str | None = None


@dataclass(frozen=True)
class Area:
    """A filled outline."""

    points: Points
    colour: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Disc:
    """A filled circle."""

    x: float
    y: float
    radius: float
    colour: str
    opacity: float = 1.0


@dataclass(frozen=True)
class Cells:
    """A grid of colours: ``shades`` uint8 ``[rows, columns, 4]``, from the top left."""

    left: float
    top: float
    width: float
    height: float
    shades: np.ndarray


@dataclass(frozen=True)
class Label:
    """One line of text; ``x``, ``y`` is its baseline at the anchor, ``upright`` texts run from bottom to top."""

    x: float
    y: float
    text: str
    anchor: Anchor = "start"
    size: float = 12.0
    colour: str = INK
    upright: bool = False
    bold: bool = False


Shape = Line | Area | Disc | Cells | Label


@dataclass(frozen=True)
class Drawing:
    """A picture as shapes, the first at the bottom; sizes are in pixels of a screen (1/96 inch)."""

    width: int
    height: int
    title: str
    shapes: list[Shape] = field(default_factory=list)


def draw(figure: Any, width: int | None = None, height: int | None = None) -> Drawing:
    """Place everything that a figure shows.

    Args:
        figure: a Plotly figure of this package: its axes state ``range``, and ``tickvals`` or no ticks.
        width: in pixels; the figure's own by default.
        height: in pixels; the figure's own by default.

    Raises:
        FigureError: a figure that this package did not make.
    """
    content = plain_values(figure.to_plotly_json())
    layout = content["layout"]
    if "width" not in layout or "height" not in layout or "margin" not in layout:
        raise FigureError("This figure states no size or margin; only figures of loramixer.viz can be drawn.")
    return _Page(layout, content["data"], round(width or layout["width"]), round(height or layout["height"])).drawing()


def plain_values(value: Any) -> Any:
    """A copy of a figure's JSON with Plotly's packed arrays as numpy arrays."""
    if isinstance(value, dict):
        if set(value) >= {"bdata", "dtype"}:
            packed = np.frombuffer(base64.b64decode(value["bdata"]), np.dtype(value["dtype"]))
            return (
                packed.reshape([int(size) for size in str(value["shape"]).split(",")]) if "shape" in value else packed
            )
        return {key: plain_values(part) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [plain_values(part) for part in value]
    return value


def text_width(text: str, size: float) -> float:
    """Width of a text in pixels, roughly, of any sans-serif font."""
    return 0.57 * size * len(text)


def shown_text(text: Any) -> str:
    """A text of a figure as it is read: Plotly's ``&lt;`` is ``<``."""
    return unescape(str(text))


def shade_cells(values: np.ndarray, ends: tuple[float, float], scale: Sequence[tuple[float, str]]) -> np.ndarray:
    """Colours of numbers ``[R, C]`` as uint8 ``[R, C, 4]``; NaN is transparent."""
    low, high = ends
    shares = np.clip((values - low) / (high - low), 0, 1) if high > low else np.zeros_like(values)
    known = np.isfinite(values)
    shares = np.round(np.where(known, shares, 0) * SHADES * len(scale)) / (SHADES * len(scale))
    stops = np.array([stop for stop, _ in scale], dtype=float)
    colours = np.array([_rgba(colour) for _, colour in scale])
    shades = np.stack([np.interp(shares, stops, colours[:, channel]) for channel in range(4)], axis=-1)
    shades[..., 3] *= 255
    shades[~known] = 0
    return np.round(shades).astype(np.uint8)


class _Axis:
    """One axis: from its numbers to pixels."""

    def __init__(self, layout: dict[str, Any], start: float, length: float) -> None:
        self.layout = layout
        first, last = layout.get("domain") or (0, 1)
        self.begin, self.end = start + first * length, start + last * length
        if "range" not in layout:
            raise FigureError("An axis of this figure states no range; only figures of loramixer.viz can be drawn.")
        self.low, self.high = layout["range"]

    def __call__(self, value: float) -> float:
        return self.begin + (float(value) - self.low) / (self.high - self.low) * (self.end - self.begin)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        if self.layout.get("showticklabels") is False:
            return []
        values = self.layout.get("tickvals")
        values = [] if values is None else list(values)
        texts = self.layout.get("ticktext")
        texts = values if texts is None else texts
        return [(value, shown_text(text)) for value, text in zip(values, texts, strict=True)]

    @property
    def size(self) -> float:
        """Of the tick labels."""
        return (self.layout.get("tickfont") or {}).get("size", 12)

    @property
    def title(self) -> str:
        return shown_text((self.layout.get("title") or {}).get("text") or "")

    @property
    def upright(self) -> bool:
        return (self.layout.get("tickangle") or 0) != 0


class _Page:
    """Turns layout and traces into shapes."""

    def __init__(self, layout: dict[str, Any], traces: list[dict[str, Any]], width: int, height: int) -> None:
        self.layout, self.traces = layout, traces
        self.width, self.height = width, height
        self.margin = layout["margin"]
        self.plot_width = self.width - self.margin["l"] - self.margin["r"]
        self.plot_height = self.height - self.margin["t"] - self.margin["b"]
        self.size = layout["font"]["size"]
        self.across = {
            name: _Axis(axis, self.margin["l"], self.plot_width)
            for name, axis in layout.items()
            if name.startswith("xaxis")
        }
        # Up is positive in a plot and negative in a picture.
        self.up = {
            name: _Axis(axis, self.height - self.margin["b"], -self.plot_height)
            for name, axis in layout.items()
            if name.startswith("yaxis")
        }

    def drawing(self) -> Drawing:
        title = self.layout.get("title") or {}
        text = shown_text(title.get("text") or "")
        shapes: list[Shape] = [Label(self.margin["l"], 22, text, size=15)]
        if subtitle := (title.get("subtitle") or {}).get("text"):
            shapes.append(Label(self.margin["l"], 41, shown_text(subtitle), size=11))
        for name, axis in self.across.items():
            shapes += self._horizontal_axis(axis, self.up["y" + name[1:]])
        for name, axis in self.up.items():
            shapes += self._vertical_axis(axis, self.across["x" + name[1:]])
        for trace in self.traces:
            x = self.across["xaxis" + (trace.get("xaxis") or "x")[1:]]
            y = self.up["yaxis" + (trace.get("yaxis") or "y")[1:]]
            shapes += {"heatmap": self._heat_map, "bar": self._bars}.get(trace["type"], self._scatter)(trace, x, y)
        for note in self.layout.get("annotations") or ():
            shapes.append(self._note(note))
        return Drawing(self.width, self.height, text, [*shapes, *self._legend()])

    def _horizontal_axis(self, axis: _Axis, other: _Axis) -> Iterator[Shape]:
        bottom, top = other.begin, other.end
        yield Line([(axis.begin, bottom), (axis.end, bottom)])
        depth = 16.0
        for value, text in axis.ticks:
            if axis.layout.get("showgrid") is not False:
                yield Line([(axis(value), bottom), (axis(value), top)], opacity=0.15)
            if axis.upright:
                yield Label(axis(value) + axis.size * 0.36, bottom + 5, text, "end", axis.size, upright=True)
                depth = max(depth, text_width(text, axis.size) + 2)
            else:
                yield Label(axis(value), bottom + 16, text, "middle", axis.size)
        if axis.title:
            yield Label((axis.begin + axis.end) / 2, bottom + depth + 18, axis.title, "middle", self.size)

    def _vertical_axis(self, axis: _Axis, other: _Axis) -> Iterator[Shape]:
        yield Line([(other.begin, axis.begin), (other.begin, axis.end)])
        depth = 0.0
        for value, text in axis.ticks:
            if axis.layout.get("showgrid") is not False:
                yield Line([(other.begin, axis(value)), (other.end, axis(value))], opacity=0.15)
            yield Label(other.begin - 6, axis(value) + axis.size * 0.36, text, "end", axis.size)
            depth = max(depth, text_width(text, axis.size))
        if axis.title:
            place = max(13.0, other.begin - depth - 14)
            yield Label(place, (axis.begin + axis.end) / 2, axis.title, "middle", self.size, upright=True)

    def _heat_map(self, trace: dict[str, Any], x: _Axis, y: _Axis) -> Iterator[Shape]:
        values = np.array([[np.nan if v is None else v for v in line] for line in trace["z"]], dtype=float)
        rows, columns = values.shape
        ends = float(trace["zmin"]), float(trace["zmax"])
        scale = [(float(stop), colour) for stop, colour in trace["colorscale"]]
        shades = shade_cells(values, ends, scale)
        left, right = sorted((x(-0.5), x(columns - 0.5)))
        top, bottom = sorted((y(-0.5), y(rows - 0.5)))
        first_on_top = y(0) <= y(rows - 1)
        yield Cells(left, top, right - left, bottom - top, shades if first_on_top else shades[::-1])
        if trace.get("texttemplate"):
            size = (trace.get("textfont") or {}).get("size", self.size)
            for row, column in np.argwhere(np.isfinite(values)):
                red, green, blue, opacity = (int(part) for part in shades[row, column])
                colour = text_on(red, green, blue) if opacity > 140 else INK
                text = shown_text(trace["text"][row][column])
                yield Label(x(column), y(row) + size * 0.36, text, "middle", size, colour)
        if trace.get("showscale"):
            yield from self._colour_bar(trace.get("colorbar") or {}, scale, ends)

    def _colour_bar(self, bar: dict[str, Any], scale: Any, ends: tuple[float, float]) -> Iterator[Shape]:
        left = self.margin["l"] + bar.get("x", 1.02) * self.plot_width + 10
        length = bar.get("len", 1.0) * self.plot_height
        top = self.margin["t"] + (1 - bar.get("y", 0.5)) * self.plot_height - length / 2
        width = bar.get("thickness", 12)
        values = np.linspace(ends[1], ends[0], 64)[:, None]
        yield Cells(left, top, width, length, shade_cells(values, ends, scale))
        ticks = bar.get("tickvals")
        ticks = list(ends) if ticks is None else list(ticks)
        for value, text in zip(ticks, bar.get("ticktext") or [f"{tick:g}" for tick in ticks], strict=True):
            place = top + (ends[1] - value) / (ends[1] - ends[0]) * length
            yield Label(left + width + 5, place + 4, shown_text(text), size=11)
        if title := (bar.get("title") or {}).get("text"):
            yield Label(left, top - 9, shown_text(title), size=11)

    def _bars(self, trace: dict[str, Any], x: _Axis, y: _Axis) -> Iterator[Shape]:
        lying = trace.get("orientation") == "h"
        along, aside = (x, y) if lying else (y, x)
        marker = trace.get("marker") or {}
        colours = marker.get("color") or INK
        half = (trace.get("width") or 0.8) / 2
        values, places = (trace["x"], trace["y"]) if lying else (trace["y"], trace["x"])
        for index, (value, place) in enumerate(zip(values, places, strict=True)):
            if not _known(value):
                continue
            colour = colours if isinstance(colours, str) else colours[index]
            ends = (along(0), along(value)), (aside(place - half), aside(place + half))
            horizontal, vertical = ends if lying else ends[::-1]
            corners = [(a, b) for a, b in zip(horizontal, vertical, strict=True)]
            (left, top), (right, bottom) = corners
            yield Area(
                [(left, top), (right, top), (right, bottom), (left, bottom)], colour, marker.get("opacity") or 1
            )

    def _scatter(self, trace: dict[str, Any], x: _Axis, y: _Axis) -> Iterator[Shape]:
        mode, line, marker = trace.get("mode") or "", trace.get("line") or {}, trace.get("marker") or {}
        colour = self._ink(line.get("color") or marker.get("color"))
        opacity = trace.get("opacity") or 1
        if trace.get("x") is None or trace.get("y") is None:
            return
        pairs = [
            (x(left), y(up)) if _known(left) and _known(up) else None
            for left, up in zip(trace["x"], trace["y"], strict=True)
        ]
        points = [pair for pair in pairs if pair is not None]
        if trace.get("fill") == "toself":
            yield Area(points, colour, 0.18)
        elif "lines" in mode:
            for part in _parts(pairs):
                yield Line(part, colour, line.get("width") or 2, opacity, _dash(line))
        for axis, name in ((x, "error_x"), (y, "error_y")):
            bars = trace.get(name) or {}
            if bars.get("array") is None:
                continue
            lower = bars.get("arrayminus")
            spans = zip(trace[name[-1]], pairs, bars["array"], bars["array"] if lower is None else lower, strict=True)
            for value, place, more, less in spans:
                if place is None:
                    continue
                low, high = axis(value - less), axis(value + more)
                (left, top) = place
                ends = [(low, top), (high, top)] if axis is x else [(left, low), (left, high)]
                yield Line(ends, colour, 1.6)
        if "markers" in mode:
            radius = (marker.get("size") or 8) / 2
            fill = self._ink(marker.get("color") or line.get("color"))
            for left, top in points:
                if marker.get("symbol") == "x":
                    for sign in (1, -1):
                        arm = [(left - radius, top - sign * radius), (left + radius, top + sign * radius)]
                        yield Line(arm, fill, 1.8)
                elif marker.get("symbol") == "circle-open":
                    turns = [index * math.pi / 12 for index in range(25)]
                    yield Line([(left + radius * math.cos(t), top + radius * math.sin(t)) for t in turns], fill, 1.6)
                else:
                    yield Disc(left, top, radius, fill, opacity)
        if "text" in mode:
            texts = [trace["text"]] * len(pairs) if isinstance(trace["text"], str) else trace["text"]
            centred = trace.get("textposition") == "middle center"
            font = trace.get("textfont") or {}
            for place, text in zip(pairs, texts, strict=True):
                if place is None:
                    continue
                (left, top), shown, size = place, shown_text(text), font.get("size") or self.size
                if centred:
                    yield Label(left, top + 4, shown, "middle", size, self._ink(font.get("color") or "#FFFFFF"))
                else:
                    yield Label(left + 9, top - 7, shown, "start", size, self._ink(font.get("color")))

    def _note(self, note: dict[str, Any]) -> Label:
        if note.get("xref") == "paper":
            left = self.margin["l"] + note["x"] * self.plot_width
        else:
            left = self.across["xaxis" + (note.get("xref") or "x")[1:]](note["x"])
        if note.get("yref") == "paper":
            top = self.margin["t"] + (1 - note["y"]) * self.plot_height
        else:
            top = self.up["yaxis" + (note.get("yref") or "y")[1:]](note["y"])
        anchors: dict[str, Anchor] = {"left": "start", "right": "end"}
        size = (note.get("font") or {}).get("size", self.size)
        # Plotly places the middle of the text unless told otherwise, a picture its baseline.
        drop = {"bottom": -5.0, "top": size}.get(str(note.get("yanchor")), size * 0.36)
        return Label(left, top + drop, shown_text(note["text"]), anchors.get(str(note.get("xanchor")), "middle"), size)

    def _legend(self) -> Iterator[Shape]:
        legend = self.layout.get("legend") or {}
        left = self.width - self.margin["r"] + 14
        top = self.margin["t"] + 8.0
        if legend.get("x") is not None:
            left = round(self.margin["l"] + legend["x"] * self.plot_width + 10)
        for trace in self.traces:
            if not trace.get("name") or trace.get("showlegend") is False or trace["type"] == "heatmap":
                continue
            line, marker = trace.get("line") or {}, trace.get("marker") or {}
            colour = self._ink(line.get("color") or marker.get("color"))
            if "lines" in (trace.get("mode") or "") and line.get("dash"):
                yield Line([(left, top - 4), (left + 12, top - 4)], colour, 2, dashed=_dash(line))
            elif marker.get("symbol") == "x":
                yield Line([(left + 1, top - 8), (left + 9, top)], colour, 1.8)
                yield Line([(left + 1, top), (left + 9, top - 8)], colour, 1.8)
            else:
                yield Area([(left, top - 9), (left + 10, top - 9), (left + 10, top + 1), (left, top + 1)], colour)
            yield Label(left + 16, top, shown_text(trace["name"]), size=self.size)
            top += 18

    def _ink(self, colour: Any) -> str:
        """The colour of the figure's own texts is that of the page."""
        return INK if colour is None or colour == self.layout["font"]["color"] else str(colour)


def _parts(pairs: Sequence[tuple[float, float] | None]) -> Iterator[Points]:
    """Runs of points between gaps."""
    part: Points = []
    for pair in [*pairs, None]:
        if pair is not None:
            part.append(pair)
        elif part:
            yield part
            part = []


def _dash(line: Mapping[str, Any]) -> str | None:
    """The dash of a line of Plotly's; one that is not in :data:`DASHES` is drawn as the plain one."""
    dash = line.get("dash")
    return dash if not dash or dash in DASHES else "dash"


def _known(value: Any) -> bool:
    return value is not None and math.isfinite(value)


def _rgba(colour: str) -> tuple[float, float, float, float]:
    if match := re.fullmatch(r"rgba\(([^)]*)\)", colour.replace(" ", "")):
        red, green, blue, opacity = (float(part) for part in match[1].split(","))
        return red, green, blue, opacity
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16), 1.0
