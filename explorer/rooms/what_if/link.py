"""What an address says about What if: the trace, the gates, and what would be done with the model."""

from __future__ import annotations

from explorer.link import LinkField
from explorer.rooms.what_if.changes import KINDS, PLACES

FIELDS = (
    LinkField("a", "base", ""),
    LinkField("k", "gate", ""),
    LinkField("t", "temperature", None, "float", low=0.1, high=4),
    LinkField("x", "mask", ""),
    LinkField("bias", "bias", ""),
    LinkField("do", "kind", "mask", choices=tuple(kind for _, kind in KINDS)),
    LinkField("e", "experts", ""),
    LinkField("at", "where", "everything", choices=tuple(place for _, place in PLACES)),
    LinkField("s", "seed", 0, "int", low=0, high=2**31 - 1),
    LinkField("w", "text", ""),
)
"""``base`` is named as in Compare; without ``temperature`` that of the trace holds; ``mask`` and ``experts`` are names
with commas, ``bias`` is ``name:nats,…``. Words of the prompt (``w``) are part of the prompt and stand in an address
only when the user ticks it."""


def write_biases(biases: dict[str, float]) -> str:
    """``name:nats,…``"""
    return ",".join(f"{name}:{value:g}" for name, value in biases.items())


def read_names(text: str) -> list[str]:
    """Names with commas between them."""
    return [name for name in text.split(",") if name]


def read_biases(text: str) -> dict[str, float]:
    """The inverse of :func:`write_biases`; what is no number is left out."""
    found = {}
    for pair in read_names(text):
        name, _, value = pair.rpartition(":")
        try:
            found[name] = max(-4.0, min(4.0, float(value)))
        except ValueError:
            continue
    return found
