"""Batches without waste: rows in one line and logits at answers only change neither loss nor gradient."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import transformers
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
    token_count,
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


def rows_with_a_template() -> list[dict]:
    """Rows that begin alike, as those of one chat template do, each with a prompt and an answer of its own."""
    beginning = tiny.token_ids(1, 5, seed=9)[0].tolist()
    return [{**row, "input_ids": beginning + row["input_ids"], "labels": [-100] * 5 + row["labels"]} for row in rows()]


def trained_on(experts, in_line: bool, answers_only: bool, found=None, share_beginning=False, **fields):
    model = training_mixture(experts, **fields)
    batch = RowCollator(2, in_line, answers_only, share_beginning)(found or rows())
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


LOSSES_THAT_LOOK_AT_TOKENS = {
    "rsl": {},
    "gmoe": {},
    "aesl": {},
    "supervised": {},  # the own expert of a token that several rows share is that of each row
    "load_balance": {"reduction": "pooled", "z_weight": 0.1},
}


@pytest.mark.parametrize("loss", LOSSES_THAT_LOOK_AT_TOKENS)
def test_a_beginning_that_rows_share_counts_once_for_each_of_them(experts, loss):
    """It is computed once, and loss, gradient and statistics are those of rows that each have their own."""
    fields = {"routing_loss": loss, **LOSSES_THAT_LOOK_AT_TOKENS[loss]}
    found = rows_with_a_template()
    plain, plain_gradient, plain_statistics = trained_on(experts, True, True, found, **fields)
    lean, gradient, statistics = trained_on(experts, True, True, found, share_beginning=True, **fields)
    torch.testing.assert_close(lean.logits, plain.logits)
    torch.testing.assert_close(lean.loss, plain.loss)
    torch.testing.assert_close(gradient, plain_gradient, atol=1e-6, rtol=1e-4)
    assert statistics.keys() == plain_statistics.keys()
    for name, value in statistics.items():
        torch.testing.assert_close(value, plain_statistics[name], equal_nan=True)


def test_a_line_with_a_shared_beginning():
    found = rows_with_a_template()
    batch = RowCollator(2, True, True, share_beginning=True)(found)
    # The last row is all answer behind the template; the prediction of its first token is its own, so one token less
    # is shared.
    assert batch["cu_seq_lens_q"].tolist() == [0, 4, 14, 18, 36, 43]
    assert batch["cu_seq_lens_k"].tolist() == [0, 4, 18, 26, 48, 59]
    assert batch["position_ids"][0, :16].tolist() == [0, 1, 2, 3, *range(4, 14), 4, 5]
    ids = batch["input_ids"][0]
    assert ids[batch["row_tokens"]].tolist() == [token for row in found for token in row["input_ids"]]
    assert batch["expert_index"].tolist() == [-1] * 14 + [0] * 8 + [1] * 22 + [2] * 11
    assert token_count(batch) == sum(len(row["input_ids"]) for row in found)
    alone = RowCollator(2, True, True, share_beginning=True)(found[:1])
    assert alone["input_ids"].shape == (1, 14)
    apart = RowCollator(2, True, True, share_beginning=True)(rows())
    assert "row_tokens" not in apart
    assert token_count(apart) == apart["input_ids"].numel()


def test_rows_share_their_beginning_where_equal_tokens_are_treated_alike(experts):
    def shares(**fields) -> bool:
        model = training_mixture(experts, **fields)
        return make_collator(model, tiny.tokenizer(), rows_with_a_template()).share_beginning

    assert shares()
    assert shares(training_gate="top_k")
    assert not shares(training_gate="domain")  # the gates of a row are those of its domain
    assert not shares(noise_std=0.1)
    assert not shares(dropout=0.1)
    assert not make_collator(tiny.llama(), tiny.tokenizer(), rows_with_a_template()).share_beginning


def test_training_with_shared_beginnings_is_the_same_training(experts, tmp_path, monkeypatch):
    found = {}
    for name in ("shared", "apart"):
        if name == "apart":
            monkeypatch.setattr("loramixer.training.batches.equal_tokens_act_alike", lambda model: False)
        model, log = training_mixture(experts), RunLog({})
        run_training(model, tiny.tokenizer(), rows_with_a_template(), tmp_path / name, SETTINGS, log)
        weights = torch.cat([value.flatten() for value in model.parameters() if value.requires_grad])
        found[name] = weights, log
    (shared, log), (apart, other) = found["shared"], found["apart"]
    torch.testing.assert_close(shared, apart, atol=1e-5, rtol=1e-3)
    assert (log.settings["beginnings_shared"], other.settings["beginnings_shared"]) == (True, False)
    assert log.summary["tokens"] == other.summary["tokens"]
    assert log.summary["shared_share"] > 0
    assert other.summary["shared_share"] == 0
    assert log.summary["padding_share"] == 0


def test_a_line_has_no_padding_and_keeps_rows_apart(experts):
    batch = RowCollator(2, in_line=True, answers_only=True)(rows())
    assert batch["input_ids"].shape == (1, 9 + 3 + 17 + 6)
    assert batch["cu_seq_lens_q"].tolist() == [0, 9, 12, 29, 35]
    assert batch["position_ids"][0, 9:12].tolist() == [0, 1, 2]
    assert batch["expert_index"].tolist() == [-1] * 9 + [0] * 3 + [1] * 17 + [2] * 6
    assert batch["labels"][0, 29] == -100  # the last row has no prompt, and no token of another row predicts it


def test_it_is_found_out_by_trying_whether_a_backbone_keeps_rows_apart():
    llama = tiny.llama().train()
    llama.model.layers[1].eval()
    modes = [module.training for module in llama.modules()]
    assert rows_fit_in_line(llama, rows(), longest=17)
    assert [module.training for module in llama.modules()] == modes
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
    # Gemma 3 has the window in the configuration of its text model.
    nested = copy.deepcopy(config)
    config.sliding_window, config.get_text_config = None, lambda *_, **__: nested
    assert not rows_fit_in_line(sliding, rows(), longest=17)


def leaky_backbones():
    """Backbones that attend and carry something over from token to token besides."""
    lfm2 = transformers.Lfm2Config(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=2,
        vocab_size=tiny.VOCABULARY, layer_types=["conv", "full_attention"],
    )  # fmt: skip
    torch.manual_seed(0)
    return {"lfm2": transformers.Lfm2ForCausalLM(lfm2).eval(), "jamba": ARCHITECTURES["jamba"].build()}


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize("name", ["lfm2", "jamba"])
def test_backbones_that_carry_a_little_over_to_the_next_row_are_padded(name, share):
    """Most of a row hardly notices; what counts is the token that notices most."""
    assert not rows_fit_in_line(leaky_backbones()[name], rows_with_a_template(), 17, share)


def test_a_line_is_tried_where_its_rows_differ():
    """Rows that share more than a trial takes leave it nothing but the beginning."""
    beginning = tiny.token_ids(1, 90)[0].tolist()
    alike = [{"input_ids": [*beginning, *row["input_ids"]]} for row in rows()[:2]]
    assert rows_fit_in_line(tiny.llama(), alike, 110, share_beginning=True)
    assert not rows_fit_in_line(leaky_backbones()["lfm2"], alike, 110, share_beginning=True)
    single = [{"input_ids": [*beginning, 7]}, {"input_ids": [*beginning, 9]}]  # one query each, behind 90 keys
    for dtype in (torch.float32, torch.bfloat16):
        assert rows_fit_in_line(tiny.llama().to(dtype), single, 110, share_beginning=True)


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


def test_rows_with_more_keys_than_queries_begin_with_the_beginning_of_the_line():
    """By both ways of computing attention, against rows that each have their own beginning."""
    module = torch.nn.Module()
    module.num_key_value_groups = 3
    generator = torch.Generator().manual_seed(0)
    shared = [torch.randn(1, heads, 14, 8, generator=generator) for heads in (6, 2, 2)]
    # A beginning of 3 tokens, then rows of 4 and 7 more.
    own = torch.tensor([*range(3), *range(3, 7), *range(3), *range(7, 14)])
    apart = [part[:, :, own] for part in shared]
    expected, _ = attend_row_by_row(module, *apart, None, cu_seq_lens_q=torch.tensor([0, 7, 17]))
    lines = {"cu_seq_lens_q": torch.tensor([0, 3, 7, 14]), "cu_seq_lens_k": torch.tensor([0, 3, 10, 20])}
    found, _ = attend_row_by_row(module, *shared, None, **lines)
    torch.testing.assert_close(found[:, own], expected)
    rounded, _ = attend_row_by_row(module, *(part.bfloat16() for part in shared), None, **lines)
    torch.testing.assert_close(rounded[:, own].float(), expected, atol=0.03, rtol=0.03)


def test_no_gradient_is_computed_below_the_first_routed_site(experts):
    model = training_mixture(experts)
    seen = []
    first = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    first.register_forward_pre_hook(lambda module, args: seen.append(args[0].requires_grad))
    ids = tiny.token_ids()
    model(input_ids=ids, labels=ids).loss.backward()
    assert seen == [False]
