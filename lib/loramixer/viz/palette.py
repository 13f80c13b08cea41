"""Colours and letters of experts: the Okabe–Ito palette, fixed so that an expert looks the same everywhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

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


def _letter(index: int) -> str:
    return chr(ord("A") + index) if index < 26 else f"{chr(ord('A') + index // 26 - 1)}{chr(ord('A') + index % 26)}"
