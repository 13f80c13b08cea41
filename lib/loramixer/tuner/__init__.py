"""LoRA-Mixer as a PEFT method; importing this package registers it.

PEFT's own `register_peft_method` accepts members of PEFT's enum only, so the three dictionaries behind it are filled
directly, under a one-member enum of ours. Its name must equal its value: PEFT looks types up by the name's hash, and
Transformers derives the parameter prefix from the value.
"""

from __future__ import annotations

import warnings

from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING, PEFT_TYPE_TO_PREFIX_MAPPING, PEFT_TYPE_TO_TUNER_MAPPING

from loramixer.tuner.config import LoraMixerConfig, MixerPeftType
from loramixer.tuner.layer import LoraMixerLayer
from loramixer.tuner.model import LoraMixerModel

PEFT_TYPE_TO_CONFIG_MAPPING[MixerPeftType.LORA_MIXER] = LoraMixerConfig  # type: ignore[index]
PEFT_TYPE_TO_TUNER_MAPPING[MixerPeftType.LORA_MIXER] = LoraMixerModel  # type: ignore[index]
PEFT_TYPE_TO_PREFIX_MAPPING[MixerPeftType.LORA_MIXER] = LoraMixerModel.prefix  # type: ignore[index]

# PEFT asks Transformers for a property by its former name whenever it takes a model; no user can change that.
warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated", category=FutureWarning)

__all__ = ["LoraMixerConfig", "LoraMixerLayer", "LoraMixerModel", "MixerPeftType"]
