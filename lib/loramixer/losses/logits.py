"""The router z-loss, a function of logits."""

from __future__ import annotations

import torch

from loramixer.losses.tokens import mean_of_tokens


def router_z(logits: torch.Tensor, mask: torch.Tensor | None = None, across_processes: bool = False) -> torch.Tensor:
    """Router z-loss E[(logsumexp_e z(x))²] per router: keeps logits small (Zoph et al., 2022, ST-MoE, Eq. 5).

    Canonical scale: squared nats, (ln K)² when all logits are 0. Equal to Transformers' ``router_z_loss_func``
    (`transformers/models/switch_transformers/modeling_switch_transformers.py`).

    Args:
        logits: ``[..., N, E]``, before the temperature; minus infinity for experts that are absent.
        mask: tokens that count.
        across_processes: see the package.
    """
    return mean_of_tokens(torch.logsumexp(logits, dim=-1) ** 2, mask, across_processes)
