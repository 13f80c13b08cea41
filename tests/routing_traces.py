"""Invented routing traces with awkward tokens; no model is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from loramixer.trace import Role, RoutingTrace, Site, TraceTokens

AWKWARD = ("<s>", "The", " cat", " the", " cat", " <b>", "&amp;", "</script>", "\n", " ", " a-very-long-token-indeed",
           "🦊", "🦊", "🦊", " שלום", " 漢字", " {x}", " $5", "'\"")  # fmt: skip
"""Repeated tokens, markup, whitespace, one character in three tokens, writing from right to left."""


def awkward_trace(
    pieces: Sequence[str] = AWKWARD,
    *,
    layers: int = 3,
    experts: tuple[str, ...] = ("math", "medical", "a<b>"),
    projections: tuple[str, ...] = ("q_proj", "v_proj"),
    written: int = 6,
    seed: int = 0,
    sharpness: float = 2.0,
    **fields: Any,
) -> RoutingTrace:
    """A trace whose first token is template and whose last ``written`` tokens were generated; soft random gates."""
    spans: list[tuple[int, int]] = []
    text = ""
    for index, piece in enumerate(pieces):
        if index and piece == pieces[index - 1] == "🦊":
            spans.append(spans[-1])
            continue
        spans.append((len(text), len(text) + len(piece)))
        text += piece
    count = len(pieces)
    roles: list[Role] = ["template", *["prompt"] * (count - 1 - written), *["generated"] * written]
    sites = tuple(Site(layer, name, f"layers.{layer}.{name}") for layer in range(layers) for name in projections)
    shape = (len(sites), count, len(experts))
    logits = (np.random.default_rng(seed).normal(size=shape) * sharpness).astype(np.float32)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return RoutingTrace(
        tokens=TraceTokens(
            text, np.arange(count), np.array(spans).reshape(-1, 2), tuple(roles), np.zeros(count, bool)
        ),
        sites=sites,
        experts=experts,
        logits=logits,
        gates=(weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32),
        provenance={"mixer": "invented", "seed": seed, **fields},
    )
