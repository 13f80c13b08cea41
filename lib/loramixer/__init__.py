"""LoRA-Mixer: several LoRA experts, mixed token by token inside the projections of a model.

Importing this package registers the method with PEFT, so that ``get_peft_model`` and ``PeftModel.from_pretrained``
know it. The training functions are imported when they are first used, since the Trainer takes a second.
"""

from typing import TYPE_CHECKING, Any

from loramixer.backbones import load_backbone
from loramixer.data import Example
from loramixer.errors import LoraMixerError
from loramixer.mixers import MixerInfo, add_mixer, list_mixers, load_mixer, push_mixer
from loramixer.trace import RoutingTrace, stream_trace, trace
from loramixer.training.run_log import RunLog
from loramixer.tuner import LoraMixerConfig
from loramixer.tuner.editing import add_expert, remove_expert, rename_expert
from loramixer.tuner.export import export_expert, export_static
from loramixer.tuner.intervening import Intervention, intervene
from loramixer.tuner.runtime import capture_routing, mask_experts, set_gate
from loramixer.versions import __version__

if TYPE_CHECKING:
    from loramixer.training.experts import train_experts
    from loramixer.training.routers import train_router

__all__ = [
    "Example",
    "Intervention",
    "LoraMixerConfig",
    "LoraMixerError",
    "MixerInfo",
    "RoutingTrace",
    "RunLog",
    "__version__",
    "add_expert",
    "add_mixer",
    "capture_routing",
    "export_expert",
    "export_static",
    "intervene",
    "list_mixers",
    "load_backbone",
    "load_mixer",
    "mask_experts",
    "push_mixer",
    "remove_expert",
    "rename_expert",
    "set_gate",
    "stream_trace",
    "trace",
    "train_experts",
    "train_router",
]


def __getattr__(name: str) -> Any:
    if name == "train_experts":
        from loramixer.training.experts import train_experts

        return train_experts
    if name == "train_router":
        from loramixer.training.routers import train_router

        return train_router
    raise AttributeError(f"module 'loramixer' has no attribute '{name}'")
