"""Routing losses. Pure functions of what routers and experts gave; padding is excluded by a mask.

Shapes: ``p`` is ``[..., N, E]``: any number of routers in the leading axes (sites), N tokens, E experts, rows summing
to 1. ``mask`` is ``[N]`` or ``[..., N]``, true for tokens that count. Every loss but :func:`preservation` returns one
value per router (the leading axes of ``p``); :func:`reduce_over_routers` turns them into the scalar that is trained.

Every docstring states the canonical scale of its loss, so that coefficients can be compared, and where it comes from.
Values are means over tokens: where a paper prints a sum over tokens, that would make the coefficient depend on the
size of the batch. Entropies and divergences are in nats. `docs/losses.md` has all of them on one page.

``across_processes`` takes every mean over the tokens of all processes of a data-parallel run, so that the loss does
not depend on how a batch is spread over them. All processes must then call the function.
"""

from loramixer.losses.balance import Scale, Usage, expert_usage, load_balance
from loramixer.losses.entropy import Entropy, ds_moe, load_entropy, rsl, token_entropy
from loramixer.losses.labels import supervised
from loramixer.losses.logits import router_z
from loramixer.losses.outputs import aesl, expert_output_gram, output_overlap, probability_variance
from loramixer.losses.profiles import gmoe, normal_balance, poisson_distinction
from loramixer.losses.tokens import (
    Form,
    Reduction,
    mean_over_tokens,
    pool_routers,
    reduce_over_routers,
)
from loramixer.losses.weights import preservation

__all__ = [
    "Entropy",
    "Form",
    "Reduction",
    "Scale",
    "Usage",
    "aesl",
    "ds_moe",
    "expert_output_gram",
    "expert_usage",
    "gmoe",
    "load_balance",
    "load_entropy",
    "mean_over_tokens",
    "normal_balance",
    "output_overlap",
    "poisson_distinction",
    "pool_routers",
    "preservation",
    "probability_variance",
    "reduce_over_routers",
    "router_z",
    "rsl",
    "supervised",
    "token_entropy",
]
