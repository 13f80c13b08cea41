"""Which experts fit a backbone, before anything is loaded; and a mixture of them with untrained routers, on disk.

Only shapes are read: the configuration of the backbone, and the heads of the experts' files. What is found here is
what the method itself would refuse or accept when the mixture is loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from loramixer.backbones import CATALOGUE
from loramixer.errors import BackboneError, ExpertError, HubError, MixerError
from loramixer.experts import Expert, read_expert
from loramixer.hub import fetch, split_hub_id
from loramixer.routing import DEFAULT_TOP_K
from loramixer.shapes import meta_model, read_config

MAX_CONFIG_BYTES = 10_000_000
"""Of the configuration of a backbone that somebody names; real ones take a few thousand."""

UNTRAINED_STD = 0.001
"""Standard deviation of untrained routers: so small that every expert gets nearly the same weight."""

BYTES_PER_PARAMETER = 4
"""Everything runs in float32 on a CPU."""


@dataclass(frozen=True)
class BackboneOutline:
    """A backbone as shapes.

    Attributes:
        name: what a mixture calls it: the Hub id where there is one.
        revision: commit on the Hub, or None.
        parameters: their number.
        shapes: module name → in and out features, of its linear layers.
    """

    name: str
    revision: str | None
    parameters: int
    shapes: dict[str, tuple[int, int]]

    @property
    def pinned_name(self) -> str:
        """What ``load_backbone`` takes: the weights whose shapes these are, also after the Hub's main has moved."""
        is_fixed = self.revision is None or self.name in _catalogued()
        return self.name if is_fixed else f"{self.name}@{self.revision}"


@dataclass(frozen=True)
class Fit:
    """Whether one expert fits.

    Attributes:
        name: of the expert.
        expert: as shapes, on the ``meta`` device; None where it cannot be read.
        matching: number of its sites that the backbone has, with the same shape.
        reasons: why it cannot be used, one sentence each; empty when it can.
    """

    name: str
    expert: Expert | None
    matching: int
    reasons: tuple[str, ...] = ()

    @property
    def usable(self) -> bool:
        """Whether it can be mixed."""
        return not self.reasons

    @property
    def ranks(self) -> tuple[int, ...]:
        """The ranks that occur, ascending."""
        return tuple(sorted({weights.rank for weights in self.expert.sites.values()})) if self.expert else ()

    @property
    def targets(self) -> tuple[str, ...]:
        """Last names of the projections that it changes."""
        return tuple(dict.fromkeys(site.rpartition(".")[2] for site in self.expert.sites)) if self.expert else ()

    @property
    def parameters(self) -> int:
        """Numbers in its matrices."""
        sites = self.expert.sites.values() if self.expert else ()
        return sum(weights.A.numel() + weights.B.numel() for weights in sites)


def outline_backbone(source: str, max_parameters: int | None = None) -> BackboneOutline:
    """The shapes of a backbone; of one on the Hub, only the configuration is fetched.

    Args:
        source: a name of the catalogue, a local folder, or a Hub id with an optional ``@revision``.
        max_parameters: refuse a larger one.

    Raises:
        BackboneError: unknown, out of reach, larger than allowed, or in need of remote code.
    """
    from loramixer.tuner.sites import linear_shapes

    entry = CATALOGUE.get(source) or next((one for one in CATALOGUE.values() if one.hub_id == source), None)
    name, revision, config = source, None, None
    if entry is not None:
        name = entry.public_name
        config = read_config(entry.folder or entry.hub_id)
    elif not Path(source).exists() and (named := split_hub_id(source)):
        try:
            files = fetch(*named, required=("config.json",), max_bytes=MAX_CONFIG_BYTES)
        except HubError as error:
            raise BackboneError(f"The backbone '{source}' is not here, and {error}.") from error
        name, revision = files.hub_id, files.commit
        config = _safe_config(files.folder, source)
    elif Path(source).is_dir():
        config = _safe_config(Path(source), source)
    else:
        raise BackboneError(
            f"'{source}' is no known backbone; known are {', '.join(CATALOGUE)}, or give a Hub id "
            "(organisation/name[@revision])."
        )
    model = meta_model(config)
    # Weights that are tied are one parameter of the model.
    parameters = sum(parameter.numel() for parameter in model.parameters())
    if max_parameters is not None and parameters > max_parameters:
        raise BackboneError(
            f"{source} has {parameters / 1e6:,.0f} million parameters, and at most "
            f"{max_parameters / 1e6:,.0f} million can be loaded here."
        )
    return BackboneOutline(name, revision, parameters, linear_shapes(model))


def check_fit(name: str, source: str | Path, backbone: BackboneOutline, max_bytes: int | None = None) -> Fit:
    """Read one expert as shapes and compare it with a backbone.

    Args:
        name: what the mixture calls it.
        source: a folder, or a Hub id with an optional ``@revision``, of which only the two files of the adapter
            are fetched.
        backbone: what it shall change.
        max_bytes: largest weights file that is read or fetched.
    """
    try:
        expert = read_expert(name, source, weights=False, max_bytes=max_bytes)
    except ExpertError as error:
        return Fit(name, None, 0, (str(error),))
    reasons: list[str] = []
    if expert.is_of_another_backbone(backbone.name):
        reasons.append(f"It was trained on {expert.backbone}; this backbone is {backbone.name}.")
    missing, unequal = [], []
    for site, weights in expert.sites.items():
        found, own = backbone.shapes.get(site), (weights.A.shape[1], weights.B.shape[0])
        if found is None:
            missing.append(site)
        elif found != own:
            unequal.append(f"{site} is {own[0]}→{own[1]} in the expert and {found[0]}→{found[1]} in the backbone")
    if missing:
        reasons.append(f"The backbone lacks {len(missing)} of its {len(expert.sites)} sites, such as {missing[0]}.")
    if unequal:
        reasons.append(f"{len(unequal)} of its {len(expert.sites)} sites have another shape: {unequal[0]}.")
    return Fit(name, expert, len(expert.sites) - len(missing) - len(unequal), tuple(reasons))


def mixture_bytes(backbone: BackboneOutline, experts: Mapping[str, Expert]) -> tuple[int, int, int]:
    """Memory for the weights of backbone, experts and routers in float32; a run adds its cache and activations."""
    matrices = sum(
        weights.A.numel() + weights.B.numel() for expert in experts.values() for weights in expert.sites.values()
    )
    widths = {site: weights.A.shape[1] for expert in experts.values() for site, weights in expert.sites.items()}
    numbers = (backbone.parameters, matrices, len(experts) * sum(widths.values()))
    return tuple(BYTES_PER_PARAMETER * number for number in numbers)  # type: ignore[return-value]


def routers_fit(mixture: Path, experts: Mapping[str, Expert]) -> bool:
    """Whether trained routers were trained for these experts: each one is among theirs, by the hash of its weights.

    Routers whose experts trained along fit none: the hashes are those of the experts before that.
    """
    config = _config_of(mixture)
    if config.train_experts:
        return False
    known = {value["sha256"]: set(value["sites"]) for value in config.experts.values()}
    return bool(experts) and all(known.get(expert.sha256) == set(expert.sites) for expert in experts.values())


def assemble(
    folder: Path,
    experts: Mapping[str, Expert],
    backbone: BackboneOutline,
    title: str,
    routers: Path | None = None,
    seed: int = 0,
) -> Path:
    """Write a mixture without loading anything: its configuration, and the weights of its routers.

    Untrained routers give every expert nearly the same weight; the mixture's gate is then soft, since a top-k of equal
    weights would be decided by chance.

    Args:
        folder: receives ``adapter_config.json`` and ``adapter_model.safetensors``; the experts stay where they are.
        experts: name → expert as shapes, from :func:`check_fit`.
        backbone: what they change.
        title: a short name for people.
        routers: folder of a mixture whose trained routers are taken, see :func:`routers_fit`, with its gates and its
            loss; rows of experts that are not in ``experts`` are left out, as `remove_expert` does.
        seed: of untrained routers.

    Raises:
        MixerError: no expert, or routers of other experts.
    """
    from safetensors.torch import load_file, save_file

    from loramixer.tuner.config import LoraMixerConfig
    from loramixer.tuner.editing import limit_rules
    from loramixer.tuner.model import describe

    if not experts:
        raise MixerError("A mixture needs at least one expert.")
    if routers is not None and not routers_fit(routers, experts):
        raise MixerError("These routers were trained for other experts.")
    sites = sorted({site for expert in experts.values() for site in expert.sites})
    trained_as: dict[str, str] = {}
    if routers is None:
        former: Any = LoraMixerConfig(
            experts={name: "" for name in experts}, gate="soft", router_init_std=UNTRAINED_STD, untrained=True
        )
    else:
        former = _config_of(routers)
        names = {value["sha256"]: name for name, value in former.experts.items()}
        trained_as = {name: names[expert.sha256] for name, expert in experts.items()}
        former.tasks = {name: former.tasks[old] for name, old in trained_as.items() if old in former.tasks}
    config = replace(
        former,
        experts={name: describe(expert) for name, expert in experts.items()},
        expert_order=list(experts),
        base_model_name_or_path=backbone.name,
        revision=None if backbone.name in _catalogued() else backbone.revision,
        task_type="CAUSAL_LM",
        top_k=min(former.top_k or DEFAULT_TOP_K, len(experts)),
        site_gates=limit_rules(former.site_gates, len(experts)),
        save_experts=False,
        target_modules=sites,
        title=title,
        inference_mode=True,
    )
    folder.mkdir(parents=True, exist_ok=True)
    config.save_pretrained(str(folder))
    keys = {site: f"base_model.model.{site}.lora_mixer_router.weight" for site in sites}
    if routers is not None:
        rows = [former.expert_order.index(old) for old in trained_as.values()]
        trained = load_file(routers / "adapter_model.safetensors")
        weights = {key: trained[key][rows].contiguous() for key in keys.values()}
    else:
        random = torch.Generator().manual_seed(seed)
        weights = {
            key: UNTRAINED_STD * torch.randn(len(experts), backbone.shapes[site][0], generator=random)
            for site, key in keys.items()
        }
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    return folder


def _catalogued() -> set[str]:
    return {entry.public_name for entry in CATALOGUE.values()}


def _safe_config(folder: Path, source: str) -> Any:
    """The configuration of a folder, unless its model is code that the folder brings along."""
    try:
        return read_config(folder)
    except BackboneError as error:
        raise BackboneError(
            f"The backbone '{source}' cannot be used: its config.json names no architecture that Transformers has, "
            "and code from elsewhere is never run."
        ) from error


def _config_of(mixture: Path) -> Any:
    from loramixer.tuner.config import LoraMixerConfig

    return LoraMixerConfig.from_pretrained(str(mixture))
