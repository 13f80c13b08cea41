"""Autocast, backbones of half precision and whole models of half precision: routers always decide in float32."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from transformers import Trainer, TrainingArguments

from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import capture_routing
from tests import tiny

LOSS = {"routing_loss": "rsl", "balance_weight": 1.0, "entropy_weight": 0.2}


def layers(model: nn.Module) -> list[LoraMixerLayer]:
    return [module for module in model.modules() if isinstance(module, LoraMixerLayer)]


def routed(model: Any, run: Callable[[], Any]) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The inputs of every routed layer, and the logits ``[S, B, T, E]`` that their routers gave."""
    seen: list[torch.Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, x: seen.append(x[0])) for layer in layers(model)]
    with torch.no_grad(), capture_routing(model) as capture:
        run()
        logits, _ = capture.take_batch()
    for hook in hooks:
        hook.remove()
    return seen, logits


def assert_float32_routing(model: Any, inputs: list[torch.Tensor], logits: torch.Tensor) -> None:
    for layer, x, found in zip(layers(model), inputs, logits, strict=True):
        expected = x.float() @ layer.lora_mixer_router["default"].weight.detach().float().T
        present = ~layer.lora_mixer_absent["default"]
        torch.testing.assert_close(found[..., present], expected[..., present], atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_leaves_the_routers_in_float32(experts, dtype):
    model = tiny.mixture(experts, gate="top_k", top_k=1)

    def run() -> None:
        with torch.autocast("cpu", dtype=dtype):
            assert model(tiny.token_ids()).logits.dtype == dtype

    assert_float32_routing(model, *routed(model, run))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_whole_model_of_half_precision_routes_in_float32(experts, dtype):
    model = tiny.mixture(experts, gate="top_k", top_k=2).to(dtype)
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert_float32_routing(model, *routed(model, lambda: model(tiny.token_ids())))
    assert tiny.logits_of(model).dtype == dtype
    ids = tiny.token_ids(1, 6)
    settings = {"max_new_tokens": 5, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    assert model.generate(input_ids=ids, **settings).shape == (1, 11)


def test_the_trainer_in_bfloat16_trains_float32_routers(experts, tmp_path: Path):
    model = tiny.mixture(experts, **LOSS)
    rows = [{"input_ids": row, "labels": row} for row in tiny.token_ids(8, 9)]
    before = [layer.lora_mixer_router["default"].weight.detach().clone() for layer in layers(model)]
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        bf16=True,
        max_steps=3,
        per_device_train_batch_size=4,
        learning_rate=1e-2,
        logging_steps=1,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.train()
    assert all(torch.isfinite(torch.tensor(row["loss"])) for row in trainer.state.log_history[:3])
    assert model.base_model.routing_statistics["routing_loss"].dtype == torch.float32
    for layer, start in zip(layers(model), before, strict=True):
        weight = layer.lora_mixer_router["default"].weight
        assert weight.dtype == torch.float32
        alone = layer.lora_mixer_absent["default"].sum() == len(experts) - 1  # where there is no choice to learn
        assert torch.equal(weight, start) == alone
