"""Tiny random models, LoRA checkpoints and a tokenizer that tests build in milliseconds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from loramixer import LoraMixerConfig
from loramixer.tuner.runtime import active_runtime

VOCABULARY = 300
ALL_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")

EXPERT_SHAPES = {
    "a": {"r": 4, "lora_alpha": 9, "target_modules": list(ALL_PROJECTIONS)},
    "b": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj"]},
    "c": {"r": 2, "lora_alpha": 3, "target_modules": ["q_proj"], "use_rslora": True},
}
"""Three experts of different ranks, scalings and sites."""


def llama(hidden_size: int = 32, layers: int = 2) -> LlamaForCausalLM:
    """A random grouped-query Llama, the same at every call."""
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=hidden_size,
        intermediate_size=2 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=VOCABULARY,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config).eval()


def tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level tokenizer: every text can be encoded, rare characters as several tokens."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "</s>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    core.train_from_iterator(["the dose of the drug is ten"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


def save_expert(folder: Path, seed: int, hidden_size: int = 32, **settings: Any) -> str:
    """Write a random LoRA checkpoint of :func:`llama` and return its folder."""
    backbone = llama(hidden_size)  # it sets a seed of its own
    torch.manual_seed(seed)
    model = get_peft_model(backbone, LoraConfig(init_lora_weights=False, **settings))
    model.save_pretrained(folder)
    return str(folder)


def save_experts(folder: Path, hidden_size: int = 32) -> dict[str, str]:
    """Write the three experts of :data:`EXPERT_SHAPES`."""
    return {
        name: save_expert(folder / name, seed, hidden_size, **settings)
        for seed, (name, settings) in enumerate(EXPERT_SHAPES.items(), start=1)
    }


def mixture(experts: dict[str, str], seed: int = 5, **fields: Any) -> Any:
    """A mixture of saved experts on :func:`llama`, with random routers that differ enough to matter."""
    model = llama()
    torch.manual_seed(seed)
    config = LoraMixerConfig(experts=dict(experts), **{"router_init_std": 0.5, "task_type": "CAUSAL_LM", **fields})
    return get_peft_model(model, config).eval()


def token_ids(batch: int = 2, length: int = 7, seed: int = 3) -> torch.Tensor:
    """Random token ids ``[batch, length]`` without special tokens."""
    return torch.randint(3, VOCABULARY, (batch, length), generator=torch.Generator().manual_seed(seed))


def logits_of(model: Any) -> torch.Tensor:
    """Logits of :func:`token_ids`, without gradient."""
    with torch.no_grad():
        return model(token_ids()).logits


@dataclass
class _Rule:
    """Stands in for GateSettings."""

    rule: Callable[[torch.Tensor], torch.Tensor]
    mode: str = "rule"

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        return self.rule(logits)


@contextmanager
def gates_by(model: Any, rule: Callable[[torch.Tensor], torch.Tensor]) -> Iterator[None]:
    """Gates by any rule from logits ``[..., E]`` while the block runs."""
    runtime = active_runtime(model)
    former = runtime.inference
    runtime.inference = _Rule(rule)  # type: ignore[assignment]
    try:
        yield
    finally:
        runtime.inference = former


def only_expert(model: Any, index: int) -> AbstractContextManager[None]:
    """One-hot gates on one expert while the block runs."""

    def one_hot(logits: torch.Tensor) -> torch.Tensor:
        chosen = torch.full(logits.shape[:-1], index)
        return torch.nn.functional.one_hot(chosen, logits.shape[-1]).float()

    return gates_by(model, one_hot)
