"""What an address says about Explore: the run that is on screen, and how it is looked at.

The browser reads and writes the same fields (``components/routing_view/link.js``), so that a view changes its address
without asking the server; :func:`component_fields` hands them over.
"""

from __future__ import annotations

from typing import Any

from explorer.link import LinkField
from explorer.settings import ALL_EXPERTS, DEFAULT_NEW_TOKENS, limits

RUN_FIELDS = (
    LinkField("x", "example", ""),
    LinkField("r", "mixer", ""),
    LinkField("k", "gate", ""),
    LinkField("n", "new_tokens", DEFAULT_NEW_TOKENS, "int", low=0, high=limits().new_tokens),
    LinkField("p", "prompt", ""),
)
"""What was run; ``prompt`` only if the user ticks it. ``gate`` is a number, or ``all``."""

VIEW_FIELDS = (
    LinkField("m", "measure", "top"),
    LinkField("e", "effect", False, "flag"),
    LinkField("q", "projection", "mean"),
    LinkField("tpl", "template", False, "flag"),
    LinkField("ph", "phase", "both", choices=("both", "prefill", "generation")),
    LinkField("u", "unit", "subword", choices=("subword", "word", "sentence")),
    LinkField("a", "how", "mean", choices=("mean", "max", "first")),
    LinkField("l", "layers", ""),
    LinkField("sc", "scale", "shared", choices=("shared", "layer")),
    LinkField("cl", "layer", -1, "int", low=-1, high=9999),
    LinkField("ct", "token", -1, "int", low=-1, high=99999),
    LinkField("cs", "span_start", -1, "int", low=-1, high=99999),
    LinkField("lk", "locked", False, "flag"),
    LinkField("o", "open", ""),
)
"""How it is looked at. ``measure`` is ``top``, ``entropy`` or the name of an expert; ``layers`` is ``first-last``; a
cell is its layer's name and its token's position, and ``span_start`` the other end of a brushed span; ``open`` names
the sections that are open."""

FIELDS = RUN_FIELDS + VIEW_FIELDS


def component_fields() -> list[dict[str, Any]]:
    """The fields of the view as JSON values, for the browser."""
    return [
        {
            "key": field.key,
            "name": field.name,
            "default": field.default,
            "kind": field.kind,
            "choices": list(field.choices),
            "low": None if field.low == -float("inf") else field.low,
            "high": None if field.high == float("inf") else field.high,
        }
        for field in VIEW_FIELDS
    ]


def parse_layers(text: str) -> tuple[int, int] | None:
    """First and last layer of ``first-last``; None for anything else, which means all."""
    first, dash, last = text.partition("-")
    if not dash or not first.isdigit() or not last.isdigit() or int(first) > int(last):
        return None
    return int(first), int(last)


def run_request(prompt: str, mixer: str, gate: str, new_tokens: int, example: str = "") -> dict[str, Any]:
    """What a run was asked for, for the payload: the prompt, and the other run fields as a link writes them."""
    values = {
        "example": example,
        "mixer": mixer,
        "gate": "all" if gate == ALL_EXPERTS else gate,
        "new_tokens": new_tokens,
    }
    link = {
        field.key: str(values[field.name])
        for field in RUN_FIELDS
        if field.name in values and values[field.name] != field.default
    }
    return {"prompt": prompt, "link": link}
