"""Interventions while a model reads and writes: they act where they say, in a cache too, and leave nothing behind."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from loramixer import Intervention, intervene, mask_experts, set_gate, stream_trace, trace
from loramixer.errors import RoutingError, TraceError
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime, capture_routing
from loramixer.whatif import what_if
from tests import architectures, tiny
from tests.architectures import ARCHITECTURES

EQUAL = tuple("abcd")
PROMPT = "the dose of the drug"


@pytest.fixture(scope="module")
def equal_experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("equal")
    return {
        name: tiny.save_expert(folder / name, seed, r=3, target_modules=list(tiny.ALL_PROJECTIONS))
        for seed, name in enumerate(EQUAL)
    }


@pytest.fixture(scope="module")
def model(equal_experts) -> Any:
    return tiny.mixture(equal_experts, gate="top_k", top_k=2)


@pytest.fixture(scope="module")
def uneven(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Experts ``a``, ``b`` and ``c``; ``c`` is at q_proj only, ``b`` at q_proj and v_proj."""
    return tiny.mixture(tiny.save_experts(tmp_path_factory.mktemp("uneven")), gate="soft")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return tiny.tokenizer()


def arrays(model: Any, ids: torch.Tensor, *interventions: Intervention, prompt_tokens: int | None = None) -> Any:
    """Logits and gates of one forward pass."""
    with torch.no_grad(), intervene(model, interventions, prompt_tokens), capture_routing(model) as capture:
        model(input_ids=ids, use_cache=False)
        return capture.take()


EVERY_KIND = {
    "mask": Intervention("mask", ("a", "c"), tokens=(2, None)),
    "force a span": Intervention("force", ("b",), tokens=(3, 9)),
    "force the answer": Intervention("force", ("d",), part="generated"),
    "force the prompt": Intervention("force", ("d",), part="prompt"),
    "one token of the answer": Intervention("force", ("a",), tokens=(8, 9)),
    "uniform": Intervention("uniform", layers=(1,)),
    "random mask": Intervention("random_mask", ("a", "c"), seed=3),
    "one projection": Intervention("force", ("c",), projections=("q_proj",), tokens=(4, 25)),
}


@pytest.mark.parametrize("name", EVERY_KIND)
def test_generation_with_a_cache_is_one_pass_over_the_whole_text(model, tokenizer, name):
    each = EVERY_KIND[name]
    found = trace(model, tokenizer, PROMPT, 6, interventions=[each])
    ids = torch.tensor([found.tokens.ids.tolist()])
    prompt_tokens = sum(role != "generated" for role in found.tokens.roles)
    assert 3 < prompt_tokens < 8 < len(found.tokens) - 1
    logits, gates = arrays(model, ids, each, prompt_tokens=prompt_tokens)
    np.testing.assert_allclose(found.gates, gates, atol=1e-5)
    np.testing.assert_allclose(found.logits, logits, atol=1e-4)
    plain = arrays(model, ids)[1]
    assert not np.allclose(gates, plain, atol=1e-3)


@pytest.mark.parametrize("name", ["falcon-mamba", "mamba2", "jamba", "opt", "gpt2", "mistral"])
def test_positions_are_right_in_other_caches(name, tmp_path, tokenizer):
    """States without a length, mixed caches, sliding windows, and layers that flatten their input."""
    architecture = ARCHITECTURES[name]
    model = architectures.mixture(architecture, architectures.save_experts(architecture, tmp_path), gate="soft")
    each = Intervention("force", ("a",), tokens=(4, 10))
    found = trace(model, tokenizer, "the do", 8, interventions=[each])
    assert len(found.tokens) > 10
    _, gates = arrays(model, torch.tensor([found.tokens.ids.tolist()]), each)
    np.testing.assert_allclose(found.gates, gates, atol=1e-4)
    present = np.isfinite(found.logits[:, 0])
    site = next(index for index, here in enumerate(present) if here[0] and here.sum() > 1)
    forced = (found.gates[site] == [1, 0, 0]).all(-1)
    assert forced[4:10].all()
    assert not forced[[*range(4), *range(10, len(forced))]].all()


def test_forcing_an_expert_everywhere_is_that_expert_alone(model):
    ids = tiny.token_ids(1, 7)
    with torch.no_grad():
        with tiny.only_expert(model, 2):
            expected = model(ids).logits
        with intervene(model, [Intervention("force", "c")]):
            forced = model(ids).logits
    torch.testing.assert_close(forced, expected, atol=1e-5, rtol=1e-5)


def test_masking_everywhere_is_mask_experts(model):
    ids = tiny.token_ids(1, 7)
    mask_experts(model, "b")
    try:
        with torch.no_grad(), capture_routing(model) as capture:
            model(ids)
            expected = capture.take()
    finally:
        mask_experts(model)
    for found, wanted in zip(arrays(model, ids, Intervention("mask", ("b",))), expected, strict=True):
        np.testing.assert_allclose(found, wanted, atol=1e-6)


def test_only_the_chosen_tokens_layers_and_projections_change_at_once(model):
    ids = tiny.token_ids(1, 8)
    plain = arrays(model, ids)[1]
    each = Intervention("force", ("d",), tokens=(2, 5), layers=(0,), projections=("k_proj", "o_proj"))
    found = arrays(model, ids, each)[1]
    sites = active_runtime(model).sites
    for index, site in enumerate(sites):
        if ".0." in site and site.endswith(("k_proj", "o_proj")):
            np.testing.assert_array_equal(found[index, 2:5], [[0, 0, 0, 1]] * 3)
            if site.endswith("k_proj"):
                np.testing.assert_allclose(found[index, [0, 1, 5, 6, 7]], plain[index, [0, 1, 5, 6, 7]], atol=1e-6)
        elif ".0." in site:
            np.testing.assert_allclose(found[index], plain[index], atol=1e-6)
    # Tokens before the first one that was changed cannot know of it.
    np.testing.assert_allclose(found[:4, :2], plain[:4, :2], atol=1e-6)
    np.testing.assert_allclose(found[4:, :2], plain[4:, :2], atol=1e-6)
    assert not np.allclose(found[4:, 5:], plain[4:, 5:], atol=1e-4)


def test_uniform_counts_those_that_are_there(uneven):
    _, gates = arrays(uneven, tiny.token_ids(1, 4), Intervention("uniform"))
    share = {"q_proj": [1 / 3] * 3, "v_proj": [1 / 2, 1 / 2, 0], "k_proj": [1, 0, 0], "o_proj": [1, 0, 0]}
    for index, site in enumerate(active_runtime(uneven).sites):
        np.testing.assert_allclose(gates[index], [share[site.rpartition(".")[2]]] * 4, atol=1e-6)
    _, gates = arrays(uneven, tiny.token_ids(1, 4), Intervention("uniform"), Intervention("mask", ("a",)))
    np.testing.assert_allclose(gates[0], [[0, 1 / 2, 1 / 2]] * 4, atol=1e-6)


def test_an_absent_expert_that_is_forced_adds_nothing(uneven, tokenizer):
    found = trace(uneven, tokenizer, PROMPT, interventions=[Intervention("force", ("c",))])
    for index, site in enumerate(found.sites):
        expected = [0, 0, 1] if site.projection == "q_proj" else [0, 0, 0]
        np.testing.assert_array_equal(found.gates[index], [expected] * len(found.tokens))


def test_a_site_without_any_expert_left_adds_nothing(uneven):
    logits, gates = arrays(uneven, tiny.token_ids(1, 4), Intervention("mask", ("a",), tokens=(1, 3)))
    k_proj = active_runtime(uneven).sites.index("model.layers.0.self_attn.k_proj")
    np.testing.assert_array_equal(gates[k_proj], [[1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 0, 0]])
    assert np.isneginf(logits[k_proj, 1:3]).all()


def test_a_random_mask_takes_out_as_many_as_the_mask_does(uneven, model):
    ids = tiny.token_ids(1, 60)
    for mixture, experts in ((uneven, ("b", "c")), (model, ("a",)), (model, ("a", "b", "d"))):
        real = arrays(mixture, ids, Intervention("mask", experts))[0]
        control = arrays(mixture, ids, Intervention("random_mask", experts))[0]
        np.testing.assert_array_equal(np.isneginf(real).sum(-1), np.isneginf(control).sum(-1))
        assert not np.array_equal(np.isneginf(real), np.isneginf(control))
    masked = np.isneginf(arrays(model, ids, Intervention("random_mask", ("a",)))[0])
    np.testing.assert_allclose(masked.mean(axis=(0, 1)), 0.25, atol=0.1)  # nobody is favoured
    first = [np.isneginf(arrays(model, ids, Intervention("random_mask", ("a",), seed=seed))[0]) for seed in (0, 0, 1)]
    np.testing.assert_array_equal(first[0], first[1])
    assert not np.array_equal(first[0], first[2])


def test_the_later_one_counts_and_force_is_above_a_mask(model):
    ids = tiny.token_ids(1, 4)
    _, gates = arrays(
        model, ids, Intervention("uniform"), Intervention("force", ("a",), tokens=(0, 2)), Intervention("mask", ("a",))
    )
    np.testing.assert_array_equal(gates[:, :2], np.broadcast_to([1, 0, 0, 0], (8, 2, 4)))
    np.testing.assert_allclose(gates[:, 2:], np.broadcast_to([0, 1 / 3, 1 / 3, 1 / 3], (8, 2, 4)), atol=1e-6)


@pytest.mark.parametrize("mixing", ["dense", "sparse"])
def test_no_fast_form_passes_them_over(equal_experts, mixing):
    model = tiny.mixture(equal_experts, gate="top_k", top_k=1, mixing=mixing)
    for length in (1, 6):
        _, gates = arrays(model, tiny.token_ids(1, length), Intervention("force", ("d",)))
        np.testing.assert_array_equal(gates, np.broadcast_to([0, 0, 0, 1], gates.shape))


def test_a_batch_and_beams_count_columns(model):
    ids = tiny.token_ids(3, 6)
    each = Intervention("force", ("b",), tokens=(1, 3))
    with torch.no_grad(), intervene(model, [each]), capture_routing(model) as capture:
        model(ids)
        _, gates = capture.take_batch()
    forced = (gates == torch.tensor([0.0, 1.0, 0.0, 0.0])).all(-1)
    assert forced[:, :, 1:3].all()
    assert not forced[:, :, [0, 3, 4, 5]].all()
    with intervene(model, [each]):
        model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=3, num_beams=2)


def test_the_model_is_as_before(model, tokenizer):
    expected = tiny.logits_of(model)
    hooks = len(model.get_base_model()._forward_pre_hooks)
    trace(model, tokenizer, PROMPT, 3, interventions=[Intervention("force", ("a",))])
    assert torch.equal(tiny.logits_of(model), expected)
    with pytest.raises(ZeroDivisionError), intervene(model, [Intervention("force", ("a",))]):
        1 / 0  # noqa: B018
    assert torch.equal(tiny.logits_of(model), expected)
    for _ in stream_trace(model, tokenizer, PROMPT, 50, interventions=[Intervention("uniform")]):
        break
    assert torch.equal(tiny.logits_of(model), expected)
    assert active_runtime(model).intervening is None
    assert len(model.get_base_model()._forward_pre_hooks) == hooks


def test_a_failing_layer_leaves_nothing_behind(model, tokenizer, monkeypatch):
    expected = tiny.logits_of(model)
    layer = [module for module in model.modules() if isinstance(module, LoraMixerLayer)][3]
    with monkeypatch.context() as patched:
        patched.setattr(layer, "forward", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            trace(model, tokenizer, PROMPT, 2, interventions=[Intervention("uniform")])
    assert torch.equal(tiny.logits_of(model), expected)


def test_provenance_says_what_was_done(model, tokenizer, tmp_path):
    each = Intervention("mask", ("a",), tokens=(2, None), part="prompt", layers=(1,))
    found = trace(model, tokenizer, PROMPT, interventions=[each])
    assert found.provenance["interventions"] == [
        {"kind": "mask", "experts": ["a"], "tokens": [2, None], "part": "prompt", "layers": [1]}
    ]
    loaded = type(found).load(found.save(tmp_path / "t.npz"))
    assert loaded.provenance == found.provenance
    assert "interventions" not in trace(model, tokenizer, PROMPT).provenance
    with pytest.raises(TraceError, match="recorded under an intervention"):
        what_if(found)


def test_an_intervention_changes_the_text(model, tokenizer):
    plain = trace(model, tokenizer, PROMPT, 8).tokens.ids.tolist()
    answers = [trace(model, tokenizer, PROMPT, 8, interventions=[Intervention("force", (name,))]) for name in EQUAL]
    assert any(found.tokens.ids.tolist() != plain for found in answers)


REFUSED = [
    (Intervention("stop"), "The intervention is 'stop'; it can be mask, force, uniform, random_mask"),
    (Intervention("mask", ("z",)), "no expert 'z'; it has a, b, c, d"),
    (Intervention("mask"), "'mask' takes experts, here are 0"),
    (Intervention("force", ("a", "b")), "'force' takes one expert, here are 2"),
    (Intervention("uniform", ("a",)), "'uniform' takes no expert, here are 1"),
    (Intervention("mask", EQUAL), "All experts .* would be masked; leave at least one"),
    (Intervention("random_mask", EQUAL), "All experts"),
    (Intervention("force", ("a",), tokens=(5, 5)), "The tokens 5 to 5 are none"),
    (Intervention("force", ("a",), tokens=(-1, 5)), "The tokens -1 to 5 are none"),
    (Intervention("force", ("a",), part="end"), "The part is 'end'; it can be all, prompt, generated"),
    (Intervention("force", ("a",), part="prompt"), "part='prompt' needs the length of the prompt"),
    (Intervention("force", ("a",), layers=(9,)), "layers 9 and projections all, where nothing is routed"),
    (Intervention("force", ("a",), projections=("x",)), "layers all and projections x, where nothing is routed"),
]


@pytest.mark.parametrize(("each", "sentence"), REFUSED)
def test_what_cannot_act_is_one_sentence(model, each, sentence):
    with pytest.raises(RoutingError, match=sentence), intervene(model, [each]):
        pass
    assert active_runtime(model).intervening is None


def test_two_at_once_and_training_are_refused(equal_experts):
    model = tiny.mixture(equal_experts)
    with intervene(model, [Intervention("uniform")]):
        with pytest.raises(RoutingError, match="acting on this mixture already"), intervene(model, []):
            pass
        model.train()
        with pytest.raises(RoutingError, match="this model trains"):
            model(tiny.token_ids(1, 3))


def test_a_cache_without_a_length_is_refused(model):
    with (
        torch.no_grad(),
        intervene(model, [Intervention("uniform")]),
        pytest.raises(RoutingError, match="object does not say"),
    ):
        model(input_ids=tiny.token_ids(1, 3), past_key_values=object())


def test_sides_of_an_encoder_decoder_take_them_as_a_whole(tmp_path, tokenizer):
    architecture = ARCHITECTURES["t5"]
    model = architectures.mixture(architecture, architectures.save_experts(architecture, tmp_path))
    found = trace(model, tokenizer, PROMPT, 3, side="decoder", interventions=[Intervention("force", ("a",))])
    present = np.isfinite(found.logits[..., 0])
    assert present.any()
    assert (found.gates[present] == [1, 0, 0]).all()
    with pytest.raises(RoutingError, match="cannot be limited to some"):
        trace(model, tokenizer, PROMPT, side="encoder", interventions=[Intervention("force", ("a",), tokens=(0, 2))])


def test_gate_settings_still_count(model):
    ids = tiny.token_ids(1, 5)
    former = set_gate(model)
    set_gate(model, k=1)
    try:
        _, gates = arrays(model, ids, Intervention("mask", ("a",)))
    finally:
        set_gate(model, k=former.k)
    assert ((gates > 0).sum(-1) == 1).all()
    assert (gates[..., 0] == 0).all()
