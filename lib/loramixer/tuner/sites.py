"""Where experts can act in a backbone, and what the name of a site says: its block, and which tokens it sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, Literal

from peft import TaskType
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from peft.utils.constants import INCLUDE_LINEAR_LAYERS_SHORTHAND, SEQ_CLS_HEAD_NAMES
from torch import nn
from transformers.pytorch_utils import Conv1D

TokenStream = Literal["tokens", "encoder", "decoder", "unknown"]
"""The tokens that pass through a site: the only ones there are, or one of the two sides of an encoder–decoder."""

CROSS_ATTENTION = re.compile(r"encdecattention|encoder_attn|cross_?att", re.IGNORECASE)
"""In the names that Transformers gives to cross-attention."""

_KEY_OR_VALUE = re.compile(r"(k|v|kv|key|value|key_value)(_proj|_lin)?")


def linear_layers(model: nn.Module) -> dict[str, nn.Module]:
    """The linear layers of a backbone by module name, quantised ones and GPT-2's Conv1D too, without any adapters."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        layer = _base_layer(module)
        inside = isinstance(module, BaseTunerLayer) or ".base_layer" not in name
        if inside and isinstance(layer, nn.Linear | Conv1D) and ".lora_mixer_" not in name:
            found[name] = layer
    return found


def linear_shapes(model: nn.Module) -> dict[str, tuple[int, int]]:
    """In and out features of :func:`linear_layers`."""
    return {name: _get_in_out_features(layer) for name, layer in linear_layers(model).items()}


def is_all_linear(target_modules: Any) -> bool:
    """Whether `target_modules` is PEFT's word for :func:`hidden_linear_layers`."""
    return isinstance(target_modules, str) and target_modules.lower() == INCLUDE_LINEAR_LAYERS_SHORTHAND


def hidden_linear_layers(model: nn.Module, task_type: TaskType | str | None) -> set[str]:
    """Module names of all linear layers but the output embedding or, without one, the head of a classifier."""
    output = output_embedding(model)
    heads = [output]
    if output is None and task_type == TaskType.SEQ_CLS:
        heads = [getattr(model, name, None) for name in SEQ_CLS_HEAD_NAMES]
    layers = [_base_layer(head) for head in heads]
    return {name for name, layer in linear_layers(model).items() if not any(layer is head for head in layers)}


def output_embedding(model: nn.Module) -> nn.Module | None:
    """The matrix that makes logits, without any adapter, or None of a model that has none."""
    return _base_layer(getattr(model, "get_output_embeddings", lambda: None)())


def _base_layer(module: Any) -> Any:
    return module.get_base_layer() if isinstance(module, BaseTunerLayer) else module


def split_sites(modules: Sequence[str]) -> list[tuple[int, str, str]]:
    """``(layer, projection, module)`` of every routed module.

    The layer is the first number in the name. The projection is its last part, such as ``q_proj``; where this names
    several modules of one layer, the parts in which they differ stand before it: ``decoder.EncDecAttention.v``.
    """
    named = {}
    for last in dict.fromkeys(module.rpartition(".")[2] for module in modules):
        alike = [module for module in modules if module.rpartition(".")[2] == last]
        found = {module: (_layer(module), last) for module in alike}
        if len(set(found.values())) < len(alike):
            shared = set.intersection(*(set(module.split(".")) for module in alike))
            found = {module: (_layer(module), _differing_parts(module, shared)) for module in alike}
        if len(set(found.values())) < len(alike):  # numbered modules inside a block
            found = {module: (_layer(module), re.sub(r"^.*?\.\d+\.", "", module)) for module in alike}
        named.update(found)
    return [(*named[module], module) for module in modules]


def _layer(module: str) -> int:
    number = re.search(r"\.(\d+)\.", f".{module}")
    return int(number[1]) if number else 0


def _differing_parts(module: str, shared: set[str]) -> str:
    *parts, last = module.split(".")
    return ".".join([*(part for part in parts if part not in shared and not part.isdigit()), last])


def token_streams(model: nn.Module, modules: Sequence[str]) -> list[TokenStream]:
    """Which tokens every routed module sees.

    In an encoder–decoder the keys and values of cross-attention lie in the decoder and see the encoder's tokens.
    Transformers has a handful of names for cross-attention; in a model without any of them a key or value of the
    decoder cannot be told apart, and is ``unknown``.
    """
    config = getattr(model, "config", None)
    if not getattr(config, "is_encoder_decoder", False):
        return ["tokens" for _ in modules]
    names = {id(module): name for name, module in model.named_modules()}
    encoder = names[id(model.get_encoder())]  # type: ignore[operator]
    has_cross_attention = any(CROSS_ATTENTION.search(name) for name in names.values())

    def stream(module: str) -> TokenStream:
        if not encoder:
            return "unknown"
        if module.startswith(f"{encoder}."):
            return "encoder"
        if not _KEY_OR_VALUE.fullmatch(module.rpartition(".")[2]):
            return "decoder"
        if not has_cross_attention:
            return "unknown"
        return "encoder" if CROSS_ATTENTION.search(module) else "decoder"

    return [stream(module) for module in modules]
