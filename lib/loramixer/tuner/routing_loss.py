"""The routing loss and the statistics of one training forward, over the tokens that each router really saw.

Shapes: S routers that decided over the same tokens, N = batch × tokens, E experts. In a decoder-only model there is
one such group; in an encoder–decoder there are two, each with a mask of its own.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from loramixer.errors import MixerError
from loramixer.losses import (
    load_balance,
    load_entropy,
    pool_routers,
    reduce_over_routers,
    rsl,
    token_entropy,
)
from loramixer.tuner.config import LoraMixerConfig
from loramixer.tuner.guards import OwnerWatch
from loramixer.tuner.runtime import MixtureRuntime
from loramixer.tuner.sites import TokenStream

IGNORED_LABEL = -100


@dataclass(frozen=True)
class TokenGroup:
    """Probabilities ``[S, N, E]`` of routers that saw the same tokens, and bool ``[N]``: those that are no padding."""

    p: torch.Tensor
    mask: torch.Tensor | None

    def detach(self) -> TokenGroup:
        """The same without gradient."""
        return TokenGroup(self.p.detach(), self.mask)


@dataclass(frozen=True)
class Recording:
    """What one training forward is recorded with.

    Attributes:
        runtime: of the mixture.
        inputs: what the backbone was called with, by name.
        expert_index: int64 ``[B]``, the own expert of each row, or None.
        watch: notes which modules run.
        former_domain: of the runtime, restored afterwards.
    """

    runtime: MixtureRuntime
    inputs: dict[str, Any]
    expert_index: torch.Tensor | None
    watch: OwnerWatch
    former_domain: torch.Tensor | None


def named_inputs(forward: Callable[..., Any], args: Sequence[Any], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of a forward by name, whether they were given by position or by name."""
    return {**dict(zip(inspect.signature(forward).parameters, args, strict=False)), **kwargs}


def group_by_tokens(
    sites: Sequence[str],
    streams: Sequence[TokenStream],
    recorded: Sequence[tuple[int, torch.Tensor]],
    inputs: Mapping[str, Any],
) -> list[TokenGroup]:
    """Put the routers that saw the same tokens together, with the mask that belongs to these tokens.

    Args:
        sites: module names of the routed projections.
        streams: which tokens each of them sees.
        recorded: ``(site, probabilities [..., E])`` of every call; a module that is called twice counts twice.
        inputs: what the model was called with, by name.

    Raises:
        MixerError: it cannot be known which of a site's tokens are padding.
    """
    calls: dict[tuple[TokenStream, torch.Size], list[tuple[int, torch.Tensor]]] = {}
    for site, p in sorted(recorded, key=lambda call: call[0]):
        calls.setdefault((streams[site], p.shape[:-1]), []).append((site, p))
    groups = []
    for (stream, shape), found in calls.items():
        mask = _mask(sites[found[0][0]], stream, shape, inputs)
        p_SNE = torch.stack([p.flatten(0, -2) for _, p in found])
        groups.append(TokenGroup(p_SNE, None if mask is None else mask.to(p_SNE.device)))
    return groups


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


def routing_loss(config: LoraMixerConfig, groups: Sequence[TokenGroup]) -> torch.Tensor:
    """The routing loss of one forward: the mean over all routers, whichever tokens they saw."""
    if config.reduction == "pooled":
        groups = [_pooled(groups)]
    return reduce_over_routers(torch.cat([_per_router(config, group) for group in groups]))


def _pooled(groups: Sequence[TokenGroup]) -> TokenGroup:
    parts = [
        pool_routers(
            group.p, torch.ones_like(group.p[0, :, 0], dtype=torch.bool) if group.mask is None else group.mask
        )
        for group in groups
    ]
    masks = [mask for _, mask in parts if mask is not None]
    return TokenGroup(torch.cat([p for p, _ in parts], dim=1), torch.cat(masks, dim=1))


def _per_router(config: LoraMixerConfig, group: TokenGroup) -> torch.Tensor:
    k = config.top_k or 1
    if config.routing_loss == "rsl":
        return rsl(
            group.p,
            group.mask,
            balance_weight=config.balance_weight,
            entropy_weight=config.entropy_weight,
            entropy=config.entropy,
            usage=config.usage,
            k=k,
            scale=config.scale,
        )
    if config.routing_loss == "load_balance":
        balance = load_balance(group.p, group.mask, usage=config.usage, k=k, scale=config.scale)
        return config.balance_weight * balance
    return group.p.new_zeros(group.p.shape[0])


def routing_statistics(
    config: LoraMixerConfig, groups: Sequence[TokenGroup], expert_index: torch.Tensor | None
) -> dict[str, torch.Tensor]:
    """Terms of one forward for the run log, means over all routers.

    Entropies are in nats; ``own_share`` is ``[E]``, with NaN for experts to which no row of the batch belongs.

    Args:
        config: of the mixture.
        groups: detached.
        expert_index: int64 ``[B]``, the own expert of each row (negative: none), or None.
    """

    def mean(value: Callable[..., torch.Tensor], **settings: Any) -> torch.Tensor:
        return torch.cat([value(group.p, group.mask, **settings) for group in groups]).mean()

    found = {
        "token_entropy": mean(token_entropy),
        "load_entropy": mean(load_entropy),
        "balance": mean(load_balance, usage=config.usage, k=config.top_k or 1),
    }
    if expert_index is not None:
        share_BE = torch.cat([_share_of_rows(group, len(expert_index)) for group in groups]).mean(dim=0)
        experts = range(share_BE.shape[-1])
        found["own_share"] = torch.stack([share_BE[expert_index == expert, expert].mean() for expert in experts])
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
    counted = _counted_labels(model, inputs)
    items = inputs.get("num_items_in_batch")
    return torch.ones((), device=counted.device) if items is None else (counted != IGNORED_LABEL).sum() / items


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
