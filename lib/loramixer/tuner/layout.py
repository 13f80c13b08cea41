"""`SiteLayout`: where each expert's rows lie in the matrices of one site."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import torch


@dataclass(frozen=True)
class SiteLayout:
    """Experts of one site, on top of each other: expert e owns ``ranks[e]`` rows of A and of B.

    Attributes:
        ranks: rank of each expert, 0 where it does not change this site.
        scalings: its scaling (lora_alpha / r or lora_alpha / √r), 0 where it is absent.
    """

    ranks: tuple[int, ...]
    scalings: tuple[float, ...]

    @classmethod
    def of(cls, entries: Sequence[tuple[int, float] | None]) -> SiteLayout:
        """From ``(rank, scaling)`` of each expert, None where it is absent."""
        return cls(
            tuple(entry[0] if entry else 0 for entry in entries),
            tuple(entry[1] if entry else 0.0 for entry in entries),
        )

    @cached_property
    def rows(self) -> int:
        """R, the number of rows of all experts together."""
        return sum(self.ranks)

    @cached_property
    def uniform(self) -> tuple[int, float] | None:
        """``(rank, scaling)`` where all experts have the same ones; the mixture then needs no index."""
        same = len(set(self.ranks)) == 1 and len(set(self.scalings)) == 1 and self.ranks[0] > 0
        return (self.ranks[0], self.scalings[0]) if same else None

    @cached_property
    def starts(self) -> tuple[int, ...]:
        """First row of each expert."""
        return tuple(accumulate(self.ranks, initial=0))[:-1]

    def slice_of(self, expert: int) -> slice:
        """The rows of one expert."""
        return slice(self.starts[expert], self.starts[expert] + self.ranks[expert])

    def expert_of_row(self) -> torch.Tensor:
        """int64 ``[R]``: the expert that a row belongs to."""
        return torch.repeat_interleave(torch.arange(len(self.ranks)), torch.tensor(self.ranks))

    def scaling_of_row(self) -> torch.Tensor:
        """float32 ``[R]``: the scaling of the expert that a row belongs to."""
        return torch.tensor(self.scalings)[self.expert_of_row()]

    def absent(self) -> torch.Tensor:
        """bool ``[E]``: experts that do not change this site."""
        return torch.tensor(self.ranks) == 0
