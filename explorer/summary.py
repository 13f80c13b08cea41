"""A trace in a few numbers, for callers of the API."""

from __future__ import annotations

from typing import Any

import numpy as np

from loramixer.comparison import Comparison, compare
from loramixer.errors import TraceError
from loramixer.metrics import load, margin, plane_point, routers_that_are_on
from loramixer.trace import Role, RoutingTrace

MEASURED_ROLES: tuple[Role, ...] = ("prompt", "generated")
"""The tokens that the numbers are about: not those of the chat template, and no special ones, as on the page."""


def summarise(trace: RoutingTrace) -> dict[str, Any]:
    """The answer, the load of each expert and the expert of each token, over the tokens that are no template.

    Returns:
        ``text`` that was generated; ``experts``; ``measured_tokens``, how many; ``load``, the share of each expert,
        mean over the sites that are on and over tokens; ``undecided``, ``balanced`` and ``specialised``, 0…1, see
        ``loramixer.metrics``; ``tokens``, each with its ``text``, ``role``, ``expert``, ``gate`` and ``margin`` of the
        mean over sites; and ``provenance``.
    """
    kept = _measured(trace)
    positions = np.flatnonzero(kept).tolist()
    mean_gates = routers_that_are_on(trace.gates[:, kept]).mean(axis=0)
    margins = margin(mean_gates)
    return {
        "text": generated_text(trace),
        **describe_routing(trace),
        "tokens": [
            {
                "text": trace.tokens[position],
                "role": trace.tokens.roles[position],
                "expert": trace.experts[int(row.argmax())],
                "gate": _rounded(row.max()),
                "margin": _rounded(ahead),
            }
            for position, row, ahead in zip(positions, mean_gates, margins, strict=True)
        ],
        "provenance": trace.provenance,
    }


def describe_routing(trace: RoutingTrace, by_site: bool = False) -> dict[str, Any]:
    """Load and the place on the entropy–balance plane, over the tokens that are no template.

    Args:
        trace: any trace.
        by_site: whether every layer and every projection is described by itself too.

    Raises:
        TraceError: a trace of template tokens only.
    """
    kept = _measured(trace)
    if not kept.any():
        raise TraceError("The trace holds tokens of the chat template only; trace a prompt.")
    described = {"experts": list(trace.experts), "measured_tokens": int(kept.sum()), **_numbers(trace, kept)}
    if by_site:
        described["layers"] = [{"layer": layer, **_numbers(trace, kept, layers=(layer,))} for layer in trace.layers]
        described["projections"] = [
            {"projection": projection, **_numbers(trace, kept, projections=(projection,))}
            for projection in trace.projections
        ]
    return described


def describe_change(before: RoutingTrace, after: RoutingTrace) -> dict[str, Any]:
    """How far two traces of the same tokens and sites are apart, over the tokens that are no template.

    A router that is off in one of them decides nothing there and is left out.
    """
    found = describe_comparison(compare(before, after))
    return {name: found[name] for name in ("changed_decisions", "divergence")}


def describe_comparison(found: Comparison) -> dict[str, Any]:
    """How tokens were aligned, and how differently the pairs were routed that are no template."""
    own = found.counted()
    pairs = int(own.sum())
    jsd = found.jsd[:, own]
    decided = found.leader_changed[:, own][np.isfinite(jsd)]
    means = found.difference[:, own].mean(axis=(0, 1)) if pairs else np.zeros(len(found.a.experts))
    return {
        "alignment": found.alignment,
        "sentence": found.sentence,
        "pairs": pairs,
        "gate_change": {name: _rounded(mean) for name, mean in zip(found.a.experts, means, strict=True)},
        "changed_decisions": _rounded(decided.mean()) if decided.size else 0.0,
        "divergence": _rounded(np.nanmean(jsd)) if decided.size else 0.0,
    }


def _numbers(trace: RoutingTrace, kept: np.ndarray, **part: Any) -> dict[str, Any]:
    sites, _ = trace.select(**part)
    gates = trace.gates[sites][:, kept]
    point = plane_point(gates)
    return {
        "load": {
            name: _rounded(share) for name, share in zip(trace.experts, load(routers_that_are_on(gates)), strict=True)
        },
        "undecided": _rounded(point.undecided),
        "balanced": _rounded(point.balanced),
        "specialised": _rounded(point.balanced - point.undecided),
    }


def _measured(trace: RoutingTrace) -> np.ndarray:
    """Which tokens the numbers are about."""
    _, kept = trace.select(roles=MEASURED_ROLES)
    return np.asarray(kept & ~np.asarray(trace.tokens.special, dtype=bool))


def _rounded(value: Any) -> float:
    """A plain number of four digits, without a negative zero."""
    return round(float(value), 4) + 0.0


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


def prompt_text(trace: RoutingTrace) -> str:
    """What the model was asked, without the chat template."""
    asked = [position for position, role in enumerate(trace.tokens.roles) if role == "prompt"]
    if not asked:
        return ""
    return trace.tokens.text[int(trace.tokens.spans[asked[0], 0]) : int(trace.tokens.spans[asked[-1], 1])]
