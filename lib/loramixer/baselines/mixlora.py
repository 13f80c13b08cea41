"""MixLoRA in its published form: LoRA experts in the FFN block, plain LoRA on the attention projections.

Source: Li et al., MixLoRA (2024), and TUDB-Labs/MixLoRA, ``mixlora/model.py`` (Apache-2.0; read for facts). Every
token is sent to two of E experts of its FFN block, which share the block's frozen weights:

    h_e = act(W_gate x + s B_gate,e A_gate,e x) * (W_up x + s B_up,e A_up,e x)
    y   = sum over the chosen e of p̂_e (W_down h_e + s B_down,e A_down,e h_e)

The frozen gate and up projections run once for all tokens, the frozen down projection once per token and chosen
expert: this is where MixLoRA spends more than a mixture inside single projections does.

Shape legend: N tokens, D in features of the block, H its inner width, E experts, K experts per token, r rank.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from loramixer.errors import BackboneError
from loramixer.losses import load_balance, pool_routers, reduce_over_routers
from loramixer.routing import check_k
from loramixer.shapes import ATTENTION

FEED_FORWARD = ("gate_proj", "up_proj", "down_proj")
"""The projections of an FFN block, w1, w3 and w2 in the paper of MixLoRA."""


@dataclass(frozen=True)
class MixLoraSettings:
    """Settings of a MixLoRA model, with the defaults that its authors publish.

    Attributes:
        experts: E, per FFN block.
        rank: of every expert and of the attention LoRA.
        alpha: lora_alpha; the scaling is alpha / rank.
        top_k: K.
        dropout: on the input of every LoRA, in training.
        attention: projections with a plain LoRA.
        balance_weight: of the routing loss.
        router_init_std: standard deviation of the routers' initial weights.
    """

    experts: int = 8
    rank: int = 16
    alpha: float = 32
    top_k: int = 2
    dropout: float = 0.05
    attention: tuple[str, ...] = ATTENTION
    balance_weight: float = 0.001
    router_init_std: float = 0.02


class ProjectionExperts(nn.Module):
    """The LoRA experts of one projection, as two stacked parameters: A ``[E, r, in]`` and B ``[E, out, r]``."""

    def __init__(self, projection: nn.Linear, settings: MixLoraSettings) -> None:
        super().__init__()
        device = projection.weight.device
        shape = (settings.experts, settings.rank)
        self.A = nn.Parameter(torch.empty(*shape, projection.in_features, device=device, dtype=torch.float32))
        self.B = nn.Parameter(
            torch.zeros(settings.experts, projection.out_features, settings.rank, device=device, dtype=torch.float32)
        )
        # LoRA's usual start: A uniform in ±1/√in, B zero.
        nn.init.uniform_(self.A, -(projection.in_features**-0.5), projection.in_features**-0.5)
        self.scaling = settings.alpha / settings.rank
        self.dropout = settings.dropout

    def forward(self, x: torch.Tensor, expert: int) -> torch.Tensor:
        """The update s B_e A_e x of one expert, in the type of ``x``."""
        dropped = F.dropout(x.to(self.A.dtype), self.dropout, self.training)
        return (self.scaling * F.linear(F.linear(dropped, self.A[expert]), self.B[expert])).to(x.dtype)


class MixLoraFeedForward(nn.Module):
    """An FFN block with its experts and its router; takes the block's place.

    Attributes:
        probabilities: ``[N, E]`` of the last forward in training, for :func:`routing_loss`; else None.
    """

    def __init__(self, block: nn.Module, settings: MixLoraSettings) -> None:
        super().__init__()
        self.block = block
        self.settings = settings
        gate: Any = block.gate_proj
        self.router = nn.Linear(
            gate.in_features, settings.experts, bias=False, device=gate.weight.device, dtype=torch.float32
        )
        nn.init.normal_(self.router.weight, std=settings.router_init_std)
        self.experts = nn.ModuleDict(
            {name: ProjectionExperts(getattr(block, name), settings) for name in FEED_FORWARD}
        )
        self.probabilities: torch.Tensor | None = None

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """``[..., D]`` → ``[..., D]``."""
        block: Any = self.block
        x_ND = x.reshape(-1, x.shape[-1])
        p_NE = torch.softmax(self.router(x_ND.float()), dim=-1)
        self.probabilities = p_NE if self.training else None
        weights_NK, chosen_NK = p_NE.topk(self.settings.top_k, dim=-1)
        weights_NK = weights_NK / weights_NK.sum(dim=-1, keepdim=True)
        mask_EKN = F.one_hot(chosen_NK, self.settings.experts).permute(2, 1, 0)
        gate_NH, up_NH = block.gate_proj(x_ND), block.up_proj(x_ND)
        y_ND = torch.zeros_like(x_ND, dtype=torch.float32)
        for expert in range(self.settings.experts):
            slot, token = torch.where(mask_EKN[expert])
            x_nD = x_ND[token]
            gate_nH = gate_NH[token] + self.experts["gate_proj"](x_nD, expert)
            up_nH = up_NH[token] + self.experts["up_proj"](x_nD, expert)
            h_nH = block.act_fn(gate_nH) * up_nH
            y_nD = block.down_proj(h_nH) + self.experts["down_proj"](h_nH, expert)
            y_ND.index_add_(0, token, y_nD * weights_NK[token, slot, None])
        return y_ND.to(x.dtype).reshape(x.shape)


def add_mixlora(model: nn.Module, settings: MixLoraSettings | None = None) -> Any:
    """Put MixLoRA into a Llama-type model, in place: experts and routers train, the backbone is frozen.

    Args:
        model: its FFN blocks need ``gate_proj``, ``up_proj``, ``down_proj`` and ``act_fn``.
        settings: :class:`MixLoraSettings`.

    Returns:
        The PEFT model that holds the attention LoRA. PEFT saves that part only; the experts and routers are ordinary
        parameters of the :class:`MixLoraFeedForward` blocks.

    Raises:
        BackboneError: the model has no such blocks.
        RoutingError: more experts per token than there are.
    """
    from peft import LoraConfig, get_peft_model

    settings = settings or MixLoraSettings()
    check_k(settings.top_k, settings.experts)
    blocks = [
        name
        for name, module in model.named_modules()
        if all(isinstance(getattr(module, projection, None), nn.Linear) for projection in FEED_FORWARD)
        and hasattr(module, "act_fn")
    ]
    if not blocks:
        raise BackboneError(
            f"{type(model).__name__} has no FFN blocks with {', '.join(FEED_FORWARD)}; MixLoRA is published for "
            "Llama-type models."
        )
    lora = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(settings.attention),
        task_type="CAUSAL_LM",
    )
    peft_model = get_peft_model(model, lora)
    for name in blocks:
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, MixLoraFeedForward(model.get_submodule(name), settings))
    return peft_model


def routing_loss(model: nn.Module, attention_mask: torch.Tensor | None = None) -> torch.Tensor:
    """The routing loss of the last forward in training: weight · E Σ_e F_e P_e over all blocks together.

    F counts assignments per *token*, as Mixtral does, so that the sum is K and not 1 when the load is even.

    Args:
        model: with MixLoRA blocks, in training mode.
        attention_mask: ``[B, T]``, 1 for tokens that count.
    """
    blocks = [module for module in model.modules() if isinstance(module, MixLoraFeedForward)]
    p_SNE = torch.stack([block.probabilities for block in blocks if block.probabilities is not None])
    settings = blocks[0].settings
    mask_N = None if attention_mask is None else attention_mask.flatten().bool()
    balance = load_balance(*pool_routers(p_SNE, mask_N), usage="top_k", k=settings.top_k)
    return settings.balance_weight * settings.top_k * reduce_over_routers(balance)
