"""A router and then two experts, as one of several processes: ``EXPERTS BACKBONE OUTPUT [STEP]``.

With a step the router's training ends there with an error; without, it goes on to its end.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from loramixer.training.experts import train_experts
from loramixer.training.presets import find_preset
from loramixer.training.routers import find_experts, train_router


class StopAt(TrainerCallback):
    """Stands for whatever ends a run early."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raise when this many steps are done."""
        if state.global_step == self.step:
            raise RuntimeError(f"stopped at step {self.step}")


def main() -> None:
    """Train."""
    experts, backbone, output, *step = sys.argv[1:]
    preset = find_preset("cpu-small")
    train_router(
        Path(output) / "router",
        find_experts(experts),
        backbone=backbone,
        examples=20,
        dtype=torch.float32,
        routers_only=True,
        preset=replace(preset, routers=replace(preset.routers, save_steps=1, epochs=2)),
        callbacks=[StopAt(int(step[0]))] if step else [],
    )
    for jointly in (False, True):
        folder = Path(output) / ("jointly" if jointly else "one by one")
        train_experts(folder, ["math", "language"], backbone=backbone, limit=8, rank=2, jointly=jointly)


if __name__ == "__main__":
    main()
