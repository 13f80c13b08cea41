"""Means over the tokens that count, and over routers: what every routing loss is built of."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from loramixer.distributed import process_count, sum_over_processes
from loramixer.errors import RoutingError

Reduction = Literal["per_site", "pooled"]
Form = Literal["paper", "code"]
"""Which of the two is meant where the released code of a paper differs from it."""

SMALLEST = 1e-9
"""Keeps log finite where a probability underflows to 0."""


def finite_log(p: torch.Tensor) -> torch.Tensor:
    """log p of probabilities, finite at 0; float16 has no number as small as :data:`SMALLEST`."""
    return p.clamp_min(max(SMALLEST, torch.finfo(p.dtype).tiny)).log()


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


def mean_of_tokens(
    value_per_token: torch.Tensor, mask: torch.Tensor | None, across_processes: bool = False
) -> torch.Tensor:
    """Mean of ``[..., N]`` over the tokens where the mask is true: ``[...]``."""
    return mean_over_tokens(value_per_token.unsqueeze(-1), mask, across_processes).squeeze(-1)


def pool_routers(p: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Concatenate the tokens of all routers ``[S, N, E] → [1, S·N, E]``, as Mixtral's loss does.

    Pooled routers can cancel each other: two layers that each collapse on a different expert look balanced.
    """
    pooled_mask = None if mask is None else mask.expand(p.shape[:-1]).reshape(1, -1)
    return p.reshape(1, -1, p.shape[-1]), pooled_mask


def reduce_over_routers(per_router: torch.Tensor) -> torch.Tensor:
    """Mean over routers: the scalar that is added to the task loss."""
    return per_router.mean()


def check_form(form: str) -> None:
    """Raise a RoutingError unless ``form`` is known."""
    if form not in get_args(Form):
        raise RoutingError(f"form is '{form}'; it can be {' or '.join(get_args(Form))}.")
