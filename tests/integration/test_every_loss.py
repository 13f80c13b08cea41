"""Every routing loss in a whole model: routers learn from it, padding and checkpointing change nothing."""

from __future__ import annotations

import copy
import typing

import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict, set_peft_model_state_dict

from loramixer import LoraMixerConfig, cli, remove_expert, rename_expert
from loramixer.errors import MixerError
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner import layer as layer_module
from loramixer.tuner.config import RoutingLoss
from loramixer.tuner.routing_loss import LOSSES
from tests import tiny

INDEX = torch.tensor([0, 1])
AESL_ALONE = {"routing_loss": "aesl", "balance_weight": 0.0, "variance_weight": 0.0, "orthogonality_weight": 100.0}

CASES = {
    "rsl": {"routing_loss": "rsl"},
    "load_balance": {"routing_loss": "load_balance"},
    "ds_moe": {"routing_loss": "ds_moe"},
    "gmoe": {"routing_loss": "gmoe"},
    "gmoe code": {"routing_loss": "gmoe", "loss_form": "code"},
    "aesl": {"routing_loss": "aesl"},
    "aesl code": {"routing_loss": "aesl", "loss_form": "code"},
    "overlap": AESL_ALONE,
    "overlap code": {**AESL_ALONE, "loss_form": "code"},
    "supervised": {"routing_loss": "supervised"},
    "z": {"routing_loss": "none", "z_weight": 1.0},
}


def layers_of(model) -> list[LoraMixerLayer]:
    """The routed sites of the mixture."""
    layers = [module for module in model.modules() if isinstance(module, LoraMixerLayer)]
    return [module for module in layers if "default" in module.runtimes]


def step(model, checkpointing: bool = False, **inputs) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Loss, and the gradient of every router."""
    model.train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    ids = tiny.token_ids()
    loss = model(**{"input_ids": ids, "labels": ids, "expert_index": INDEX, "use_cache": False, **inputs}).loss
    loss.backward()
    return loss.detach(), [site.lora_mixer_router["default"].weight.grad for site in layers_of(model)]


@pytest.fixture(scope="module")
def task_gradients(experts):
    """Gradients of the routers without any routing loss."""
    return step(tiny.mixture(experts, routing_loss="none"))[1]


def test_every_name_has_a_function_a_text_and_a_case():
    assert set(LOSSES) == set(typing.get_args(RoutingLoss))
    assert {fields["routing_loss"] for fields in CASES.values()} == set(LOSSES)  # "none" carries the z-loss
    texts = {LoraMixerConfig(experts={"a": "x"}, **fields).loss_text for fields in CASES.values()}
    assert len(texts) == len(CASES)
    assert all("\n" not in text for text in texts)


def test_the_command_line_offers_every_loss():
    assert typing.get_type_hints(cli.train_router)["loss"] == RoutingLoss


@pytest.mark.parametrize("reduction", ["per_site", "pooled"])
@pytest.mark.parametrize("name", CASES)
def test_routers_learn_from_every_loss(experts, task_gradients, name, reduction):
    # With as many chosen as present experts, every usage is even, and the balance term is constant.
    model = tiny.mixture(experts, reduction=reduction, usage="top_1", **CASES[name])
    loss, gradients = step(model)
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in gradients)
    changes = [float((found - task).abs().max()) for found, task in zip(gradients, task_gradients, strict=True)]
    if name.startswith("overlap"):
        # It reaches a router through the inputs of later sites alone, so not at the last one.
        assert max(changes[:4]) > 1e-6
        assert changes[-1] < 1e-6
    else:
        # Where one expert is present there is nothing to choose.
        present = [sum(rank > 0 for rank in site.layouts["default"].ranks) for site in layers_of(model)]
        assert min(change for change, count in zip(changes, present, strict=True) if count > 1) > 1e-6


@pytest.mark.parametrize("name", CASES)
def test_padding_changes_neither_loss_nor_gradient(experts, name):
    ids = tiny.token_ids()
    plain = step(tiny.mixture(experts, **CASES[name]))
    pad = torch.full((2, 4), 2)
    padded = step(
        tiny.mixture(experts, **CASES[name]),
        input_ids=torch.cat([ids, pad], dim=1),
        labels=torch.cat([ids, torch.full_like(pad, -100)], dim=1),
        attention_mask=torch.cat([torch.ones_like(ids), torch.zeros_like(pad)], dim=1),
    )
    torch.testing.assert_close(padded[0], plain[0])
    torch.testing.assert_close(padded[1], plain[1], atol=1e-5, rtol=1e-3)


@pytest.mark.parametrize("train_experts", [False, True])
@pytest.mark.parametrize("name", CASES)
def test_checkpointing_changes_neither_loss_nor_gradient(experts, name, train_experts):
    models = [tiny.mixture(experts, train_experts=train_experts, **CASES[name]) for _ in range(2)]
    plain, checkpointed = step(models[0]), step(models[1], checkpointing=True)
    torch.testing.assert_close(checkpointed, plain)
    if train_experts:
        matrices = [[site.lora_mixer_B["default"].grad for site in layers_of(model)] for model in models]
        torch.testing.assert_close(*matrices)


def test_inner_products_are_those_of_the_experts_own_outputs(experts, monkeypatch):
    model = tiny.mixture(experts, routing_loss="aesl").train()
    seen = []
    former = LoraMixerLayer._output_gram
    monkeypatch.setattr(
        LoraMixerLayer,
        "_output_gram",
        lambda self, name, x: seen.append((self, x, former(self, name, x))) or seen[-1][2],
    )
    step(model)
    assert len(seen) == 8
    for site, x_ND, gram_NEE in seen:
        parts = [site.expert_weights("default", index) for index in range(3)]
        outputs = [
            torch.zeros(len(x_ND), site.out_features) if part is None else part.scaling * x_ND @ part.A.T @ part.B.T
            for part in parts
        ]
        x_NEF = torch.stack(outputs, dim=1)
        torch.testing.assert_close(gram_NEE, x_NEF @ x_NEF.transpose(-1, -2), atol=1e-4, rtol=1e-4)


def test_only_aesl_and_only_in_training_asks_for_outputs(experts, monkeypatch):
    calls = []
    former = layer_module.expert_output_gram
    monkeypatch.setattr(layer_module, "expert_output_gram", lambda *args: calls.append(1) or former(*args))
    for name in ("rsl", "supervised", "z"):
        step(tiny.mixture(experts, **CASES[name]))
    model = tiny.mixture(experts, routing_loss="aesl")
    model(input_ids=tiny.token_ids(), labels=tiny.token_ids())
    tiny.logits_of(model)
    assert not calls
    step(model)
    assert len(calls) == 8


def test_the_supervised_loss_needs_the_own_expert_of_each_row(experts):
    model = tiny.mixture(experts, routing_loss="supervised").train()
    with pytest.raises(MixerError, match=r"needs the own expert of each row.*pass expert_index"):
        model(input_ids=tiny.token_ids(), labels=tiny.token_ids())
    assert torch.isfinite(model.eval()(input_ids=tiny.token_ids(), labels=tiny.token_ids()).loss)


PRESERVE = {"train_experts": True, "preserve": ["b"], "preservation_weight": 0.5}


def shift_experts(model, by: float, counted: int = 1) -> int:
    """Add to every entry of every expert; returns how many entries one of them has, b by default."""
    entries = 0
    for site in layers_of(model):
        rows = site.layouts["default"].slice_of(counted)
        for matrix in (site.lora_mixer_A["default"], site.lora_mixer_B["default"]):
            matrix.data += by
            entries += matrix[rows].numel()
    return entries


def matrix_gradients(model) -> list[torch.Tensor]:
    return [
        matrix.grad
        for site in layers_of(model)
        for matrix in (site.lora_mixer_A["default"], site.lora_mixer_B["default"])
    ]


def test_preservation_pulls_the_chosen_experts_back_and_no_others(experts):
    plain, kept = tiny.mixture(experts, train_experts=True), tiny.mixture(experts, **PRESERVE)
    assert step(kept)[0] == step(plain)[0]  # nothing has moved yet
    for model in (plain, kept):
        entries = shift_experts(model, 0.1)
        model.zero_grad()
    kept.base_model.loss_warmup = 0.0  # the paper warms up α and λ only
    difference = step(kept)[0] - step(plain)[0]
    assert difference.item() == pytest.approx(0.5 * entries * 0.01, rel=1e-4)
    assert kept.base_model.routing_statistics["preservation_loss"].item() == pytest.approx(difference.item(), rel=1e-4)
    for index, (found, task) in enumerate(zip(matrix_gradients(kept), matrix_gradients(plain), strict=True)):
        pull = found - task
        layout = layers_of(kept)[index // 2].layouts["default"]
        expected = torch.zeros_like(pull)
        expected[layout.slice_of(1)] = 2 * 0.5 * 0.1
        torch.testing.assert_close(pull, expected, atol=1e-5, rtol=1e-4)


def preservation_of(model) -> float:
    step(model)
    return model.base_model.routing_statistics["preservation_loss"].item()


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
def test_experts_are_preserved_as_they_were_when_training_began(experts, tmp_path, low_cpu_mem_usage):
    """A saved mixture begins with what was saved; a run that resumes does not begin with its checkpoint."""
    model = tiny.mixture(experts, **PRESERVE)
    shift_experts(model, 0.1)
    model.save_pretrained(tmp_path / "saved")
    reloaded = PeftModel.from_pretrained(
        tiny.llama(), tmp_path / "saved", is_trainable=True, low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert preservation_of(reloaded) == 0
    for_inference = PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved")
    assert not any(len(site.lora_mixer_former_A) for site in layers_of(for_inference))
    entries = shift_experts(reloaded, 0.2)
    expected = pytest.approx(0.5 * entries * 0.04, rel=1e-4)
    assert preservation_of(reloaded) == expected
    checkpoint = copy.deepcopy(get_peft_model_state_dict(reloaded))
    resumed = PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved", is_trainable=True)
    set_peft_model_state_dict(resumed, checkpoint)
    assert preservation_of(resumed) == expected
    from_sources = tiny.mixture(experts, **PRESERVE)
    set_peft_model_state_dict(from_sources, checkpoint)
    assert preservation_of(from_sources) == pytest.approx(0.5 * entries * 0.09, rel=1e-4)


def test_a_copy_of_the_experts_is_kept_only_where_it_is_used(experts):
    assert not any(len(site.lora_mixer_former_A) for site in layers_of(tiny.mixture(experts, train_experts=True)))
    model = tiny.mixture(experts, **PRESERVE)
    sites = layers_of(model)
    assert all(len(site.lora_mixer_former_A) == 1 for site in sites)
    assert not any("former" in name for name in model.state_dict())
    model.delete_adapter("default")
    assert not any(len(site.lora_mixer_former_A) for site in sites)


def test_preserved_experts_follow_their_names(experts):
    model = tiny.mixture(experts, **PRESERVE)
    rename_expert(model, "b", "beta")
    assert model.active_peft_config.preserve == ["beta"]
    assert preservation_of(model) == 0
    remove_expert(model, "a")
    entries = shift_experts(model, 0.1, counted=0)
    assert preservation_of(model) == pytest.approx(0.5 * entries * 0.01, rel=1e-4)
    remove_expert(model, "beta")
    assert model.active_peft_config.preserve == []


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"routing_loss": "entropy"}, "routing_loss is 'entropy'; it can be rsl, load_balance, ds_moe"),
        ({"loss_form": "printed"}, "loss_form is 'printed'; it can be paper, code"),
        ({"z_weight": -1.0}, "z_weight is -1.0; it is a weight, 0 or above"),
        ({"entropy_weight": -0.3}, "entropy_weight is -0.3; it is a weight, 0 or above"),
        ({"dropout": 1.5}, "dropout is 1.5; it is a probability, from 0 to below 1"),
        ({"preserve": ["law"], "train_experts": True}, "preserve names 'law', but the mixture has a"),
        ({"preserve": ["a"]}, "preserve is for experts that train, these are frozen; set train_experts=True"),
        ({"preserve": ["a"], "train_experts": True, "experts": {"a": None}}, "'a' is new"),
    ],
)
def test_settings_that_make_no_sense(fields, message):
    with pytest.raises(MixerError, match=message):
        LoraMixerConfig(**{"experts": {"a": "x"}, **fields})


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"routing_loss": "none"}, "task loss only"),
        ({"routing_loss": "none", "z_weight": 0.001}, "task loss + 0.001 · E[(logsumexp z)²]"),
        ({"routing_loss": "ds_moe"}, "DS-MoE mutual information: 1 · (E[H(p)] − H(p̄))"),
        ({"routing_loss": "gmoe"}, "GMoE, paper form: 0.005 · D(Poisson, p) + 8 · D(Normal, load)"),
        (
            {"routing_loss": "aesl", "loss_form": "code"},
            "AESL, code form: 1 · K Σ p̄ f̄ + 1 · overlap of outputs − 1 · Var(p) over experts",
        ),
        (
            {"routing_loss": "supervised", "train_experts": True, "preserve": ["a"]},
            "supervised: 1 · E[−log p of the own expert] + 5e-05 · Σ‖θ − θ⁰‖² of a",
        ),
    ],
)
def test_the_loss_in_one_line(fields, text):
    assert LoraMixerConfig(experts={"a": "x"}, **fields).loss_text == text
