"""How long a training will take and how much memory, before it begins, and how that was found."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from loramixer.errors import LoraMixerError
from loramixer.mixers import MixerInfo, mixer_folder
from loramixer.training.presets import CPU_SMALL
from loramixer.training.run_log import RunLog

PLAIN_MATRIX_BYTES = 7
"""Of one entry of a kept attention matrix: its softmax in float32, a copy in bfloat16, and the mask."""

ACTIVATION_VALUES = 12
"""Values that a layer keeps for the backward pass, for each entry of its inputs and of its feed-forward block."""

FIXED_BYTES = 700_000_000
"""Python and PyTorch themselves."""


@dataclass(frozen=True)
class Speed:
    """What a training that has ended took.

    Attributes:
        tokens_per_second: of the whole run.
        tokens_per_row: mean over its rows.
        here: whether it ran on this machine, since the server started.
    """

    tokens_per_second: float
    tokens_per_row: float
    here: bool


@dataclass(frozen=True)
class Estimate:
    """Time and memory of a training.

    Attributes:
        seconds: None where no run log gives a speed.
        bytes: at the longest rows.
        text: both, and how they were found, for people.
    """

    seconds: float | None
    bytes: int
    text: str


def logged_speed(mixers: Sequence[MixerInfo], backbone: str) -> Speed | None:
    """The speed of the fastest shipped router of a backbone, from the run logs: the others had company meanwhile."""
    found = [_shipped_speed(mixer.name) for mixer in mixers if mixer.backbone == backbone]
    return max(filter(None, found), key=lambda speed: speed.tokens_per_second, default=None)


def _shipped_speed(mixer: str) -> Speed | None:
    try:
        return _speed_in(mixer_folder(mixer))
    except (LoraMixerError, OSError, ValueError, KeyError):
        return None


@functools.cache
def _speed_in(folder: Path) -> Speed | None:
    """From the log of a shipped router, which does not change; asked for with every setting that is moved."""
    return speed_of(asdict(RunLog.load(folder)), here=False)


def speed_of(log: dict[str, Any], here: bool) -> Speed | None:
    """The speed of a whole run from its log."""
    summary, rows = log.get("summary", {}), sum(log.get("settings", {}).get("rows", {}).values())
    if not summary.get("seconds") or not summary.get("tokens") or not rows:
        return None
    # A run that ended early has not seen all the rows that its summary counts; its last logged step says what it saw.
    last = next((row for row in reversed(log.get("steps", [])) if row.get("seconds") and row.get("tokens")), summary)
    return Speed(last["tokens"] / last["seconds"], summary["tokens"] / rows, here)


def estimate(backbone: str, experts: int, examples: int, speed: Speed | None) -> Estimate:
    """Time from tokens and a known speed; memory from the shapes of the backbone.

    Args:
        backbone: name of the catalogue, folder or Hub id whose configuration is on disk.
        experts: number of experts.
        examples: rows.
        speed: of an earlier training on this backbone.
    """
    needed = memory_bytes(backbone, experts)
    sentences = []
    seconds = None
    if speed is not None:
        tokens = examples * speed.tokens_per_row
        seconds = tokens / speed.tokens_per_second
        where = "the last training here" if speed.here else "the fastest shipped router, where it was trained"
        sentences.append(
            f"About {duration(seconds)}: {tokens:,.0f} tokens, at the {speed.tokens_per_second:.0f} tokens/s of "
            f"{where}."
        )
    else:
        sentences.append("How long it takes is known after the first steps: no run log of this backbone is here.")
    settings = CPU_SMALL.routers
    least = ""
    if speed is not None:
        mean = round(min(speed.tokens_per_row, settings.max_length))
        usual = memory_bytes(backbone, experts, mean)
        least = f"About {usual / 1e9:.1f} GB of memory at rows of the mean length ({mean} tokens), and up"
    sentences.append(
        f"{least or 'Up'} to {needed / 1e9:.1f} GB{'' if least else ' of memory'} at {settings.batch_size} rows of "
        f"{settings.max_length} tokens at once, computed from the backbone's shapes; the part of attention grows with "
        "the square of a row."
    )
    if (free := free_bytes()) is not None and free < needed:
        sentences.append(f"Only {free / 1e9:.1f} GB are free now, so it may be ended by the system.")
    return Estimate(seconds, needed, " ".join(sentences))


@functools.lru_cache(maxsize=64)
def memory_bytes(backbone: str, experts: int, row_tokens: int = CPU_SMALL.routers.max_length) -> int:
    """Memory with rows of one length, the longest allowed by default, from the configuration alone."""
    from loramixer.shapes import meta_model, read_config
    from loramixer.training.loop import fast_training_dtype

    config = read_config(backbone)
    value = fast_training_dtype().itemsize
    parameters = sum(parameter.numel() for parameter in meta_model(config).parameters())
    hidden = int(config.hidden_size)
    inner = int(getattr(config, "intermediate_size", None) or 4 * hidden)
    layers = int(config.num_hidden_layers)
    heads = int(getattr(config, "num_attention_heads", 0) or 0)
    rank = CPU_SMALL.rank
    rows = CPU_SMALL.routers.batch_size
    # Four projections of about hidden × hidden with A and B, and what they keep of every token for the backward pass.
    adapters = experts * layers * 4 * 2 * hidden * rank * 4
    kept = rows * row_tokens * layers * (ACTIVATION_VALUES * hidden + 4 * inner + 4 * experts * rank) * value
    attention = layers * heads * rows * row_tokens**2 * PLAIN_MATRIX_BYTES
    return FIXED_BYTES + parameters * value + adapters + kept + attention


def free_bytes() -> int | None:
    """Memory that can be had now; None where the system does not say."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="ascii").splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))
    except (OSError, StopIteration, ValueError, IndexError):
        return None


def duration(seconds: float) -> str:
    """For people: ``40 s``, ``12 min``, ``3.5 h``."""
    if seconds < 90:
        return f"{max(1, round(seconds))} s"
    return f"{round(seconds / 60)} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
