"""`LoraMixerLayer`: one projection with its experts and its router.

Shape legend: B batch, T tokens, D in features, F out features, E experts, R sum of the experts' ranks.

    y_BTF = W x + ((x_BTD A_DR) * (g_BTE S_ER)) B_RF

The experts are concatenated along the rank, so any mix of ranks is exact and costs two matrix products whatever the
number of experts; S_ER spreads the gate of each expert, times its scaling, over its columns (paper, Eq. 4).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from loramixer.errors import ExpertError, MixerError
from loramixer.experts import SiteWeights
from loramixer.tuner.runtime import MixtureRuntime


class LoraMixerLayer(nn.Module, BaseTunerLayer):
    """Wraps any linear layer, quantised ones too, since only its forward is used.

    Attributes:
        lora_mixer_A: adapter → ``[R, D]``, all experts' A matrices on top of each other.
        lora_mixer_B: adapter → ``[F, R]``, all experts' B matrices side by side.
        lora_mixer_router: adapter → linear map without bias, D → E.
        lora_mixer_spread: adapter → ``[E, R]`` buffer with each expert's scaling on its own columns.
        lora_mixer_absent: adapter → bool ``[E]`` buffer, experts that do not change this site.
        runtimes: adapter → what it shares with the other sites.
        awaiting_weights: adapters made from a saved configuration whose weights were not seen yet; they hold NaN.
    """

    if TYPE_CHECKING:  # nn.Module declares every attribute as a tensor or a module; these are neither
        active_adapters: list[str]
        frozen_peft_weight_names: dict[str, tuple[str, ...]]

    adapter_layer_names = ("lora_mixer_A", "lora_mixer_B", "lora_mixer_router")
    other_param_names = ("lora_mixer_spread", "lora_mixer_absent")

    def __init__(self, base_layer: nn.Module) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.in_features, self.out_features = _get_in_out_features(base_layer)
        if not self.in_features or not self.out_features:
            raise ExpertError(
                f"{type(base_layer).__name__} is no linear layer; experts can change linear projections only."
            )
        self.lora_mixer_A = nn.ParameterDict()
        self.lora_mixer_B = nn.ParameterDict()
        self.lora_mixer_router = nn.ModuleDict()
        self.lora_mixer_spread = BufferDict(persistent=False)
        self.lora_mixer_absent = BufferDict(persistent=False)
        self.runtimes: dict[str, MixtureRuntime] = {}
        self._sites: dict[str, int] = {}
        self.awaiting_weights: set[str] = set()

    def update_layer(
        self,
        adapter_name: str,
        runtime: MixtureRuntime,
        site: int,
        ranks: list[int],
        scalings: list[float],
        weights: list[SiteWeights | None] | None,
        saved: bool = False,
    ) -> None:
        """Add a mixture to this layer.

        Args:
            adapter_name: PEFT's name for it.
            runtime: shared by all its layers.
            site: index of this layer among them.
            ranks: rank of each expert here, 0 where it is absent.
            scalings: scaling of each expert here.
            weights: the experts' matrices (None for an absent one); or None when they are loaded afterwards.
            saved: whether this is a saved mixture, whose routers are loaded afterwards.
        """
        total = sum(ranks)
        # Not PEFT's own move: it would also cast to the type of the backbone, and round float32 experts to bfloat16.
        device, _ = self._get_base_layer_device_and_dtype(self.get_base_layer())  # type: ignore[operator]
        self.runtimes[adapter_name] = runtime
        self._sites[adapter_name] = site
        self.lora_mixer_A[adapter_name] = nn.Parameter(
            torch.empty(total, self.in_features, device=device, dtype=torch.float32)
        )
        self.lora_mixer_B[adapter_name] = nn.Parameter(
            torch.empty(self.out_features, total, device=device, dtype=torch.float32)
        )
        router = nn.Linear(self.in_features, len(ranks), bias=False, device=device, dtype=torch.float32)
        nn.init.normal_(router.weight, std=runtime.config.router_init_std)
        self.lora_mixer_router[adapter_name] = router
        self.lora_mixer_spread[adapter_name] = spread_matrix(ranks, scalings).to(device)
        self.lora_mixer_absent[adapter_name] = torch.tensor([rank == 0 for rank in ranks], device=device)
        if saved:
            # Transformers sets parameters without telling anybody, so what was not loaded must show by itself.
            self.awaiting_weights.add(adapter_name)
            for parameter in self._weights(adapter_name):
                nn.init.constant_(parameter, torch.nan)
        if weights is not None:
            self._fill_experts(adapter_name, [part for part in weights if part is not None])
        if not runtime.config.train_experts:
            # The class attribute is shared, so it is copied and never changed in place.
            self.frozen_peft_weight_names = {
                **self.frozen_peft_weight_names,
                adapter_name: ("lora_mixer_A", "lora_mixer_B"),
            }

    def _fill_experts(self, adapter_name: str, parts: list[SiteWeights]) -> None:
        with torch.no_grad():
            self.lora_mixer_A[adapter_name].copy_(torch.cat([part.A.float() for part in parts], dim=0))
            self.lora_mixer_B[adapter_name].copy_(torch.cat([part.B.float() for part in parts], dim=1))

    def _weights(self, adapter_name: str) -> list[nn.Parameter]:
        router: Any = self.lora_mixer_router[adapter_name]
        return [self.lora_mixer_A[adapter_name], self.lora_mixer_B[adapter_name], router.weight]

    def _check_loaded(self, adapter_name: str) -> None:
        """Raise a MixerError if weights of a saved mixture are still missing here; else never ask again."""
        if any(parameter.isnan().any() for parameter in self._weights(adapter_name)):
            raise MixerError(
                "This mixture was created from a saved configuration but its experts were never loaded; use "
                "load_mixer or PeftModel.from_pretrained instead of get_peft_model."
            )
        # Transformers makes whatever it loads trainable; this time frozen experts stay frozen.
        for name in self.frozen_peft_weight_names.get(adapter_name, ()):
            getattr(self, name)[adapter_name].requires_grad_(False)
        self.awaiting_weights.discard(adapter_name)

    def delete_adapter(self, adapter_name: str) -> None:
        """Remove a mixture from this layer."""
        super().delete_adapter(adapter_name)
        for by_adapter in (self.runtimes, self._sites):
            by_adapter.pop(adapter_name, None)
        self.awaiting_weights.discard(adapter_name)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output, plus every active mixture unless adapters are disabled."""
        result = self.base_layer(x, *args, **kwargs)
        if self.disable_adapters:
            return result
        for adapter_name in self.active_adapters:
            if adapter_name in self.lora_mixer_A:
                result = result + self._mixture(x, adapter_name).to(result.dtype)
        return result

    def _mixture(self, x: torch.Tensor, adapter_name: str) -> torch.Tensor:
        runtime = self.runtimes[adapter_name]
        if adapter_name in self.awaiting_weights:
            self._check_loaded(adapter_name)
        A, B = self.lora_mixer_A[adapter_name], self.lora_mixer_B[adapter_name]
        x_BTD = x.to(A.dtype)
        # Routers decide in float32 under autocast and in whole models of half precision too: rounded logits would send
        # tokens to other experts.
        router: Any = self.lora_mixer_router[adapter_name]
        with torch.autocast(x.device.type, enabled=False):
            logits_BTE = F.linear(x.float(), router.weight.float())
        if len(runtime.experts) > 1:
            logits_BTE = logits_BTE.masked_fill(self.lora_mixer_absent[adapter_name], -torch.inf)
        gates_BTE = runtime.route(self._sites[adapter_name], logits_BTE, self.training)
        spread_ER = self.lora_mixer_spread[adapter_name]
        weights_BTR = gates_BTE.to(A.dtype) @ spread_ER.to(A.dtype)
        dropped = F.dropout(x_BTD, runtime.config.dropout, self.training)
        return F.linear(F.linear(dropped, A) * weights_BTR, B)


def spread_matrix(ranks: list[int], scalings: list[float]) -> torch.Tensor:
    """``[E, R]``: row e holds the scaling of expert e on its own columns and 0 elsewhere."""
    spread = torch.zeros(len(ranks), sum(ranks))
    start = 0
    for index, (rank, scaling) in enumerate(zip(ranks, scalings, strict=True)):
        spread[index, start : start + rank] = scaling
        start += rank
    return spread
