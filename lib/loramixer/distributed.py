"""Data-parallel runs: which process this one is, and sums over all of them, with gradient; and layers on many devices.

The balance term is a product of means (p̄ · f̄), which differs between a batch and the average over its parts, so
data-parallel training needs the means of the whole batch (Qiu et al., 2025, arXiv 2501.11873, on f̄). The loss of
Transformers' own mixtures takes the means of each process alone.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import distributed


def process_count() -> int:
    """Processes that train together; 1 without an initialised process group."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def launched_processes() -> int:
    """Processes that `accelerate launch` or `torchrun` started for this run, before they know each other too."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_main_process() -> bool:
    """Whether this is the process that speaks and writes files."""
    return int(os.environ.get("RANK", "0")) == 0


def say(text: str) -> None:
    """Print a line, once for all processes."""
    if is_main_process():
        print(text, flush=True)


def wait_for_processes() -> None:
    """Go on when every process has come here."""
    if process_count() > 1:
        distributed.barrier()


def stack_on_first(parts: Sequence[torch.Tensor]) -> torch.Tensor:
    """``torch.stack`` of tensors that a `device_map` may have spread over several devices, on that of the first."""
    return torch.stack([part.to(parts[0].device) for part in parts])


def mean_over_processes(value: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Weighted mean of a number over all processes, without gradient; every process must call it.

    Args:
        value: any shape; ignored where ``weight`` is 0, and may be NaN there.
        weight: how much of the mean this process holds, of the shape of ``value``; NaN where it is 0 everywhere.
    """
    if process_count() == 1:
        return value.detach()
    weight = weight.to(torch.float32)
    sums = torch.stack([torch.where(weight > 0, value.detach().float() * weight, 0.0), weight])
    total, weights = _summed(sums)
    return total / weights


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
