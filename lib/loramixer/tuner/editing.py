"""Changing which experts a mixture has while it is loaded: add, remove, rename.

The router rows of the experts that stay are kept as they were trained. Parameters are replaced, so an optimiser that
was built before must be built again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from loramixer.errors import MixerError
from loramixer.experts import SiteWeights
from loramixer.tuner.config import check_expert_name
from loramixer.tuner.layer import LoraMixerLayer, layers_of
from loramixer.tuner.layout import SiteLayout
from loramixer.tuner.model import LoraMixerModel, describe
from loramixer.tuner.runtime import MixtureRuntime, active_runtime


def add_expert(model: Any, name: str, source: str, tasks: Sequence[str] = ()) -> None:
    """Add an expert to the active mixture.

    Its rows in the routers are new (normal, `router_init_std`), so it is chosen at random until the routers are
    trained again; those of the other experts stay. Sites that only the new expert changes become routed sites, where
    it is the only one that is present.

    Args:
        model: a PEFT model with a mixture.
        name: of the new expert; it comes last in the gates.
        source: folder or Hub id of a plain PEFT LoRA.
        tasks: data sets that belong to it.

    Raises:
        MixerError: the name is taken or unsuitable.
        ExpertError: the expert cannot be read, or does not fit.
    """
    tuner, adapter, runtime = _editable(model)
    check_expert_name(name)
    if name in runtime.experts:
        raise MixerError(f"The mixture already has an expert '{name}'; remove it first, or choose another name.")
    expert = tuner.read_fitting_expert(name, source, runtime.config)
    for site in expert.sites:
        tuner.wrap_site(site, adapter)
    former = len(runtime.experts)
    layers = layers_of(tuner.model, adapter)
    for site, layer in layers.items():
        placed = adapter in layer.layouts
        parts = [layer.expert_weights(adapter, index) if placed else None for index in range(former)]
        _rebuild(layer, adapter, runtime, [*parts, expert.sites.get(site)], list(range(former)) if placed else [])
    config = runtime.config
    _finish(
        tuner,
        adapter,
        runtime,
        {**config.experts, name: describe(expert)},
        {**config.tasks, **({name: list(tasks)} if tasks else {})},
    )


def remove_expert(model: Any, name: str) -> None:
    """Take an expert out of the active mixture; k becomes smaller where fewer experts are left than it asks for.

    Sites that no other expert changes are left to the backbone.

    Raises:
        RoutingError: no such expert.
        MixerError: it is the last one.
    """
    tuner, adapter, runtime = _editable(model)
    index = runtime.index_of(name)
    if len(runtime.experts) == 1:
        raise MixerError(f"'{name}' is the only expert of this mixture; unload the mixture instead.")
    kept = [position for position in range(len(runtime.experts)) if position != index]
    for layer in layers_of(tuner.model, adapter).values():
        parts = [layer.expert_weights(adapter, position) for position in kept]
        if any(part is not None for part in parts):
            _rebuild(layer, adapter, runtime, parts, kept)
        else:
            tuner.unwrap_site(layer, adapter)
    config = runtime.config
    experts = {other: value for other, value in config.experts.items() if other != name}
    tasks = {other: value for other, value in config.tasks.items() if other != name}
    config.preserve = [other for other in config.preserve if other != name]
    _finish(tuner, adapter, runtime, experts, tasks)


def rename_expert(model: Any, name: str, new_name: str) -> None:
    """Give an expert of the active mixture another name; nothing else changes.

    Raises:
        RoutingError: no such expert.
        MixerError: the new name is taken or unsuitable.
    """
    tuner, adapter, runtime = _editable(model)
    runtime.index_of(name)
    check_expert_name(new_name)
    if new_name in runtime.experts:
        raise MixerError(f"The mixture already has an expert '{new_name}'; choose another name.")

    def renamed(values: dict[str, Any]) -> dict[str, Any]:
        return {new_name if other == name else other: value for other, value in values.items()}

    config = runtime.config
    config.preserve = [new_name if other == name else other for other in config.preserve]
    _finish(tuner, adapter, runtime, renamed(config.experts), renamed(config.tasks))


def limit_rules(rules: Sequence[dict[str, Any]], experts: int) -> list[dict[str, Any]]:
    """The rules of `site_gates`, none of which asks for more experts than there are."""
    return [{**rule, "top_k": min(rule["top_k"], experts)} if "top_k" in rule else rule for rule in rules]


def _editable(model: Any) -> tuple[LoraMixerModel, str, MixtureRuntime]:
    tuner = getattr(model, "base_model", None)
    runtime = active_runtime(model)
    if not isinstance(tuner, LoraMixerModel):
        raise MixerError("Experts can be changed on a PEFT model only; load the mixture with load_mixer.")
    return tuner, next(name for name, other in tuner.runtimes.items() if other is runtime), runtime


def _rebuild(
    layer: LoraMixerLayer,
    adapter: str,
    runtime: MixtureRuntime,
    parts: list[SiteWeights | None],
    kept: list[int],
) -> None:
    """Set the experts of a layer; its router keeps the rows of ``kept`` and gets new ones for the others."""
    router: Any = layer.lora_mixer_router[adapter]
    former = router.weight
    rows = torch.empty(len(parts), layer.in_features, device=former.device, dtype=former.dtype)
    nn.init.normal_(rows, std=runtime.config.router_init_std)
    rows[: len(kept)] = former.detach()[kept]
    router.weight, router.out_features = nn.Parameter(rows, requires_grad=former.requires_grad), len(parts)
    layer.set_experts(adapter, SiteLayout.of([(part.rank, part.scaling) if part else None for part in parts]), parts)


def _finish(
    tuner: LoraMixerModel,
    adapter: str,
    runtime: MixtureRuntime,
    experts: dict[str, Any],
    tasks: dict[str, list[str]],
) -> None:
    config = runtime.config
    config.experts, config.expert_order, config.tasks = experts, list(experts), tasks
    config.target_modules = sorted({site for value in experts.values() for site in value["sites"]})
    config.top_k = min(config.top_k or 1, len(experts))
    config.site_gates = limit_rules(config.site_gates, len(experts))
    if len(experts) != len(runtime.experts):
        # Both go by the positions of experts, which are now others; a rename leaves them.
        runtime.masked = runtime.domain = None
    runtime.experts = tuple(experts)
    runtime.limit_k(len(experts))
    tuner.place_sites(adapter)
