"""The supervised loss, a function of probabilities and of each token's own expert."""

from __future__ import annotations

import torch

from loramixer.losses.tokens import finite_log, mean_of_tokens


def supervised(
    p: torch.Tensor, own_expert: torch.Tensor, mask: torch.Tensor | None = None, across_processes: bool = False
) -> torch.Tensor:
    """Cross-entropy E[−log p_own(x)] of every token's own expert, per router: an upper bound, since it is told.

    Canonical scale: nats per token, ln K for even probabilities. It is the loss of MeteoRA, the cross-entropy of the
    task at every token and router (its ``modeling_llama_meteor.py:171-257``).

    Args:
        p: probabilities ``[..., N, E]``.
        own_expert: int64 ``[N]`` or ``[..., N]``; tokens with a negative one have none and do not count. Where the own
            expert is absent from a site (p = 0) they do not count either.
        mask: tokens that count.
        across_processes: see the package.
    """
    own_expert = own_expert.to(p.device).expand(p.shape[:-1])
    p_own = p.gather(-1, own_expert.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    counts = (own_expert >= 0) & (p_own > 0)
    return mean_of_tokens(-finite_log(p_own), counts if mask is None else counts & mask, across_processes)
