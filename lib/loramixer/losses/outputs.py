"""AESL: outputs of the experts that a token chose shall be orthogonal, and its probabilities distinctive.

Source: Guo et al., Advancing Expert Specialization for Better MoE (2025, arXiv 2505.22323), Eq. 5–7, and its released
code, `HongcanGuo/Auxloss-For-Advancing-Expert-Specialization`, ``Model/ds/modeling_deepseek.py:332-365,427-434``
(MIT; nothing of it is copied). Where the two differ, ``form`` chooses:

- Orthogonality: the paper sums squared projections on each other chosen expert; the code projects on the span of all
  others (Gram–Schmidt) and divides by k too. With two chosen experts they differ by that factor only.
- Variance: the paper's is of one expert's probability over tokens; the code's of one token's probabilities over
  experts.
- The code stacks outputs expert by expert and then reads them token by token, so that it mostly pairs different tokens
  of one expert. That is a slip of indices which depends on padding and order, and is not repeated here. Neither is its
  way of setting the weights to a power of ten at the first step.

Experts that lie on top of each other along the rank never give their outputs one by one, and their inner products do
not need them: ⟨s_j B_j z_j, s_k B_k z_k⟩ = z_jᵀ (s_j s_k B_jᵀ B_k) z_k with z = A x, and B_jᵀ B_k is part of the Gram
matrix of B.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from loramixer.losses.balance import Scale, Usage, load_balance
from loramixer.losses.tokens import SMALLEST, Form, check_form, mean_of_tokens, mean_over_tokens

RIDGE = 1e-5
"""Of the mean squared length of the outputs: keeps the span of parallel outputs defined."""


def expert_output_gram(h_NR: torch.Tensor, B_RF: torch.Tensor, ranks: Sequence[int]) -> torch.Tensor:
    """Inner products of all experts' outputs, token by token, without the outputs.

    Args:
        h_NR: scaled hidden rows s_e A_e x of all experts on top of each other, N tokens, R rows.
        B_RF: their B, transposed, F features.
        ranks: rows of each expert; 0 for one that is absent, whose products are 0.

    Returns:
        ``[N, E, E]``.
    """
    sizes = list(ranks)
    parts = zip(h_NR.split(sizes, dim=-1), (B_RF @ B_RF.t()).split(sizes), strict=True)
    expert_of_row = torch.eye(len(sizes), dtype=h_NR.dtype).repeat_interleave(torch.tensor(sizes), dim=0)
    member_RE = expert_of_row.to(h_NR.device)
    return torch.stack([(h_Nr @ gram_rR * h_NR) @ member_RE for h_Nr, gram_rR in parts], dim=-2)


def output_overlap(
    output_gram: torch.Tensor,
    p: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    k: int = 3,
    form: Form = "paper",
    across_processes: bool = False,
) -> torch.Tensor:
    """AESL's orthogonality loss L_o per router: squared projections of chosen experts' outputs on each other (Eq. 6).

    Canonical scale: squared length of outputs, mean over tokens (the paper prints a sum): Σ_j Σ_{i≠j} over the k
    experts of a token, or with ``form="code"`` the mean over them. The probabilities only choose, so with frozen
    experts the gradient reaches a router through the inputs of later sites alone.

    Args:
        output_gram: inner products of the experts' outputs ``[..., N, E, E]``, see :func:`expert_output_gram`.
        p: probabilities ``[..., N, E]``; the k largest are the chosen experts.
        mask: tokens that count.
        k: how many experts a token chooses.
        form: ``paper`` or ``code``, see the module.
        across_processes: see the package.

    Raises:
        RoutingError: an unknown form.
    """
    check_form(form)
    chosen = p.topk(min(k, p.shape[-1]), dim=-1).indices
    gram = output_gram.take_along_dim(chosen.unsqueeze(-1), dim=-2).take_along_dim(chosen.unsqueeze(-2), dim=-1)
    squares = gram.diagonal(dim1=-2, dim2=-1)
    if form == "paper":
        ratios = squares / (squares + SMALLEST) ** 2
        per_pair = gram**2 * ratios.unsqueeze(-2)
        overlap = per_pair.sum(dim=(-2, -1)) - per_pair.diagonal(dim1=-2, dim2=-1).sum(dim=-1)
    else:
        # The part of output i outside the span of the others has the square 1 / (G⁻¹)_ii (Schur complement).
        ridge = RIDGE * squares.mean(dim=-1, keepdim=True) + SMALLEST
        ridged = gram + torch.diag_embed(ridge.expand_as(squares))
        outside = 1 / torch.linalg.inv(ridged).diagonal(dim1=-2, dim2=-1)
        overlap = (squares + ridge - outside).mean(dim=-1)
    return mean_of_tokens(overlap, mask, across_processes)


def probability_variance(
    p: torch.Tensor, mask: torch.Tensor | None = None, *, form: Form = "paper", across_processes: bool = False
) -> torch.Tensor:
    """The variance that AESL raises, per router (Eq. 7, whose L_v is minus this).

    Canonical scale: ``paper``: mean over tokens (the paper prints a sum) and experts of (p − p̄)², so E times it is the
    token-awareness of LoRA-Mixer's Eq. 10. ``code``: mean over tokens of the unbiased variance over experts.

    Args:
        p: probabilities ``[..., N, E]``.
        mask: tokens that count.
        form: ``paper`` or ``code``, see the module.
        across_processes: see the package.

    Raises:
        RoutingError: an unknown form.
    """
    check_form(form)
    if form == "code":
        return mean_of_tokens(p.var(dim=-1, correction=min(1, p.shape[-1] - 1)), mask, across_processes)
    mean = mean_over_tokens(p, mask, across_processes).unsqueeze(-2)
    return mean_of_tokens(((p - mean) ** 2).mean(dim=-1), mask, across_processes)


def aesl(
    p: torch.Tensor,
    output_gram: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    balance_weight: float,
    orthogonality_weight: float,
    variance_weight: float,
    k: int = 3,
    usage: Usage = "top_k",
    scale: Scale = "unit",
    form: Form = "paper",
    across_processes: bool = False,
) -> torch.Tensor:
    """AESL per router: α · balance + β · L_o − γ · variance (Eq. 5).

    The parts are :func:`load_balance`, :func:`output_overlap` and :func:`probability_variance`, with their scales.
    """
    balance = load_balance(p, mask, usage=usage, k=k, scale=scale, across_processes=across_processes)
    overlap = output_overlap(output_gram, p, mask, k=k, form=form, across_processes=across_processes)
    variance = probability_variance(p, mask, form=form, across_processes=across_processes)
    return balance_weight * balance + orthogonality_weight * overlap - variance_weight * variance
