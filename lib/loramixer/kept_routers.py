"""Routers that were kept along a training: which there are, and routing with those of one step.

``zoo/<backbone>/replay/<router>/step-<n>`` holds the routers after n optimiser steps, over the experts of
``zoo/<backbone>/<router>``. :func:`loramixer.load_mixer` takes the name of such a folder like any other;
:func:`routers_at` exchanges only the routers of a mixture that is loaded already.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from loramixer.errors import MixerError
from loramixer.mixers import CONFIG_FILE, WEIGHTS_FILE, ZOO, MixerInfo, mixer_folder, mixer_info

_NAME = re.compile(r"([\w.-]+)/replay/([\w.-]+)/step-(\d+)")


def kept_at(name: str) -> tuple[str, int] | None:
    """The router that a training ended with, and the step, of the name of a kept router; None for any other name."""
    found = _NAME.fullmatch(name)
    return (f"{found[1]}/{found[2]}", int(found[3])) if found else None


def kept_steps(mixer: str) -> dict[int, str]:
    """The routers that were kept along the training of a router of the zoo: step → name, in order; often none."""
    backbone, _, router = mixer.partition("/")
    if not router or "/" in router:
        return {}
    folders = (path.parent for path in (ZOO / backbone / "replay" / router).glob(f"step-*/{CONFIG_FILE}"))
    names = [folder.relative_to(ZOO).as_posix() for folder in folders]
    return dict(sorted((kept[1], name) for name in names if (kept := kept_at(name))))


def kept_info(name: str) -> MixerInfo:
    """What is known of a kept router: what its training says, and the step in its title.

    Raises:
        MixerError: no kept router has this name.
    """
    kept = kept_at(name)
    if kept is None or name not in kept_steps(kept[0]).values():
        raise MixerError(f"'{name}' is no router that was kept along a training; kept_steps lists those of a router.")
    mixer, step = kept
    info = mixer_info(mixer_folder(mixer), mixer)
    return replace(info, name=name, title=f"{info.title}, step {step}")


@contextmanager
def routers_at(model: Any, name: str | Path) -> Iterator[None]:
    """Route with other routers over the same experts while the block runs; the former ones return after it.

    The weights are written into the routers of the active mixture, so experts are neither read nor kept twice.

    Args:
        model: a PEFT model whose active mixture has the same experts at the same sites.
        name: of a kept router, or the folder of any saved mixture with these experts.

    Raises:
        MixerError: other experts, or routers at other sites.
    """
    from safetensors.torch import load_file

    from loramixer.tuner import LoraMixerConfig
    from loramixer.tuner.layer import layers_of
    from loramixer.tuner.runtime import active_runtime

    folder = mixer_folder(name)
    config = active_runtime(model).config
    adapter = next(key for key, found in model.peft_config.items() if found is config)
    other = LoraMixerConfig.from_pretrained(str(folder))
    if _experts_of(other) != _experts_of(config):
        raise MixerError(
            f"The routers of '{name}' choose among {', '.join(other.expert_order)}; the loaded mixture has "
            f"{', '.join(config.expert_order)}, or experts of these names with other weights."
        )
    layers = layers_of(model.get_base_model(), adapter)
    saved = load_file(str(folder / WEIGHTS_FILE))
    keys = {site: f"base_model.model.{site}.lora_mixer_router.weight" for site in layers}
    if {key for key in saved if ".lora_mixer_router." in key} != set(keys.values()):
        raise MixerError(f"The routers of '{name}' stand at other sites than those of the loaded mixture.")
    weights = {site: layer.router_weight(adapter).data for site, layer in layers.items()}
    former = {site: weight.clone() for site, weight in weights.items()}
    former_name = getattr(config, "mixer_name", None)
    try:
        for site, weight in weights.items():
            weight.copy_(saved[keys[site]])
        config.mixer_name = str(name)
        yield
    finally:
        for site, weight in weights.items():
            weight.copy_(former[site])
        config.mixer_name = former_name


def _experts_of(config: Any) -> list[tuple[str, str | None]]:
    """Names and hashes in the order of the gates."""
    return [(name, (config.experts[name] or {}).get("sha256")) for name in config.expert_order]
