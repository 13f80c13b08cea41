"""The mixture on every architecture: the same matrix of tests for each row of one table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel

from loramixer import trace
from loramixer.errors import TraceError
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime, capture_routing
from loramixer.tuner.sites import split_sites
from tests import architectures, tiny
from tests.architectures import ARCHITECTURES, RANKS, Architecture, batch, logits_of, merged


@dataclass(frozen=True)
class Case:
    """One architecture with its saved experts."""

    name: str
    architecture: Architecture
    experts: dict[str, str]

    def mixture(self, **fields: Any) -> Any:
        return architectures.mixture(self.architecture, self.experts, **fields)


@pytest.fixture(scope="module", params=ARCHITECTURES)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    architecture = ARCHITECTURES[request.param]
    folder = tmp_path_factory.mktemp(request.param)
    return Case(request.param, architecture, architectures.save_experts(architecture, folder))


def only(quality: str) -> pytest.MarkDecorator:
    """The architectures of which something is true."""
    names = [name for name, architecture in ARCHITECTURES.items() if getattr(architecture, quality)]
    return pytest.mark.parametrize("case", names, indirect=True)


@pytest.mark.parametrize("index", range(3))
def test_one_hot_gates_are_the_expert_merged_into_the_weights(case: Case, index: int) -> None:
    inputs = batch(case.architecture)
    expected = logits_of(merged(case.architecture, list(case.experts.values())[index]), inputs)
    effect = (expected - logits_of(case.architecture.build(), inputs)).abs().max()
    model = case.mixture()
    with tiny.only_expert(model, index):
        error = (logits_of(model, inputs) - expected).abs().max()
    assert effect > 1e-4
    assert error < effect / 200


@pytest.mark.parametrize("index", range(3))
@only("peft_is_exact")
def test_one_hot_gates_equal_pefts_own_lora(case: Case, index: int) -> None:
    inputs = batch(case.architecture)
    reference = PeftModel.from_pretrained(case.architecture.build(), list(case.experts.values())[index]).eval()
    expected = logits_of(reference, inputs)
    model = case.mixture()
    with tiny.only_expert(model, index):
        assert (logits_of(model, inputs) - expected).abs().max() < 1e-5 * expected.abs().max()


def test_disabled_adapters_are_the_backbone(case: Case) -> None:
    model, inputs = case.mixture(), batch(case.architecture)
    backbone = logits_of(case.architecture.build(), inputs)
    with model.disable_adapter():
        assert torch.equal(logits_of(model, inputs), backbone)
    assert not torch.allclose(logits_of(model, inputs), backbone, atol=1e-3)


@pytest.mark.parametrize("save_experts", [True, False], ids=["self-contained", "routers only"])
def test_saved_mixtures_reload_bit_equal(case: Case, tmp_path: Path, save_experts: bool) -> None:
    model, inputs = case.mixture(save_experts=save_experts), batch(case.architecture)
    model.save_pretrained(tmp_path)
    # Trainable as the first is: with frozen weights torch multiplies the transposed states of Mamba in another order.
    reloaded = PeftModel.from_pretrained(case.architecture.build(), tmp_path, is_trainable=True).eval()
    assert torch.equal(logits_of(model, inputs), logits_of(reloaded, inputs))


@only("generates")
def test_generation_with_and_without_cache_agrees(case: Case) -> None:
    model, ids = case.mixture(gate="top_k", top_k=2), tiny.token_ids(1, 6)
    settings = {"max_new_tokens": 6, "min_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))


def layers_of(model: Any) -> Iterator[LoraMixerLayer]:
    return (module for module in model.modules() if isinstance(module, LoraMixerLayer))


@pytest.mark.parametrize("loss", ["rsl", "load_balance"])
def test_a_training_step_reaches_every_router_and_no_expert(case: Case, loss: str) -> None:
    model = case.mixture(routing_loss=loss, balance_weight=10.0).train()
    outputs = model(**batch(case.architecture))
    outputs.loss.backward()
    statistics = model.base_model.routing_statistics
    assert torch.isfinite(outputs.loss)
    torch.testing.assert_close(outputs.loss, statistics["task_loss"] + statistics["routing_loss"])
    for layer in layers_of(model):
        gradient = layer.lora_mixer_router["default"].weight.grad
        assert torch.isfinite(gradient).all()
        more_than_one_expert = (~layer.lora_mixer_absent["default"]).sum() > 1
        assert (gradient.abs().sum() > 0) == more_than_one_expert
        assert layer.lora_mixer_A["default"].grad is None
        assert layer.lora_mixer_B["default"].grad is None


def test_capture_sees_every_token_at_every_site(case: Case) -> None:
    model, inputs = case.mixture(gate="top_k", top_k=2), batch(case.architecture)
    with torch.no_grad(), capture_routing(model) as capture:
        model(**inputs)
        streams = capture.take_streams()
    runtime = active_runtime(model)
    lengths = {"tokens": 7, "encoder": 7, "decoder": 5}
    assert sorted(site for found in streams.values() for site in found.sites) == list(range(len(runtime.sites)))
    for stream, found in streams.items():
        passes = 2 if case.name == "albert-sequence" else 1  # one set of weights for both layers
        assert found.gates.shape == (len(found.sites), 2, passes * lengths[stream], len(RANKS))
        torch.testing.assert_close(found.gates.sum(-1), torch.ones(found.gates.shape[:-1]))


def assert_same_logits(found: np.ndarray, expected: np.ndarray) -> None:
    largest = np.abs(expected[np.isfinite(expected)]).max()
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * largest)


@only("is_causal")
def test_a_trace_is_what_one_pass_over_the_whole_text_gives(case: Case) -> None:
    model = case.mixture(gate="top_k", top_k=2)
    model.generation_config.eos_token_id = None
    found = trace(model, tiny.tokenizer(), "the dose", max_new_tokens=5)
    assert sum(role == "generated" for role in found.tokens.roles) == 5
    with torch.no_grad(), capture_routing(model) as capture:
        model(torch.tensor([found.tokens.ids.tolist()]))
        logits, _ = capture.take()
    assert_same_logits(found.logits, logits)


@only("is_encoder_decoder")
def test_one_side_of_an_encoder_decoder_is_traced_at_a_time(case: Case) -> None:
    model = case.mixture(gate="top_k", top_k=2)
    model.generation_config.eos_token_id = None
    sides = {side: trace(model, tiny.tokenizer(), "the dose", 5, side=side) for side in ("encoder", "decoder")}
    encoder, decoder = sides["encoder"], sides["decoder"]
    assert encoder.tokens.text == "the dose"
    assert set(encoder.tokens.roles) == {"prompt"}
    assert decoder.tokens.roles == ("template", *["generated"] * 5)
    assert {site.module for site in (*encoder.sites, *decoder.sites)} == set(active_runtime(model).sites)
    assert not {site.module for site in encoder.sites} & {site.module for site in decoder.sites}
    assert any("decoder" in site.module for site in encoder.sites)  # keys and values of cross-attention
    assert not any("encoder." in site.module for site in decoder.sites)

    with torch.no_grad(), capture_routing(model) as capture:  # as it runs while it writes, with a cache
        ids = torch.tensor([encoder.tokens.ids.tolist()])
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=6, do_sample=False)
        with pytest.raises(TraceError, match=r"see different tokens.*take_streams"):
            capture.take()
        streams = capture.take_streams()
    for side, found in sides.items():
        np.testing.assert_allclose(
            found.logits, streams[side].logits[:, 0], atol=1e-4 * found.logits[np.isfinite(found.logits)].max()
        )
    with pytest.raises(TraceError, match=r"one by one with side='decoder' or side='encoder'"):
        trace(model, tiny.tokenizer(), "the dose")


def test_sites_have_names_of_their_own(case: Case) -> None:
    sites = split_sites(active_runtime(case.mixture()).sites)
    assert len({(layer, projection) for layer, projection, _ in sites}) == len(sites)
