"""Vector pictures without a browser: figures as SVG text."""

from __future__ import annotations

from html import escape
from typing import Any, Literal

import numpy as np

from loramixer.viz.drawing import DASHES, INK, Area, Cells, Disc, Drawing, Label, Line, Points, Shape, draw
from loramixer.viz.palette import NEUTRAL, PAGES

FONT = "system-ui, sans-serif"

Theme = Literal["auto", "light", "dark", "page"]


def to_svg(figure: Any, theme: Theme = "auto", width: int | None = None, height: int | None = None) -> str:
    """Draw a figure of this package as one SVG text.

    Args:
        figure: a Plotly figure of this package: its axes state ``range`` and ``tickvals``.
        theme: ``auto`` writes in grey that is legible on white and on black, on no background; ``light`` and ``dark``
            bring their background; ``page`` takes the colour of the page that the text is put into.
        width: in pixels; the figure's own by default.
        height: in pixels; the figure's own by default.
    """
    return svg_text(draw(figure, width, height), theme)


def svg_text(drawing: Drawing, theme: Theme = "auto") -> str:
    """A drawing as SVG."""
    page = PAGES.get(theme)
    ink = page.ink if page else {"page": "currentColor"}.get(theme, NEUTRAL)
    width, height = drawing.width, drawing.height
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'font-family="{FONT}" font-size="12" fill="{ink}" role="img">',
        f"<title>{escape(drawing.title)}</title>",
    ]
    if page:
        parts.append(f'<rect width="{width}" height="{height}" fill="{page.background}"/>')
    parts += [_shape(shape, ink) for shape in drawing.shapes]
    return "\n".join([*parts, "</svg>", ""])


def _shape(shape: Shape, ink: str) -> str:
    match shape:
        case Line():
            dash = ' stroke-dasharray="{} {}"'.format(*DASHES[shape.dashed]) if shape.dashed else ""
            return (
                f'<polyline points="{_points(shape.points)}" fill="none" stroke="{_colour(shape.colour, ink)}" '
                f'stroke-width="{shape.width:g}" opacity="{shape.opacity:g}"{dash}/>'
            )
        case Area():
            return (
                f'<polygon points="{_points(shape.points)}" fill="{_colour(shape.colour, ink)}" '
                f'fill-opacity="{shape.opacity:g}"/>'
            )
        case Disc():
            return (
                f'<circle cx="{shape.x:.1f}" cy="{shape.y:.1f}" r="{shape.radius:g}" '
                f'fill="{_colour(shape.colour, ink)}" opacity="{shape.opacity:g}"/>'
            )
        case Cells():
            return _cells(shape)
        case Label():
            return _label(shape, ink)


def _label(label: Label, ink: str) -> str:
    extra = "" if label.colour == INK else f' fill="{label.colour}"'
    extra += "" if label.size == 12 else f' font-size="{label.size:g}"'
    extra += ' font-weight="600"' if label.bold else ""
    extra += f' transform="rotate(-90 {label.x:.1f} {label.y:.1f})"' if label.upright else ""
    return f'<text x="{label.x:.1f}" y="{label.y:.1f}" text-anchor="{label.anchor}"{extra}>{escape(label.text)}</text>'


def _cells(cells: Cells) -> str:
    """One path for each colour, neighbours in a row as one piece, in units of cells."""
    rows, columns = cells.shades.shape[:2]
    paths: dict[bytes, list[str]] = {}
    for row in range(rows):
        line = np.ascontiguousarray(cells.shades[row]).view(np.uint32)[:, 0]
        starts = np.flatnonzero(np.concatenate([[True], line[1:] != line[:-1]]))
        for start, end in zip(starts, [*starts[1:], columns], strict=True):
            colour = cells.shades[row, start].tobytes()
            if colour[3]:
                paths.setdefault(colour, []).append(f"M{start} {row}h{end - start}v1h-{end - start}z")
    place = f"translate({cells.left:.2f} {cells.top:.2f}) scale({cells.width / columns:.5f} {cells.height / rows:.5f})"
    parts = [f'<g transform="{place}" shape-rendering="crispEdges">']
    for colour, pieces in paths.items():
        opacity = "" if colour[3] == 255 else f' fill-opacity="{colour[3] / 255:.3f}"'
        parts.append(f'<path fill="#{colour[:3].hex().upper()}"{opacity} d="{"".join(pieces)}"/>')
    return "".join([*parts, "</g>"])


def _points(points: Points) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in points)


def _colour(colour: str, ink: str) -> str:
    return ink if colour == INK else colour
