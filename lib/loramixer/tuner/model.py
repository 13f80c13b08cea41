"""`LoraMixerModel`: puts mixtures into a backbone, adds the routing loss, and knows how to save and load them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from peft import PeftModel, TaskType
from peft.tuners.tuners_utils import BaseTuner, BaseTunerLayer, _get_in_out_features, check_target_module_exists
from torch import nn

from loramixer.distributed import mean_over_processes
from loramixer.errors import ExpertError, MixerError
from loramixer.experts import Expert, check_unchanged, locate_expert, new_expert, read_expert, read_experts
from loramixer.routing import DEFAULT_TOP_K, UNROUTED_MODES, GateMode, check_k
from loramixer.tuner.config import RULE_FIELDS, LoraMixerConfig
from loramixer.tuner.guards import OwnerWatch, guarded_layer, refuse_passed_over
from loramixer.tuner.layer import LoraMixerLayer, layers_of
from loramixer.tuner.layout import SiteLayout
from loramixer.tuner.own_expert import check_expert_index
from loramixer.tuner.routing_loss import (
    Recording,
    group_by_tokens,
    label_count,
    named_inputs,
    preservation_loss,
    routing_loss,
    routing_statistics,
    share_of_step,
    token_count,
)
from loramixer.tuner.runtime import GateSettings, MixtureRuntime, mixture_layers
from loramixer.tuner.sharing import InputGroup, input_of
from loramixer.tuner.sites import hidden_linear_layers, is_all_linear, linear_shapes, output_embedding, token_streams

PATIENCE = 4
"""Forward passes in training whose routing loss may stay without a gradient before there is a warning."""


class LoraMixerModel(BaseTuner):
    """The tuner behind ``get_peft_model(backbone, LoraMixerConfig(experts=…))``.

    In training, ``forward`` adds the routing loss of the configuration to the task loss that the backbone returns.
    ``routing_statistics`` then holds the terms of the last forward, detached.

    Of several forwards of one optimiser step each counts by its share of the labels, which is all that the stock
    Trainer says of the step. A loop that sets ``tokens_of_step``, the number of tokens of all its forwards and
    processes, has the routing loss weighted by tokens, over which its means are.
    """

    prefix: str = "lora_mixer_"
    tuner_layer_cls = LoraMixerLayer
    target_module_mapping: ClassVar[dict[str, list[str]]] = {}

    def _prepare_adapter_config(self, peft_config: LoraMixerConfig, model_config: dict[str, Any]) -> LoraMixerConfig:
        """Read the experts that are given by source, and describe all of them in the configuration."""
        self._ensure_state()
        if peft_config.task_type == TaskType.TOKEN_CLS:
            # PeftModelForTokenClassification iterates over modules_to_save, which only some of PEFT's methods have.
            raise MixerError(
                "The task type is TOKEN_CLS, which PEFT has for methods that train a head along; leave task_type out, "
                "the mixture is the same without it."
            )
        files = getattr(self.model, "backbone_files", None)
        if files and str(peft_config.base_model_name_or_path) == str(files.path):
            files.name_in(peft_config)  # PEFT has named the folder in the cache, which nobody else has
        name = next(name for name, config in self.peft_config.items() if config is peft_config)
        read = self._read_experts(peft_config)
        saved = not read
        if read:
            _refuse_unused_targets(peft_config, read)
            self._check_backbone(read, peft_config)
            peft_config.experts = {expert: describe(found) for expert, found in read.items()}
        elif not peft_config.save_experts:
            # Here and not when the routers are loaded, since Transformers does that without asking the tuner.
            read = {expert.name: expert for expert in _read_named_experts(peft_config)}
        self._experts_to_inject[name] = read
        self._forget_groups(name)
        peft_config.target_modules = sorted(
            {site for value in peft_config.experts.values() for site in value["sites"]}
        )
        peft_config.top_k = (
            min(DEFAULT_TOP_K, len(peft_config.experts)) if peft_config.top_k is None else peft_config.top_k
        )
        for k in (peft_config.top_k, *(rule["top_k"] for rule in peft_config.site_gates if "top_k" in rule)):
            check_k(k, len(peft_config.experts))
        if peft_config.has_idle_balance and not peft_config.inference_mode:
            warnings.warn(
                f"The balance term has no effect: with {len(peft_config.experts)} experts and top_k="
                f"{peft_config.top_k} every token counts for all of them. Set usage='top_1' or 'soft', or a smaller "
                "top_k.",
                stacklevel=2,
            )
        self._refuse_misfits(peft_config.experts)

        def settings(mode: GateMode) -> GateSettings:
            assert peft_config.top_k is not None  # settled above
            return GateSettings(mode, peft_config.top_k, peft_config.temperature, peft_config.renormalize)

        self.runtimes[name] = MixtureRuntime(
            experts=tuple(peft_config.experts),
            config=peft_config,
            inference=settings(peft_config.gate),
            training=settings(peft_config.training_gate),
            saved=saved,
            rules=[_overrides(rule) for rule in peft_config.site_gates],
        )
        return peft_config

    def _read_experts(self, config: LoraMixerConfig) -> dict[str, Expert]:
        """Experts from their sources, new ones where the source is None; none when a saved mixture is loaded."""
        given = {name: value for name, value in config.experts.items() if not isinstance(value, dict)}
        if given and len(given) < len(config.experts):
            raise MixerError("A mixture takes all experts from sources or all from a saved mixture, not some of each.")
        found = read_experts({name: source for name, source in given.items() if source is not None})
        if len(found) == len(given):
            return found
        sites = {site for expert in found.values() for site in expert.sites}
        linear = linear_shapes(self.model)
        if is_all_linear(config.target_modules):
            sites = hidden_linear_layers(self.model, config.task_type)
        elif config.target_modules:
            sites = {site for site in linear if check_target_module_exists(config, site)}
            if not sites:
                raise MixerError(f"No linear layer of this backbone matches target_modules={config.target_modules!r}.")
        shapes = {site: shape for site, shape in linear.items() if site in sites}
        new = {name: new_expert(name, shapes, config) for name in given if name not in found}
        return {name: found.get(name) or new[name] for name in given}

    def read_fitting_expert(self, name: str, source: str, config: LoraMixerConfig) -> Expert:
        """Read an expert that is to join a mixture.

        Raises:
            ExpertError: it cannot be read, or does not fit the backbone.
        """
        expert = read_expert(name, source)
        self._check_backbone({name: expert}, config)
        self._refuse_misfits({name: describe(expert)})
        return expert

    def wrap_site(self, site: str, adapter_name: str) -> None:
        """Make a routed layer of a site that has none; without a mixture in it yet, but for an empty router."""
        target = self.model.get_submodule(site)
        parent, _, name = site.rpartition(".")
        owner = self.model.get_submodule(parent)
        layer = target if isinstance(target, LoraMixerLayer) else guarded_layer(owner, name, target, site)
        if adapter_name not in layer.runtimes:
            layer.add_router(adapter_name, self.runtimes[adapter_name], experts=0)
            layer.freeze_experts(adapter_name)
            self.activate_at(layer, adapter_name)
        if layer is not target:
            self._replace_module(owner, name, layer, target)

    def unwrap_site(self, layer: LoraMixerLayer, adapter_name: str) -> None:
        """Take a mixture out of a routed layer, which stays there for whoever else acts at its site, or for nobody."""
        # Of an active adapter that it deletes PEFT says so in a warning, and activates another one in its place.
        layer.set_adapter([])  # type: ignore[operator]
        layer.delete_adapter(adapter_name)  # type: ignore[operator]
        self.activate_at(layer, adapter_name)

    def activate_at(self, layer: LoraMixerLayer, adapter_name: str) -> None:
        """Make what is active in the model active in one layer; it trains unless this mixture is for inference."""
        inference = self.runtimes[adapter_name].config.inference_mode
        layer.set_adapter(self.active_adapters, inference_mode=inference)  # type: ignore[operator]

    def place_sites(self, adapter_name: str) -> None:
        """Number the sites of a mixture in the order of the model, and group those with one input."""
        runtime = self.runtimes[adapter_name]
        runtime.sites.clear()
        runtime.streams.clear()
        self._forget_groups(adapter_name)
        for name, layer in layers_of(self.model, adapter_name).items():
            self._place(layer, adapter_name, name)
        runtime.streams += token_streams(self.model, runtime.sites)

    def _place(self, layer: LoraMixerLayer, adapter_name: str, site: str) -> None:
        runtime = self.runtimes[adapter_name]
        layer.sites[adapter_name] = len(runtime.sites)
        runtime.sites.append(site)
        rule = runtime.config.rule_of(site)
        key = (adapter_name, input_of(site), layer.in_features, rule)
        if key not in self._groups:
            self._groups[key] = InputGroup(adapter_name, runtime, rule)
        self._groups[key].join(layer)

    def _forget_groups(self, adapter_name: str) -> None:
        for key in [key for key in self._groups if key[0] == adapter_name]:
            del self._groups[key]

    def _ensure_state(self) -> None:
        # BaseTuner injects from its constructor, so there is no earlier place for these.
        if "runtimes" not in self.__dict__:
            self.runtimes: dict[str, MixtureRuntime] = {}
            self._experts_to_inject: dict[str, dict[str, Expert]] = {}
            self._groups: dict[tuple[str, str, int, int | None], InputGroup] = {}
            self.routing_statistics: dict[str, torch.Tensor] = {}
            self.loss_warmup = 1.0
            self.tokens_of_step: int | None = None
            self._recording: Recording | None = None
            self._hooks = [
                self.model.register_forward_pre_hook(self._before_forward, with_kwargs=True),
                self.model.register_forward_hook(self._after_forward, with_kwargs=True, always_call=True),
            ]
            self._forwards_without_gradient = 0

    def _check_backbone(self, experts: dict[str, Expert], config: LoraMixerConfig) -> None:
        """Experts of another backbone are refused where both names are public ones."""
        files = getattr(self.model, "backbone_files", None)
        # A plain module has no configuration, and PEFT gives it a dictionary.
        here = files.name if files else getattr(getattr(self.model, "config", None), "_name_or_path", "")
        for expert in experts.values():
            if expert.is_of_another_backbone(here):
                raise ExpertError(f"Expert '{expert.name}' was trained on {expert.backbone}; this backbone is {here}.")

    def _refuse_misfits(self, descriptions: dict[str, dict[str, Any]]) -> None:
        """Raise one error that lists the sites which the backbone lacks or which have other shapes."""
        if isinstance(self.model, PeftModel):
            raise MixerError(
                "This model carries a PEFT adapter already; give the backbone itself (unload() returns it), or put "
                "further mixtures beside a mixture with add_adapter or load_adapter."
            )
        modules = dict(self.model.named_modules())
        head = output_embedding(self.model)
        problems = []
        for expert, description in descriptions.items():
            for site, (_, _, in_features, out_features) in description["sites"].items():
                module = modules.get(site)
                if isinstance(module, BaseTunerLayer):
                    module = module.get_base_layer()
                if module is None:
                    problems.append(f"{expert} changes {site}, which the backbone does not have")
                    continue
                if module is head:
                    raise ExpertError(
                        f"Expert '{expert}' changes {site}, the output embedding, which cannot be routed: in training "
                        "it sees other tokens than the projections do. Train the expert without it."
                    )
                if hasattr(self.model, "hf_device_map") and any(part.is_meta for part in module.parameters()):
                    raise MixerError(
                        f"The backbone's weights at {site} are offloaded by its device_map, where an adapter would "
                        "get no memory; load the backbone without offloading, in a smaller type or quantised."
                    )
                found = _get_in_out_features(module)
                if None not in found and found != (in_features, out_features):
                    problems.append(f"{expert} at {site} is {in_features}→{out_features}, here {found[0]}→{found[1]}")
        if problems:
            more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
            raise ExpertError(f"The experts do not fit this backbone: {'; '.join(problems[:3])}{more}.")

    def inject_adapter(self, model: nn.Module, adapter_name: str, *args: Any, **kwargs: Any) -> None:
        """As PEFT's; afterwards it is known what each site sees, and the files of the experts are let go of."""
        super().inject_adapter(model, adapter_name, *args, **kwargs)
        runtime = self.runtimes[adapter_name]
        runtime.streams = token_streams(self.model, runtime.sites)
        self._experts_to_inject.pop(adapter_name, None)
        self._warn_of_idle_sites(adapter_name)

    def _warn_of_idle_sites(self, adapter_name: str) -> None:
        """Say where the balance term cannot act, since no more experts are present than are chosen."""
        config = self.runtimes[adapter_name].config
        if config.inference_mode or not config.balances_chosen or config.has_idle_balance:
            return
        counts = [layer.experts_here(adapter_name) for layer in layers_of(self.model, adapter_name).values()]
        assert config.top_k is not None  # settled before
        if idle := sum(1 < count <= config.top_k for count in counts):
            warnings.warn(
                f"The balance term has no effect at {idle} of {len(counts)} sites: at most top_k={config.top_k} of "
                "the experts act there, so every token counts for all of them. Set usage='top_1' or 'soft', or a "
                "smaller top_k.",
                stacklevel=2,
            )

    def _create_and_replace(
        self,
        peft_config: LoraMixerConfig,
        adapter_name: str,
        target: nn.Module,
        target_name: str,
        parent: nn.Module,
        current_key: str,
        parameter_name: str | None = None,
    ) -> None:
        descriptions = [value["sites"].get(current_key) for value in peft_config.experts.values()]
        read = self._experts_to_inject[adapter_name]
        layer = (
            target if isinstance(target, LoraMixerLayer) else guarded_layer(parent, target_name, target, current_key)
        )
        layer.add_router(adapter_name, self.runtimes[adapter_name], len(descriptions))
        layer.set_experts(
            adapter_name,
            SiteLayout.of([tuple(found[:2]) if found else None for found in descriptions]),
            [expert.sites.get(current_key) for expert in read.values()] if read else None,
        )
        layer.freeze_experts(adapter_name)
        if self.runtimes[adapter_name].saved:
            layer.await_weights(adapter_name, experts=not read)
        self._place(layer, adapter_name, current_key)
        if layer is not target:
            if adapter_name not in self.active_adapters:
                layer.requires_grad_(False)
            self._replace_module(parent, target_name, layer, target)

    @staticmethod
    def _check_target_module_exists(peft_config: LoraMixerConfig, key: str) -> bool:  # type: ignore[override]
        # The experts decide; PEFT shortens `target_modules` to suffixes, which can match more than they change.
        return any(key in description["sites"] for description in peft_config.experts.values())

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The backbone's forward; in training the routing loss is added to its loss.

        Args:
            *args: as the backbone's.
            **kwargs: as the backbone's; and ``expert_index``, int64 ``[B]``, the own expert of each row (−1: none),
                for the statistics, and for gate mode ``domain``; and ``row_tokens``, int64, which token of the
                input is each token of the rows, where rows share some (:mod:`loramixer.training.batches`).

        Raises:
            MixerError: ``expert_index`` does not fit the experts or the rows.
        """
        return self.model(*args, **kwargs)

    def unload(self) -> nn.Module:
        """The backbone without mixtures."""
        for handle in self._hooks:
            handle.remove()
        return super().unload()

    def _before_forward(
        self, model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Note the domains of the rows, and start recording when the backbone runs in training with labels.

        This is a hook on the backbone, since `PeftModel.forward` of a model without task type, and the backbone that
        Transformers' own `load_adapter` returns, do not pass through :meth:`forward`.
        """
        if getattr(model, "_is_replica", False):
            # Its copies hold no parameters, and what they find out about routing would be lost with them.
            raise MixerError(
                "nn.DataParallel copies the model to several GPUs of one process, which mixtures cannot do; start one "
                "process for each GPU (accelerate launch, torchrun), or set CUDA_VISIBLE_DEVICES to one GPU."
            )
        for mixture in self.runtimes.values():
            if mixture.capture is not None:
                mixture.capture.note_rows(named_inputs(model.forward, args, kwargs))
        self._recording = None
        runtime = self._acting_runtime()
        if runtime is None and any(True for _ in mixture_layers(model)):
            return args, kwargs  # for the hook of the tuner whose mixture it is
        kwargs = dict(kwargs)
        expert_index, row_tokens = kwargs.pop("expert_index", None), kwargs.pop("row_tokens", None)
        if runtime is None:
            return args, kwargs
        # It stays until the next forward: checkpointing runs layers again in the backward pass.
        runtime.domain_of_batch = expert_index
        trains = model.training and torch.is_grad_enabled()
        if expert_index is None and not trains:
            return args, kwargs
        inputs = named_inputs(model.forward, args, kwargs)
        if expert_index is not None:
            check_expert_index(expert_index, len(runtime.experts), inputs, row_tokens)
        if trains and inputs.get("labels") is not None:
            # Some backbones divide their loss by the step's number of labels and some, T5 and all classifiers, do
            # not; without that number each returns the mean over its own labels, which is weighted afterwards.
            kwargs.pop("num_items_in_batch", None)
            self._recording = Recording(runtime, inputs, expert_index, row_tokens, OwnerWatch(model, runtime.sites))
            runtime.recorded = []
            runtime.config.untrained = False
        return args, kwargs

    def _acting_runtime(self) -> MixtureRuntime | None:
        """The active mixture if it is one of this tuner's, as its layers say.

        Transformers' own methods make a tuner for every adapter, switch and delete adapters in the layers only, and
        leave the hooks of all tuners on the backbone.
        """
        for (adapter_name, *_), group in self._groups.items():
            layer = group.members[0]
            acting = next((name for name in layer.active_adapters if name in layer.runtimes), None)
            if acting == adapter_name and layer.runtimes[adapter_name] is group.runtime:
                return group.runtime
        return None

    def _after_forward(self, model: nn.Module, args: Any, kwargs: Any, outputs: Any) -> Any:
        """Add the routing loss to the loss in ``outputs``, which is None when the forward failed."""
        recording, self._recording = self._recording, None
        if recording is None:
            return None
        runtime = recording.runtime
        calls, runtime.recorded = runtime.recorded or [], None
        ran = recording.watch.end()
        task_loss = None if outputs is None else outputs[0] if isinstance(outputs, tuple) else outputs.get("loss")
        if task_loss is None:
            return None
        sites, config = runtime.sites, runtime.config
        refuse_passed_over(model, sites, ran, {sites[call.site] for call in calls})
        # A router without a choice in training changes nothing, so no loss has anything to say about it.
        calls = [call for call in calls if runtime.routes_in_training(call.site)] or calls
        if calls:
            groups = group_by_tokens(sites, runtime.streams, calls, recording.inputs)
            if recording.row_tokens is not None:
                groups = [group.of_rows(recording.row_tokens) for group in groups]
            routing = routing_loss(config, groups, recording.expert_index)
            self.routing_statistics = {
                **routing_statistics(config, [group.for_statistics() for group in groups], recording.expert_index),
                "task_loss": mean_over_processes(task_loss, label_count(model, recording.inputs).to(task_loss.device)),
                "routing_loss": routing.detach(),
            }
            addition = self.loss_warmup * routing
            kept = preservation_loss(model, config)
            if kept is not None:
                self.routing_statistics["preservation_loss"] = kept.detach()
                addition = addition + kept.to(addition.device)
            self._warn_if_unused(addition)
        share = share_of_step(model, recording.inputs).to(task_loss.device)
        # Without a single label the mean is no number, while its share of the step is nothing.
        total = torch.where(share > 0, share * task_loss, 0.0)
        if calls:
            weight = share if self.tokens_of_step is None else token_count(groups[0]) / self.tokens_of_step
            total = total + (weight * addition).to(total.device)
        if isinstance(outputs, tuple):
            return (total, *outputs[1:])
        outputs["loss"] = total
        return outputs

    def _warn_if_unused(self, addition: torch.Tensor) -> None:
        """Warn when a training loop takes no notice of the loss that ``forward`` returns, so that routers miss theirs.

        TRL's SFTTrainer is such a loop: it computes the task loss from the outputs by itself.
        """
        if not addition.requires_grad or torch.compiler.is_compiling():
            return
        if self._forwards_without_gradient == PATIENCE:
            warnings.warn(
                f"The routing loss of the last {PATIENCE} forward passes received no gradient: this training loop "
                "does not use the loss that the model returns. See 'The routing loss is missing from the loss' in "
                "docs/errors.md.",
                stacklevel=3,
            )
        self._forwards_without_gradient += 1

        def reset(_: torch.Tensor) -> None:
            self._forwards_without_gradient = 0

        addition.register_hook(reset)

    @classmethod
    def _get_adapter_state_dict(  # type: ignore[override]
        cls,
        model: nn.Module,
        config: LoraMixerConfig,
        adapter_name: str,
        state_dict: dict[str, torch.Tensor],
        unwanted_adapter_names: list[str],
    ) -> dict[str, torch.Tensor]:
        """All of the mixture, or its routers only when the configuration says that experts are not saved."""
        found = super()._get_adapter_state_dict(
            model=model,
            config=config,
            adapter_name=adapter_name,
            state_dict=state_dict,
            unwanted_adapter_names=unwanted_adapter_names,
        )
        if config.save_experts:
            return found
        return {key: value for key, value in found.items() if ".lora_mixer_router." in key}

    @classmethod
    def _remap_adapter_state_dict_for_load(  # type: ignore[override]
        cls, model: nn.Module, config: LoraMixerConfig, adapter_name: str, state_dict: dict[str, torch.Tensor]
    ) -> dict[str, torch.Tensor]:
        """Also adds the experts of a router-only checkpoint, so that they can never be missing silently."""
        layers = layers_of(model, adapter_name)
        if not any(".lora_mixer_A" in key for key in state_dict):
            first = next(iter(layers.values()))
            runtime = first.runtimes[adapter_name]
            # With low_cpu_mem_usage the layers were made without memory, so what was read then could not be kept.
            A = first.lora_mixer_A[adapter_name]
            experts = _read_named_experts(config) if A.is_meta or A.isnan().any() else None
            for name, layer in layers.items():
                A, B = layer.lora_mixer_A[adapter_name], layer.lora_mixer_B[adapter_name]
                if experts is not None:
                    A, B = _concatenated(experts, runtime.sites[layer.sites[adapter_name]])
                state_dict[f"{name}.lora_mixer_A"], state_dict[f"{name}.lora_mixer_B"] = A.detach(), B.detach()
        remapped = super()._remap_adapter_state_dict_for_load(model, config, adapter_name, state_dict)
        _check_complete(layers, adapter_name, remapped)
        for name, layer in layers.items():
            # Only at the first time: a checkpoint that training resumes from is not what it began with.
            if layer.awaiting_weights.pop(adapter_name, None):
                parts = (remapped[f"{name}.lora_mixer_{part}.{adapter_name}"] for part in "AB")
                layer.remember_experts(adapter_name, *parts)
        return remapped

    @contextmanager
    def _enable_peft_forward_hooks(self, *args: Any, **kwargs: Any) -> Iterator[None]:
        """Refuse what PEFT would otherwise drop in silence: an adapter for every row of a batch."""
        if kwargs.get("adapter_names") is not None:
            raise MixerError(
                "adapter_names gives every row its own adapter, which mixtures cannot do; use set_adapter and one "
                "batch per adapter."
            )
        yield

    def _check_merge_allowed(self) -> None:
        raise MixerError(
            "A token-routed mixture has no fixed weights to merge; keep it as an adapter, or unload it with unload()."
        )


def _refuse_unused_targets(config: LoraMixerConfig, read: dict[str, Expert]) -> None:
    """Refuse target modules beside experts that bring their own sites; they would be left out without a word."""
    given, sites = config.target_modules, {site for expert in read.values() for site in expert.sites}
    if not given or any(value is None for value in config.experts.values()) or given == sites:
        return
    raise MixerError(
        f"target_modules is {given!r}, and all of these experts come from LoRAs, which say themselves where they act; "
        'leave it out. To keep the mixture from some sites, set site_gates=[{"sites": r".*\\.o_proj", "gate": "off"}].'
    )


def _overrides(rule: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """What a rule of `site_gates` changes in inference and in training, under the names of `GateSettings`."""
    shared = {name: rule[key] for key, name in RULE_FIELDS.items() if key in rule}
    fixed = {"mode": rule["gate"]} if rule.get("gate") in UNROUTED_MODES else {}
    inference = {"mode": rule["gate"]} if "gate" in rule else {}
    training = {"mode": rule["training_gate"]} if "training_gate" in rule else fixed
    return shared | inference, shared | training


def describe(expert: Expert) -> dict[str, Any]:
    """What a saved configuration keeps of an expert: source, hash, type; per site rank, scaling, in and out size."""
    return {
        "source": expert.source,
        "sha256": expert.sha256,
        "dtype": str(expert.dtype).removeprefix("torch."),
        "sites": {
            site: [weights.rank, weights.scaling, weights.A.shape[1], weights.B.shape[0]]
            for site, weights in expert.sites.items()
        },
    }


def _read_named_experts(config: LoraMixerConfig) -> list[Expert]:
    """Read the experts that a router-only mixture names, and check that they are the ones it was trained with."""
    experts = []
    for name, description in config.experts.items():
        source = description["source"]
        if (source or "").startswith("."):
            raise MixerError(
                f"This mixture names expert '{name}' as {source}, relative to its own folder, which is unknown here; "
                "pass peft_config=LoraMixerConfig.from_pretrained(folder) together with the folder."
            )
        folder, _ = locate_expert(name, source)
        check_unchanged(name, folder, description["sha256"])
        experts.append(read_expert(name, source))
    return experts


def _concatenated(experts: list[Expert], site: str) -> tuple[torch.Tensor, torch.Tensor]:
    parts = [expert.sites[site] for expert in experts if site in expert.sites]
    return torch.cat([part.A.float() for part in parts]), torch.cat([part.B.t().float() for part in parts])


def _check_complete(layers: dict[str, LoraMixerLayer], adapter_name: str, state_dict: dict[str, torch.Tensor]) -> None:
    expected = {
        f"{name}.{part}"
        for name in layers
        for part in (
            f"lora_mixer_A.{adapter_name}",
            f"lora_mixer_B.{adapter_name}",
            f"lora_mixer_router.{adapter_name}.weight",
        )
    }
    if missing := sorted(expected - set(state_dict)):
        raise MixerError(f"The saved mixture lacks {len(missing)} of {len(expected)} tensors, such as {missing[0]}.")
