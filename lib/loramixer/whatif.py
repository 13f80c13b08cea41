"""What routers would have chosen under other gate settings, from the logits of a trace. Numpy only, no model.

Nothing is read or written again: the text stays, and so do the logits of later layers, which would have seen other
inputs. :func:`loramixer.intervene` does run the model.

Shapes: S sites, T tokens, E experts; logits ``[..., E]`` in nats, minus infinity where an expert is absent or masked.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, get_args

import numpy as np

from loramixer.errors import RoutingError, TraceError
from loramixer.trace import RoutingTrace

Gate = Literal["soft", "top_k", "uniform"]
"""Gates that follow from logits alone; ``straight_through`` is ``top_k`` where nothing trains."""

NOTE = "routing only, text not regenerated"
"""In the provenance of what this module returns, for every view to show."""

_RULE_FIELDS = {"gate": "gate", "top_k": "k", "temperature": "temperature", "renormalize": "renormalize"}


def soft_gates(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """softmax(logits / temperature) over the last axis; rows without any expert are 0."""
    highest = logits.max(axis=-1, keepdims=True)
    below = logits - np.where(np.isneginf(highest), 0, highest)  # first, so that no temperature overflows
    if temperature != 1.0:
        with np.errstate(over="ignore"):
            below = below.astype(np.float64) / temperature
    weights = np.exp(below).astype(logits.dtype)
    sums = weights.sum(axis=-1, keepdims=True)
    return weights / np.where(sums > 0, sums, 1)


def top_k_gates(logits: np.ndarray, k: int, temperature: float = 1.0, renormalize: bool = True) -> np.ndarray:
    """The k likeliest experts, the others exactly 0; of equal logits the first expert counts.

    Args:
        logits: ``[..., E]``.
        k: experts per token, 1…E.
        temperature: divides the logits.
        renormalize: whether the chosen weights sum to 1 or keep their share of the full softmax.

    Raises:
        RoutingError: k outside 1…E.
    """
    _check_k(k, logits.shape[-1])
    chosen = np.zeros(logits.shape, dtype=bool)
    np.put_along_axis(chosen, np.argsort(-logits, axis=-1, kind="stable")[..., :k], True, axis=-1)
    if renormalize:
        return soft_gates(np.where(chosen, logits, -np.inf).astype(logits.dtype), temperature)
    return np.where(chosen, soft_gates(logits, temperature), 0).astype(logits.dtype)


def uniform_gates(logits: np.ndarray) -> np.ndarray:
    """The same weight for every expert that is present; rows without any are 0."""
    present = (~np.isneginf(logits)).astype(logits.dtype)
    return present / np.maximum(present.sum(axis=-1, keepdims=True), 1)


def what_if(
    trace: RoutingTrace,
    *,
    gate: Gate | None = None,
    k: int | None = None,
    temperature: float | None = None,
    renormalize: bool | None = None,
    bias: Mapping[str, float] | None = None,
    mask: Iterable[str] = (),
) -> RoutingTrace:
    """The same tokens and logits under other gate settings; what is None stays as it was recorded.

    As with ``set_gate``, sites with a rule of their own (``site_gates``) keep what that rule fixes.

    Args:
        trace: a recorded trace.
        gate: ``soft``, ``top_k`` or ``uniform``.
        k: experts per token, for ``top_k``.
        temperature: divides the logits; below 1 sharpens.
        renormalize: whether the weights of the chosen experts sum to 1.
        bias: expert → what is added to its logits, in nats, before the temperature divides them: ln 2 doubles its
            odds at temperature 1.
        mask: experts that may not be chosen; where no other is present, all gates are 0.

    Returns:
        A new trace, whose logits contain bias and mask, without contributions (nothing was run), and whose provenance
        has :data:`NOTE` and the settings under ``what_if``.

    Raises:
        RoutingError: an unknown expert or gate, all experts masked, k outside 1…E, a temperature that is not above 0,
            or a bias that is not finite.
        TraceError: a trace whose gates do not follow from its logits alone.
    """
    given = {"gate": gate, "k": k, "temperature": temperature, "renormalize": renormalize}
    given = {name: value for name, value in given.items() if value is not None}
    _check_settings(given, len(trace.experts))
    biases, masked = dict(bias or {}), list(dict.fromkeys([mask] if isinstance(mask, str) else mask))
    for name in (*biases, *masked):
        if name not in trace.experts:
            raise RoutingError(f"The mixture has no expert '{name}'; it has {', '.join(trace.experts)}.")
    for name, value in biases.items():
        if not math.isfinite(value):
            raise RoutingError(f"The bias of '{name}' is {value!r}; a finite number of nats is needed, or mask it.")
    former = list(trace.provenance.get("masked") or [])
    if set(trace.experts) <= {*masked, *former}:
        raise RoutingError(f"All experts ({', '.join(trace.experts)}) would be masked; leave at least one.")
    logits = np.array(trace.logits, dtype=np.float32)
    for name, value in biases.items():
        logits[..., trace.experts.index(name)] += np.float32(value)
    for name in masked:
        logits[..., trace.experts.index(name)] = -np.inf
    settings = [replace(recorded, **{**given, **fixed}) for recorded, fixed in _settings_of_sites(trace, given)]
    gates = np.stack([setting(rows) for setting, rows in zip(settings, logits, strict=True)])
    provenance = _provenance(trace, given, biases, masked, former)
    return replace(trace, logits=logits, gates=gates, provenance=provenance, contributions=None, base_norms=None)


SETTINGS = tuple(inspect.signature(what_if).parameters)[1:]
"""What :func:`what_if` can change, and writes into the provenance beside the note."""


@dataclass(frozen=True)
class _Settings:
    """How the logits of one site become gates."""

    gate: str
    k: int
    temperature: float
    renormalize: bool

    def __call__(self, logits: np.ndarray) -> np.ndarray:
        if self.gate == "off":
            return np.zeros_like(logits)
        if self.gate == "uniform":
            return uniform_gates(logits)
        if self.gate == "soft":
            return soft_gates(logits, self.temperature)
        return top_k_gates(logits, min(self.k, logits.shape[-1]), self.temperature, self.renormalize)


def _settings_of_sites(trace: RoutingTrace, given: Mapping[str, Any]) -> list[tuple[_Settings, dict[str, Any]]]:
    """For every site the recorded settings, and what a rule of its own fixes whatever is given."""
    facts = trace.provenance
    if facts.get("unit"):
        raise TraceError(
            f"This trace is aggregated by {facts['unit']}, so its gates do not follow from its logits; change the "
            "settings of the trace that it was made of, and aggregate afterwards."
        )
    if facts.get("interventions"):
        raise TraceError(
            "This trace was recorded under an intervention, so its gates do not follow from its logits; take the "
            "trace without it."
        )
    k = facts.get("k", len(trace.experts))
    base = _Settings(
        facts.get("gate", "top_k"),
        k,
        facts.get("gate_temperature", 1.0),
        facts.get("gate_renormalize", facts.get("renormalize", True)),
    )
    rules = facts.get("site_gates") or []
    places = facts.get("site_rules", []) if rules else [None] * len(trace.sites)
    if len(places) != len(trace.sites):
        raise TraceError(
            "This trace has rules for single sites (site_gates) and does not say which sites follow them; record it "
            "again with this version."
        )
    found = []
    for place in places:
        rule = {} if place is None else rules[place]
        fixed = {field: rule[name] for name, field in _RULE_FIELDS.items() if name in rule}
        effective = {"gate": base.gate, **given, **fixed}["gate"]
        if effective not in (*get_args(Gate), "straight_through", "off"):
            raise TraceError(
                f"This trace was gated by '{effective}', which does not follow from logits; give a gate: "
                f"{', '.join(get_args(Gate))}."
            )
        found.append((base, fixed))
    return found


def _provenance(
    trace: RoutingTrace, given: dict[str, Any], bias: dict[str, float], masked: list[str], former: list[str]
) -> dict[str, Any]:
    names = {"gate": "gate", "k": "k", "temperature": "gate_temperature", "renormalize": "renormalize"}
    changes = {names[name]: value for name, value in given.items()}
    if "renormalize" in given:
        changes["gate_renormalize"] = given["renormalize"]
        rules = trace.provenance.get("site_gates") or []
        changes["renormalize"] = given["renormalize"] and all(rule.get("renormalize", True) for rule in rules)
    return {
        **trace.provenance,
        **changes,
        "masked": list(dict.fromkeys([*former, *masked])),
        "what_if": {"note": NOTE, **given, "bias": bias, "mask": masked},
    }


def _check_settings(given: Mapping[str, Any], experts: int) -> None:
    if "gate" in given and given["gate"] not in get_args(Gate):
        raise RoutingError(f"The gate is '{given['gate']}'; from logits alone it can be {', '.join(get_args(Gate))}.")
    if "k" in given:
        _check_k(given["k"], experts)
    if "temperature" in given:
        temperature = given["temperature"]
        if not (isinstance(temperature, int | float) and 0 < temperature < math.inf):
            raise RoutingError(f"The gate temperature is {temperature!r}; a number above 0 is needed.")


def _check_k(k: Any, experts: int) -> None:
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= experts:
        raise RoutingError(f"k is {k!r}; with {experts} experts a whole number from 1 to {experts} is needed.")
