"""Sums over the processes of a data-parallel run, with gradient.

The balance term is a product of means (p̄ · f̄), which differs between a batch and the average over its parts, so
data-parallel training needs the means of the whole batch (Qiu et al., 2025, arXiv 2501.11873, on f̄). The loss of
Transformers' own mixtures takes the means of each process alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import distributed


def process_count() -> int:
    """Processes that train together; 1 without an initialised process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def sum_over_processes(values: torch.Tensor) -> torch.Tensor:
    """Sum of a tensor over all processes, the same on each of them; every process must call it.

    The gradient is summed over processes too. A process thereby receives what its own values contribute to the losses
    of all processes, and the average that data-parallel training then takes over processes is the gradient of the
    average of their losses.

    Args:
        values: any shape, the same on all processes.
    """
    return _Sum.apply(values)


class _Sum(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        return _summed(values)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        return _summed(gradients[0])


def _summed(values: torch.Tensor) -> torch.Tensor:
    total = values.clone(memory_format=torch.contiguous_format)
    distributed.all_reduce(total)
    return total
