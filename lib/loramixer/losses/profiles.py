"""GMoE: probabilities of a token, and the load, are pulled to the profile of a known distribution.

Source: Bai et al., GMoE (2024, arXiv 2412.16216), Eq. 6–9, and its released code, `tzjs2015II/GMoE`,
``gmoe/common/mix_lora.py:406-436`` (no licence: read for facts). Where the two differ, ``form`` chooses:

- Eq. 7 and 9 are divergences Σ v log(v / found); the code sums v |log(v / found)|.
- The paper compares the load of expert i with the i-th share of the Normal profile, i = 1…E, so it prefers the experts
  in the middle by their number. The code sorts both sides, so that any expert can be preferred. (Its i runs from 0,
  which mirrors the profile about E / 2: once sorted it is the same.)
- The paper learns σ, and the code means to learn λ and σ, but holds both as plain tensors that no optimiser sees. Here
  they are settings, with the code's initial values.
- The code adds up the load over the whole run, with the past detached, so that its gradient fades as the run goes on.
  Here the load is that of the batch in both forms, so that a resumed run is the same run.
"""

from __future__ import annotations

import torch

from loramixer.losses.tokens import SMALLEST, Form, check_form, finite_log, mean_of_tokens, mean_over_tokens

POISSON_RATE = 1.5
"""Initial λ of the released code, which keeps it between 1 and 2."""


def poisson_distinction(
    p: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    rate: float = POISSON_RATE,
    form: Form = "paper",
    across_processes: bool = False,
) -> torch.Tensor:
    """How far single tokens are from a Poisson profile, per router (GMoE, Eq. 6–7): 0 when they follow it.

    The probabilities of a token, the largest first, are compared with λ^i e^−λ / i! at i = 1…E, made to sum to 1.
    Canonical scale: mean over tokens of a divergence in nats.

    Args:
        p: probabilities ``[..., N, E]``.
        mask: tokens that count.
        rate: λ of the profile.
        form: ``paper`` or ``code``, see the module.
        across_processes: see the package.

    Raises:
        RoutingError: an unknown form.
    """
    ranks = torch.arange(1, p.shape[-1] + 1, dtype=p.dtype, device=p.device)
    log_profile = torch.log_softmax(ranks * p.new_tensor(rate).log() - torch.lgamma(ranks + 1), dim=-1)
    return mean_of_tokens(_distance(log_profile, p.sort(dim=-1, descending=True).values, form), mask, across_processes)


def normal_balance(
    p: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    k: int = 2,
    std: float | None = None,
    form: Form = "paper",
    across_processes: bool = False,
) -> torch.Tensor:
    """How far the load is from a Normal profile, per router (GMoE, Eq. 8–9): 0 when it follows it.

    The load of an expert is the probability that the tokens which chose it gave it; all loads are made to sum to 1.
    The mean of the profile is E / 2. Canonical scale: a divergence in nats.

    Args:
        p: probabilities ``[..., N, E]``.
        mask: tokens that count.
        k: how many experts a token chooses.
        std: σ of the profile; E / 2 by default, the initial value of the released code.
        form: ``paper`` or ``code``, see the module.
        across_processes: see the package.

    Raises:
        RoutingError: an unknown form.
    """
    experts = p.shape[-1]
    weights, chosen = p.topk(min(k, experts), dim=-1)
    load = mean_over_tokens(torch.zeros_like(p).scatter(-1, chosen, weights), mask, across_processes)
    load = load / load.sum(dim=-1, keepdim=True).clamp_min(SMALLEST)
    numbers = torch.arange(1, experts + 1, dtype=p.dtype, device=p.device)
    mean, std = experts / 2, experts / 2 if std is None else std
    log_profile = torch.log_softmax(-((numbers - mean) ** 2) / (2 * std**2), dim=-1)
    if form == "code":
        log_profile, load = (values.sort(dim=-1, descending=True).values for values in (log_profile, load))
    return _distance(log_profile, load, form)


def gmoe(
    p: torch.Tensor,
    mask: torch.Tensor | None = None,
    *,
    poisson_weight: float = 0.005,
    normal_weight: float = 8.0,
    k: int = 2,
    form: Form = "paper",
    across_processes: bool = False,
) -> torch.Tensor:
    """GMoE's pair of losses per router: weighted :func:`poisson_distinction` and :func:`normal_balance`.

    Canonical scale: both are divergences in nats, 0 at their profile.
    """
    poisson = poisson_distinction(p, mask, form=form, across_processes=across_processes)
    normal = normal_balance(p, mask, k=k, form=form, across_processes=across_processes)
    return poisson_weight * poisson + normal_weight * normal


def _distance(log_profile: torch.Tensor, found: torch.Tensor, form: Form) -> torch.Tensor:
    check_form(form)
    log_ratio = log_profile - finite_log(found)
    return (log_profile.exp() * (log_ratio.abs() if form == "code" else log_ratio)).sum(dim=-1)
