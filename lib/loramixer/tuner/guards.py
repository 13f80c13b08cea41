"""What keeps a routed projection from being passed over: some modules use its weight instead of calling it.

Mixers of state-space models do so in two places. In training, a fused kernel (`mamba_inner_fn`,
`mamba2_split_conv1d_scan_combined`) takes the weights of ``x_proj``, ``dt_proj`` and ``out_proj``; and on every path
the weight of ``dt_proj`` is multiplied directly (`transformers/models/mamba/modeling_mamba.py`, ``MambaMixer``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from loramixer.errors import ExpertError, MixerError
from loramixer.tuner.layer import LoraMixerLayer

_LEFT_FUSED_PATH = "_loramixer_left_fused_path"


def guarded_layer(owner: nn.Module, name: str, target: nn.Module, site: str) -> LoraMixerLayer:
    """The layer that mixes at ``owner.name`` exactly, in the mode of what it wraps, with the owner prepared for it.

    Args:
        owner: the module that holds the projection.
        name: of the projection in it.
        target: the projection.
        site: its full name, for the message.

    Raises:
        ExpertError: a projection that its owner never calls and whose use of the weight cannot be followed.
    """
    if isinstance(owner, nn.MultiheadAttention) or isinstance(target, nn.MultiheadAttention):
        raise ExpertError(
            f"{site} belongs to torch's MultiheadAttention, which takes weights instead of calling its projections; "
            "leave it out of the experts."
        )
    # PEFT leaves a new layer in training mode, whatever the model is in.
    if not _is_state_space_mixer(owner):
        return LoraMixerLayer(target).train(target.training)
    if _leave_fused_path not in owner._forward_pre_hooks.values():
        owner.register_forward_pre_hook(_leave_fused_path)
        owner.register_forward_hook(_back_to_training, always_call=True)
    layer = MultipliedLayer(target) if name == "dt_proj" else LoraMixerLayer(target)
    return layer.train(target.training)


def has_state_space_mixers(model: nn.Module) -> bool:
    """Whether a backbone has mixers of Mamba's kind, which take weights of projections without calling them."""
    return any(map(_is_state_space_mixer, model.modules()))


def _is_state_space_mixer(module: nn.Module) -> bool:
    return isinstance(getattr(module, "A_log", None), nn.Parameter)


def _leave_fused_path(mixer: nn.Module, args: Any) -> None:
    """Before a mixer runs: only in training mode does it take the fused path, and nothing else in it asks for that."""
    skipped = any(
        isinstance(child, LoraMixerLayer) and not child.disable_adapters and name != "in_proj"
        for name, child in mixer.named_children()
    )
    if mixer.training and skipped:
        mixer.training = False  # of the mixer alone: its projections stay in training mode
        setattr(mixer, _LEFT_FUSED_PATH, True)


def _back_to_training(mixer: nn.Module, args: Any, output: Any) -> None:
    if mixer.__dict__.pop(_LEFT_FUSED_PATH, False):
        mixer.training = True


class MultipliedLayer(LoraMixerLayer):
    """A projection without a call: its owner computes ``weight @ x`` and adds the bias elsewhere."""

    @property
    def weight(self) -> torch.Tensor:
        """The weight of the base layer; its product with a sequence includes the mixture."""
        routed = super().weight.as_subclass(_RoutedWeight)
        routed.layer = self
        return routed


class _RoutedWeight(torch.Tensor):
    """A weight ``[F, D]`` that routes what it is multiplied with; everything else sees an ordinary tensor."""

    layer: LoraMixerLayer
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    def __matmul__(self, x_BDT: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        product_BFT = self.as_subclass(torch.Tensor) @ x_BDT
        if self.layer.disable_adapters:
            return product_BFT
        product_BTF, x_BTD = product_BFT.transpose(-1, -2).contiguous(), x_BDT.transpose(-1, -2)
        return self.layer.add_mixtures(product_BTF, x_BTD, own=False).transpose(-1, -2)


class OwnerWatch:
    """Notes which of the modules that hold a routed projection run, until :meth:`end`."""

    def __init__(self, model: nn.Module, sites: Sequence[str]) -> None:
        self._ran: set[str] = set()
        self._handles = [
            model.get_submodule(owner).register_forward_hook(lambda *_, owner=owner: self._ran.add(owner))
            for owner in {site.rpartition(".")[0] for site in sites} - {""}
        ]

    def end(self) -> set[str]:
        """Names of the modules that ran."""
        for handle in self._handles:
            handle.remove()
        return self._ran


def refuse_passed_over(model: nn.Module, sites: Sequence[str], ran: set[str], called: set[str]) -> None:
    """Raise when a module ran without calling its routed projection, for whatever reason unknown to this file.

    A projection whose module did not run at all, as with layer drop or images that are not there, is no fault.

    Args:
        model: the backbone.
        sites: names of the routed projections.
        ran: names of the modules that ran.
        called: names of the projections that were called.

    Raises:
        MixerError: a routed projection was passed over, so its experts would silently not act.
    """
    for site in sites:
        owner, layer = site.rpartition(".")[0], model.get_submodule(site)
        if owner in ran and site not in called and isinstance(layer, LoraMixerLayer) and not layer.disable_adapters:
            raise MixerError(
                f"{site} was passed over: {type(model.get_submodule(owner)).__name__} took its weight without calling "
                "it, so the experts there would silently not act; leave it out of the experts, or turn that fused "
                "path off."
            )
