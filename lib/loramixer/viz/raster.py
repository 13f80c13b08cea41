"""Pixel pictures without a browser: figures as PNG, drawn with Pillow."""

from __future__ import annotations

import io
from functools import lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from loramixer.errors import FigureError
from loramixer.viz.drawing import DASHES, INK, Area, Cells, Disc, Drawing, Label, Line, Points, Shape, draw
from loramixer.viz.palette import NEUTRAL, PAGES, channels

Theme = Literal["light", "dark", "transparent"]

FONTS = ("DejaVuSans.ttf", "Arial.ttf", "Helvetica.ttc", "segoeui.ttf")
"""Fonts of the system that are taken if found; Pillow's own is used otherwise."""

LARGEST_SIDE = 16_384
"""In pixels; larger pictures take more memory than they are worth."""

FINER = 4
"""Lines and circles are drawn so many times larger and made smaller, which smooths their edges."""

_SPELT = {
    "λ": "lambda", "α": "alpha", "Σ": "sum", "η": "eta", "→": "->", "−": "-", "×": "x", "·": ".", "≥": ">=", "≤": "<=",
    "–": "-", "…": "...", "↵": "|", "∅": "0", "′": "'", "‖": "||", "\u0304": "",
}  # fmt: skip
"""How a sign is written with a font that lacks it."""


def to_png(
    figure: Any,
    width: int | None = None,
    height: int | None = None,
    scale: float = 2.0,
    theme: Theme = "light",
) -> bytes:
    """Draw a figure of this package as a PNG file.

    Args:
        figure: a Plotly figure of this package.
        width: in pixels of a screen; the figure's own by default.
        height: in pixels of a screen; the figure's own by default.
        scale: pixels of the file for each pixel of a screen; the file says 96 · scale dots per inch.
        theme: ``light`` or ``dark`` page, or ``transparent`` with grey texts that are legible on both.

    Returns:
        The file, ``round(width · scale)`` × ``round(height · scale)`` pixels.

    Raises:
        FigureError: a figure of another package, or a picture above :data:`LARGEST_SIDE`.
    """
    return png_bytes(draw(figure, width, height), scale, theme)


def to_small_png(figure: Any, scale: float = 1.0) -> bytes:
    """A picture for notebooks and documents: on a light page, with a palette of 256 colours, at half the bytes.

    Args:
        figure: a Plotly figure of this package.
        scale: as for :func:`to_png`.
    """
    # Other ways of choosing the palette drop rare colours, and a legend's patch would change its expert.
    picture = rasterize(draw(figure), scale)
    return _file(picture.quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE), scale)


def png_bytes(drawing: Drawing, scale: float = 2.0, theme: Theme = "light") -> bytes:
    """A drawing as a PNG file."""
    return _file(rasterize(drawing, scale, theme), scale)


def rasterize(drawing: Drawing, scale: float = 2.0, theme: Theme = "light") -> Image.Image:
    """A drawing as pixels."""
    size = round(drawing.width * scale), round(drawing.height * scale)
    if not scale > 0 or min(size) < 1 or max(size) > LARGEST_SIDE:
        raise FigureError(
            f"A picture of {size[0]:,} × {size[1]:,} pixels was asked for; each side must lie between 1 and "
            f"{LARGEST_SIDE:,}, so choose another size or scale."
        )
    page = PAGES.get(theme)
    canvas = Image.new("RGBA", size, (*channels(page.background), 255) if page else (0, 0, 0, 0))
    painter = _Painter(canvas, scale, page.ink if page else NEUTRAL)
    for shape in drawing.shapes:
        painter.paint(shape)
    return canvas.convert("RGB") if page else canvas


def _file(picture: Image.Image, scale: float) -> bytes:
    file = io.BytesIO()
    picture.save(file, "PNG", optimize=True, dpi=(96 * scale, 96 * scale))
    return file.getvalue()


class _Painter:
    """Paints shapes on an image."""

    def __init__(self, canvas: Image.Image, scale: float, ink: str) -> None:
        self.canvas, self.scale, self.ink = canvas, scale, ink

    def paint(self, shape: Shape) -> None:
        match shape:
            case Line():
                self._line(shape)
            case Area():
                self._smooth(shape.points, 0, shape.colour, shape.opacity, _fill)
            case Disc():
                edges = [
                    (shape.x - shape.radius, shape.y - shape.radius), (shape.x + shape.radius, shape.y + shape.radius)
                ]  # fmt: skip
                self._smooth(edges, 0, shape.colour, shape.opacity, _ellipse)
            case Cells():
                self._cells(shape)
            case Label():
                self._label(shape)

    def _line(self, line: Line) -> None:
        pieces = _dashes(line.points, *DASHES[line.dashed]) if line.dashed else [line.points]
        xs, ys = {x for x, _ in line.points}, {y for _, y in line.points}
        if len(line.points) == 2 and (len(xs) == 1 or len(ys) == 1):
            for piece in pieces:
                self._straight(piece, line)
            return
        thick = max(1, round(line.width * self.scale * FINER))

        def stroke(pen: ImageDraw.ImageDraw, points: Points) -> None:
            # The points come as one list; dashes are cut again where they were.
            start = 0
            for piece in pieces:
                pen.line(points[start : start + len(piece)], fill=255, width=thick, joint="curve")
                start += len(piece)

        self._smooth([point for piece in pieces for point in piece], line.width, line.colour, line.opacity, stroke)

    def _straight(self, points: Points, line: Line) -> None:
        """A level or plumb line on whole pixels, so that it is crisp."""
        (x1, y1), (x2, y2) = points
        thick = max(1, round(line.width * self.scale))
        left, right = sorted((round(x1 * self.scale), round(x2 * self.scale)))
        top, bottom = sorted((round(y1 * self.scale), round(y2 * self.scale)))
        if left == right:
            left -= thick // 2
            right = left + thick
        else:
            top -= thick // 2
            bottom = top + thick
        self._put(Image.new("L", (right - left, bottom - top), 255), left, top, line.colour, line.opacity)

    def _smooth(self, points: Points, width: float, colour: str, opacity: float, pen_work: Any) -> None:
        """Draws in a larger mask of just the part that is needed, makes it smaller, and puts the colour through it."""
        xs, ys = [x * self.scale for x, _ in points], [y * self.scale for _, y in points]
        room = width * self.scale + 1
        left, top = max(0, int(min(xs) - room)), max(0, int(min(ys) - room))
        right = min(self.canvas.width, int(max(xs) + room) + 1)
        bottom = min(self.canvas.height, int(max(ys) + room) + 1)
        if right <= left or bottom <= top:
            return
        mask = Image.new("L", ((right - left) * FINER, (bottom - top) * FINER), 0)
        placed = [((x - left) * FINER, (y - top) * FINER) for x, y in zip(xs, ys, strict=True)]
        pen_work(ImageDraw.Draw(mask), placed)
        self._put(mask.reduce(FINER), left, top, colour, opacity)

    def _cells(self, cells: Cells) -> None:
        left, top = round(cells.left * self.scale), round(cells.top * self.scale)
        right, bottom = round((cells.left + cells.width) * self.scale), round((cells.top + cells.height) * self.scale)
        rows, columns = cells.shades.shape[:2]
        row_of = np.minimum((np.arange(bottom - top) + 0.5) * rows // max(1, bottom - top), rows - 1).astype(int)
        column_of = np.minimum((np.arange(right - left) + 0.5) * columns // max(1, right - left), columns - 1).astype(
            int
        )
        picture = np.ascontiguousarray(cells.shades[row_of][:, column_of])
        if picture.size:
            self._composite(Image.fromarray(picture, "RGBA"), left, top)

    def _label(self, label: Label) -> None:
        font = _font(label.size * self.scale)
        text = _writable(label.text, font)
        if not text.strip():
            return
        left, top, right, bottom = font.getbbox(text, anchor="ls")
        room = 2
        mask = Image.new("L", (round(right - left) + 2 * room, round(bottom - top) + 2 * room), 0)
        ImageDraw.Draw(mask).text((room - left, room - top), text, fill=255, font=font, anchor="ls")
        length = font.getlength(text)
        back = {"start": 0.0, "middle": length / 2, "end": length}[label.anchor]
        x, y = label.x * self.scale, label.y * self.scale
        if label.upright:
            mask = mask.transpose(Image.Transpose.ROTATE_90)
            place = round(x + top - room), round(y + back - right - room)
        else:
            place = round(x - back + left - room), round(y + top - room)
        self._put(mask, *place, label.colour, 1.0)

    def _put(self, mask: Image.Image, left: int, top: int, colour: str, opacity: float) -> None:
        if opacity < 1:
            mask = mask.point(lambda value: round(value * opacity))
        layer = Image.new("RGBA", mask.size, (*channels(self.ink if colour == INK else colour), 0))
        layer.putalpha(mask)
        self._composite(layer, left, top)

    def _composite(self, layer: Image.Image, left: int, top: int) -> None:
        """Puts a layer on the image, whatever of it lies inside."""
        source = max(0, -left), max(0, -top)
        width = min(layer.width, self.canvas.width - left)
        height = min(layer.height, self.canvas.height - top)
        if width > source[0] and height > source[1]:
            self.canvas.alpha_composite(layer, (max(0, left), max(0, top)), (*source, width, height))


def _fill(pen: ImageDraw.ImageDraw, points: Points) -> None:
    pen.polygon(points, fill=255)


def _ellipse(pen: ImageDraw.ImageDraw, points: Points) -> None:
    pen.ellipse([*points[0], *points[1]], fill=255)


def _dashes(points: Points, mark: float, gap: float) -> list[Points]:
    """A line cut into dashes."""
    pieces: list[Points] = []
    for (x1, y1), (x2, y2) in pairwise(points):
        length = float(np.hypot(x2 - x1, y2 - y1))
        for start in np.arange(0, length, mark + gap):
            first, last = start / length, min(1.0, (start + mark) / length)
            pieces.append(
                [(x1 + (x2 - x1) * first, y1 + (y2 - y1) * first), (x1 + (x2 - x1) * last, y1 + (y2 - y1) * last)]
            )
    return pieces


@lru_cache(maxsize=64)
def _font(size: float) -> Any:
    for name in FONTS:
        try:
            return ImageFont.truetype(name, size)
        except OSError:
            continue
    return ImageFont.load_default(size)


def _writable(text: str, font: Any) -> str:
    """The text with the signs that the font has not got spelt out."""
    return "".join(_SPELT.get(sign, sign) if _lacks(sign, font) else sign for sign in text)


@lru_cache(maxsize=4096)
def _lacks(sign: str, font: Any) -> bool:
    if sign.isascii():
        return False
    return bytes(font.getmask(sign)) == bytes(font.getmask("\U0010ffff"))
