"""`ExpertAdamW`: AdamW for experts that lie in one parameter, each with steps and moments of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loramixer.tuner.layer import LoraMixerLayer


@dataclass(frozen=True)
class _Slice:
    whole: torch.Tensor
    rows: slice
    part: nn.Parameter
    expert: int


class ExpertAdamW(torch.optim.AdamW):
    """Updates the experts of a mixture that a step reached, and leaves the others bit-equal.

    A mixture holds all experts of a projection in one parameter. AdamW would move all of it at every step: weight
    decay and the moments of earlier steps act on rows whose gradient is zero, and one count of steps serves all. Here
    every expert is a parameter to AdamW, a view of its rows; one that received no gradient is passed over, as AdamW
    passes over a parameter without gradient. Moments and steps of an expert are then those of its own rows only.

    Args:
        model: a PEFT model with a mixture whose experts train.
        **settings: of AdamW.
    """

    def __init__(self, model: nn.Module, **settings: Any) -> None:
        self.slices = [
            _Slice(matrix, layout.slice_of(expert), nn.Parameter(matrix.data[layout.slice_of(expert)]), expert)
            for layer in model.modules()
            if isinstance(layer, LoraMixerLayer)
            for adapter, layout in layer.layouts.items()
            for matrix in layer.matrices(adapter)
            for expert, rank in enumerate(layout.ranks)
            if rank
        ]
        super().__init__([part.part for part in self.slices], **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        """One step of AdamW for the experts that received any gradient."""
        reached = {
            part.expert for part in self.slices if part.whole.grad is not None and part.whole.grad[part.rows].any()
        }
        for part in self.slices:
            # Views anew at every step: moving a model to another device gives its parameters other memory.
            part.part.data = part.whole.data[part.rows]
            part.part.grad = part.whole.grad[part.rows] if part.expert in reached else None  # type: ignore[index]
        return super().step(closure)  # type: ignore[no-any-return, func-returns-value]
