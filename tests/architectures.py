"""One table of tiny random models, one per architecture, and experts for each of them, built in milliseconds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import transformers
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import _get_in_out_features
from safetensors.torch import save_file

from loramixer import LoraMixerConfig

VOCABULARY = 300
PAD = 2
LABELS = 3

Task = Literal["causal", "seq2seq", "sequence", "token"]


@dataclass(frozen=True)
class Architecture:
    """A tiny random model and the projections that its experts change.

    Attributes:
        model: class in Transformers.
        config: class of its configuration.
        settings: fields of the configuration.
        projections: expert name → pattern of the module names that it changes.
        task: what the model is trained for.
        peft_is_exact: whether PEFT's own LoRA acts on all these projections; it leaves out those of state-space
            models whose weight is taken without a call.
    """

    model: str
    config: str
    settings: dict[str, Any]
    projections: dict[str, str]
    task: Task = "causal"
    peft_is_exact: bool = True

    def build(self, **changes: Any) -> Any:
        """The same model at every call, in evaluation mode."""
        torch.manual_seed(0)
        common = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": 0, "eos_token_id": 1}
        config = getattr(transformers, self.config)(**{**common, **self.settings, **changes})
        model = getattr(transformers, self.model)(config)
        with torch.no_grad():  # initial weights are too small for a difference in routing to show
            for parameter in model.parameters():
                if parameter.dim() == 2 and parameter.std() < 0.05:
                    parameter.mul_(3)
        # Frozen, as PEFT freezes it: torch rounds some products of weights that want a gradient otherwise.
        return model.eval().requires_grad_(False)

    def sites(self, expert: str) -> list[str]:
        """Module names that an expert changes."""
        return [name for name, _ in self.build().named_modules() if re.search(self.projections[expert], name)]

    @property
    def task_type(self) -> str | None:
        """PEFT's name of the task; its name for the last one needs a head that is trained along."""
        return {"causal": "CAUSAL_LM", "seq2seq": "SEQ_2_SEQ_LM", "sequence": "SEQ_CLS", "token": None}[self.task]

    @property
    def is_causal(self) -> bool:
        """Whether the model continues a text."""
        return self.task == "causal"

    @property
    def is_encoder_decoder(self) -> bool:
        """Whether the model reads one text and writes another."""
        return self.task == "seq2seq"

    @property
    def generates(self) -> bool:
        """Whether the model writes text."""
        return self.is_causal or self.is_encoder_decoder


def _qkvo(output: str = "o_proj") -> dict[str, str]:
    return {"a": rf"\.([qkv]_proj|{output})$", "b": r"\.[qv]_proj$", "c": r"\.q_proj$"}


_LLAMA = {
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_BERT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
_NO_DROPOUT = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
_BERT_PROJECTIONS = {"a": r"layer.*\.(query|key|value|dense)$", "b": r"\.(query|value)$", "c": r"\.query$"}
_MAMBA = {"hidden_size": 16, "initializer_range": 0.3, "state_size": 4, "num_hidden_layers": 2, "time_step_rank": 6}
_MAMBA_PROJECTIONS = {
    "a": r"mixer\.(in|x|dt|out)_proj$",
    "b": r"mixer\.(dt|out)_proj$",
    "c": r"mixer\.dt_proj$",
}

ARCHITECTURES = {
    "llama": Architecture("LlamaForCausalLM", "LlamaConfig", _LLAMA, _qkvo()),
    "mistral": Architecture("MistralForCausalLM", "MistralConfig", {**_LLAMA, "sliding_window": 4}, _qkvo()),
    "qwen2": Architecture("Qwen2ForCausalLM", "Qwen2Config", _LLAMA, _qkvo()),
    "qwen3": Architecture("Qwen3ForCausalLM", "Qwen3Config", {**_LLAMA, "head_dim": 8}, _qkvo()),
    "gpt-neox": Architecture(
        "GPTNeoXForCausalLM",
        "GPTNeoXConfig",
        {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2},
        {"a": r"\.(query_key_value|dense)$", "b": r"\.(query_key_value|dense_h_to_4h)$", "c": r"\.query_key_value$"},
    ),
    "opt": Architecture(
        "OPTForCausalLM",
        "OPTConfig",
        {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "dropout": 0.0},
        {"a": r"\.([qkv]_proj|out_proj|fc1)$", "b": r"\.([qv]_proj|fc2)$", "c": r"\.q_proj$"},
    ),
    "gpt2": Architecture(
        "GPT2LMHeadModel",
        "GPT2Config",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
        {"a": r"\.(c_attn|c_proj)$", "b": r"\.(c_attn|c_fc)$", "c": r"\.c_attn$"},
    ),
    "mamba": Architecture("MambaForCausalLM", "MambaConfig", _MAMBA, _MAMBA_PROJECTIONS, peft_is_exact=False),
    "falcon-mamba": Architecture(
        "FalconMambaForCausalLM", "FalconMambaConfig", _MAMBA, _MAMBA_PROJECTIONS, peft_is_exact=False
    ),
    "mamba2": Architecture(
        "Mamba2ForCausalLM",
        "Mamba2Config",
        {
            "hidden_size": 16,
            "state_size": 4,
            "num_hidden_layers": 2,
            "num_heads": 4,
            "head_dim": 8,
            "n_groups": 1,
            "chunk_size": 4,
        },
        {"a": r"mixer\.(in|out)_proj$", "b": r"mixer\.out_proj$", "c": r"mixer\.in_proj$"},
        peft_is_exact=False,
    ),
    "jamba": Architecture(
        "JambaForCausalLM",
        "JambaConfig",
        {
            **_LLAMA,
            "num_experts": 1,
            "attn_layer_period": 2,
            "attn_layer_offset": 1,
            "mamba_d_state": 4,
            "mamba_dt_rank": 6,
        },
        {
            "a": r"\.([qkvo]_proj|(in|x|dt|out)_proj)$",
            "b": r"\.(v_proj|dt_proj|down_proj)$",
            "c": r"\.(q_proj|in_proj)$",
        },
        peft_is_exact=False,
    ),
    "t5": Architecture(
        "T5ForConditionalGeneration",
        "T5Config",
        {
            "d_model": 16,
            "d_kv": 8,
            "d_ff": 32,
            "num_layers": 2,
            "num_heads": 2,
            "feed_forward_proj": "gated-gelu",
            "tie_word_embeddings": False,
            "dropout_rate": 0.0,
            "decoder_start_token_id": PAD,
        },
        {"a": r"Attention\.[qkvo]$", "b": r"Attention\.[qv]$", "c": r"(EncDecAttention\.v|\.wo)$"},
        task="seq2seq",
    ),
    "bart": Architecture(
        "BartForConditionalGeneration",
        "BartConfig",
        {
            "d_model": 16,
            "encoder_layers": 1,
            "decoder_layers": 2,
            "encoder_attention_heads": 2,
            "decoder_attention_heads": 2,
            "encoder_ffn_dim": 32,
            "decoder_ffn_dim": 32,
            "dropout": 0.0,
            "decoder_start_token_id": 0,
            "forced_eos_token_id": None,
        },
        {"a": r"\.([qkv]_proj|out_proj)$", "b": r"\.([qv]_proj|fc1)$", "c": r"encoder_attn\.k_proj$"},
        task="seq2seq",
    ),
    "llama-sequence": Architecture(
        "LlamaForSequenceClassification", "LlamaConfig", {**_LLAMA, "num_labels": LABELS}, _qkvo(), task="sequence"
    ),
    "bert-sequence": Architecture(
        "BertForSequenceClassification",
        "BertConfig",
        {**_BERT, **_NO_DROPOUT, "num_labels": LABELS},
        _BERT_PROJECTIONS,
        task="sequence",
    ),
    "bert-token": Architecture(
        "BertForTokenClassification",
        "BertConfig",
        {**_BERT, **_NO_DROPOUT, "num_labels": LABELS},
        _BERT_PROJECTIONS,
        task="token",
    ),
    "albert-sequence": Architecture(
        "AlbertForSequenceClassification",
        "AlbertConfig",
        {
            **_BERT,
            "embedding_size": 16,
            "num_labels": LABELS,
            "hidden_dropout_prob": 0.0,
            "attention_probs_dropout_prob": 0.0,
            "classifier_dropout_prob": 0.0,
        },
        {"a": r"attention\.(query|key|value|dense)$", "b": r"attention\.(query|value)$", "c": r"attention\.query$"},
        task="sequence",
    ),
}
"""Every architecture that the mixture is tested on."""

RANKS = {"a": (4, 9.0), "b": (8, 8.0), "c": (2, 3.0)}
"""Rank and lora_alpha of each expert."""


def save_experts(architecture: Architecture, folder: Path) -> dict[str, str]:
    """Write three random experts of different ranks and sites as plain PEFT LoRA folders: name → folder.

    They are written by hand: PEFT refuses to create a LoRA on ``out_proj`` of a state-space model.
    """
    modules = dict(architecture.build().named_modules())
    found = {}
    for seed, (name, (rank, alpha)) in enumerate(RANKS.items(), start=1):
        generator = torch.Generator().manual_seed(seed)
        sites = architecture.sites(name)
        assert sites, f"no module of {architecture.model} matches {architecture.projections[name]}"
        tensors = {}
        for site in sites:
            inputs, outputs = _get_in_out_features(modules[site])
            tensors[f"base_model.model.{site}.lora_A.weight"] = torch.randn(rank, inputs, generator=generator) / 3
            tensors[f"base_model.model.{site}.lora_B.weight"] = torch.randn(outputs, rank, generator=generator) / 3
        (folder / name).mkdir(parents=True)
        LoraConfig(
            r=rank, lora_alpha=alpha, target_modules=sites, fan_in_fan_out=architecture.model == "GPT2LMHeadModel"
        ).save_pretrained(str(folder / name))
        save_file(tensors, folder / name / "adapter_model.safetensors", metadata={"format": "pt"})
        found[name] = str(folder / name)
    return found


def merged(architecture: Architecture, folder: str) -> Any:
    """The backbone with one expert added to its weights by hand: what the expert means, whatever a layer does."""
    from loramixer.experts import read_expert

    model = architecture.build()
    for site, update in read_expert("expert", folder).sites.items():
        weight = model.get_submodule(site).weight
        change = update.scaling * update.B @ update.A
        with torch.no_grad():
            weight += change.T if architecture.model == "GPT2LMHeadModel" else change
    return model


def mixture(architecture: Architecture, experts: dict[str, str], seed: int = 5, **fields: Any) -> Any:
    """A mixture of saved experts with random routers that differ enough to matter."""
    model = architecture.build()
    torch.manual_seed(seed)
    defaults = {"router_init_std": 0.5, "task_type": architecture.task_type}
    return get_peft_model(model, LoraMixerConfig(experts=dict(experts), **{**defaults, **fields})).eval()


def batch(
    architecture: Architecture, rows: int = 2, length: int = 7, answer: int = 5, seed: int = 3
) -> dict[str, Any]:
    """A random batch without padding, with labels."""
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    found = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if architecture.task == "causal":
        return {**found, "labels": ids.clone()}
    if architecture.task == "seq2seq":
        return {**found, "labels": torch.randint(3, VOCABULARY, (rows, answer), generator=generator)}
    shape = (rows,) if architecture.task == "sequence" else (rows, length)
    return {**found, "labels": torch.randint(LABELS, shape, generator=generator)}


def logits_of(model: Any, inputs: dict[str, Any]) -> torch.Tensor:
    """Logits without gradient."""
    with torch.no_grad():
        return model(**inputs).logits
