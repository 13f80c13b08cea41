"""A trace in a few numbers, for callers of the API."""

from __future__ import annotations

from typing import Any

import numpy as np

from loramixer.metrics import load, margin, plane_point
from loramixer.trace import RoutingTrace


def summarise(trace: RoutingTrace) -> dict[str, Any]:
    """The answer, the load of each expert and the expert of each token, over the tokens that are no template.

    Returns:
        ``text`` that was generated; ``experts``; ``load``, the share of each expert, mean over sites and tokens;
        ``undecided``, ``balanced`` and ``specialised``, 0…1, see ``loramixer.metrics``; ``tokens``, each with its
        ``text``, ``role``, ``expert``, ``gate`` and ``margin`` of the mean over sites; and ``provenance``.
    """
    _, kept = trace.select(roles=("prompt", "generated"))
    positions = np.flatnonzero(kept).tolist()
    gates = trace.gates[:, kept]
    mean_gates = gates.mean(axis=0)
    margins = margin(mean_gates)
    point = plane_point(gates)
    return {
        "text": generated_text(trace),
        "experts": list(trace.experts),
        "load": {name: round(float(share), 4) for name, share in zip(trace.experts, load(gates), strict=True)},
        "undecided": round(point.undecided, 4),
        "balanced": round(point.balanced, 4),
        "specialised": round(point.balanced - point.undecided, 4),
        "tokens": [
            {
                "text": trace.tokens[position],
                "role": trace.tokens.roles[position],
                "expert": trace.experts[int(row.argmax())],
                "gate": round(float(row.max()), 4),
                "margin": round(float(ahead), 4),
            }
            for position, row, ahead in zip(positions, mean_gates, margins, strict=True)
        ],
        "provenance": trace.provenance,
    }


def generated_text(trace: RoutingTrace) -> str:
    """What the model wrote, without special tokens."""
    written = [
        (int(start), int(end))
        for (start, end), role, special in zip(
            trace.tokens.spans, trace.tokens.roles, trace.tokens.special, strict=True
        )
        if role == "generated" and not special
    ]
    # Tokens that hold bytes of one character share its span; the character is said once.
    return "".join(trace.tokens.text[start:end] for start, end in dict.fromkeys(written))
