"""What the layers of one mixture share while it runs: gate settings, what is recorded for the loss, and captures."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loramixer.errors import MixerError, RoutingError, TraceError
from loramixer.routing import GateMode, check_gate_mode, check_k, check_temperature, gates, soft_gates
from loramixer.versions import library_versions

if TYPE_CHECKING:
    from loramixer.tuner.config import LoraMixerConfig


@dataclass(frozen=True)
class GateSettings:
    """How logits become gates."""

    mode: GateMode
    k: int
    temperature: float = 1.0
    renormalize: bool = True

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Gates for logits ``[..., E]``."""
        return gates(logits, self.mode, self.k, self.temperature, self.renormalize)


class RoutingCapture:
    """Logits and gates of every site, detached, as the model ran since the last :meth:`take`."""

    def __init__(self, sites: list[str]) -> None:
        self.sites = sites
        self._logits: list[list[torch.Tensor]] = [[] for _ in sites]
        self._gates: list[list[torch.Tensor]] = [[] for _ in sites]

    def add(self, site: int, logits: torch.Tensor, site_gates: torch.Tensor) -> None:
        """Called by a layer: logits and gates ``[B, t, E]`` of the tokens that just passed."""
        self._logits[site].append(logits.detach())
        self._gates[site].append(site_gates.detach())

    def take_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(logits, gates)``, float32 ``[S, B, t, E]``, and start afresh.

        Raises:
            TraceError: a site saw no token, or sites saw different numbers of tokens.
        """
        seen = [sum(part.shape[1] for part in parts) for parts in self._logits]
        if min(seen) == 0 or min(seen) != max(seen):
            odd = self.sites[seen.index(min(seen))]
            raise TraceError(
                f"{odd} routed {min(seen)} tokens while other sites routed {max(seen)}; this site was skipped, so the "
                "trace would be wrong."
            )
        logits, site_gates = (
            torch.stack([torch.cat(parts, dim=1) for parts in store]).float() for store in (self._logits, self._gates)
        )
        for store in (self._logits, self._gates):
            for parts in store:
                parts.clear()
        return logits, site_gates

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(logits, gates)`` of one text, float32 arrays ``[S, t, E]``, and start afresh.

        Raises:
            TraceError: as :meth:`take_batch`, or there is a batch.
        """
        logits, site_gates = self.take_batch()
        if logits.shape[1] != 1:
            raise TraceError(f"A trace holds one text, this was a batch of {logits.shape[1]}; trace them one by one.")
        return logits[:, 0].cpu().numpy(), site_gates[:, 0].cpu().numpy()


@dataclass
class MixtureRuntime:
    """Shared by all layers of one adapter.

    Attributes:
        experts: names, in the order of the gates.
        config: the configuration of the mixture.
        inference: gate settings in evaluation mode.
        training: gate settings in training mode.
        sites: module names of the routed projections, in the order of the model.
        saved: whether the mixture comes from a saved configuration, so that its weights are loaded after its creation.
        recorded: per site the probabilities ``[tokens, E]`` of the current training forward, or None when not wanted.
        capture: the running capture, or None.
    """

    experts: tuple[str, ...]
    config: LoraMixerConfig
    inference: GateSettings
    training: GateSettings
    sites: list[str] = field(default_factory=list)
    saved: bool = False
    recorded: dict[int, torch.Tensor] | None = None
    capture: RoutingCapture | None = None

    def route(self, site: int, logits: torch.Tensor, training: bool) -> torch.Tensor:
        """Gates ``[..., E]`` for the logits of a site; also notes what the loss or a trace wants to know.

        Args:
            site: index of the site.
            logits: ``[..., E]`` float32.
            training: whether the layer is in training mode.
        """
        settings = self.training if training else self.inference
        site_gates = settings(logits)
        if training:
            # Computed whether it is recorded or not: checkpointing must see the same operations when it recomputes.
            p = site_gates if settings.mode == "soft" else soft_gates(logits, settings.temperature)
            if self.recorded is not None:
                self._record(site, p)
        if self.capture is not None:
            self.capture.add(site, logits, site_gates)
        return site_gates

    def _record(self, site: int, p: torch.Tensor) -> None:
        if self.recorded is None or not torch.is_grad_enabled():
            raise MixerError(
                "Routers get no gradient under reentrant gradient checkpointing; set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        # The recomputation of non-reentrant checkpointing runs after the forward, when nothing is recorded.
        self.recorded[site] = p.flatten(0, -2)


def active_runtime(model: Any) -> MixtureRuntime:
    """The runtime of the active mixture of a model.

    Raises:
        MixerError: the model holds no mixture.
    """
    from loramixer.tuner.layer import LoraMixerLayer

    for module in model.modules():
        if isinstance(module, LoraMixerLayer):
            for adapter in module.active_adapters:
                if adapter in module.runtimes:
                    return module.runtimes[adapter]
    raise MixerError("This model holds no LoRA-Mixer mixture; load one with load_mixer or get_peft_model.")


def set_gate(
    model: Any, mode: GateMode | None = None, k: int | None = None, temperature: float | None = None
) -> GateSettings:
    """Change how the active mixture gates in inference; what is None stays as it is.

    Raises:
        RoutingError: unknown mode, k outside 1…experts, or a temperature that is not above 0.
    """
    runtime = active_runtime(model)
    if mode is not None:
        check_gate_mode(mode)
    if k is not None:
        check_k(k, len(runtime.experts))
    if temperature is not None:
        check_temperature(temperature)
    former = runtime.inference
    runtime.inference = GateSettings(
        mode=former.mode if mode is None else mode,
        k=former.k if k is None else k,
        temperature=former.temperature if temperature is None else temperature,
        renormalize=former.renormalize,
    )
    return runtime.inference


@contextmanager
def capture_routing(model: Any) -> Iterator[RoutingCapture]:
    """Record logits and gates of every site of the active mixture while the block runs."""
    runtime = active_runtime(model)
    if runtime.capture is not None:
        raise RoutingError("A capture is already running on this mixture; end it before starting another.")
    runtime.capture = RoutingCapture(runtime.sites)
    try:
        yield runtime.capture
    finally:
        runtime.capture = None


def describe_mixture(model: Any) -> dict[str, Any]:
    """Facts for a trace: sites, experts, gate, loss, hashes, backbone and versions."""
    runtime = active_runtime(model)
    config, gate = runtime.config, runtime.inference
    files = getattr(model.get_base_model(), "backbone_files", None)
    return {
        "sites": [split_site(site) for site in runtime.sites],
        "experts": list(runtime.experts),
        "mixer": getattr(config, "mixer_name", None) or config.title or "unnamed",
        "title": config.title,
        "loss": config.loss_text,
        "gate": gate.mode,
        "k": gate.k,
        "renormalize": gate.renormalize,
        "gate_temperature": gate.temperature,
        "router_sha256": _router_digest(model),
        "expert_sha256": {
            name: value.get("sha256") for name, value in config.experts.items() if isinstance(value, dict)
        },
        "backbone": files.name if files else config.base_model_name_or_path,
        "backbone_revision": files.revision if files else config.revision,
        "backbone_origin": files.origin if files else "unknown",
        "dtype": str(model.get_base_model().dtype).removeprefix("torch."),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": library_versions(),
    }


def split_site(module: str) -> tuple[int, str, str]:
    """``(layer, projection, module)`` of a module name: its first number, and its last part."""
    number = re.search(r"\.(\d+)\.", f".{module}")
    return (int(number[1]) if number else 0, module.rpartition(".")[2], module)


def _router_digest(model: Any) -> str:
    from loramixer.tuner.layer import LoraMixerLayer

    digest = hashlib.sha256()
    for module in model.modules():
        if isinstance(module, LoraMixerLayer):
            for adapter in module.active_adapters:
                if adapter in module.lora_mixer_router:
                    weight: Any = module.lora_mixer_router[adapter].weight
                    digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
