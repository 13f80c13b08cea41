"""Named settings of both stages: the paper's own, and those that train what ships on a laptop CPU."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from loramixer.errors import LoraMixerError
from loramixer.training.settings import LoopSettings


@dataclass(frozen=True)
class Preset:
    """Settings of both stages.

    Attributes:
        name: of the preset.
        rank: r of new experts.
        lora_alpha: of new experts.
        dropout: on the input of the experts while they train.
        experts: loop of stage 1.
        routers: loop of stage 2.
        mixture: fields of :class:`loramixer.LoraMixerConfig` for stage 2.
        preservation_weight: β, where experts train along and some are to be preserved.
    """

    name: str
    rank: int
    lora_alpha: float
    dropout: float
    experts: LoopSettings
    routers: LoopSettings
    mixture: dict[str, Any]
    preservation_weight: float


PAPER = Preset(
    name="paper",
    rank=64,
    lora_alpha=128,
    dropout=0.1,
    experts=LoopSettings(learning_rate=1e-5, batch_size=1, accumulation=4, warmup=0.1),
    routers=LoopSettings(learning_rate=1e-5, batch_size=1, accumulation=4, warmup=0.1),
    # α belongs to Σ p̄ f̄ as Eq. 5 prints it, without the factor K; λ is 0.5 in A.6 and 0.05 in A.8, the best there.
    mixture={
        "balance_weight": 0.1,
        "entropy_weight": 0.05,
        "scale": "paper",
        "training_gate": "top_k",
        "top_k": 3,
        "dropout": 0.1,
    },
    preservation_weight=5e-5,
)
"""Appendix A.6 of the paper, for backbones of 7–8 billion parameters. With one row per forward the balance term sees
one domain at a time, as it is printed there."""

CPU_SMALL = Preset(
    name="cpu-small",
    rank=16,
    lora_alpha=32,
    dropout=0.05,
    experts=LoopSettings(learning_rate=8e-4, batch_size=8, accumulation=1, warmup=0.05, group_by_length=True),
    routers=LoopSettings(learning_rate=5e-3, batch_size=8, accumulation=1, warmup=0.1),
    mixture={"balance_weight": 1.0, "entropy_weight": 0.3},
    preservation_weight=5e-5,
)
"""What ships: a backbone of 135 million parameters, 2,000 rows, two cores."""

CPU_TINY = Preset(
    name="cpu-tiny",
    rank=8,
    lora_alpha=16,
    dropout=0.0,
    experts=LoopSettings(
        learning_rate=3e-3, batch_size=8, warmup=0.05, max_length=256, max_answer=160, group_by_length=True
    ),
    # Rows of a state-space backbone cannot lie in one line, and the balance term needs several domains in a batch.
    routers=LoopSettings(learning_rate=1e-2, batch_size=16, warmup=0.1, max_length=192, max_answer=128),
    mixture={"balance_weight": 1.0, "entropy_weight": 0.3},
    preservation_weight=5e-5,
)
"""The shipped Falcon-Mamba: a backbone of about a million parameters, on one core."""

PRESETS: dict[str, Preset] = {preset.name: preset for preset in (CPU_SMALL, CPU_TINY, PAPER)}


def find_preset(preset: str | Preset) -> Preset:
    """A preset by its name.

    Raises:
        LoraMixerError: there is none of this name.
    """
    if isinstance(preset, Preset):
        return preset
    if preset not in PRESETS:
        raise LoraMixerError(f"There is no preset '{preset}'; there are {', '.join(PRESETS)}.")
    return PRESETS[preset]
