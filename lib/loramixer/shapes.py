"""Backbones as shapes: configurations by name, and models on the ``meta`` device that hold no weights."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from loramixer.backbones import CATALOGUE
from loramixer.errors import BackboneError, HubError
from loramixer.hub import fetch, split_hub_id

ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The projections that the paper routes in (section 3.2), by their names in Llama-type models."""


@dataclass(frozen=True)
class Preset:
    """The shape of a public backbone, as its ``config.json`` states it.

    Attributes:
        hub_id: the public backbone that has this shape.
        model_type: what Transformers calls its architecture.
        fields: the fields of its configuration that decide shapes.
    """

    hub_id: str
    model_type: str
    fields: dict[str, Any]


PRESETS: dict[str, Preset] = {
    "llama3-8b": Preset(
        "meta-llama/Meta-Llama-3-8B",
        "llama",
        {
            "vocab_size": 128_256,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 8192,
        },
    ),
    "mistral-7b": Preset(
        "mistralai/Mistral-7B-v0.1",
        "mistral",
        {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 14_336,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "max_position_embeddings": 32_768,
        },
    ),
    "llama2-7b": Preset(
        "meta-llama/Llama-2-7b-hf",
        "llama",
        {
            "vocab_size": 32_000,
            "hidden_size": 4096,
            "intermediate_size": 11_008,
            "num_hidden_layers": 32,
            "num_attention_heads": 32,
            "num_key_value_heads": 32,
            "max_position_embeddings": 4096,
        },
    ),
    "qwen2.5-7b": Preset(
        "Qwen/Qwen2.5-7B",
        "qwen2",
        {
            "vocab_size": 152_064,
            "hidden_size": 3584,
            "intermediate_size": 18_944,
            "num_hidden_layers": 28,
            "num_attention_heads": 28,
            "num_key_value_heads": 4,
            "max_position_embeddings": 131_072,
        },
    ),
    "smollm2-135m": Preset(
        CATALOGUE["smollm2-135m"].public_name,
        "llama",
        {
            "vocab_size": 49_152,
            "hidden_size": 576,
            "intermediate_size": 1536,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "max_position_embeddings": 8192,
            "tie_word_embeddings": True,
        },
    ),
}
"""Shapes that need no file and no network, by short name; the Hub id is understood as well."""


def read_config(source: Any) -> Any:
    """The Transformers configuration of a backbone; no weights are fetched.

    Args:
        source: a configuration, a name or Hub id of :data:`PRESETS`, a ``config.json`` or its folder, or a Hub id.

    Raises:
        BackboneError: unknown, out of reach, or no configuration that Transformers knows.
    """
    from transformers import AutoConfig, PretrainedConfig

    if isinstance(source, PretrainedConfig):
        return source
    name = str(source)
    for short, preset in PRESETS.items():
        if name in (short, preset.hub_id):
            return AutoConfig.for_model(preset.model_type, name_or_path=preset.hub_id, **preset.fields)
    path = _config_file(name)
    try:
        fields = json.loads(path.read_text(encoding="utf-8"))
        return AutoConfig.for_model(fields.pop("model_type"), name_or_path=name, **fields)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackboneError(
            f"{path} is no configuration that Transformers knows ({str(error)[:160]}); the config.json of a model "
            "without remote code is needed."
        ) from error


def meta_model(source: Any) -> nn.Module:
    """A backbone on the ``meta`` device: all modules and shapes, no weights, in about a second.

    Args:
        source: as for :func:`read_config`; a model is returned as it is.
    """
    if isinstance(source, nn.Module):
        return source
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM

    config = read_config(source)
    kind = AutoModelForSeq2SeqLM if config.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        return kind.from_config(config, trust_remote_code=False)


def linear_sites(model: nn.Module, targets: tuple[str, ...]) -> dict[str, tuple[int, int]]:
    """In and out features of the linear layers whose names end in a target, by module name.

    Raises:
        BackboneError: a target that no linear layer has.
    """
    linear = {
        # GPT-2's Conv1D is a linear layer that names its sizes otherwise.
        name: (module.nx, module.nf) if isinstance(module, Conv1D) else (module.in_features, module.out_features)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
    }
    found = {name: shape for name, shape in linear.items() if name.rpartition(".")[2] in targets}
    missing = sorted(set(targets) - {name.rpartition(".")[2] for name in found})
    if missing:
        known = sorted({name.rpartition(".")[2] for name in linear})
        raise BackboneError(f"The backbone has no linear layer {missing[0]}; it has {', '.join(known)}.")
    return found


def _config_file(name: str) -> Path:
    known = CATALOGUE.get(name)
    path = known.folder if known and known.folder else Path(name)
    if path.is_file():
        return path
    if path.is_dir():
        return path / "config.json"
    named = split_hub_id(known.public_name if known else name)
    if named is None:
        raise BackboneError(
            f"'{name}' is no known shape; known are {', '.join(PRESETS)}, or give a config.json, its folder or a "
            "Hub id."
        )
    try:
        return fetch(*named, required=("config.json",)).folder / "config.json"
    except HubError as error:
        raise BackboneError(f"'{name}' is no known shape ({', '.join(PRESETS)}) and no file, and {error}.") from error
