"""Losses of entropies: of single tokens, of the load, and of the balance term with the former (RSL)."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from loramixer.errors import RoutingError
from loramixer.losses.balance import Scale, Usage, load_balance
from loramixer.losses.tokens import finite_log, mean_of_tokens, mean_over_tokens

Entropy = Literal["sharpen", "flatten"]


def token_entropy(p: torch.Tensor, mask: torch.Tensor | None = None, across_processes: bool = False) -> torch.Tensor:
    """Mean entropy of single tokens E[H(p(x))] per router, in nats: 0…ln K (second term of the paper's Eq. 5)."""
    return mean_of_tokens(_entropy(p), mask, across_processes)


def load_entropy(p: torch.Tensor, mask: torch.Tensor | None = None, across_processes: bool = False) -> torch.Tensor:
    """Entropy of the mean load H(p̄) per router, in nats: 0…ln K."""
    return _entropy(mean_over_tokens(p, mask, across_processes))


def ds_moe(p: torch.Tensor, mask: torch.Tensor | None = None, across_processes: bool = False) -> torch.Tensor:
    """Mutual-information loss −H(p̄) + E[H(p(x))] per router (DS-MoE, Pan et al., 2024, Eq. 4–6).

    Canonical scale: minus the mutual information of token and expert, in nats: 0 when every token routes alike, −ln K
    for balanced specialists. The same form is in `IBM/ModuleFormer`, ``moduleformer/utils/gate.py:148-176``, which
    takes p̄ over all layers together (``pool_routers``). Descent evens the load and sharpens single tokens at once.
    """
    return token_entropy(p, mask, across_processes) - load_entropy(p, mask, across_processes)


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

    Canonical scale: balance 1 when the load is even (:func:`load_balance`), entropy in nats.

    Args:
        p: probabilities ``[..., N, E]``.
        mask: tokens that count.
        balance_weight: α, of the balance term in the form that ``scale`` names.
        entropy_weight: λ ≥ 0, of the token entropy in nats.
        entropy: ``sharpen`` or ``flatten``.
        usage: see :func:`expert_usage`.
        k: see :func:`expert_usage`.
        scale: see :func:`load_balance`.
        across_processes: see the package.

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


def _entropy(p: torch.Tensor) -> torch.Tensor:
    return -(p * finite_log(p)).sum(dim=-1)
