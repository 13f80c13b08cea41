"""The load of experts, and the balance term that evens it out."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from loramixer.errors import RoutingError
from loramixer.losses.tokens import mean_over_tokens

Usage = Literal["top_k", "top_1", "soft"]
Scale = Literal["unit", "paper"]


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
        across_processes: see the package.
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
    """Balance term K Σ_e p̄_e f̄_e per router (first term of the paper's Eq. 5).

    Canonical scale: the *unit* form, which is 1 when the load is even whatever the number of experts K. When one
    expert takes everything it is K with ``top_1`` and ``soft``, and K / k with ``top_k``, which counts k experts for
    every token. The paper prints Σ p̄ f̄, which is 1/K when even; ``scale="paper"`` gives that form. K is the size of
    the last axis: where only n of the experts are present, an even load over these is K / n.

    The unit form with ``top_1`` is the loss of Switch Transformer
    (`transformers/models/switch_transformers/modeling_switch_transformers.py`, ``load_balancing_loss_func``). With
    ``top_k`` on pooled routers, times k, it is Mixtral's (the same name in
    `transformers/models/mixtral/modeling_mixtral.py`), which counts assignments per token and so is k when even.
    """
    mean = mean_over_tokens(p, mask, across_processes)
    value = (mean * expert_usage(p, mask, usage, k, across_processes)).sum(dim=-1)
    return value * p.shape[-1] if scale == "unit" else value
