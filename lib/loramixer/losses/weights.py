"""Preservation, a function of the experts' weights."""

from __future__ import annotations

from collections.abc import Iterable

import torch

from loramixer.distributed import stack_on_first


def preservation(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> torch.Tensor:
    """Σ ‖θ − θ⁰‖² over the matrices of the preserved experts (paper, Eq. 11, without its β): a scalar.

    Canonical scale: squared entries of A and B as they are stored, summed over all sites, whatever the batch.

    Args:
        pairs: ``(θ, θ⁰)`` of every matrix: what it is, and what it was when training began.
    """
    return stack_on_first([((current - initial) ** 2).sum() for current, initial in pairs]).sum()
