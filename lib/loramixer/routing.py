"""From router logits to gates. Pure functions of tensors.

Shapes: ``[..., E]`` with E experts in the last axis; any leading axes. Logits of an expert that is absent from a site
are minus infinity, so it never receives weight.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from loramixer.errors import RoutingError

GateMode = Literal["soft", "top_k", "straight_through", "domain", "uniform", "off"]
GATE_MODES: tuple[str, ...] = get_args(GateMode)

UNROUTED_MODES = ("uniform", "off")
"""Modes without a choice; a site that is set to one of them has it in training too."""

DEFAULT_TOP_K = 3
"""Number of experts per token in the paper (A.6); fewer where a mixture has fewer experts."""


def soft_gates(logits: torch.Tensor, temperature: float = 1.0) -> torch.Tensor:
    """All experts, weighted by softmax(logits / temperature) (paper, Eq. 4). Shape and dtype of ``logits``."""
    return torch.softmax(logits if temperature == 1.0 else logits / temperature, dim=-1)


def top_k_gates(logits: torch.Tensor, k: int, temperature: float = 1.0, renormalize: bool = True) -> torch.Tensor:
    """The k most likely experts, the others exactly 0 (paper, section 3.3 and A.6).

    Args:
        logits: ``[..., E]``.
        k: experts per token, 1…E.
        temperature: divides the logits.
        renormalize: whether the chosen weights sum to 1 (as Mixtral does) or keep their share of the full softmax.

    Returns:
        Gates ``[..., E]``; gradients reach the chosen experts only.

    Raises:
        RoutingError: k outside 1…E.
    """
    weights, experts = choose_experts(logits, k, temperature, renormalize)
    return torch.zeros_like(logits).scatter(-1, experts, weights)


def choose_experts(
    logits: torch.Tensor, k: int, temperature: float = 1.0, renormalize: bool = True
) -> tuple[torch.Tensor, torch.Tensor]:
    """What :func:`top_k_gates` is made of: ``(weights, experts)``, each ``[..., k]``, the likeliest first.

    Raises:
        RoutingError: k outside 1…E.
    """
    check_k(k, logits.shape[-1])
    chosen, experts = logits.topk(k, dim=-1)
    if renormalize:
        return soft_gates(chosen, temperature), experts
    return soft_gates(logits, temperature).gather(-1, experts), experts


def straight_through_gates(
    logits: torch.Tensor, k: int, temperature: float = 1.0, renormalize: bool = True
) -> torch.Tensor:
    """Forward :func:`top_k_gates`, backward :func:`soft_gates`: the paper's differentiable hard–soft top-k.

    The router's gradient is that of soft gates: also the logits of experts that did not act have one. The weights of
    these experts have none, since their gate was 0.
    """
    hard = top_k_gates(logits, k, temperature, renormalize).detach()
    soft = soft_gates(logits, temperature)
    return hard + soft - soft.detach()


def domain_gates(logits: torch.Tensor, expert_index: torch.Tensor) -> torch.Tensor:
    """All weight on one expert that is known beforehand (paper, section 3.2: joint training on a labelled mixture).

    Args:
        logits: ``[..., E]``; only their shape and where they are minus infinity counts.
        expert_index: int64, shape of ``logits`` without its last axis, or fewer axes that broadcast to it.

    Returns:
        Gates ``[..., E]``; all 0 where that expert is absent.
    """
    experts = torch.arange(logits.shape[-1], device=logits.device)
    chosen = experts == expert_index.to(logits.device).unsqueeze(-1)
    return (chosen & (logits != -torch.inf)).to(logits.dtype)


def uniform_gates(logits: torch.Tensor) -> torch.Tensor:
    """The same weight for every expert that is present: what a mixture without routers would use."""
    present = (logits != -torch.inf).to(logits.dtype)
    return present / present.sum(dim=-1, keepdim=True).clamp_min(1.0)


def gates(
    logits: torch.Tensor, mode: GateMode, k: int, temperature: float = 1.0, renormalize: bool = True
) -> torch.Tensor:
    """Gates in any mode that needs nothing but logits; k counts in ``top_k`` and ``straight_through`` only."""
    if mode == "soft":
        return soft_gates(logits, temperature)
    if mode == "straight_through":
        return straight_through_gates(logits, k, temperature, renormalize)
    if mode == "uniform":
        return uniform_gates(logits)
    if mode == "off":
        return torch.zeros_like(logits)
    if mode == "domain":
        raise RoutingError("Gate mode 'domain' needs the domain of each row; give it with set_gate(domain=…).")
    return top_k_gates(logits, k, temperature, renormalize)


def check_k(k: int, experts: int) -> None:
    """Raise a RoutingError unless ``k`` is a whole number in 1…experts."""
    if isinstance(k, bool) or not isinstance(k, int) or not 1 <= k <= experts:
        raise RoutingError(f"k is {k!r}; with {experts} experts a whole number from 1 to {experts} is needed.")


def check_gate_mode(mode: str) -> None:
    """Raise a RoutingError unless ``mode`` is known."""
    if mode not in GATE_MODES:
        raise RoutingError(f"The gate mode is '{mode}'; it can be {' or '.join(GATE_MODES)}.")


def check_temperature(temperature: float) -> None:
    """Raise a RoutingError unless ``temperature`` is a positive number."""
    if not temperature > 0:
        raise RoutingError(f"The gate temperature is {temperature!r}; a number above 0 is needed.")
