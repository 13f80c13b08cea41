"""`LoraMixerLayer`: one projection with its experts and its router.

Shape legend: B batch, T tokens, N = B × T, D in features, F out features, E experts, R sum of the experts' ranks.

    y_NF = W x + ((x_ND A_RDᵀ) * (g_NE[expert of row] * s_R)) B_RF

The experts lie on top of each other, so any mix of ranks is exact and costs two matrix products whatever the number of
experts (paper, Eq. 4; `mixing` has the sum, `sharing` what q, k and v have in common).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from peft.tuners._buffer_dict import BufferDict
from peft.tuners.tuners_utils import BaseTunerLayer, _get_in_out_features
from torch import nn

from loramixer.errors import ExpertError, MixerError
from loramixer.experts import SiteWeights
from loramixer.losses import expert_output_gram
from loramixer.tuner.layout import SiteLayout
from loramixer.tuner.mixing import add_dense, add_sparse, block_grams, expert_norms
from loramixer.tuner.runtime import MixtureRuntime, OutputNorms, RoutingCapture
from loramixer.tuner.sharing import InputGroup, Routed


class LoraMixerLayer(nn.Module, BaseTunerLayer):
    """Wraps any linear layer, quantised ones too, since only its forward is used.

    Attributes:
        lora_mixer_A: adapter → ``[R, D]``, all experts' A on top of each other.
        lora_mixer_B: adapter → ``[R, F]``, all experts' B transposed, likewise.
        lora_mixer_router: adapter → linear map without bias, D → E.
        lora_mixer_expert_of_row: adapter → int64 ``[R]`` buffer; empty where all experts have one rank and scaling.
        lora_mixer_scaling_of_row: adapter → float32 ``[R]`` buffer; likewise.
        lora_mixer_absent: adapter → bool ``[E]`` buffer, experts that do not change this site.
        lora_mixer_former_A: adapter → A as it was before training, a buffer of mixtures that preserve experts only.
        lora_mixer_former_B: likewise.
        layouts: adapter → whose rows are whose.
        runtimes: adapter → what it shares with all other sites.
        places: adapter → the group of sites with the same input, and the position in it.
        sites: adapter → index among the sites of the mixture.
        awaiting_weights: adapter → True, for saved mixtures whose weights were not seen yet; what lacks is NaN.
    """

    if TYPE_CHECKING:  # nn.Module declares every attribute as a tensor or a module; these are neither
        active_adapters: list[str]
        frozen_peft_weight_names: dict[str, tuple[str, ...]]

    adapter_layer_names = ("lora_mixer_A", "lora_mixer_B", "lora_mixer_router")
    other_param_names = (
        "lora_mixer_expert_of_row",
        "lora_mixer_scaling_of_row",
        "lora_mixer_absent",
        "lora_mixer_former_A",
        "lora_mixer_former_B",
        "layouts",
        "has_absent",
        "runtimes",
        "places",
        "sites",
        "awaiting_weights",
    )

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
        self.lora_mixer_expert_of_row = BufferDict(persistent=False)
        self.lora_mixer_scaling_of_row = BufferDict(persistent=False)
        self.lora_mixer_absent = BufferDict(persistent=False)
        self.lora_mixer_former_A = BufferDict(persistent=False)
        self.lora_mixer_former_B = BufferDict(persistent=False)
        self.layouts: dict[str, SiteLayout] = {}
        self.has_absent: dict[str, bool] = {}
        self.runtimes: dict[str, MixtureRuntime] = {}
        self.places: dict[str, tuple[InputGroup, int]] = {}
        self.sites: dict[str, int] = {}
        self.awaiting_weights: dict[str, bool] = {}

    def add_router(self, adapter_name: str, runtime: MixtureRuntime, experts: int) -> None:
        """Begin a mixture at this site with a new router; `set_experts` then gives it something to choose from.

        Args:
            adapter_name: PEFT's name for it.
            runtime: shared by all its layers.
            experts: how many.
        """
        self.runtimes[adapter_name] = runtime
        weight_ED = torch.empty(experts, self.in_features, device=self._device(), dtype=torch.float32)
        router = nn.Linear(self.in_features, experts, bias=False, device="meta")
        router.weight = nn.Parameter(nn.init.normal_(weight_ED, std=runtime.config.router_init_std))
        self.lora_mixer_router[adapter_name] = router

    def freeze_experts(self, adapter_name: str) -> None:
        """Tell PEFT that the experts of a mixture do not train, unless its configuration says so."""
        if not self.runtimes[adapter_name].config.train_experts:
            # The class attribute is shared, so it is copied and never changed in place.
            self.frozen_peft_weight_names = {
                **self.frozen_peft_weight_names,
                adapter_name: ("lora_mixer_A", "lora_mixer_B"),
            }

    def set_experts(self, adapter_name: str, layout: SiteLayout, weights: Sequence[SiteWeights | None] | None) -> None:
        """Put other experts in the place of the ones of a mixture; the router is left as it is.

        Args:
            adapter_name: PEFT's name for the mixture.
            layout: rank and scaling of each expert here.
            weights: the experts' matrices (None for an absent one); or None to leave them unset.
        """
        former = self.lora_mixer_A.get(adapter_name)
        device = self._device()
        dtype = torch.float32 if former is None else former.dtype
        A_RD = torch.empty(layout.rows, self.in_features, device=device, dtype=dtype)  # type: ignore[call-overload]
        B_RF = torch.empty(layout.rows, self.out_features, device=device, dtype=dtype)  # type: ignore[call-overload]
        if weights is not None:
            for index, part in enumerate(weights):
                if part is not None:
                    A_RD[layout.slice_of(index)] = part.A.to(A_RD)
                    B_RF[layout.slice_of(index)] = part.B.t().to(B_RF)
        trains = self.runtimes[adapter_name].config.train_experts if former is None else former.requires_grad
        if weights is not None:
            self.remember_experts(adapter_name, A_RD, B_RF)
        self.lora_mixer_A[adapter_name] = nn.Parameter(A_RD, requires_grad=trains)
        self.lora_mixer_B[adapter_name] = nn.Parameter(B_RF, requires_grad=trains)
        indexed = layout.uniform is None
        self.lora_mixer_expert_of_row[adapter_name] = layout.expert_of_row().to(device)[: layout.rows * indexed]
        self.lora_mixer_scaling_of_row[adapter_name] = layout.scaling_of_row().to(device)[: layout.rows * indexed]
        self.lora_mixer_absent[adapter_name] = layout.absent().to(device)
        self.layouts[adapter_name] = layout
        # A mixture of one expert has nothing to choose, and no other site to be absent from.
        self.has_absent[adapter_name] = len(layout.ranks) > 1 and 0 in layout.ranks

    def _device(self) -> torch.device | None:
        # Not PEFT's own move: it would also cast to the type of the backbone, and round float32 experts to bfloat16.
        return self._get_base_layer_device_and_dtype(self.get_base_layer())[0]  # type: ignore[operator]

    def expert_weights(self, adapter_name: str, expert: int) -> SiteWeights | None:
        """The matrices of one expert here, as views, or None where it is absent."""
        layout = self.layouts[adapter_name]
        if not layout.ranks[expert]:
            return None
        rows = layout.slice_of(expert)
        A_RD, B_RF = self.lora_mixer_A[adapter_name].detach(), self.lora_mixer_B[adapter_name].detach()
        return SiteWeights(A_RD[rows], B_RF[rows].t(), layout.scalings[expert])

    def remember_experts(self, adapter_name: str, A_RD: torch.Tensor, B_RF: torch.Tensor) -> None:
        """Keep a copy of what the experts are before they train, if they do and any of them is to be preserved."""
        config = self.runtimes[adapter_name].config
        if config.preserve and not config.inference_mode:
            self.lora_mixer_former_A[adapter_name] = A_RD.detach().to(self._device(), copy=True)
            self.lora_mixer_former_B[adapter_name] = B_RF.detach().to(self._device(), copy=True)

    def preserved(self, adapter_name: str) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """``(θ, θ⁰)`` of the matrices of the experts that are to be preserved here, if this mixture is to train."""
        if adapter_name not in self.lora_mixer_former_A:
            return
        runtime, layout = self.runtimes[adapter_name], self.layouts[adapter_name]
        for name in runtime.config.preserve:
            rows = layout.slice_of(runtime.index_of(name))
            yield self.lora_mixer_A[adapter_name][rows], self.lora_mixer_former_A[adapter_name][rows]
            yield self.lora_mixer_B[adapter_name][rows], self.lora_mixer_former_B[adapter_name][rows]

    def matrices(self, adapter_name: str) -> tuple[torch.Tensor, torch.Tensor]:
        """``(A_RD, B_RF)`` of a mixture."""
        # Straight from the dictionaries: looked up by attribute, they would cost as much as the products at one token.
        modules: Any = self._modules
        A_RD = modules["lora_mixer_A"]._parameters[adapter_name]
        return A_RD, modules["lora_mixer_B"]._parameters[adapter_name]

    def router_weight(self, adapter_name: str) -> torch.Tensor:
        """``[E, D]``, the router of a mixture."""
        modules: Any = self._modules
        return modules["lora_mixer_router"]._modules[adapter_name]._parameters["weight"]

    def experts_here(self, adapter_name: str) -> int:
        """How many experts of a mixture change this site."""
        return sum(rank > 0 for rank in self.layouts[adapter_name].ranks) if adapter_name in self.layouts else 0

    def await_weights(self, adapter_name: str, experts: bool) -> None:
        """Make what is to be loaded recognisable, since Transformers sets parameters without telling anybody.

        Args:
            adapter_name: PEFT's name for the mixture.
            experts: whether the experts are to be loaded too, or the router only.
        """
        self.awaiting_weights[adapter_name] = True
        for parameter in self._weights(adapter_name)[: 3 if experts else 1]:
            nn.init.constant_(parameter, torch.nan)

    def _weights(self, adapter_name: str) -> list[nn.Parameter]:
        router: Any = self.lora_mixer_router[adapter_name]
        return [router.weight, self.lora_mixer_A[adapter_name], self.lora_mixer_B[adapter_name]]

    def _check_loaded(self, adapter_name: str) -> None:
        """Raise a MixerError if weights of a saved mixture are still missing here; else never ask again."""
        if any(parameter.isnan().any() for parameter in self._weights(adapter_name)):
            raise MixerError(
                "The experts of this mixture were never loaded: its configuration was saved, or used for another "
                "model before. Load a saved mixture with load_mixer or PeftModel.from_pretrained instead of "
                "get_peft_model, and make a new LoraMixerConfig for every new model."
            )
        # Transformers makes whatever it loads trainable; this time frozen experts stay frozen.
        for name in self.frozen_peft_weight_names.get(adapter_name, ()):
            getattr(self, name)[adapter_name].requires_grad_(False)
        self.remember_experts(adapter_name, *self.matrices(adapter_name))
        del self.awaiting_weights[adapter_name]

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The base layer's output, plus every active mixture unless adapters are disabled."""
        base_layer: Any = self._modules["base_layer"]
        plain = _is_plain_linear(base_layer)
        if plain:
            result = F.linear(x, base_layer._parameters["weight"], base_layer._parameters["bias"])
            active: Any = self._active_adapter
            if len(active) == 1 and not (self.training or self._disable_adapters or torch.is_grad_enabled()):
                place = self.places.get(active[0])
                lean = place[0].route_lean(place[1], x) if place else None
                if place and lean is not None:
                    runtime = place[0].runtime
                    if (capture := runtime.capture) is not None:
                        norms = None
                        if capture.contributions:
                            norms = self._output_norms(active[0], capture, lean[0].x_ND, result, base_layer.bias)
                        runtime.note(self.sites[active[0]], *lean, x.shape[:-1], norms=norms)
                    return self._add_lean(result, *lean, active[0])
        else:
            result = base_layer(x, *args, **kwargs)
        return self.add_mixtures(result, x, own=plain, bias=getattr(base_layer, "bias", None))

    def _add_lean(self, y: torch.Tensor, routed: Routed, index: int, adapter_name: str) -> torch.Tensor:
        A_RD, B_RF = self.matrices(adapter_name)
        gates_NE: torch.Tensor = routed.gates_NSE[:, index]  # type: ignore[index]
        y_NF, layout = y.view(-1, y.shape[-1]), self.layouts[adapter_name]
        return add_dense(y_NF, routed.x_ND, A_RD, B_RF, gates_NE, layout, None, True).view(y.shape)

    def add_mixtures(
        self, result: torch.Tensor, x: torch.Tensor, own: bool = False, bias: torch.Tensor | None = None
    ) -> torch.Tensor:
        """``result`` ``[..., F]`` plus every active mixture of ``x`` ``[..., D]``, unless adapters are disabled.

        Args:
            result: what the base layer gave.
            x: its input.
            own: whether nobody else holds ``result``, so that it may be overwritten.
            bias: the bias ``[F]`` that ``result`` contains, if any.
        """
        if self._disable_adapters:
            return result
        for adapter_name in self.active_adapters:
            if adapter_name in self.places:
                result = self._add_mixture(result, x, adapter_name, own, bias)
        return result

    def _add_mixture(
        self, y: torch.Tensor, x: torch.Tensor, adapter_name: str, own: bool, bias: torch.Tensor | None
    ) -> torch.Tensor:
        group, position = self.places[adapter_name]
        runtime = group.runtime
        if adapter_name in self.awaiting_weights:
            self._check_loaded(adapter_name)
        routed, index = group.route(position, x)
        # As with probabilities, whether it is recorded or not: checkpointing must see the same operations again.
        needs_outputs = self.training and runtime.config.routing_loss == "aesl"
        output_gram = self._output_gram(adapter_name, routed.x_ND) if needs_outputs else None
        if runtime.listening:
            norms = None
            if (capture := runtime.capture) is not None and capture.contributions:
                norms = self._output_norms(adapter_name, capture, routed.x_ND, y, bias)
            runtime.note(self.sites[adapter_name], routed, index, x.shape[:-1], output_gram, norms)
        A_RD, B_RF = self.matrices(adapter_name)
        shape = y.shape
        y_NF, x_ND, layout = y.reshape(-1, shape[-1]), routed.x_ND, self.layouts[adapter_name]
        if routed.gates_NSE is None:
            assert routed.chosen_NSK is not None
            weights, chosen = (part[:, index] for part in routed.chosen_NSK)
            return add_sparse(y_NF, x_ND, A_RD, B_RF, weights, chosen, layout).view(shape)
        if self.training and runtime.config.dropout:
            x_ND = F.dropout(x_ND, runtime.config.dropout)
        tables = None
        if layout.uniform is None:
            tables = self.lora_mixer_expert_of_row[adapter_name], self.lora_mixer_scaling_of_row[adapter_name]
        gates_NE = routed.gates_NSE[:, index]
        return add_dense(y_NF, x_ND, A_RD, B_RF, gates_NE, layout, tables, own and routed.free).view(shape)

    @torch.no_grad()
    def _output_norms(
        self,
        adapter_name: str,
        capture: RoutingCapture,
        x_ND: torch.Tensor,
        y: torch.Tensor,
        bias: torch.Tensor | None,
    ) -> OutputNorms:
        """Lengths of the experts' outputs before their gates, and of ``y`` ``[..., F]`` without its bias."""
        A_RD, B_RF = self.matrices(adapter_name)
        layout, site = self.layouts[adapter_name], self.sites[adapter_name]
        with torch.autocast(x_ND.device.type, enabled=False):
            if site not in capture.grams:
                capture.grams[site] = block_grams(B_RF, layout)
            base_NF = y.reshape(-1, y.shape[-1]).float()
            if bias is not None:
                base_NF = base_NF - bias.float()
            return OutputNorms(expert_norms(x_ND, A_RD, capture.grams[site], layout), base_NF.norm(dim=-1))

    def _output_gram(self, adapter_name: str, x_ND: torch.Tensor) -> torch.Tensor:
        """``[N, E, E]``: inner products of the experts' outputs, without dropout and in float32."""
        A_RD, B_RF = self.matrices(adapter_name)
        layout = self.layouts[adapter_name]
        with torch.autocast(x_ND.device.type, enabled=False):
            h_NR = F.linear(x_ND.float(), A_RD.float()) * layout.scaling_of_row().to(x_ND.device)
            return expert_output_gram(h_NR, B_RF.float(), layout.ranks)


def layers_of(model: nn.Module, adapter_name: str) -> dict[str, LoraMixerLayer]:
    """The routed layers of one mixture by module name, in the order of the model."""
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, LoraMixerLayer) and adapter_name in module.runtimes
    }


def _is_plain_linear(module: nn.Module) -> bool:
    """Whether a call of the module is one product that nobody watches or changes.

    Then the product can be taken directly, without the cost of a call, and its result belongs to the caller alone, who
    may overwrite it. Hooks, quantised layers and the replaced ``forward`` of accelerate's offloading do not qualify.
    """
    return type(module) is nn.Linear and not (
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or "forward" in module.__dict__
    )
