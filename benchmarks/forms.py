"""The ways of running LoRA experts that the benchmarks compare, all on the same backbone weights."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, XLoraConfig, get_peft_model
from peft.tuners.lora import ArrowConfig, create_arrow_model
from timing import Subject
from transformers import AutoModelForCausalLM, LlamaConfig

from loramixer import LoraMixerConfig, load_backbone, set_gate
from loramixer.baselines.mixlora import MixLoraSettings, add_mixlora, routing_loss
from loramixer.experts import read_experts
from loramixer.shapes import ATTENTION, PRESETS, read_config
from loramixer.tuner.runtime import capture_routing

SHAPES = ("tiny", *PRESETS)
TOP_K = 3


@dataclass(frozen=True)
class Workload:
    """What all forms share: the adapters' size, and where everything lies.

    Attributes:
        folders: of saved random LoRAs, one per expert.
        rank: of every LoRA.
        top_k: experts per token of ours and of Arrow.
    """

    folders: list[str]
    rank: int
    top_k: int = TOP_K

    @property
    def named(self) -> dict[str, str]:
        """Expert name → folder; X-LoRA wants the names 0, 1, …"""
        return {str(index): folder for index, folder in enumerate(self.folders)}


def build_base(shape: str, dtype: torch.dtype, device: str, real: bool = False) -> Any:
    """The backbone: random weights of a shape, the same at every call, or the embedded one."""
    if real:
        model, _ = load_backbone("smollm2-135m", dtype=dtype, device=device, notify=lambda line: None)
        return model
    if shape == "tiny":
        config: Any = LlamaConfig(
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=300,
        )
    else:
        config = read_config(shape)
    config._name_or_path = ""  # random weights are nobody's
    torch.manual_seed(0)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(config, dtype=dtype).eval()


def twin(base: Any) -> Any:
    """A copy of the module tree that shares every weight, so that many forms fit and meet the same memory."""
    shared = {id(tensor): tensor for tensor in (*base.parameters(), *base.buffers())}
    return copy.deepcopy(base, shared)


def save_experts(base: Any, folder: Path, count: int, rank: int) -> list[str]:
    """Write random LoRAs of the attention projections as PEFT folders."""
    model = get_peft_model(twin(base), _lora_config(rank))
    folders = []
    for index in range(count):
        torch.manual_seed(index + 1)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if ".lora_" in name:
                    parameter.normal_(std=0.02)
        folders.append(str(folder / str(index)))
        model.save_pretrained(folders[-1], save_embedding_layers=False)
    return folders


class Form:
    """One way of running experts.

    Attributes:
        name: short, for ``--only``.
        label: for people.
        model_name: forms with the same one share a model.
        note: what a reader of the table must know.
    """

    note = ""

    def __init__(self, name: str, label: str, model_name: str | None = None) -> None:
        self.name = name
        self.label = label
        self.model_name = model_name or name

    def build(self, base: Any, work: Workload) -> Any:
        """A model on the weights of ``base``."""
        return twin(base)

    def set_up(self, model: Any) -> None:
        """Bring a model that forms share into this form's state."""

    @contextmanager
    def scope(self, model: Any, training: bool = False) -> Iterator[None]:
        """What holds while the form is timed."""
        self.set_up(model)
        model.train(training)
        with torch.set_grad_enabled(training):
            yield

    def run(self, model: Any, **inputs: Any) -> Any:
        """One forward pass as in generation: the logits of the last token."""
        return model(**inputs, use_cache=True, logits_to_keep=1)

    def prefill(self, model: Any, ids: torch.Tensor) -> Subject:
        """The whole prompt at once."""
        return Subject(lambda: self.run(model, input_ids=ids), lambda: self.scope(model))

    def decode(self, model: Any, ids: torch.Tensor) -> Subject:
        """One token after a cache of ``ids``; the cache is cut back after every step."""
        with self.scope(model):
            cache = self.run(model, input_ids=ids).past_key_values

        def step() -> None:
            self.run(model, input_ids=ids[:, :1], past_key_values=cache)
            cache.crop(-1)

        return Subject(step, lambda: self.scope(model))

    def train(self, model: Any, ids: torch.Tensor) -> Subject:
        """Forward and backward of what trains in this form, with its routing loss."""
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]

        def step() -> None:
            self.training_loss(model, ids).backward()
            for parameter in trained:
                parameter.grad = None

        return Subject(step, lambda: self.scope(model, training=True))

    def training_loss(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """The loss of one training step."""
        return model(input_ids=ids, labels=ids, use_cache=False).loss


class OurForm(Form):
    """A LoRA-Mixer mixture; its routers train with RSL, its experts are frozen."""

    def __init__(self, name: str, label: str, gate: str) -> None:
        super().__init__(name, label, model_name="ours")
        self.gate = gate

    def build(self, base: Any, work: Workload) -> Any:
        """A mixture of the saved experts."""
        config = LoraMixerConfig(
            experts=work.named, top_k=work.top_k, routing_loss="rsl", title="benchmark", task_type="CAUSAL_LM"
        )
        return get_peft_model(twin(base), config)

    def set_up(self, model: Any) -> None:
        """Choose the gate."""
        set_gate(model, self.gate)  # type: ignore[arg-type]


class TracedForm(OurForm):
    """Ours while every logit and gate is recorded and handed over after every forward pass, as a trace does."""

    note = "records logits and gates of every site"

    @contextmanager
    def scope(self, model: Any, training: bool = False) -> Iterator[None]:
        """Recording goes on."""
        with super().scope(model, training), capture_routing(model) as self.capture:
            yield

    def run(self, model: Any, **inputs: Any) -> Any:
        """One forward pass, and what was recorded in it."""
        outputs = super().run(model, **inputs)
        self.capture.take()
        return outputs


class ProductsForm(Form):
    """The two products of all experts at every site and nothing else: what a dense mixture cannot go below."""

    note = "no router, no gates: the floor of the dense form"

    def build(self, base: Any, work: Workload) -> Any:
        """The saved experts, concatenated."""
        experts = list(read_experts(work.named).values())
        model = twin(base)
        for site in experts[0].sites:
            parent, _, name = site.rpartition(".")
            parts = [expert.sites[site] for expert in experts]
            A_RD = torch.cat([part.A for part in parts]).to(base.device, base.dtype)
            B_RF = torch.cat([part.scaling * part.B.t() for part in parts]).to(base.device, base.dtype)
            owner = model.get_submodule(parent)
            setattr(owner, name, _Products(getattr(owner, name), A_RD, B_RF))
        return model


class _Products(torch.nn.Module):
    def __init__(self, base_layer: torch.nn.Linear, A_RD: torch.Tensor, B_RF: torch.Tensor) -> None:
        super().__init__()
        self.base_layer = base_layer
        self.A_RD = torch.nn.Parameter(A_RD, requires_grad=False)
        self.B_RF = torch.nn.Parameter(B_RF, requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = torch.nn.functional.linear(x, self.base_layer.weight, self.base_layer.bias)
        y.view(-1, y.shape[-1]).addmm_(torch.mm(x.reshape(-1, x.shape[-1]), self.A_RD.t()), self.B_RF)
        return y


class LoraForm(Form):
    """One LoRA of PEFT, not merged."""

    def build(self, base: Any, work: Workload) -> Any:
        """A new random LoRA."""
        return get_peft_model(twin(base), _lora_config(work.rank))


class ArrowForm(Form):
    """Arrow of PEFT: routing by prototypes, without training."""

    def build(self, base: Any, work: Workload) -> Any:
        """The saved experts under Arrow's router."""
        config = ArrowConfig(top_k=work.top_k)
        return create_arrow_model(twin(base), work.folders, config)


class XLoraForm(Form):
    """X-LoRA of PEFT: two passes per step, and no cache."""

    note = "has no cache; decoding runs the whole text again, as its generate does"

    def build(self, base: Any, work: Workload) -> Any:
        """The saved experts under an X-LoRA classifier."""
        model = twin(base)
        model.config.use_cache = False
        config = XLoraConfig(hidden_size=base.config.hidden_size, adapters=work.named, task_type="CAUSAL_LM")
        return get_peft_model(model, config)

    def run(self, model: Any, **inputs: Any) -> Any:
        """One forward pass without cache."""
        return model(**inputs, use_cache=False, logits_to_keep=1)

    def decode(self, model: Any, ids: torch.Tensor) -> Subject:
        """The text grown by one token."""
        return self.prefill(model, torch.cat([ids, ids[:, :1]], dim=1))


class MixLoraForm(Form):
    """MixLoRA in its published form: top-2 experts in the FFN block, LoRA in attention; everything trains."""

    note = "experts in the FFN block (top-2), one LoRA on q, k, v and o"

    def build(self, base: Any, work: Workload) -> Any:
        """As many random experts of the same rank."""
        settings = MixLoraSettings(experts=len(work.folders), rank=work.rank, dropout=0.0)
        return add_mixlora(twin(base), settings)

    def training_loss(self, model: Any, ids: torch.Tensor) -> torch.Tensor:
        """With its own routing loss."""
        return super().training_loss(model, ids) + routing_loss(model)


FORMS = {
    form.name: form
    for form in (
        Form("base", "backbone alone"),
        OurForm("soft", "LoRA-Mixer, soft", "soft"),
        OurForm("top-3", "LoRA-Mixer, top-3", "top_k"),
        TracedForm("traced", "LoRA-Mixer, top-3, traced", "top_k"),
        ProductsForm("products", "all experts, no routing"),
        LoraForm("lora", "PEFT, one LoRA"),
        ArrowForm("arrow", "PEFT Arrow, top-3"),
        XLoraForm("x-lora", "PEFT X-LoRA"),
        MixLoraForm("mixlora", "MixLoRA"),
    )
}


def added_bytes(tensors: Iterable[torch.Tensor], known: Iterable[torch.Tensor]) -> int:
    """Bytes of the tensors that are not among the known ones."""
    shared = {id(tensor) for tensor in known}
    return sum(tensor.nbytes for tensor in tensors if id(tensor) not in shared)


def _lora_config(rank: int) -> LoraConfig:
    return LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        target_modules=list(ATTENTION),
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
