"""What the name of a routed projection says: its block, a name unique in the block, and which tokens it sees."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

from torch import nn

TokenStream = Literal["tokens", "encoder", "decoder", "unknown"]
"""The tokens that pass through a site: the only ones there are, or one of the two sides of an encoder–decoder."""

CROSS_ATTENTION = re.compile(r"encdecattention|encoder_attn|cross_?att", re.IGNORECASE)
"""In the names that Transformers gives to cross-attention."""

_KEY_OR_VALUE = re.compile(r"(k|v|kv|key|value|key_value)(_proj|_lin)?")


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
