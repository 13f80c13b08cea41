"""Colours and letters of experts: the Okabe–Ito palette, fixed so that an expert looks the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

NAMED_COLOURS = {
    "math": "#0072B2",
    "medical": "#D55E00",
    "code": "#009E73",
    "science": "#CC79A7",
    "acceptability": "#E69F00",
    "language": "#E69F00",
    "sentiment": "#56B4E9",
}
"""Colours of the experts that the project ships."""

OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
"""Colours for other experts, in order; those after the sixth are neutral and told apart by their letters."""

NEUTRAL = "#767676"
"""For experts beyond the palette: legible on white and on black."""


CIVIDIS = (
    "#00224E", "#123570", "#3B496C", "#575D6D", "#707173", "#8A8779", "#A69D75", "#C4B56C", "#E4CF5B", "#FEE838",
)  # fmt: skip
"""Magnitudes, from low to high; even steps of lightness, the same to colour-blind readers."""

LESS, MORE = "#0072B2", "#E69F00"
"""Ends of differences: blue is less, orange is more."""

FAINT = 0.13
"""Opacity of the weakest colour of an expert: still told apart from no colour at all."""


@dataclass(frozen=True)
class Page:
    """Background and text of a page, ``#RRGGBB``."""

    background: str
    ink: str


PAGES = {"light": Page("#FFFFFF", "#24292F"), "dark": Page("#11151A", "#DCE3EA")}
"""The two pages that pictures are drawn for."""

ColourScale = list[tuple[float, str]]
"""Stops ``(share, colour)`` from 0 to 1, as Plotly takes them."""


@dataclass(frozen=True)
class ExpertStyle:
    """How one expert is drawn: its letter and its colour (``#RRGGBB``)."""

    name: str
    letter: str
    colour: str


def expert_styles(experts: Sequence[str]) -> list[ExpertStyle]:
    """Letters A, B, C… in the order of the mixture, and colours; a shipped expert keeps its own colour."""
    taken = {NAMED_COLOURS[name] for name in experts if name in NAMED_COLOURS}
    free = iter(colour for colour in OKABE_ITO if colour not in taken)
    return [
        ExpertStyle(name, _letter(index), NAMED_COLOURS.get(name) or next(free, NEUTRAL))
        for index, name in enumerate(experts)
    ]


def magnitude_scale() -> ColourScale:
    """Cividis, for shares, entropies and norms."""
    return [(index / (len(CIVIDIS) - 1), colour) for index, colour in enumerate(CIVIDIS)]


def difference_scale() -> ColourScale:
    """Blue, nothing, orange: for differences around zero, on light and on dark pages."""
    return [(0.0, LESS), (0.5, "rgba(128,128,128,0.08)"), (1.0, MORE)]


def expert_scale(styles: Sequence[ExpertStyle]) -> ColourScale:
    """Colours of :func:`expert_value`: each expert in turn, from faint to full."""
    stops: ColourScale = []
    for index, style in enumerate(styles):
        red, green, blue = channels(style.colour)
        stops.append((index / len(styles), f"rgba({red},{green},{blue},{FAINT})"))
        stops.append(((index + 1) / len(styles), f"rgba({red},{green},{blue},1)"))
    return stops


def expert_value(expert: np.ndarray, strength: np.ndarray) -> np.ndarray:
    """One number for an expert's index and a strength 0…1, in 0…E of :func:`expert_scale`."""
    # A little inside its part of the scale, so that rounding never shows the neighbour's colour.
    return expert + 0.01 + 0.98 * np.clip(strength, 0, 1)


def channels(colour: str) -> tuple[int, int, int]:
    """Red, green and blue of ``#RRGGBB``, 0…255."""
    return int(colour[1:3], 16), int(colour[3:5], 16), int(colour[5:7], 16)


def luminance(red: float, green: float, blue: float) -> float:
    """Relative luminance of WCAG of a colour whose channels are 0…255."""
    linear = [
        c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in (red / 255, green / 255, blue / 255)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def text_on(red: float, green: float, blue: float) -> str:
    """Black or white, whichever is easier to read on a colour."""
    return "#000000" if luminance(red, green, blue) > 0.18 else "#FFFFFF"


def contrast(first: str, second: str) -> float:
    """Contrast of WCAG between two colours ``#RRGGBB``; texts need 4.5."""
    bright, dark = sorted((luminance(*channels(first)), luminance(*channels(second))), reverse=True)
    return (bright + 0.05) / (dark + 0.05)


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"{chr(ord('A') + index // 26 - 1)}{chr(ord('A') + index % 26)}"
