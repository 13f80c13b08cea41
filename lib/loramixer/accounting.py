"""How many parameters a mixture has, beside MixLoRA and the figures of the paper (A.4).

Nothing here is a formula: the real modules are put into a backbone without weights, on the ``meta`` device, and their
parameters are counted.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from torch import nn

from loramixer.baselines.mixlora import FEED_FORWARD, MixLoraSettings, add_mixlora
from loramixer.errors import BackboneError
from loramixer.shapes import ATTENTION, linear_sites, meta_model, read_config

PAPER = {"backbone": "llama3-8b", "experts": 6, "rank": 64, "targets": ATTENTION}
"""What the figures of A.4 were counted for."""


@dataclass(frozen=True)
class ParameterCount:
    """Parameters of one adapter on one backbone.

    Attributes:
        backbone: parameters of the backbone alone.
        experts: parameters of all experts.
        routers: parameters of all routers.
        shared: adapter parameters that belong to no expert: the attention LoRA of MixLoRA.
    """

    backbone: int
    experts: int
    routers: int
    shared: int = 0

    @property
    def trainable(self) -> int:
        """Experts, routers and shared adapters."""
        return self.experts + self.routers + self.shared

    def share(self, part: int | None = None) -> float:
        """A part (the trainable one by default) of backbone and adapter together, as PEFT prints it."""
        return (self.trainable if part is None else part) / (self.backbone + self.trainable)

    def share_of_backbone(self) -> float:
        """The trainable part over the backbone alone."""
        return self.trainable / self.backbone


def count_mixture(
    backbone: Any, experts: int = 6, rank: int = 64, targets: tuple[str, ...] = ATTENTION
) -> ParameterCount:
    """Count a LoRA-Mixer mixture with experts of one rank on all layers.

    Args:
        backbone: what :func:`loramixer.shapes.read_config` takes.
        experts: E.
        rank: r of every expert.
        targets: last names of the routed projections.

    Raises:
        BackboneError: an unknown backbone, or a target that it does not have.
    """
    from peft import get_peft_model

    from loramixer.tuner import LoraMixerConfig

    model = meta_model(read_config(backbone))
    before = _size(model)
    # The description of a saved mixture: its modules are made, and no weights are read.
    sites = {name: [rank, 1.0, *shape] for name, shape in linear_sites(model, targets).items()}
    described = {f"expert{index}": {"source": "", "sha256": "", "sites": sites} for index in range(experts)}
    mixture = get_peft_model(model, LoraMixerConfig(experts=described))
    return ParameterCount(
        backbone=before,
        experts=_size(mixture, ".lora_mixer_A.") + _size(mixture, ".lora_mixer_B."),
        routers=_size(mixture, ".lora_mixer_router."),
    )


def count_mixlora(
    backbone: Any, experts: int = 6, rank: int = 64, attention: tuple[str, ...] = ATTENTION
) -> ParameterCount | None:
    """Count MixLoRA with as many experts of that rank; None where the backbone has no FFN blocks of its kind.

    Args:
        backbone: as for :func:`count_mixture`.
        experts: E per FFN block.
        rank: r of every expert and of the attention LoRA.
        attention: projections with a plain LoRA.
    """
    model = meta_model(read_config(backbone))
    before = _size(model)
    try:
        linear_sites(model, (*FEED_FORWARD, *attention))
    except BackboneError:
        return None
    settings = MixLoraSettings(experts=experts, rank=rank, top_k=min(2, experts), attention=attention)
    mixture = add_mixlora(model, settings)
    return ParameterCount(
        backbone=before,
        experts=_size(mixture, ".experts."),
        routers=_size(mixture, ".router."),
        shared=_size(mixture, ".lora_"),
    )


def parameter_table(
    backbone: Any = "llama3-8b", experts: int = 6, rank: int = 64, targets: tuple[str, ...] = ATTENTION
) -> dict[str, Any]:
    """All counts of one backbone as plain values, with the paper's figures and a sentence on each where they apply.

    Returns:
        ``{"backbone", "experts", "rank", "targets", "loramixer", "mixlora", "figures"}``; a figure is ``{"what",
        "counted", "paper", "explanation"}``; ``paper`` is None for other settings than those of A.4. Shares are
        fractions.
    """
    ours = count_mixture(backbone, experts, rank, targets)
    theirs = count_mixlora(backbone, experts, rank)
    setting = {"backbone": str(backbone), "experts": experts, "rank": rank, "targets": tuple(targets)}
    as_in_paper = setting == PAPER
    figures = _figures(ours, theirs, experts, rank) if as_in_paper and theirs else _plain_figures(ours, theirs)
    return {
        **setting,
        "targets": list(targets),
        "loramixer": {**asdict(ours), "trainable": ours.trainable},
        "mixlora": None if theirs is None else {**asdict(theirs), "trainable": theirs.trainable},
        "figures": figures,
    }


def _plain_figures(ours: ParameterCount, theirs: ParameterCount | None) -> list[dict[str, Any]]:
    figures = [
        _figure("LoRA-Mixer, trainable share", ours.share()),
        _figure("LoRA-Mixer, routers alone", ours.share(ours.routers)),
    ]
    if theirs is not None:
        figures += [
            _figure("MixLoRA, trainable share", theirs.share()),
            _figure("LoRA-Mixer / MixLoRA, trainable", ours.trainable / theirs.trainable),
        ]
    return figures


def _figures(ours: ParameterCount, theirs: ParameterCount, experts: int, rank: int) -> list[dict[str, Any]]:
    """The figures of A.4 with the reason why ours differ; all numbers in the sentences are counted here."""
    config = read_config(PAPER["backbone"])
    config.num_key_value_heads = config.num_attention_heads
    full_heads = replace(count_mixture(config, experts, rank), backbone=ours.backbone)
    query_value = count_mixlora(PAPER["backbone"], experts, rank, ("q_proj", "v_proj"))
    assert query_value is not None  # the same backbone as theirs
    paper = (0.0388, 0.0004, 0.0808, 0.48)
    explanations = (
        f"Of backbone and adapters together, as PEFT prints it; without routers {ours.share(ours.experts):.2%}, of "
        f"the backbone alone {ours.share_of_backbone():.2%}. The paper names no denominator. k and v are 4096→1024; "
        f"with 4096→4096, as its Table 17 prints, it would be {full_heads.share():.2%}.",
        f"{ours.routers / 1e6:.2f} M: one linear router without bias per projection per layer. Equal.",
        f"The published form has LoRA on q, k, v and o; with q and v only it is {query_value.share():.2%}, and "
        f"without attention LoRA {replace(theirs, shared=0).share():.2%}.",
        f"Experts alone are {ours.experts / theirs.experts:.1%} of MixLoRA's, at any rank and number: the paper's "
        "figure. MixLoRA's attention LoRA makes its total larger.",
    )
    return [
        {**figure, "paper": value, "explanation": text}
        for figure, value, text in zip(_plain_figures(ours, theirs), paper, explanations, strict=True)
    ]


def _figure(what: str, counted: float) -> dict[str, Any]:
    return {"what": what, "counted": counted, "paper": None, "explanation": ""}


def _size(model: nn.Module, part: str = "") -> int:
    return sum(parameter.numel() for name, parameter in model.named_parameters() if part in name)
