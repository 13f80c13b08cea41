"""Mixtures on backbones that bitsandbytes holds in four or eight bits; it runs on the CPU too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model, prepare_model_for_kbit_training
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from loramixer import LoraMixerConfig, set_gate
from tests import tiny
from tests.tiny import logits_of

HIDDEN_SIZE = 64
"""bitsandbytes quantises in blocks of 64 weights and its CPU kernels want whole blocks in a row."""

QUANTISED = {
    "nf4": BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.float32),
    "int8": BitsAndBytesConfig(load_in_8bit=True),
}
WEIGHT_TYPES = {"nf4": torch.uint8, "int8": torch.int8}

LOSS = {"routing_loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.2}


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.save_experts(tmp_path_factory.mktemp("experts"), HIDDEN_SIZE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("backbone")
    tiny.llama(HIDDEN_SIZE).save_pretrained(path)
    return path


@pytest.fixture(params=QUANTISED)
def kind(request: pytest.FixtureRequest) -> str:
    return request.param


def backbone(folder: Path, kind: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=QUANTISED[kind], dtype=torch.float32, device_map={"": "cpu"}
    )
    assert model.model.layers[0].self_attn.q_proj.weight.dtype == WEIGHT_TYPES[kind]
    return model.eval()


def mixture(model: Any, experts: dict[str, str]) -> Any:
    torch.manual_seed(5)
    config = LoraMixerConfig(experts=dict(experts), router_init_std=0.5, task_type="CAUSAL_LM", **LOSS)
    return get_peft_model(model, config).eval()


def test_one_hot_gates_equal_pefts_own_lora_on_the_same_weights(folder, kind, experts):
    model = mixture(backbone(folder, kind), experts)
    for index, source in enumerate(experts.values()):
        reference = PeftModel.from_pretrained(backbone(folder, kind), source).eval()
        with tiny.only_expert(model, index):
            torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-4, rtol=0)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(backbone(folder, kind)))


def test_generation_with_and_without_cache_agrees(folder, kind, experts):
    model = mixture(backbone(folder, kind), experts)
    set_gate(model, "top_k", 1)
    ids = tiny.token_ids(2, 6)
    settings = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))


def test_a_saved_mixture_reloads_bit_equal(folder, kind, experts, tmp_path):
    model = mixture(backbone(folder, kind), experts)
    before = logits_of(model)
    model.save_pretrained(tmp_path)
    assert torch.equal(logits_of(PeftModel.from_pretrained(backbone(folder, kind), tmp_path).eval()), before)
    native = backbone(folder, kind)
    native.load_adapter(str(tmp_path))
    assert torch.equal(logits_of(native), before)


def test_routers_train_and_what_they_learnt_is_saved(folder, kind, experts, tmp_path):
    prepared = prepare_model_for_kbit_training(
        backbone(folder, kind), gradient_checkpointing_kwargs={"use_reentrant": False}
    )
    model = mixture(prepared, experts).train()
    routers = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    start = {name: parameter.detach().clone() for name, parameter in routers.items()}
    assert all("lora_mixer_router" in name for name in routers)
    optimizer = torch.optim.AdamW(routers.values(), lr=1e-2)
    ids = tiny.token_ids()
    losses = []
    for _ in range(4):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses == sorted(losses, reverse=True)
    assert not any(torch.equal(routers[name], start[name]) for name in routers)
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "adapter_model.safetensors")
    assert all(torch.equal(saved[name.replace(".default", "")], routers[name]) for name in routers)
    reloaded = PeftModel.from_pretrained(backbone(folder, kind), tmp_path).eval()
    # In four bits the backbone itself changes a little between training and inference: for inference the CPU kernels
    # of bitsandbytes round the scales of the blocks to bfloat16, once and for all.
    tolerance = 0.02 if kind == "nf4" else 0
    torch.testing.assert_close(logits_of(reloaded), logits_of(model.eval()), atol=tolerance, rtol=0)
