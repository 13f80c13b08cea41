"""Moving a mixture, experts and routers, to another backbone of the same shape (paper, section 4.4, Table 5, A.10).

Weights are moved as they are. The paper does so from Mistral-7B to LLaMA3-8B; that the result is any good is not
implied: a LoRA is a change to the weights that it was trained with.
"""

from __future__ import annotations

import copy
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from peft.tuners.tuners_utils import _get_in_out_features

from loramixer.errors import BackboneError, MixerError
from loramixer.mixers import mixer_folder
from loramixer.shapes import ATTENTION, linear_sites, meta_model, read_config
from loramixer.tuner import LoraMixerConfig
from loramixer.tuner.runtime import active_runtime
from loramixer.tuner.sites import split_sites

Shapes = dict[str, tuple[int, int]]
"""Module name → in and out features."""


def transfer(mixture: Any, backbone: Any) -> Any:
    """Put the experts and routers of a mixture on another backbone.

    Args:
        mixture: a PEFT model, whose active mixture is copied; or a zoo name, a folder or a Hub id, which needs no
            weights of the former backbone.
        backbone: a plain model with projections of the same names and shapes; it is changed in place.

    Returns:
        A PEFT model in evaluation mode. Its configuration names the new backbone, and its title the former one. It
        always saves its experts, since their own folders belong to the former backbone.

    Raises:
        MixerError: names, shapes or numbers of layers differ, or ``backbone`` holds an adapter already.
    """
    from peft import PeftModel, get_peft_model, set_peft_model_state_dict

    if isinstance(backbone, PeftModel):
        raise MixerError("The other backbone holds an adapter already; give the plain model.")
    if isinstance(mixture, str | Path):
        folder = mixer_folder(mixture)
        config = _config_for(LoraMixerConfig.from_pretrained(str(folder)), None, backbone)
        moved = PeftModel.from_pretrained(backbone, str(folder), config=config)
    else:
        runtime = active_runtime(mixture)
        config = _config_for(runtime.config, _layers(mixture.get_base_model()), backbone)
        tensors = _tensors(mixture, runtime.config)
        moved = get_peft_model(backbone, config)
        set_peft_model_state_dict(moved, tensors)
        there = active_runtime(moved)
        there.inference, there.masked, there.domain = runtime.inference, runtime.masked, runtime.domain
    files = getattr(backbone, "backbone_files", None)
    if files:
        files.name_in(config)
    else:
        config.base_model_name_or_path, config.revision = backbone.config._name_or_path, None
    return moved.eval()


def check_transfer(source: Any, backbone: Any, targets: tuple[str, ...] = ATTENTION) -> int:
    """Whether a mixture would fit another backbone, without any weights.

    Args:
        source: a PEFT model with a mixture; or the backbone of the mixture, as a model or as what
            :func:`loramixer.shapes.read_config` takes.
        backbone: the other backbone, likewise.
        targets: the routed projections; only where ``source`` is a backbone.

    Returns:
        The number of sites that would move.

    Raises:
        MixerError: as :func:`transfer`, with the first differences and their number.
    """
    if hasattr(source, "peft_config"):
        sites, layers = _sites(active_runtime(source).config), _layers(source.get_base_model())
    else:
        model = meta_model(source)
        sites, layers = linear_sites(model, targets), _layers(model)
    _refuse_mismatches(sites, layers, meta_model(backbone))
    return len(sites)


def save_transfer(moved: Any, folder: str | Path, mixer: str, former_backbone: str, command: str) -> Path:
    """Save a moved mixture; its model card also says where experts and routers come from.

    Args:
        moved: what :func:`transfer` returned.
        folder: receives configuration, weights and model card.
        mixer: name of the mixture that was moved.
        former_backbone: name of the backbone that it was trained on.
        command: how it was made.
    """
    moved.save_pretrained(folder, save_embedding_layers=False)
    backbone = moved.peft_config["default"].base_model_name_or_path or "this backbone"
    origin = [
        "## Moved from another backbone",
        "",
        f"Experts and routers are those of `{mixer}`, which was trained on {former_backbone or 'another backbone'};",
        f"`{command}` moved them to {backbone} as they are.",
        f"Nothing was trained on {backbone}: evaluate before use.",
    ]
    with (Path(folder) / "README.md").open("a", encoding="utf-8") as card:
        card.write("\n" + "\n".join(origin) + "\n")
    return Path(folder)


def _config_for(config: LoraMixerConfig, layers: int | None, backbone: Any) -> LoraMixerConfig:
    """The configuration of the moved mixture, once it is clear that it fits; ``layers`` None looks them up."""
    former = config.base_model_name_or_path
    sites = _sites(config)
    _refuse_mismatches(sites, _layers_of(former, sites) if layers is None else layers, backbone)
    config = copy.deepcopy(config)
    config.title = f"{config.title or 'mixture'}, moved from {former or 'another backbone'}"
    config.save_experts = True
    config.inference_mode = True
    config.base_model_name_or_path = config.revision = None  # PEFT would warn of another name
    return config


def _refuse_mismatches(sites: Shapes, layers: int, backbone: Any) -> None:
    """Raise one error that lists what differs."""
    problems = []
    if layers != (there := _layers(backbone)):
        problems.append(f"it has {layers} layers, there {there}")
    modules = dict(backbone.named_modules())
    for site, (in_features, out_features) in sites.items():
        if site not in modules:
            problems.append(f"there is no {site}")
            continue
        found = _get_in_out_features(modules[site])
        if found != (in_features, out_features):
            problems.append(f"{site} is {in_features}→{out_features}, there {found[0]}→{found[1]}")
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        raise MixerError(f"The mixture does not fit the other backbone: {'; '.join(problems[:3])}{more}.")


def _sites(config: LoraMixerConfig) -> Shapes:
    return {
        site: (values[2], values[3])
        for description in config.experts.values()
        for site, values in description["sites"].items()
    }


def _layers(model: Any) -> int:
    return model.config.get_text_config().num_hidden_layers


def _layers_of(backbone: str | None, sites: Shapes) -> int:
    """Layers of a backbone that is not loaded; where it cannot be found, as many as the sites reach."""
    with suppress(BackboneError):
        if backbone:
            return read_config(backbone).get_text_config().num_hidden_layers
    return 1 + max(layer for layer, *_ in split_sites(list(sites)))


def _tensors(mixture: Any, config: LoraMixerConfig) -> dict[str, torch.Tensor]:
    """Experts and routers, even where the configuration saves routers only."""
    from peft import get_peft_model_state_dict

    adapter = next(name for name, value in mixture.peft_config.items() if value is config)
    former, config.save_experts = config.save_experts, True
    try:
        return get_peft_model_state_dict(mixture, adapter_name=adapter, save_embedding_layers=False)
    finally:
        config.save_experts = former
