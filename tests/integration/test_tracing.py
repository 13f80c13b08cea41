"""Capturing routing while a model reads and writes."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
import torch
import transformers
from peft import get_peft_model

import loramixer
from loramixer import LoraMixerConfig, RoutingTrace, mask_experts, set_gate, stream_trace, trace
from loramixer.errors import TraceError
from loramixer.trace import _Answer
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime, capture_routing
from loramixer.whatif import what_if
from tests import tiny
from tests.architectures import ARCHITECTURES, mixture, save_experts


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory):
    return tiny.mixture(tiny.save_experts(tmp_path_factory.mktemp("experts")), gate="top_k", top_k=2)


@pytest.fixture(scope="module")
def tokenizer():
    return tiny.tokenizer()


def test_every_site_every_token_prompt_and_generated(model, tokenizer):
    found = trace(model, tokenizer, "the dose of the drug", max_new_tokens=6)
    assert len(found.sites) == 8
    assert found.layers == (0, 1)
    assert found.projections == tiny.ALL_PROJECTIONS
    generated = sum(role == "generated" for role in found.tokens.roles)
    assert 1 <= generated <= 6
    assert found.gates.shape == (8, len(found.tokens), 3)
    np.testing.assert_allclose(found.gates.sum(-1), 1, atol=1e-5)
    assert ((found.gates > 0).sum(-1) <= 2).all()
    assert found.tokens.text.startswith("the dose of the drug")


def test_a_trace_is_what_one_pass_over_the_whole_text_gives(model, tokenizer):
    found = trace(model, tokenizer, "the dose", max_new_tokens=6)
    with torch.no_grad(), capture_routing(model) as capture:
        model(torch.tensor([found.tokens.ids.tolist()]))
        logits, gates = capture.take()
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    np.testing.assert_allclose(found.gates, gates, atol=1e-4)


def test_streaming_grows_by_one_token_and_ends_as_the_trace_does(model, tokenizer):
    steps = list(stream_trace(model, tokenizer, "the dose", max_new_tokens=5))
    sizes = [len(step.tokens) for step in steps]
    assert sizes[1:] == list(range(sizes[0] + 1, sizes[0] + len(sizes)))
    assert all(role != "generated" for role in steps[0].tokens.roles)
    whole = trace(model, tokenizer, "the dose", max_new_tokens=5)
    np.testing.assert_array_equal(steps[-1].gates, whole.gates)


def test_a_model_that_is_set_to_use_no_cache_has_the_same_trace(model, tokenizer, monkeypatch):
    expected = trace(model, tokenizer, "the dose", max_new_tokens=5)
    monkeypatch.setattr(model.generation_config, "use_cache", False)
    monkeypatch.setattr(model.get_base_model().generation_config, "use_cache", False)
    assert_alike(trace(model, tokenizer, "the dose", max_new_tokens=5), expected)


def test_a_backbone_without_a_cache_is_recorded_once_per_token(tokenizer, tmp_path):
    """It reads the whole text at each step, and only the last token of it is new."""
    torch.manual_seed(0)
    settings = {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": tiny.VOCABULARY}
    backbone = transformers.OpenAIGPTLMHeadModel(transformers.OpenAIGPTConfig(**settings)).eval()
    fields = {"target_modules": ["c_attn"], "train_experts": True, "router_init_std": 1.0}
    model = get_peft_model(backbone, LoraMixerConfig(experts={"a": None, "b": None}, **fields)).eval()
    found = trace(model, tokenizer, "the dose", max_new_tokens=5)
    assert found.tokens.roles.count("generated") == 5
    with torch.no_grad(), capture_routing(model) as capture:
        model(torch.tensor([found.tokens.ids.tolist()]))
        logits, gates = capture.take()
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    np.testing.assert_allclose(found.gates, gates, atol=1e-4)


def assert_alike(found: RoutingTrace, expected: RoutingTrace) -> None:
    assert found.tokens.text == expected.tokens.text
    assert found.tokens.ids.tolist() == expected.tokens.ids.tolist()
    for name in ("logits", "gates", "contributions", "base_norms"):
        if getattr(expected, name) is not None:
            np.testing.assert_allclose(getattr(found, name), getattr(expected, name), atol=1e-4)


def test_stop_ends_generation_and_keeps_what_was_made(model, tokenizer):
    stop = threading.Event()
    seen: list[RoutingTrace] = []
    for step in stream_trace(model, tokenizer, "the dose", max_new_tokens=200, stop=stop):
        seen.append(step)
        if len(seen) == 3:
            stop.set()
    assert len(seen) < 10
    assert seen[-1].gates.shape[1] == len(seen[-1].tokens)


def test_a_stream_that_ends_by_itself_leaves_the_event_of_its_caller_clear(model, tokenizer):
    stop = threading.Event()
    counts = []
    for _ in range(2):
        *_, last = stream_trace(model, tokenizer, "the dose", max_new_tokens=6, stop=stop)
        assert not stop.is_set()
        counts.append(last.tokens.roles.count("generated"))
    assert counts == [6, 6]


def test_leaving_the_loop_ends_generation_and_leaves_the_event_of_its_caller_clear(model, tokenizer):
    stop, leaving = threading.Event(), threading.Event()
    passes = []

    def count(*_):
        passes.append(1)
        if len(passes) == 3:
            leaving.wait(60)

    hook = model.get_base_model().register_forward_hook(count)
    steps = stream_trace(model, tokenizer, "the dose", max_new_tokens=200, stop=stop)
    next(steps)
    leaving.set()
    steps.close()
    hook.remove()
    assert len(passes) < 200
    assert not stop.is_set()


def test_leaving_the_loop_frees_the_model(model, tokenizer):
    for _ in stream_trace(model, tokenizer, "the dose", max_new_tokens=200):
        break
    assert active_runtime(model).capture is None
    trace(model, tokenizer, "the dose")


def test_sampling_follows_the_seed(model, tokenizer):
    texts = [trace(model, tokenizer, "the dose", 12, temperature=1.5, seed=seed).tokens.text for seed in (1, 1, 2)]
    assert texts[0] == texts[1] != texts[2]


@pytest.mark.parametrize("temperature", [0.0, 1.5])
def test_the_random_numbers_of_the_caller_go_on_as_without_a_trace(model, tokenizer, temperature):
    torch.manual_seed(4)
    expected = torch.rand(3)
    torch.manual_seed(4)
    trace(model, tokenizer, "the dose", 4, temperature=temperature, seed=1)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("prompt", ["", "   \n"])
def test_an_empty_prompt_is_one_sentence(model, tokenizer, prompt):
    with pytest.raises(TraceError, match="The prompt is empty"):
        trace(model, tokenizer, prompt)


def test_a_huge_prompt_is_refused_with_its_length(model, tokenizer):
    with pytest.raises(TraceError, match=r"The prompt has [\d,]+ tokens with its template, at most 1,024 are allowed"):
        trace(model, tokenizer, "dose " * 4000)


def test_special_characters_stay_what_they_are(model, tokenizer):
    prompt = "<script>alert(1)</script> 😀 量"
    found = trace(model, tokenizer, prompt)
    assert found.tokens.text.startswith(prompt)
    covered = "".join(sorted(set(found.tokens.text[s:e] for s, e in found.tokens.spans)))
    assert "😀" in covered
    assert "量" in covered


def test_split_characters_share_a_span(tokenizer):
    ids = tokenizer("a😀b", add_special_tokens=False)["input_ids"]
    text, spans = _Answer(tokenizer).read(ids)
    assert text == "a😀b"
    assert spans[0] == (0, 1)
    assert spans[-1] == (2, 3)
    assert set(spans[1:-1]) == {(1, 2)}
    assert len(spans) == len(ids)


def test_an_answer_that_grows_has_the_spans_of_the_whole(tokenizer):
    ids = tokenizer("a😀b 量 c😀", add_special_tokens=False)["input_ids"]
    growing = _Answer(tokenizer)
    for count in range(1, len(ids) + 1):
        assert growing.read(ids[:count]) == _Answer(tokenizer).read(ids[:count])
    assert growing.read(ids)[0] == "a😀b 量 c😀"


def test_what_was_frozen_in_evaluation_mode_stays_there(model, tokenizer):
    """PEFT's wrapper of a backbone in evaluation mode is in training mode."""
    block = model.get_base_model().model.layers[1]
    model.training = block.mlp.training = True
    before = {name: module.training for name, module in model.named_modules()}
    assert set(before.values()) == {True, False}
    trace(model, tokenizer, "the dose")
    after = {name: module.training for name, module in model.named_modules()}
    model.eval()
    assert after == before


def test_a_site_that_was_skipped_is_an_error(model, tokenizer, monkeypatch):
    layers = [module for module in model.modules() if isinstance(module, LoraMixerLayer)]
    monkeypatch.setattr(layers[3], "forward", layers[3].base_layer.forward)
    with pytest.raises(TraceError, match=r"model\.layers\.0\.self_attn\.o_proj routed 0 tokens"):
        trace(model, tokenizer, "the dose")


def test_a_batch_is_no_trace(model):
    with capture_routing(model) as capture, torch.no_grad():
        model(tiny.token_ids(2, 5))
        with pytest.raises(TraceError, match="batch of 2"):
            capture.take()


@pytest.mark.parametrize("reentrant", [False, True])
def test_layers_that_checkpointing_runs_again_are_captured_once(experts, reentrant):
    model, ids = tiny.mixture(experts).train(), tiny.token_ids()
    captured = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_input_require_grads()
            model.gradient_checkpointing_enable({"use_reentrant": reentrant})
        with capture_routing(model, contributions=True) as capture:
            model(ids).logits.sum().backward()
            captured.append(capture.take_streams()["tokens"])
    plain, checkpointed = captured
    assert checkpointed.gates.shape == (8, *ids.shape, 3)
    torch.testing.assert_close(checkpointed.gates, plain.gates)
    torch.testing.assert_close(checkpointed.contributions, plain.contributions)


@pytest.mark.parametrize("projections", [r"\.fc[12]$", r"\.(fc[12]|q_proj)$"])
def test_rows_of_flattened_tokens_are_rows_again(projections, tmp_path):
    """The feed-forward part of OPT sees its tokens without the axis of rows."""
    chosen = dataclasses.replace(ARCHITECTURES["opt"], projections=dict.fromkeys("abc", projections))
    model = mixture(chosen, save_experts(chosen, tmp_path))
    ids = tiny.token_ids(2, 5)
    found = []
    with torch.no_grad(), capture_routing(model) as capture:
        for rows in ({"input_ids": ids}, {"inputs_embeds": model.get_input_embeddings()(ids)}):
            model(**rows)
            found.append(capture.take_batch()[1])
        for row in ids:
            model(row[None])
            found.append(capture.take_batch()[1])
    by_ids, by_embeddings, first, second = found
    assert by_ids.shape[1:] == (2, 5, 3)
    torch.testing.assert_close(by_embeddings, by_ids)
    torch.testing.assert_close(torch.cat([first, second], dim=1), by_ids, atol=1e-4, rtol=0)


def test_a_text_is_traced_where_all_sites_see_flattened_tokens(tokenizer, tmp_path):
    chosen = dataclasses.replace(ARCHITECTURES["opt"], projections=dict.fromkeys("abc", r"\.fc[12]$"))
    model = mixture(chosen, save_experts(chosen, tmp_path))
    found = trace(model, tokenizer, "the dose of", 3)
    assert found.gates.shape == (4, len(found.tokens), 3)
    assert found.tokens.roles.count("generated") == 3


def test_provenance_says_what_made_the_trace(model, tokenizer):
    set_gate(model, k=1)
    found = trace(model, tokenizer, "the dose", seed=7)
    set_gate(model, k=2)
    assert (found.provenance["k"], found.provenance["seed"], found.provenance["gate"]) == (1, 7, "top_k")
    assert len(found.provenance["router_sha256"]) == 64
    assert set(found.provenance["expert_sha256"]) == {"a", "b", "c"}
    assert found.provenance["versions"]["loramixer"] == loramixer.__version__


def test_a_model_without_mixture_is_refused(tokenizer):
    with pytest.raises(loramixer.LoraMixerError, match="holds no LoRA-Mixer mixture"):
        trace(tiny.llama(), tokenizer, "the dose")


@pytest.mark.parametrize("rules", [[], [{"sites": r".*\.k_proj", "gate": "soft", "temperature": 2.0}]])
def test_what_if_is_what_the_first_sites_do_under_these_settings(tmp_path, tokenizer, rules):
    """Later blocks see other inputs then, which is what `what_if` cannot know."""
    model = tiny.mixture(tiny.save_experts(tmp_path), gate="top_k", top_k=2, site_gates=rules)
    recorded = trace(model, tokenizer, "the dose")
    set_gate(model, k=1, temperature=0.7)
    mask_experts(model, "a")
    expected, found = trace(model, tokenizer, "the dose"), what_if(recorded, k=1, temperature=0.7, mask=["a"])
    first = [site.projection in ("q_proj", "k_proj", "v_proj") and site.layer == 0 for site in found.sites]
    np.testing.assert_allclose(found.gates[first], expected.gates[first], atol=1e-5)
    assert not np.allclose(found.gates, recorded.gates)
