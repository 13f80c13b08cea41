"""The state-space backbone that ships routes for real, offline: weights, experts and routers of the package alone."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import numpy as np
import pytest
import torch

from loramixer import backbones, list_mixers, load_backbone, load_mixer, set_gate, trace
from loramixer.backbones import CATALOGUE, backbone_status
from loramixer.data import held_out_examples
from loramixer.errors import HubError
from loramixer.evaluation.harness import evaluate
from loramixer.evaluation.matrix import expert_matrix
from loramixer.experts import read_expert
from loramixer.mixers import ZOO
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime, describe_mixture
from tests import tiny

NAME = "falcon-mamba-tiny"
PROJECTIONS = ("in_proj", "x_proj", "dt_proj", "out_proj")
PROMPT = "A nurse gives 15 mg of a drug 3 times a day. How many mg is that, and what are the side effects?"
ROUTERS = sorted(info.name for info in list_mixers() if info.backbone == NAME)


@pytest.fixture(scope="module")
def shipped():
    """The RSL mixture, with a Hub that nobody may ask."""

    def unreachable(*args: Any) -> None:
        raise HubError("asked", "do not ask")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(backbones, "ask", unreachable)
        patch.setenv("LORAMIXER_CACHE", "nowhere")
        return load_mixer(f"{NAME}/rsl")


@pytest.fixture
def model(shipped):
    """The mixture with the gate that it ships with."""
    set_gate(shipped[0], mode="top_k", k=shipped[0].peft_config["default"].top_k)
    return shipped[0]


def layers(model) -> dict[str, LoraMixerLayer]:
    return {name: module for name, module in model.named_modules() if isinstance(module, LoraMixerLayer)}


def test_the_catalogue_says_what_ships():
    entry = CATALOGUE[NAME]
    weights = ZOO / NAME / "backbone" / "model.safetensors"
    assert entry.revision == f"sha256:{hashlib.sha256(weights.read_bytes()).hexdigest()}"
    backbone, _ = load_backbone(NAME)
    assert entry.parameters == backbone.num_parameters()
    assert type(backbone).__name__ == "FalconMambaForCausalLM"
    row = next(row for row in backbone_status() if row["name"] == NAME)
    assert (row["origin"], row["hub_id"]) == ("package", None)
    assert sum(path.stat().st_size for path in (ZOO / NAME).rglob("*")) < 12_000_000


def test_a_trace_has_a_router_at_every_projection_of_every_block(model, shipped):
    found = trace(model, shipped[1], PROMPT, max_new_tokens=4)
    blocks = model.config.num_hidden_layers
    assert (found.projections, found.layers) == (PROJECTIONS, tuple(range(blocks)))
    assert found.gates.shape == (4 * blocks, len(found.tokens), len(found.experts))
    np.testing.assert_allclose(found.gates.sum(-1), 1, atol=1e-5)
    k = model.peft_config["default"].top_k
    assert ((found.gates > 0).sum(-1) == k).all()
    assert found.provenance["backbone"] == NAME
    assert found.tokens.text.startswith(PROMPT)


def test_the_trace_is_what_routers_make_of_what_their_projections_see(model, shipped):
    """For dt_proj, which nobody calls, that is what comes out of the norm before it."""
    seen: dict[str, torch.Tensor] = {}
    hooks = []
    for name, layer in layers(model).items():
        if name.endswith("dt_proj"):
            norm = model.get_submodule(name.replace("dt_proj", "dt_layernorm"))
            hooks.append(norm.register_forward_hook(lambda m, a, out, name=name: seen.update({name: out})))
        else:
            hooks.append(layer.register_forward_pre_hook(lambda m, given, name=name: seen.update({name: given[0]})))
    found = trace(model, shipped[1], PROMPT)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(found.sites)
    for site, logits in zip(found.sites, found.logits, strict=True):
        name = next(name for name in seen if name.endswith(site.module))
        router = layers(model)[name].lora_mixer_router["default"].weight
        expected = torch.nn.functional.linear(seen[name][0].float(), router.float())
        np.testing.assert_allclose(logits, expected.detach().numpy(), atol=1e-4, rtol=1e-4)


def test_one_hot_gates_are_the_expert_merged_into_the_weights_by_hand(model, shipped):
    ids = shipped[1](PROMPT, return_tensors="pt")["input_ids"]
    with torch.no_grad():
        plain = load_backbone(NAME)[0](ids).logits
    for index, name in enumerate(active_runtime(model).experts):
        merged, _ = load_backbone(NAME)
        with torch.no_grad():
            for site, update in read_expert(name, str(ZOO / NAME / "experts" / name)).sites.items():
                merged.get_submodule(site).weight += update.scaling * update.B @ update.A
            expected = merged(ids).logits
            with tiny.only_expert(model, index):
                torch.testing.assert_close(model(ids).logits, expected, atol=1e-2, rtol=1e-3)
        assert (expected - plain).abs().max() > 0.1


def test_generation_with_and_without_the_state_agrees(model, shipped):
    ids = shipped[1](f"{PROMPT}\n", return_tensors="pt")
    cached, recomputed = (
        model.generate(**ids, max_new_tokens=12, do_sample=False, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, recomputed)
    assert cached.shape[1] > ids["input_ids"].shape[1]


@pytest.mark.parametrize("name", ROUTERS)
def test_every_router_names_the_experts_that_lie_beside_it(name):
    info = next(info for info in list_mixers() if info.name == name)
    assert {path.name for path in (ZOO / NAME / "experts").iterdir()} == set(info.experts)
    log = json.loads((ZOO / name / "run_log.json").read_text())["settings"]
    assert (log["backbone"], log["backbone_revision"]) == (NAME, CATALOGUE[NAME].revision)
    assert describe_mixture(load_mixer(name)[0])["experts"]


@pytest.mark.parametrize("domain", ["medical", "code"])  # the others gain little or nothing, see docs/backbones.md
def test_an_expert_beats_the_backbone_on_its_own_domain(model, shipped, real_data, domain):
    rows = held_out_examples(domain, 8, seed=1)
    with model.disable_adapter():
        before = evaluate(model, shipped[1], rows, routing=False, max_answer=96)[0].loss
    with tiny.only_expert(model, active_runtime(model).experts.index(domain)):
        after = evaluate(model, shipped[1], rows, routing=False, max_answer=96)[0].loss
    assert after < before


def test_the_expert_matrix_measures_each_expert_as_it_would_be_merged(monkeypatch):
    """PEFT's own LoRA would be passed over at dt_proj, and is refused at out_proj."""
    monkeypatch.setenv("LORAMIXER_DATA", "generated")
    folder = ZOO / NAME / "experts" / "math"
    results = expert_matrix({"math": folder}, ("math",), backbone=NAME, count=2)
    merged, tokenizer = load_backbone(NAME)
    with torch.no_grad():
        for site, update in read_expert("math", str(folder)).sites.items():
            merged.get_submodule(site).weight += update.scaling * update.B @ update.A
    expected = evaluate(merged, tokenizer, held_out_examples("math", 2, 0), routing=False)[0].loss
    assert results["math"][0].loss == pytest.approx(expected, rel=1e-4)
    assert results["backbone"][0].loss != pytest.approx(expected, rel=3e-4)
