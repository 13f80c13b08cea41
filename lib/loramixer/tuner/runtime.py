"""What the layers of one mixture share while it runs: gate settings, what is recorded for the loss, and captures."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from loramixer.distributed import stack_on_first
from loramixer.errors import MixerError, RoutingError, TraceError
from loramixer.routing import (
    UNROUTED_MODES,
    GateMode,
    check_gate_mode,
    check_k,
    check_temperature,
    choose_experts,
    domain_gates,
    gates,
    soft_gates,
)
from loramixer.tuner.sites import TokenStream, split_sites
from loramixer.versions import library_versions

if TYPE_CHECKING:
    from loramixer.tuner.config import LoraMixerConfig
    from loramixer.tuner.intervening import ActingInterventions
    from loramixer.tuner.layer import LoraMixerLayer
    from loramixer.tuner.sharing import Routed


@dataclass(frozen=True)
class GateSettings:
    """How logits become gates."""

    mode: GateMode
    k: int
    temperature: float = 1.0
    renormalize: bool = True

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Gates for logits ``[..., E]``, in any mode but ``domain``."""
        return gates(logits, self.mode, self.k, self.temperature, self.renormalize)

    def choose(self, logits: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """``(weights, experts)``, each ``[..., k]``, for mode ``top_k``."""
        return choose_experts(logits, self.k, self.temperature, self.renormalize)


@dataclass(frozen=True)
class SiteCall:
    """What the loss wants to know of one call of a site.

    Attributes:
        site: index of the site.
        p: probabilities ``[..., E]``.
        logits: float32 ``[N, E]``, where the loss needs them.
        output_gram: ``[N, E, E]``, inner products of the experts' outputs, where the loss needs them.
    """

    site: int
    p: torch.Tensor
    logits: torch.Tensor | None = None
    output_gram: torch.Tensor | None = None


@dataclass(frozen=True)
class OutputNorms:
    """Lengths of what one call of a site adds up, ‖·‖₂ over its output features.

    Attributes:
        experts: float32 ``[N, E]``, of each expert's output s_e B_e A_e x before its gate; 0 where it is absent.
        base: float32 ``[N]``, of the frozen projection's output W x without its bias.
    """

    experts: torch.Tensor
    base: torch.Tensor


@dataclass(frozen=True)
class StreamRouting:
    """The routing of one stream of tokens.

    Attributes:
        sites: indices of the sites that saw these tokens.
        logits: float32 ``[S, B, t, E]``.
        gates: float32 ``[S, B, t, E]``.
        contributions: float32 ``[S, B, t, E]``, ‖g_e s_e B_e A_e x‖₂, or None where they were not asked for.
        base_norms: float32 ``[S, B, t]``, ‖W x‖₂ without bias; likewise.
    """

    sites: tuple[int, ...]
    logits: torch.Tensor
    gates: torch.Tensor
    contributions: torch.Tensor | None = None
    base_norms: torch.Tensor | None = None


class RoutingCapture:
    """Logits and gates of every site, detached, as the model ran since the last :meth:`take`.

    Args:
        sites: module names.
        streams: which tokens each of them sees.
        contributions: whether the lengths of the experts' outputs are recorded too.
    """

    def __init__(self, sites: list[str], streams: list[TokenStream], contributions: bool = False) -> None:
        self.sites = sites
        self.streams = streams
        self.contributions = contributions
        self.grams: dict[int, torch.Tensor | list[torch.Tensor]] = {}
        """Site → what `expert_norms` needs of its B, which does not change while a capture runs."""
        self._rows: int | None = None
        self._logits: list[list[torch.Tensor]] = [[] for _ in sites]
        self._gates: list[list[torch.Tensor]] = [[] for _ in sites]
        self._contributions: list[list[torch.Tensor]] = [[] for _ in sites]
        self._base_norms: list[list[torch.Tensor]] = [[] for _ in sites]

    def note_rows(self, inputs: Mapping[str, Any]) -> None:
        """Called before the backbone runs, with its arguments by name: how many rows it runs over, if they say so."""
        given = (inputs.get(name) for name in ("input_ids", "inputs_embeds"))
        self._rows = next((len(tokens) for tokens in given if tokens is not None), None)

    def add(self, site: int, logits: torch.Tensor, site_gates: torch.Tensor, norms: OutputNorms | None = None) -> None:
        """Called by a layer: logits and gates of the tokens that just passed, and their norms.

        They are ``[B, t, E]``, or ``[B · t, E]`` of a layer that flattens its input as OPT's do.
        """
        if logits.dim() == 2 and self._rows and len(logits) % self._rows == 0:
            logits, site_gates = (part.unflatten(0, (self._rows, -1)) for part in (logits, site_gates))
        self._logits[site].append(logits.detach())
        self._gates[site].append(site_gates.detach())
        if norms is not None:
            self._contributions[site].append(site_gates.detach().float() * norms.experts.view(site_gates.shape))
            self._base_norms[site].append(norms.base.view(*site_gates.shape[:-1], 1))

    @property
    def _stores(self) -> tuple[list[list[torch.Tensor]], ...]:
        more = (self._contributions, self._base_norms) if self.contributions else ()
        return (self._logits, self._gates, *more)

    def take_streams(self) -> dict[TokenStream, StreamRouting]:
        """Return the routing of every stream of tokens, and start afresh.

        A decoder-only or encoder-only model has the stream ``tokens``; an encoder–decoder has ``encoder`` (its
        encoder, and the keys and values of cross-attention) and ``decoder``. While it generates with a cache, the
        former run once for the whole prompt and the latter once for every token.

        Raises:
            TraceError: a site saw no token, or sites of one stream saw different numbers of tokens.
        """
        found = {stream: self._collect(stream) for stream in dict.fromkeys(self.streams)}
        for store in self._stores:
            for parts in store:
                parts.clear()
        return found

    def _collect(self, stream: TokenStream) -> StreamRouting:
        sites = tuple(site for site, found in enumerate(self.streams) if found == stream)
        for store in self._stores:
            _restore_rows([store[site] for site in sites])
        seen = [sum(part.shape[1] for part in self._logits[site]) for site in sites]
        if min(seen) == 0 or min(seen) != max(seen):
            odd = self.sites[sites[seen.index(min(seen))]]
            raise TraceError(
                f"{odd} routed {min(seen)} tokens while other sites routed {max(seen)}; this site was skipped, so the "
                "trace would be wrong."
            )
        logits, gates, *norms = (
            stack_on_first([torch.cat(store[site], dim=1) for site in sites]).float() for store in self._stores
        )
        return StreamRouting(sites, logits, gates, *norms[:1], *(part.squeeze(-1) for part in norms[1:]))

    def take_batch(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return ``(logits, gates)``, float32 ``[S, B, t, E]``, and start afresh.

        Raises:
            TraceError: a site saw no token, or sites saw different numbers of tokens.
        """
        found = self._take_only_stream()
        return found.logits, found.gates

    def take(self) -> tuple[np.ndarray, np.ndarray]:
        """Return ``(logits, gates)`` of one text, float32 arrays ``[S, t, E]``, and start afresh.

        Raises:
            TraceError: as :meth:`take_batch`, or there is a batch.
        """
        found = self.take_arrays()
        return found["logits"], found["gates"]

    def take_arrays(self) -> dict[str, np.ndarray]:
        """Everything recorded of one text under the names of :class:`loramixer.RoutingTrace`, and start afresh.

        Returns:
            ``logits`` and ``gates``, and with contributions ``contributions``, float32 ``[S, t, E]``, and
            ``base_norms``, float32 ``[S, t]``.

        Raises:
            TraceError: as :meth:`take_batch`, or there is a batch.
        """
        return arrays_of(self._take_only_stream())

    def _take_only_stream(self) -> StreamRouting:
        if len(set(self.streams)) > 1:
            raise TraceError(
                "The encoder and the decoder of this backbone see different tokens, so their routing is no single "
                "array; use take_streams()."
            )
        (found,) = self.take_streams().values()
        return found


def arrays_of(routing: StreamRouting) -> dict[str, np.ndarray]:
    """The routing of one text as float32 arrays ``[S, t, …]``; see :meth:`RoutingCapture.take_arrays`.

    Raises:
        TraceError: there is a batch.
    """
    if (rows := routing.logits.shape[1]) != 1:
        raise TraceError(f"A trace holds one text, this was a batch of {rows}; trace them one by one.")
    found = {name: getattr(routing, name) for name in ("logits", "gates", "contributions", "base_norms")}
    return {name: part[:, 0].cpu().numpy() for name, part in found.items() if part is not None}


def _restore_rows(stores: list[list[torch.Tensor]]) -> None:
    """Give parts ``[B · t, E]``, of layers that flatten their input, the rows of others where theirs are unknown."""
    rows = [len(part) for parts in stores for part in parts if part.dim() == 3]
    for parts in stores:
        parts[:] = [part.unflatten(0, (rows[0], -1)) if part.dim() == 2 and rows else part for part in parts]


@dataclass
class MixtureRuntime:
    """Shared by all layers of one adapter.

    Attributes:
        experts: names, in the order of the gates.
        config: the configuration of the mixture.
        inference: gate settings in evaluation mode.
        training: gate settings in training mode.
        sites: module names of the routed projections, in the order of the model.
        streams: which tokens each of them sees.
        saved: whether the mixture comes from a saved configuration, so that its weights are loaded after its creation.
        rules: what each rule of the configuration changes, in inference and in training.
        masked: bool ``[E]``, experts that may not be chosen, or None.
        domain: int64 ``[rows]`` or ``[1]``, for gate mode ``domain`` in inference.
        domain_of_batch: int64 ``[B]``, the same for the batch of the last forward, if it came with ``expert_index``.
        recorded: every call in the current training forward, or None when not wanted.
        capture: the running capture, or None.
        intervening: the interventions that act, or None.
    """

    experts: tuple[str, ...]
    config: LoraMixerConfig
    inference: GateSettings
    training: GateSettings
    sites: list[str] = field(default_factory=list)
    streams: list[TokenStream] = field(default_factory=list)
    saved: bool = False
    rules: list[tuple[dict[str, Any], dict[str, Any]]] = field(default_factory=list)
    masked: torch.Tensor | None = None
    domain: torch.Tensor | None = None
    domain_of_batch: torch.Tensor | None = None
    recorded: list[SiteCall] | None = None
    capture: RoutingCapture | None = None
    intervening: ActingInterventions | None = None

    def index_of(self, name: str) -> int:
        """Position of an expert in the gates.

        Raises:
            RoutingError: there is no such expert.
        """
        if name not in self.experts:
            raise RoutingError(f"The mixture has no expert '{name}'; it has {', '.join(self.experts)}.")
        return self.experts.index(name)

    @property
    def masked_names(self) -> list[str]:
        """The experts that may not be chosen."""
        return [] if self.masked is None else [self.experts[index] for index in self.masked.nonzero().flatten()]

    def limit_k(self, experts: int) -> None:
        """Lower every k that asks for more experts than there are."""
        self.inference, self.training = (
            replace(settings, k=min(settings.k, experts)) for settings in (self.inference, self.training)
        )
        for changes in (change for rule in self.rules for change in rule if "k" in change):
            changes["k"] = min(changes["k"], experts)

    @property
    def listening(self) -> bool:
        """Whether anybody wants to know where tokens go."""
        return self.recorded is not None or self.capture is not None

    def settings(self, rule: int | None, training: bool) -> GateSettings:
        """Gate settings of the sites that follow a rule of the configuration (None: no rule of their own)."""
        settings = self.training if training else self.inference
        return settings if rule is None else replace(settings, **self.rules[rule][training])

    def routes_in_training(self, site: int) -> bool:
        """Whether a site, by its index, has a choice in training; one that is off by rule has none."""
        rule = self.config.rule_of(self.sites[site]) if self.config.site_gates else None
        return self.settings(rule, training=True).mode not in UNROUTED_MODES

    def route(
        self,
        logits_NSE: torch.Tensor,
        settings: GateSettings,
        leading: torch.Size,
        training: bool,
        few: bool,
        sites: Sequence[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor | None, tuple[torch.Tensor, torch.Tensor] | None, torch.Tensor | None]:
        """Turn logits into gates.

        Args:
            logits_NSE: float32, N tokens, S sites, E experts.
            settings: how.
            leading: axes that N stands for, ``[B, T]`` as a rule.
            training: whether the sites are in training mode.
            few: whether the chosen experts are enough (mode ``top_k``).
            sites: indices of the sites, for interventions.

        Returns:
            Logits with noise and mask applied; gates or, with ``few``, None; ``(weights, experts)`` or None; and in
            training the probabilities.

        Raises:
            RoutingError: experts are masked or under an intervention and the model trains; or domains are missing.
        """
        if training and self.config.noise_std:
            logits_NSE = logits_NSE + self.config.noise_std * torch.randn_like(logits_NSE)
        nobody_left = forced = None
        if self.masked is not None:
            if training:
                # Where nobody else is present, no expert would be left, and no number for the loss.
                raise RoutingError(
                    f"Experts are masked ({', '.join(self.masked_names)}), and this model trains; take the mask back "
                    "with mask_experts(model), or call model.eval()."
                )
            logits_NSE = logits_NSE.masked_fill(self.masked.to(logits_NSE.device), -torch.inf)
        if (acting := self.intervening) is not None:
            logits_NSE, forced = acting.apply(logits_NSE, sites, leading, training)
        if self.masked is not None or acting is not None:
            nobody_left = (logits_NSE == -torch.inf).all(dim=-1, keepdim=True)
        if few:
            weights, experts = settings.choose(logits_NSE)
            if nobody_left is not None:
                weights = weights.masked_fill(nobody_left, 0.0)
            return logits_NSE, None, (weights, experts), None
        if settings.mode == "domain":
            gates_NSE = domain_gates(logits_NSE, self._domain_of_token(leading, logits_NSE, training))
        else:
            gates_NSE = settings(logits_NSE)
        if nobody_left is not None:
            gates_NSE = gates_NSE.masked_fill(nobody_left, 0.0)
        if forced is not None:
            rows_NS1, weights_NSE = forced
            gates_NSE = torch.where(rows_NS1, weights_NSE.to(gates_NSE.dtype), gates_NSE)
        p_NSE = None
        if training:
            # Computed whether it is recorded or not: checkpointing must see the same operations when it recomputes.
            p_NSE = gates_NSE if settings.mode == "soft" else soft_gates(logits_NSE, settings.temperature)
        return logits_NSE, gates_NSE, None, p_NSE

    def _domain_of_token(self, leading: torch.Size, logits_NSE: torch.Tensor, training: bool) -> torch.Tensor:
        """int64 ``[N, 1]``: the expert that each token's row belongs to."""
        domain_B = self.domain_of_batch
        if domain_B is None and not training:
            domain_B = self.domain
        if domain_B is None:
            raise RoutingError(
                "Gate mode 'domain' needs the domain of each row: pass expert_index with the batch, or "
                "set_gate(model, mode='domain', domain=…)."
            )
        domain_B = domain_B.to(logits_NSE.device)
        if len(domain_B) == len(logits_NSE):
            return domain_B.unsqueeze(-1)  # one for every token, where rows lie behind each other in one line
        if len(domain_B) == 1:
            return domain_B.expand(len(logits_NSE)).unsqueeze(-1)
        if not leading or leading[0] % len(domain_B):
            raise RoutingError(
                f"There are domains for {len(domain_B)} rows, but this batch has {leading[0] if leading else 1}."
            )
        # Beam search repeats every row; its copies lie next to each other.
        return domain_B.repeat_interleave(len(logits_NSE) // len(domain_B)).unsqueeze(-1)

    def note(
        self,
        site: int,
        routed: Routed,
        index: int,
        leading: torch.Size,
        output_gram: torch.Tensor | None = None,
        norms: OutputNorms | None = None,
    ) -> None:
        """Keep what the loss or a trace wants to know of a site.

        Args:
            site: index of the site.
            routed: its input and gates.
            index: of the site in the S axis of ``routed``.
            leading: axes that N stands for.
            output_gram: ``[N, E, E]``, inner products of the experts' outputs, where the loss needs them.
            norms: lengths of the outputs, where the capture asks for contributions.
        """
        if self.recorded is not None and routed.p_NSE is not None:
            p = routed.p_NSE[:, index].view(*leading, -1)
            logits_NE = routed.logits_NSE[:, index] if self.config.z_weight else None
            self._record(SiteCall(site, p, logits_NE, output_gram))
        if self.capture is not None and not _runs_backward():
            logits_NE = routed.logits_NSE[:, index]
            if routed.gates_NSE is not None:
                gates_NE = routed.gates_NSE[:, index]
            else:
                assert routed.chosen_NSK is not None
                weights, experts = (part[:, index] for part in routed.chosen_NSK)
                gates_NE = torch.zeros_like(logits_NE).scatter(-1, experts, weights)
            self.capture.add(site, logits_NE.view(*leading, -1), gates_NE.view(*leading, -1), norms)

    def _record(self, call: SiteCall) -> None:
        if self.recorded is None or not torch.is_grad_enabled():
            raise MixerError(
                "Routers get no gradient under reentrant gradient checkpointing; set "
                "gradient_checkpointing_kwargs={'use_reentrant': False}."
            )
        # The recomputation of non-reentrant checkpointing runs after the forward, when nothing is recorded.
        self.recorded.append(call)


def _runs_backward() -> bool:
    """Whether autograd is in its backward pass, where gradient checkpointing runs layers again."""
    return torch._C._current_graph_task_id() != -1


def mixture_layers(model: Any) -> Iterator[tuple[LoraMixerLayer, str]]:
    """Every routed site of the active mixture with PEFT's name of the adapter, in the order of the model."""
    from loramixer.tuner.layer import LoraMixerLayer

    runtime = None
    for module in model.modules():
        if not isinstance(module, LoraMixerLayer):
            continue
        for adapter in module.active_adapters:
            if adapter in module.runtimes and runtime in (None, module.runtimes[adapter]):
                runtime = module.runtimes[adapter]
                yield module, adapter


def active_runtime(model: Any) -> MixtureRuntime:
    """The runtime of the active mixture of a model.

    Raises:
        MixerError: the model holds no mixture.
    """
    for layer, adapter in mixture_layers(model):
        return layer.runtimes[adapter]
    raise MixerError("This model holds no LoRA-Mixer mixture; load one with load_mixer or get_peft_model.")


def set_gate(
    model: Any,
    mode: GateMode | None = None,
    k: int | None = None,
    temperature: float | None = None,
    domain: str | Sequence[str] | None = None,
) -> GateSettings:
    """Change how the active mixture gates in inference; what is None stays as it is.

    Args:
        model: a model with a mixture.
        mode: gate mode.
        k: experts per token.
        temperature: divides the logits.
        domain: for mode ``domain``: the expert of all rows, or of each row.

    Raises:
        RoutingError: unknown mode, k outside 1…experts, a temperature that is not above 0, no expert for any row, or
            an unknown one.
    """
    runtime = active_runtime(model)
    if mode is not None:
        check_gate_mode(mode)
    if k is not None:
        check_k(k, len(runtime.experts))
    if temperature is not None:
        check_temperature(temperature)
    if domain is not None:
        names = [domain] if isinstance(domain, str) else list(domain)
        if not names:
            raise RoutingError("domain is an empty list; give the name of one expert, or of one for each row.")
        runtime.domain = torch.tensor([runtime.index_of(name) for name in names])
    given: dict[str, Any] = {"mode": mode, "k": k, "temperature": temperature}
    runtime.inference = replace(
        runtime.inference, **{name: value for name, value in given.items() if value is not None}
    )
    return runtime.inference


def mask_experts(model: Any, *names: str) -> None:
    """Take experts out of the choice at run time: their weight goes to the others. Without names: nobody is masked.

    Nothing is changed on disk or in the weights, and a trace shows minus infinity as their logit. It is for reading
    and writing; a model in training refuses to run with a mask.

    Raises:
        RoutingError: an unknown expert, or all of them.
    """
    runtime = active_runtime(model)
    chosen = torch.zeros(len(runtime.experts), dtype=torch.bool)
    for name in names:
        chosen[runtime.index_of(name)] = True
    if chosen.all():
        raise RoutingError(f"All experts ({', '.join(names)}) would be masked; leave at least one.")
    runtime.masked = chosen if names else None


@contextmanager
def capture_routing(model: Any, contributions: bool = False) -> Iterator[RoutingCapture]:
    """Record logits and gates of every site of the active mixture while the block runs.

    Args:
        model: a model with a mixture.
        contributions: whether the lengths of the experts' outputs are recorded too, which costs a product per site.
    """
    runtime = active_runtime(model)
    if runtime.capture is not None:
        raise RoutingError("A capture is already running on this mixture; end it before starting another.")
    runtime.capture = RoutingCapture(runtime.sites, runtime.streams, contributions)
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
        "sites": split_sites(runtime.sites),
        "experts": list(runtime.experts),
        "mixer": getattr(config, "mixer_name", None) or config.title or "unnamed",
        "title": config.title,
        "loss": config.loss_text,
        "untrained": config.untrained,
        "gate": gate.mode,
        "k": gate.k,
        "renormalize": gate.renormalize and all(rule.get("renormalize", True) for rule in config.site_gates),
        "gate_renormalize": gate.renormalize,
        "site_gates": config.site_gates,
        "site_rules": [config.rule_of(site) for site in runtime.sites] if config.site_gates else [],
        "masked": runtime.masked_names,
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


def _router_digest(model: Any) -> str:
    digest = hashlib.sha256()
    for layer, adapter in mixture_layers(model):
        weight: Any = layer.lora_mixer_router[adapter].weight
        digest.update(weight.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()
