"""`LoopSettings`: how a run steps through its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from loramixer.errors import LoraMixerError


@dataclass(frozen=True)
class LoopSettings:
    """How a run steps through its rows; the defaults fit a laptop CPU.

    Attributes:
        learning_rate: peak of the cosine schedule.
        batch_size: rows per forward pass; the means of the balance term are over these.
        accumulation: forward passes per optimiser step.
        epochs: passes over the rows.
        warmup: share of the steps over which the learning rate rises.
        weight_decay: of AdamW.
        save_steps: optimiser steps between checkpoints.
        log_steps: optimiser steps between rows of the run log.
        max_length: longest row in tokens.
        max_answer: longest answer in tokens.
        group_by_length: rows of like length share a batch, on backbones whose rows must be padded; fewer domains then
            meet in a batch, which the balance term must not have.
        autocast: multiply in bfloat16 while the weights stay as they are; for weights in float32 that all train.
        seed: orders the rows and initialises new weights.
        report_to: where metrics go besides the run log: ``none``, ``trackio`` or ``tensorboard``.

    Raises:
        LoraMixerError: a batch or a length of less than one, or a learning rate below zero.
    """

    learning_rate: float
    batch_size: int = 8
    accumulation: int = 1
    epochs: float = 1
    warmup: float = 0.1
    weight_decay: float = 0.0
    save_steps: int = 25
    log_steps: int = 5
    max_length: int = 512
    max_answer: int = 256
    group_by_length: bool = False
    autocast: bool = False
    seed: int = 0
    report_to: str = "none"

    def __post_init__(self) -> None:
        for name in ("batch_size", "max_length", "max_answer"):
            if getattr(self, name) < 1:
                raise LoraMixerError(f"{name} is {getattr(self, name)}; give a whole number of at least 1.")
        if self.learning_rate < 0:
            raise LoraMixerError(f"learning_rate is {self.learning_rate}; give a number of at least 0.")

    def changed(self, **given: Any) -> LoopSettings:
        """These settings with other values for some of them; None leaves a setting as it is."""
        return replace(self, **{name: value for name, value in given.items() if value is not None})
