"""Routing losses. Pure functions of probabilities; padding is excluded by a mask.

Shapes: ``p`` is ``[..., N, E]``: any number of routers in the leading axes (sites), N tokens, E experts, rows summing
to 1. ``mask`` is ``[N]`` or ``[..., N]``, true for tokens that count. Every function returns one value per router
(the leading axes of ``p``); :func:`reduce_over_routers` turns them into the scalar that is trained.

Canonical scale: the balance term is printed in its *unit* form K Σ p̄ f̄, which is 1 when the load is even whatever
the number of experts K. The paper prints Σ p̄ f̄ (Eq. 5), which is 1/K there; ``scale="paper"`` gives that form.
Entropies are in nats.

``across_processes`` takes every mean over the tokens of all processes of a data-parallel run, so that the loss does
not depend on how a batch is spread over them. All processes must then call the function.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch

from loramixer.distributed import process_count, sum_over_processes
from loramixer.errors import RoutingError

Usage = Literal["top_k", "top_1", "soft"]
Entropy = Literal["sharpen", "flatten"]
Scale = Literal["unit", "paper"]
Reduction = Literal["per_site", "pooled"]

SMALLEST = 1e-9
"""Keeps log finite where a probability underflows to 0."""


def mean_over_tokens(values: torch.Tensor, mask: torch.Tensor | None, across_processes: bool = False) -> torch.Tensor:
    """Mean over the token axis of ``[..., N, E]`` where the mask is true: ``[..., E]``."""
    across_processes = across_processes and process_count() > 1
    if mask is None and not across_processes:
        return values.mean(dim=-2)
    weights = values.new_ones(values.shape[-2], 1) if mask is None else mask.to(values.dtype).unsqueeze(-1)
    sums, counts = (values * weights).sum(dim=-2), weights.sum(dim=-2)
    if across_processes:
        together = sum_over_processes(torch.cat([sums, counts.expand(*sums.shape[:-1], 1)], dim=-1))
        sums, counts = together[..., :-1], together[..., -1:]
    return sums / counts.clamp_min(1.0)


def expert_usage(
    p: torch.Tensor,
    mask: torch.Tensor | None,
    usage: Usage = "top_k",
    k: int = 3,
    across_processes: bool = False,
) -> torch.Tensor:
    """Share of the assignments that each expert receives, f̄: ``[..., E]``, sums to 1.

    Args:
        p: probabilities ``[..., N, E]``.
        mask: tokens that count.
        usage: ``top_k`` counts the k likeliest experts of each token over k · tokens (main text of the paper),
            ``top_1`` the likeliest one (its appendix); neither carries a gradient. ``soft`` is p̄ itself (A.1).
        k: for ``top_k``.
        across_processes: see the module.
    """
    if usage == "soft":
        return mean_over_tokens(p, mask, across_processes)
    if usage not in get_args(Usage):
        raise RoutingError(f"usage is '{usage}'; it can be {', '.join(get_args(Usage))}.")
    count = 1 if usage == "top_1" else min(k, p.shape[-1])
    with torch.no_grad():
        chosen = torch.zeros_like(p).scatter(-1, p.topk(count, dim=-1).indices, 1.0 / count)
        return mean_over_tokens(chosen, mask, across_processes)


def load_balance(
    p: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    usage: Usage = "top_k",
    k: int = 3,
    scale: Scale = "unit",
    across_processes: bool = False,
) -> torch.Tensor:
    """Balance term K Σ_e p̄_e f̄_e per router (first term of Eq. 5; with ``top_1`` the loss of Switch Transformer).

    1 when the load is even, K when one expert takes everything (``scale="unit"``).
    """
    mean = mean_over_tokens(p, mask, across_processes)
    value = (mean * expert_usage(p, mask, usage, k, across_processes)).sum(dim=-1)
    return value * p.shape[-1] if scale == "unit" else value


def token_entropy(p: torch.Tensor, mask: torch.Tensor | None = None, across_processes: bool = False) -> torch.Tensor:
    """Mean entropy of single tokens E[H(p(x))] per router, in nats (second term of Eq. 5)."""
    entropy_of_token = -(p * p.clamp_min(SMALLEST).log()).sum(dim=-1, keepdim=True)
    return mean_over_tokens(entropy_of_token, mask, across_processes).squeeze(-1)


def load_entropy(p: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """Entropy of the mean load H(p̄) per router, in nats."""
    mean = mean_over_tokens(p, mask)
    return -(mean * mean.clamp_min(SMALLEST).log()).sum(dim=-1)


def rsl(
    p: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    balance_weight: float,
    entropy_weight: float,
    entropy: Entropy = "sharpen",
    usage: Usage = "top_k",
    k: int = 3,
    scale: Scale = "unit",
    across_processes: bool = False,
) -> torch.Tensor:
    """Routing Specialization Loss per router: α · balance ± λ · E[H(p(x))] (paper, Eq. 5).

    The paper prints the sign of ``flatten`` (−λ: descent raises the entropy of single tokens) and describes the
    effect of ``sharpen`` (+λ: descent lowers it). Both are here under the name of what they do; the default does what
    the text claims. α is applied once (Eq. 12 multiplies it in twice; choose the coefficients for that).

    Args:
        p: probabilities ``[..., N, E]``.
        mask: tokens that count.
        balance_weight: α, of the balance term in the form that ``scale`` names.
        entropy_weight: λ ≥ 0, of the token entropy in nats.
        entropy: ``sharpen`` or ``flatten``.
        usage: see :func:`expert_usage`.
        k: see :func:`expert_usage`.
        scale: see :func:`load_balance`.
        across_processes: see the module.

    Raises:
        RoutingError: a negative λ, or an unknown sign.
    """
    if entropy not in get_args(Entropy):
        raise RoutingError(f"entropy is '{entropy}'; it can be {' or '.join(get_args(Entropy))}.")
    if entropy_weight < 0:
        raise RoutingError(f"entropy_weight is {entropy_weight}; give it as 0 or more and name the sign by `entropy`.")
    sign = 1.0 if entropy == "sharpen" else -1.0
    balance = load_balance(p, mask, usage=usage, k=k, scale=scale, across_processes=across_processes)
    return balance_weight * balance + sign * entropy_weight * token_entropy(p, mask, across_processes)


def pool_routers(p: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Concatenate the tokens of all routers ``[S, N, E] → [1, S·N, E]``, as Mixtral's loss does.

    Pooled routers can cancel each other: two layers that each collapse on a different expert look balanced.
    """
    pooled_mask = None if mask is None else mask.expand(p.shape[:-1]).reshape(1, -1)
    return p.reshape(1, -1, p.shape[-1]), pooled_mask


def reduce_over_routers(per_router: torch.Tensor) -> torch.Tensor:
    """Mean over routers: the scalar that is added to the task loss."""
    return per_router.mean()
