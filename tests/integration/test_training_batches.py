"""Batches without waste: rows in one line and logits at answers only change neither loss nor gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import MistralConfig, MistralForCausalLM, TrainerCallback

import loramixer
from loramixer.errors import LoraMixerError
from loramixer.training.batches import (
    RowCollator,
    attend_row_by_row,
    attention_row_by_row,
    make_collator,
    ordinary_attention,
    rows_fit_in_line,
)
from loramixer.training.loop import run_training
from loramixer.training.run_log import RunLog
from loramixer.tuner import LoraMixerLayer
from tests import tiny
from tests.architectures import ARCHITECTURES
from tests.integration.test_router_training import SETTINGS, router_gradients, training_mixture


def rows() -> list[dict]:
    """Rows of several lengths and domains, each with a prompt and an answer."""
    found = []
    for number, (length, prompt) in enumerate([(9, 4), (3, 1), (17, 12), (6, 0)]):
        ids = tiny.token_ids(1, length, seed=number)[0].tolist()
        found.append({"input_ids": ids, "labels": [-100] * prompt + ids[prompt:], "expert_index": number - 1})
    return found


def trained_on(experts, in_line: bool, answers_only: bool, **fields):
    model = training_mixture(experts, **fields)
    batch = RowCollator(2, in_line, answers_only)(rows())
    with attention_row_by_row(model.get_base_model()) if in_line else torch.enable_grad():
        outputs = model(**batch)
        outputs.loss.backward()
    return outputs, router_gradients(model), model.base_model.routing_statistics


@pytest.mark.parametrize("in_line", [False, True])
@pytest.mark.parametrize("training_gate", ["soft", "top_k", "domain"])
def test_loss_gradient_and_statistics_are_those_of_a_padded_batch_with_all_logits(experts, in_line, training_gate):
    plain, plain_gradient, plain_statistics = trained_on(experts, False, False, training_gate=training_gate)
    lean, gradient, statistics = trained_on(experts, in_line, True, training_gate=training_gate)
    labels = sum(label != -100 for row in rows() for label in row["labels"][1:])
    assert lean.logits.shape == (labels, tiny.VOCABULARY)
    assert plain.logits.shape == (4, 17, tiny.VOCABULARY)
    torch.testing.assert_close(lean.loss, plain.loss)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-6, rtol=1e-4)
    for name in ("token_entropy", "load_entropy", "balance", "task_loss", "routing_loss"):
        torch.testing.assert_close(statistics[name], plain_statistics[name])
    if not in_line:  # in a line these are means over tokens, not over rows
        torch.testing.assert_close(statistics["own_share"], plain_statistics["own_share"])


def test_a_line_has_no_padding_and_keeps_rows_apart(experts):
    batch = RowCollator(2, in_line=True, answers_only=True)(rows())
    assert batch["input_ids"].shape == (1, 9 + 3 + 17 + 6)
    assert batch["cu_seq_lens_q"].tolist() == [0, 9, 12, 29, 35]
    assert batch["position_ids"][0, 9:12].tolist() == [0, 1, 2]
    assert batch["expert_index"].tolist() == [-1] * 9 + [0] * 3 + [1] * 17 + [2] * 6
    assert batch["labels"][0, 29] == -100  # the last row has no prompt, and no token of another row predicts it


def test_it_is_found_out_by_trying_whether_a_backbone_keeps_rows_apart():
    llama = tiny.llama().train()
    assert rows_fit_in_line(llama, rows(), longest=17)
    assert llama.training
    assert llama.config._attn_implementation == "sdpa"
    assert not rows_fit_in_line(llama, rows()[:1], longest=17)


def test_backbones_that_mix_rows_are_padded():
    mamba = ARCHITECTURES["falcon-mamba"].build()
    assert not rows_fit_in_line(mamba, rows(), longest=17)
    collator = make_collator(mamba, tiny.tokenizer(), rows())
    assert (collator.in_line, collator.answers_only) == (False, True)
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = MistralConfig(**sizes, num_key_value_heads=2, vocab_size=tiny.VOCABULARY, sliding_window=16)
    sliding = MistralForCausalLM(config).eval()
    assert rows_fit_in_line(sliding, rows(), longest=16)
    assert not rows_fit_in_line(sliding, rows(), longest=17)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_a_model_that_trains_row_by_row_reads_and_writes_as_before_where_it_is_told_to(experts, attention):
    model = training_mixture(experts)
    backbone = model.get_base_model()
    backbone.set_attn_implementation(attention)
    expected = loramixer.trace(model, tiny.tokenizer(), "the dose", 3)
    with attention_row_by_row(backbone):
        with pytest.raises(LoraMixerError, match=r"\(cu_seq_lens_q\); run it inside .*batches\.ordinary_attention"):
            loramixer.trace(model, tiny.tokenizer(), "the dose", 3)
        with ordinary_attention(model), ordinary_attention(backbone):
            assert backbone.config._attn_implementation == attention
            found = loramixer.trace(model, tiny.tokenizer(), "the dose", 3)
        assert model.training
        assert torch.isfinite(model(**RowCollator(2, True, True)(rows())).loss)
    np.testing.assert_array_equal(found.gates, expected.gates)
    with ordinary_attention(model):
        assert backbone.config._attn_implementation == attention


class TraceWhileTraining(TrainerCallback):
    def on_log(self, args, state, control, model=None, processing_class=None, **kwargs):
        with ordinary_attention(model):
            loramixer.trace(model, processing_class, "the dose", 2, temperature=1.0)


def test_a_callback_that_traces_changes_nothing_of_a_training(experts, tmp_path):
    weights = []
    for name, callbacks in (("plain", []), ("traced", [TraceWhileTraining()])):
        model = training_mixture(experts, noise_std=0.1)
        run_training(model, tiny.tokenizer(), rows(), tmp_path / name, SETTINGS, RunLog({}), callbacks=callbacks)
        weights.append(torch.cat([value.flatten() for value in model.parameters() if value.requires_grad]))
    assert torch.equal(*weights)


def test_attention_by_whole_matrices_is_that_of_the_kernel():
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    generator = torch.Generator().manual_seed(0)
    exact = [torch.randn(1, heads, 23, 8, generator=generator, requires_grad=True) for heads in (6, 2, 2)]
    rounded = [part.detach().bfloat16().requires_grad_() for part in exact]
    ends = torch.tensor([0, 9, 10, 23])
    weights = torch.randn(1, 23, 6, 8, generator=generator)
    outputs = []
    for query, key, value in (exact, rounded):
        out, _ = attend_row_by_row(module, query, key, value, None, scaling=0.3, cu_seq_lens_q=ends)
        (out.float() * weights).sum().backward()
        outputs.append(out)
    torch.testing.assert_close(outputs[1].float(), outputs[0], atol=0.03, rtol=0.03)
    for first, second in zip(exact, rounded, strict=True):
        torch.testing.assert_close(second.grad.float(), first.grad, atol=0.06, rtol=0.06)


def test_no_gradient_is_computed_below_the_first_routed_site(experts):
    model = training_mixture(experts)
    seen = []
    first = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    ids = tiny.token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    assert seen == [False]
