"""Training loops other than the stock Trainer: TRL, and loops that compute their own loss."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import Trainer
from trl import SFTConfig, SFTTrainer

from tests import tiny

LOSS = {"routing_loss": "rsl", "balance_weight": 0.0, "entropy_weight": 1.0}


class MixtureSFTTrainer(SFTTrainer):
    """What docs/errors.md recommends: the data preparation of TRL, the loss of the model."""

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        return Trainer.compute_loss(self, model, inputs, return_outputs, num_items_in_batch)


def trained(trainer_class: type[SFTTrainer], model: Any, folder: Path, **settings: Any) -> list[tuple[float, float]]:
    """Loss and gradient norm of each step of TRL's supervised fine-tuning."""
    texts = Dataset.from_list([{"text": "the dose of the drug is ten " * (1 + row % 3)} for row in range(16)])
    arguments = SFTConfig(
        output_dir=str(folder),
        max_steps=3,
        logging_steps=1,
        max_grad_norm=0,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=False,
        disable_tqdm=True,
        **{"per_device_train_batch_size": 8, **settings},
    )
    trainer = trainer_class(model=model, args=arguments, train_dataset=texts, processing_class=tiny.tokenizer())
    trainer.train()
    return [(row["loss"], row["grad_norm"]) for row in trainer.state.log_history if "grad_norm" in row]


def test_supervised_fine_tuning_of_trl_with_the_loss_of_the_model(experts, tmp_path):
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The routing loss of the last")
        whole = trained(MixtureSFTTrainer, tiny.mixture(experts, **LOSS), tmp_path)
        parts = {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4}
        accumulated = trained(MixtureSFTTrainer, tiny.mixture(experts, **LOSS), tmp_path, **parts)
    plain = trained(MixtureSFTTrainer, tiny.mixture(experts), tmp_path)
    assert whole[0][0] > plain[0][0] + 0.1
    assert whole[0][1] > 2 * plain[0][1]
    for one, other in zip(whole, accumulated, strict=True):
        assert one == pytest.approx(other, rel=1e-2)


def test_a_loop_that_ignores_the_loss_of_the_model_is_warned_about(experts, tmp_path):
    with pytest.warns(UserWarning, match="received no gradient: this training loop does not use the loss"):
        trained(SFTTrainer, tiny.mixture(experts, **LOSS), tmp_path, gradient_accumulation_steps=2)


def test_a_forward_pass_without_backward_is_no_reason_to_warn(experts):
    ids = tiny.token_ids()
    model = tiny.mixture(experts, **LOSS).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The routing loss of the last")
        for _ in range(3):
            model(input_ids=ids, labels=ids)
            model(input_ids=ids, labels=ids).loss.backward()
    without = tiny.mixture(experts).train()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The routing loss of the last")
        for _ in range(6):
            torch.nn.functional.mse_loss(without(input_ids=ids, labels=ids).logits, torch.zeros(())).backward()
