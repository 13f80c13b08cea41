"""The routing loss and the statistics of one training forward, over the tokens that each router really saw.

Shapes: S routers that decided over the same tokens, N = batch × tokens, E experts. In a decoder-only model there is
one such group; in an encoder–decoder there are two, each with a mask of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from loramixer.distributed import mean_over_processes
from loramixer.errors import MixerError
from loramixer.losses import (
    aesl,
    ds_moe,
    gmoe,
    load_balance,
    load_entropy,
    preservation,
    reduce_over_routers,
    router_z,
    rsl,
    supervised,
    token_entropy,
)
from loramixer.tuner.config import LoraMixerConfig, RoutingLoss
from loramixer.tuner.guards import OwnerWatch
from loramixer.tuner.runtime import MixtureRuntime, SiteCall, mixture_layers
from loramixer.tuner.sites import TokenStream

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenGroup:
    """Routers that saw the same tokens.

    Attributes:
        p: probabilities ``[S, N, E]``.
        mask: bool ``[N]``, or ``[S, N]`` of pooled routers: tokens that are no padding; None: all of them.
        logits: ``[S, N, E]``, where the loss needs them.
        output_gram: ``[S, N, E, E]``, inner products of the experts' outputs, where the loss needs them.
        own_expert: int64 of the shape of the mask, the expert that each token belongs to, where the loss needs it.
    """

    p: torch.Tensor
    mask: torch.Tensor | None
    logits: torch.Tensor | None = None
    output_gram: torch.Tensor | None = None
    own_expert: torch.Tensor | None = None

    def of_rows(self, row_tokens: torch.Tensor) -> TokenGroup:
        """The group over the tokens of the rows, where several rows share tokens that were computed once.

        Args:
            row_tokens: int64 ``[N′]``, which token of this group is each token of the rows.
        """
        index = row_tokens.to(self.p.device)
        return TokenGroup(
            self.p[:, index],
            None if self.mask is None else self.mask[index],
            None if self.logits is None else self.logits[:, index],
            None if self.output_gram is None else self.output_gram[:, index],
        )

    def for_statistics(self) -> TokenGroup:
        """Probabilities and mask, without gradient."""
        return TokenGroup(self.p.detach(), self.mask)


@dataclass(frozen=True)
class Recording:
    """What one training forward is recorded with.

    Attributes:
        runtime: of the mixture.
        inputs: what the backbone was called with, by name.
        expert_index: int64 ``[B]``, the own expert of each row, or None.
        row_tokens: int64, which token that was computed is each token of the rows, where rows share some; or None.
        watch: notes which modules run.
    """

    runtime: MixtureRuntime
    inputs: dict[str, Any]
    expert_index: torch.Tensor | None
    row_tokens: torch.Tensor | None
    watch: OwnerWatch


def named_inputs(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name, whether they were given by position or by name."""
    return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


def group_by_tokens(
    sites: Sequence[str],
    streams: Sequence[TokenStream],
    recorded: Sequence[SiteCall],
    inputs: Mapping[str, Any],
) -> list[TokenGroup]:
    """Put the routers that saw the same tokens together, with the mask that belongs to these tokens.

    Sites may lie on several devices; all groups are on that of the first site.

    Args:
        sites: module names of the routed projections.
        streams: which tokens each of them sees.
        recorded: every call; a module that is called twice counts twice.
        inputs: what the model was called with, by name.

    Raises:
        MixerError: it cannot be known which of a site's tokens are padding.
    """
    calls: dict[tuple[TokenStream, torch.Size], list[SiteCall]] = {}
    in_order = sorted(recorded, key=lambda call: call.site)
    for call in in_order:
        calls.setdefault((streams[call.site], call.p.shape[:-1]), []).append(call)
    groups = []
    for (stream, shape), found in calls.items():
        mask = _mask(sites[found[0].site], stream, shape, inputs)
        device = in_order[0].p.device
        groups.append(
            TokenGroup(
                torch.stack([call.p.flatten(0, -2).to(device) for call in found]),
                None if mask is None else mask.to(device),
                _stacked([call.logits for call in found], device),
                _stacked([call.output_gram for call in found], device),
            )
        )
    return groups


def _stacked(parts: Sequence[torch.Tensor | None], device: torch.device) -> torch.Tensor | None:
    """Tensors of all sites ``[S, …]``, or None where they were not recorded."""
    found = [part.to(device) for part in parts if part is not None]
    return torch.stack(found) if found else None


def _mask(site: str, stream: TokenStream, shape: torch.Size, inputs: Mapping[str, Any]) -> torch.Tensor | None:
    """Bool ``[N]`` for a site that saw tokens of this leading shape, or None where all of them count."""
    if stream == "unknown":
        raise MixerError(
            f"{site} is a key or value of a decoder whose cross-attention has no known name, so its padding cannot be "
            "told from its tokens; leave it out of the experts."
        )
    mask = _decoder_mask(inputs) if stream == "decoder" else inputs.get("attention_mask")
    if mask is None:
        return None
    if mask.dim() == 2:
        if tuple(shape) in (tuple(mask.shape), (mask.numel(),)):
            return mask.flatten().bool()
        if tuple(shape) == (len(mask),):
            return None  # one decision per row, such as a pooled state
    raise MixerError(
        f"{site} routed tokens of shape {tuple(shape)}, but the mask of its {stream} has shape {tuple(mask.shape)}; "
        "which of them are padding is needed: pass a mask of batch × tokens."
    )


def _decoder_mask(inputs: Mapping[str, Any]) -> torch.Tensor | None:
    given: torch.Tensor | None = inputs.get("decoder_attention_mask")
    if given is not None:
        return given
    labels = inputs["labels"]
    if labels.dim() == 2 and not labels.is_floating_point():
        return labels != IGNORED_LABEL  # position t of the decoder predicts label t
    if inputs.get("attention_mask") is None:
        return None
    raise MixerError(
        f"The labels have shape {tuple(labels.shape)}, so they do not say which tokens of the decoder are padding; "
        "pass decoder_attention_mask."
    )


def routing_loss(
    config: LoraMixerConfig, groups: Sequence[TokenGroup], expert_index: torch.Tensor | None = None
) -> torch.Tensor:
    """The routing loss of one forward: the mean over all routers, whichever tokens they saw.

    Args:
        config: of the mixture.
        groups: routers and their tokens.
        expert_index: int64 ``[B]``, the own expert of each row (−1: none), or None.

    Raises:
        MixerError: the loss needs to know the own expert of each row, and it was not given.
    """
    if config.routing_loss == "supervised":
        groups = [_with_own_expert(group, expert_index) for group in groups]
    if config.reduction == "pooled":
        groups = [_pooled(groups)]
    return reduce_over_routers(torch.cat([_per_router(config, group) for group in groups]))


def preservation_loss(model: nn.Module, config: LoraMixerConfig) -> torch.Tensor | None:
    """β Σ ‖θ − θ⁰‖² over the preserved experts at all sites of the active mixture (paper, Eq. 11), or None."""
    if not config.preserve:
        return None
    pairs = [pair for layer, adapter in mixture_layers(model) for pair in layer.preserved(adapter)]
    return config.preservation_weight * preservation(pairs) if pairs else None


def _with_own_expert(group: TokenGroup, expert_index: torch.Tensor | None) -> TokenGroup:
    if expert_index is None:
        raise MixerError(
            "routing_loss='supervised' needs the own expert of each row, and this batch has none; pass expert_index, "
            "the position of the expert among the gates, or −1 for none."
        )
    tokens = group.p.shape[1]
    own_N = expert_index.to(group.p.device).repeat_interleave(tokens // len(expert_index))
    return replace(group, own_expert=own_N)


def _pooled(groups: Sequence[TokenGroup]) -> TokenGroup:
    """All tokens of all routers as if one router had seen them: a single group with S = 1."""

    def joined(parts: Iterable[torch.Tensor | None]) -> torch.Tensor | None:
        """Parts ``[S, N, …]``, one after the other: ``[1, sum of S · N, …]``; None where there are none."""
        found = [part.flatten(0, 1) for part in parts if part is not None]
        return torch.cat(found).unsqueeze(0) if found else None

    counts, own_experts = [], []
    for group in groups:
        sites_by_tokens = group.p.shape[:2]
        everything = torch.ones(sites_by_tokens, dtype=torch.bool, device=group.p.device)
        counts.append(everything if group.mask is None else group.mask.expand(sites_by_tokens))
        own_experts.append(None if group.own_expert is None else group.own_expert.expand(sites_by_tokens))
    p = joined(group.p for group in groups)
    assert p is not None  # there is a group
    return TokenGroup(
        p,
        joined(counts),
        joined(group.logits for group in groups),
        joined(group.output_gram for group in groups),
        joined(own_experts),
    )


def _per_router(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    """``[S]``: the chosen loss, and the z-loss that can stand beside any."""
    value = LOSSES[config.routing_loss](config, group)
    if config.z_weight:
        assert group.logits is not None  # recorded wherever there is a weight
        value = value + config.z_weight * router_z(group.logits, group.mask, across_processes=True)
    return value


def _none(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    return group.p.new_zeros(group.p.shape[0])


def _rsl(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    return rsl(
        group.p,
        group.mask,
        balance_weight=config.balance_weight,
        entropy_weight=config.entropy_weight,
        entropy=config.entropy,
        usage=config.usage,
        k=config.top_k or 1,
        scale=config.scale,
        across_processes=True,
    )


def _load_balance(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    settings: dict[str, Any] = {"usage": config.usage, "k": config.top_k or 1, "scale": config.scale}
    return config.balance_weight * load_balance(group.p, group.mask, **settings, across_processes=True)


def _ds_moe(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    return config.balance_weight * ds_moe(group.p, group.mask, across_processes=True)


def _gmoe(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    return gmoe(
        group.p,
        group.mask,
        poisson_weight=config.poisson_weight,
        normal_weight=config.normal_weight,
        k=config.top_k or 1,
        form=config.loss_form,
        across_processes=True,
    )


def _aesl(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    assert group.output_gram is not None  # recorded wherever this is the loss
    return aesl(
        group.p,
        group.output_gram,
        group.mask,
        balance_weight=config.balance_weight,
        orthogonality_weight=config.orthogonality_weight,
        variance_weight=config.variance_weight,
        k=config.top_k or 1,
        usage=config.usage,
        scale=config.scale,
        form=config.loss_form,
        across_processes=True,
    )


def _supervised(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    assert group.own_expert is not None  # given by `routing_loss`
    return config.balance_weight * supervised(group.p, group.own_expert, group.mask, across_processes=True)


LOSSES: dict[RoutingLoss, Callable[[LoraMixerConfig, TokenGroup], torch.Tensor]] = {
    "rsl": _rsl,
    "load_balance": _load_balance,
    "ds_moe": _ds_moe,
    "gmoe": _gmoe,
    "aesl": _aesl,
    "supervised": _supervised,
    "none": _none,
}
"""Every routing loss by its name: from a configuration and a group of routers to one value ``[S]`` per router."""


def routing_statistics(
    config: LoraMixerConfig, groups: Sequence[TokenGroup], expert_index: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Terms of one forward in training for the run log, means over all routers and over the tokens of all processes.

    Entropies are in nats; ``own_share`` is ``[E]``, with NaN for experts to which no row of the batch belongs.

    Args:
        config: of the mixture.
        groups: detached.
        expert_index: int64 ``[B]``, the own expert of each row (−1: none), or None.
    """

    def mean(value: Callable[..., torch.Tensor], **settings: Any) -> torch.Tensor:
        of_groups = [value(group.p, group.mask, **settings, across_processes=True) for group in groups]
        return torch.cat(of_groups).mean()

    found = {
        "token_entropy": mean(token_entropy),
        "load_entropy": mean(load_entropy),
        "balance": mean(load_balance, usage=config.usage, k=config.top_k or 1),
    }
    if expert_index is not None:
        share_BE = torch.cat([_share_of_rows(group, len(expert_index)) for group in groups]).mean(dim=0)
        own_BE = expert_index.to(share_BE.device)[:, None] == torch.arange(share_BE.shape[-1], device=share_BE.device)
        rows_E = own_BE.sum(dim=0)
        found["own_share"] = mean_over_processes(torch.where(own_BE, share_BE, 0.0).sum(dim=0) / rows_E, rows_E)
    return found


def _share_of_rows(group: TokenGroup, batch: int) -> torch.Tensor:
    """Mean probability ``[S, B, E]`` of every expert over the tokens of each row, of this process alone."""
    p_SBTE = group.p.unflatten(1, (batch, -1))
    weights_BT1 = torch.ones_like(p_SBTE[0, :, :, :1])
    if group.mask is not None:
        weights_BT1 = group.mask.view(batch, -1, 1).to(p_SBTE.dtype)
    return (p_SBTE * weights_BT1).sum(dim=2) / weights_BT1.sum(dim=1).clamp_min(1.0)


def share_of_step(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The weight of this forward within an optimiser step: its labels over those of the step, or 1.

    The Trainer counts the labels of all accumulated forwards, passes their number on, and then no longer divides by
    the number of forwards (`transformers/trainer.py`, ``training_step``).
    """
    count = label_count(model, inputs)
    items = inputs.get("num_items_in_batch")
    return torch.ones((), device=count.device) if items is None else count / items


def token_count(group: TokenGroup) -> torch.Tensor:
    """How many tokens the means of the routing loss are over."""
    return torch.tensor(group.p.shape[1]) if group.mask is None else group.mask.sum()


def label_count(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """How many labels the mean loss of this forward is over."""
    return (_counted_labels(model, inputs) != IGNORED_LABEL).sum()


def _counted_labels(model: nn.Module, inputs: Mapping[str, Any]) -> torch.Tensor:
    """The labels that the mean loss is over: causal language models predict no first label, all others every one."""
    from transformers.loss.loss_utils import LOSS_MAPPING, ForCausalLMLoss

    if (shifted := inputs.get("shift_labels")) is not None:
        return shifted
    labels: torch.Tensor = inputs["labels"]
    # `PreTrainedModel.loss_function` is causal for classes whose name says nothing, such as GPT2LMHeadModel.
    causal = LOSS_MAPPING.get(getattr(model, "loss_type", None), ForCausalLMLoss) is ForCausalLMLoss
    encoder_decoder = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return labels[..., 1:] if causal and not encoder_decoder and labels.dim() > 1 else labels
