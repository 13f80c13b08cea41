"""Taking experts out of a mixture again: one as a plain PEFT LoRA, or a fixed blend for servers that cannot route."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from loramixer.errors import MixerError
from loramixer.experts import WEIGHTS_FILE, SiteWeights
from loramixer.tuner.runtime import active_runtime, mixture_layers


def export_expert(model: Any, name: str, folder: str | Path, dtype: torch.dtype | None = None) -> Path:
    """Write one expert of the active mixture as a plain PEFT LoRA folder, bit-equal to the one that went in.

    An expert that was trained with the mixture is written as float32, as it was trained, unless ``dtype`` says else.

    Args:
        model: a PEFT model with a mixture.
        name: of the expert.
        folder: receives ``adapter_config.json`` and ``adapter_model.safetensors``.
        dtype: of the written weights; that of the source by default.

    Raises:
        MixerError: the mixture has no such expert.
    """
    runtime = active_runtime(model)
    if name not in runtime.experts:
        raise MixerError(f"The mixture has no expert '{name}'; it has {', '.join(runtime.experts)}.")
    config = runtime.config
    if dtype is None:
        trained = config.train_experts
        dtype = torch.float32 if trained else getattr(torch, config.experts[name].get("dtype", "float32"))
    sites = {
        site: SiteWeights(parts[name].A.to(dtype), parts[name].B.to(dtype), parts[name].scaling)
        for site, parts in _experts_by_site(model).items()
        if name in parts
    }
    return _write_lora(model, sites, Path(folder))


def export_static(model: Any, weights: Mapping[str, float], folder: str | Path) -> Path:
    """Write one ordinary LoRA that mixes the experts with fixed weights w: Σ_e w_e s_e B_e A_e.

    It is for servers that cannot route.

    The ranks add up, since the sum is exact; a token-routed mixture itself has no such equivalent.

    Args:
        model: a PEFT model with a mixture.
        weights: expert name → weight; experts that are not named are left out.
        folder: receives the LoRA.

    Raises:
        MixerError: an unknown expert, or no expert at all.
    """
    experts = active_runtime(model).experts
    unknown = sorted(set(weights) - set(experts))
    if unknown or not weights:
        what = f"no expert '{unknown[0]}'" if unknown else "nothing to export without weights"
        raise MixerError(f"The mixture has {what}; give weights for some of {', '.join(experts)}.")
    sites = {}
    for site, parts in _experts_by_site(model).items():
        chosen = [(weights[name], part) for name, part in parts.items() if name in weights]
        if chosen:
            A = torch.cat([part.A for _, part in chosen])
            B = torch.cat([weight * part.scaling * part.B for weight, part in chosen], dim=1)
            sites[site] = SiteWeights(A, B, 1.0)
    return _write_lora(model, sites, Path(folder))


def _experts_by_site(model: Any) -> dict[str, dict[str, SiteWeights]]:
    """Module name → expert name → its matrices, cut out of the concatenation."""
    found: dict[str, dict[str, SiteWeights]] = {}
    for layer, adapter in mixture_layers(model):
        runtime = layer.runtimes[adapter]
        parts = {name: layer.expert_weights(adapter, index) for index, name in enumerate(runtime.experts)}
        found[runtime.sites[layer.sites[adapter]]] = {name: part for name, part in parts.items() if part is not None}
    return found


def _write_lora(model: Any, sites: dict[str, SiteWeights], folder: Path) -> Path:
    from peft import LoraConfig
    from safetensors.torch import save_file

    config = active_runtime(model).config
    # PEFT's add_adapter gives a mixture no name of its backbone, which all adapters of a model share.
    named = config if config.base_model_name_or_path else next(iter(model.peft_config.values()))
    rank = Counter(part.rank for part in sites.values()).most_common(1)[0][0]
    alphas = {site: part.scaling * part.rank for site, part in sites.items()}
    alpha = Counter(alphas.values()).most_common(1)[0][0]
    lora = LoraConfig(
        r=rank,
        lora_alpha=alpha,
        target_modules=sorted(sites),
        rank_pattern={site: part.rank for site, part in sites.items() if part.rank != rank},
        alpha_pattern={site: value for site, value in alphas.items() if value != alpha},
        task_type=config.task_type,
        base_model_name_or_path=named.base_model_name_or_path,
        revision=named.revision,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    lora.save_pretrained(str(folder))
    tensors = {
        f"base_model.model.{site}.lora_{letter}.weight": matrix.contiguous().cpu()
        for site, part in sites.items()
        for letter, matrix in (("A", part.A), ("B", part.B))
    }
    save_file(tensors, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    return folder
