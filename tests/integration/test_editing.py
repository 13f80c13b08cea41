"""Experts added, removed, renamed and masked while the mixture is loaded; new experts that train with the routers."""

from __future__ import annotations

import pytest
import torch
from peft import PeftModel, get_peft_model

import loramixer
from loramixer import LoraMixerConfig, set_gate
from loramixer.errors import ExpertError, MixerError, RoutingError
from loramixer.experts import read_expert
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.editing import add_expert, remove_expert, rename_expert
from loramixer.tuner.export import export_expert
from loramixer.tuner.runtime import active_runtime, mask_experts
from tests import tiny
from tests.architectures import ARCHITECTURES, batch
from tests.tiny import logits_of


def routers_of(model) -> dict[str, torch.Tensor]:
    return {
        name: module.lora_mixer_router["default"].weight.detach().clone()
        for name, module in model.named_modules()
        if isinstance(module, LoraMixerLayer) and "default" in module.runtimes
    }


def test_an_added_expert_leaves_the_trained_rows_of_the_others(experts, tmp_path):
    two = {name: experts[name] for name in ("a", "b")}
    model = tiny.mixture(two)
    before = routers_of(model)
    add_expert(model, "c", experts["c"], tasks=["gsm8k"])
    after = routers_of(model)
    assert before.keys() == after.keys()
    for site, rows in before.items():
        assert after[site].shape[0] == 3
        assert torch.equal(after[site][:2], rows)
    with tiny.only_expert(model, 2):
        reference = PeftModel.from_pretrained(tiny.llama(), experts["c"]).eval()
        torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)
    model.save_pretrained(tmp_path / "saved")
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved").eval()
    assert active_runtime(reloaded).experts == ("a", "b", "c")
    assert reloaded.peft_config["default"].tasks == {"c": ["gsm8k"]}
    assert torch.equal(logits_of(reloaded), logits_of(model))


def test_an_added_expert_can_bring_sites_of_its_own(experts, tmp_path):
    wide = tiny.save_expert(tmp_path / "wide", 9, r=3, target_modules=["q_proj", "down_proj"])
    model = tiny.mixture({"b": experts["b"], "c": experts["c"]})
    add_expert(model, "wide", wide)
    sites = active_runtime(model).sites
    assert [site.rpartition(".")[2] for site in sites] == ["q_proj", "v_proj", "down_proj"] * 2
    with tiny.only_expert(model, 2):
        reference = PeftModel.from_pretrained(tiny.llama(), wide).eval()
        torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)
    trace = loramixer.trace(model, tiny.tokenizer(), "the dose", chat=False)
    assert len(trace.sites) == len(sites)
    model.save_pretrained(tmp_path / "saved")
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved").eval()
    assert torch.equal(logits_of(reloaded), logits_of(model))
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == len(sites)
    assert all("lora_mixer_router" in name for name in trainable)


@pytest.mark.parametrize("training", [False, True])
def test_a_site_that_an_expert_brings_is_in_the_mode_of_the_others(experts, training):
    """Of q, k and v one input decides, and the mode of the first of them."""
    model = tiny.mixture({"c": experts["c"]}, dropout=0.5, noise_std=1.0).train(training)
    add_expert(model, "a", experts["a"])
    assert {module.training for module in model.modules() if isinstance(module, LoraMixerLayer)} == {training}
    assert torch.equal(logits_of(model), logits_of(model)) is not training


def test_a_mixture_put_beside_another_is_in_the_mode_of_the_backbone(experts):
    model = tiny.mixture({"c": experts["c"]})
    model.add_adapter("wide", LoraMixerConfig(experts=dict(experts), task_type="CAUSAL_LM", dropout=0.5))
    model.set_adapter("wide")
    assert torch.equal(logits_of(model), logits_of(model))


def test_a_mixture_without_one_expert_is_the_mixture_of_the_others(experts):
    """Removing is masking for good: the others keep their logits, so their gates agree."""
    model, other = tiny.mixture(experts, gate="soft"), tiny.mixture(experts, gate="soft")
    mask_experts(model, "a")
    remove_expert(other, "a")
    torch.testing.assert_close(logits_of(model), logits_of(other), atol=1e-6, rtol=0)
    assert active_runtime(other).experts == ("b", "c")
    # Only expert a changes k and o.
    assert {site.rpartition(".")[2] for site in active_runtime(other).sites} == {"q_proj", "v_proj"}


def test_removing_lowers_k_and_never_the_last(experts):
    model = tiny.mixture(experts, top_k=3, site_gates=[{"sites": ".*q_proj", "top_k": 3}])
    remove_expert(model, "b")
    assert active_runtime(model).inference.k == model.peft_config["default"].top_k == 2
    logits_of(model)
    remove_expert(model, "c")
    with pytest.raises(MixerError, match="only expert"):
        remove_expert(model, "a")
    reference = PeftModel.from_pretrained(tiny.llama(), experts["a"]).eval()
    torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)


def test_a_mixture_with_rules_of_its_own_is_reloaded_with_fewer_experts(experts, tmp_path):
    model = tiny.mixture(
        experts, top_k=3, site_gates=[{"sites": ".*q_proj", "top_k": 3}, {"sites": ".*", "gate": "soft"}]
    )
    remove_expert(model, "b")
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path).eval()
    assert reloaded.peft_config["default"].site_gates == [
        {"sites": ".*q_proj", "top_k": 2},
        {"sites": ".*", "gate": "soft"},
    ]
    assert torch.equal(logits_of(reloaded), logits_of(model))


def test_an_expert_that_comes_back_acts_at_all_of_its_sites_again(experts, tmp_path):
    """Only expert a changes k and o, so that these sites lose their last expert and find one again."""
    model = tiny.mixture(experts, gate="soft")
    remove_expert(model, "a")
    add_expert(model, "a", experts["a"])
    with tiny.only_expert(model, 2):
        reference = PeftModel.from_pretrained(tiny.llama(), experts["a"]).eval()
        torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)
    export_expert(model, "a", tmp_path)
    assert read_expert("a", tmp_path).sites.keys() == read_expert("a", experts["a"]).sites.keys()
    assert len(loramixer.trace(model, tiny.tokenizer(), "the dose", chat=False).sites) == 8


@pytest.mark.filterwarnings("error:Adapter default was active")
def test_removing_an_expert_leaves_a_mixture_beside_it_at_rest(experts):
    model = tiny.mixture({name: experts[name] for name in ("a", "b")}, gate="soft")
    remove_expert(model, "a")
    expected = logits_of(model)
    model = tiny.mixture({name: experts[name] for name in ("a", "b")}, gate="soft")
    beside = LoraMixerConfig(experts={"a": experts["a"]}, router_init_std=0.5, task_type="CAUSAL_LM")
    model.add_adapter("beside", beside)
    remove_expert(model.eval(), "a")
    assert torch.equal(logits_of(model), expected)
    trainable = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_mixer_router.default." in name for name in trainable)
    model.set_adapter("beside")
    reference = PeftModel.from_pretrained(tiny.llama(), experts["a"]).eval()
    torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)


def test_a_rename_changes_a_name_only(experts, tmp_path):
    model = tiny.mixture(experts, tasks={"b": ["mbpp"]})
    before = logits_of(model)
    rename_expert(model, "b", "code")
    assert active_runtime(model).experts == ("a", "code", "c")
    assert model.peft_config["default"].tasks == {"code": ["mbpp"]}
    assert torch.equal(logits_of(model), before)
    model.save_pretrained(tmp_path)
    assert active_runtime(PeftModel.from_pretrained(tiny.llama(), tmp_path)).experts == ("a", "code", "c")


def test_a_rename_keeps_the_domain_and_the_mask(experts):
    model = tiny.mixture(experts)
    set_gate(model, mode="domain", domain="b")
    mask_experts(model, "c")
    before = logits_of(model)
    rename_expert(model, "b", "code")
    assert torch.equal(logits_of(model), before)
    assert active_runtime(model).masked.tolist() == [False, False, True]


def test_a_masked_expert_gets_no_weight_and_comes_back(experts):
    model = tiny.mixture(experts)
    before = logits_of(model)
    mask_experts(model, "a")
    trace = loramixer.trace(model, tiny.tokenizer(), "the dose", chat=False)
    assert (trace.gates[:, :, 0] == 0).all()
    queries = [site.projection == "q_proj" for site in trace.sites]
    torch.testing.assert_close(torch.from_numpy(trace.gates[queries].sum(-1)), torch.ones(2, trace.gates.shape[1]))
    # k and o have no other expert, so they are left to the backbone.
    assert (trace.gates[[site.projection == "k_proj" for site in trace.sites]] == 0).all()
    assert torch.isfinite(logits_of(model)).all()
    mask_experts(model)
    assert torch.equal(logits_of(model), before)


def test_a_model_with_masked_experts_does_not_train(experts):
    """Where only the masked expert is present there is nobody left, and no number for the loss."""
    model = tiny.mixture(experts, routing_loss="rsl", z_weight=0.1).train()
    mask_experts(model, "a")
    ids = tiny.token_ids()
    with pytest.raises(
        RoutingError, match=r"Experts are masked \(a\), and this model trains; .*mask_experts\(model\)"
    ):
        model(input_ids=ids, labels=ids)
    mask_experts(model)
    assert model(input_ids=ids, labels=ids).loss.isfinite()


@pytest.mark.parametrize("gate", ["soft", "top_k", "uniform"])
def test_masking_holds_in_every_gate_mode(experts, gate):
    model = tiny.mixture(experts)
    set_gate(model, mode=gate)
    mask_experts(model, "b")
    trace = loramixer.trace(model, tiny.tokenizer(), "the dose", chat=False)
    assert (trace.gates[:, :, 1] == 0).all()


def test_impossible_edits_are_refused_and_change_nothing(experts, tmp_path):
    model = tiny.mixture(experts)
    before = logits_of(model)
    narrow = tiny.save_expert(tmp_path / "narrow", 4, r=2, target_modules=["q_proj"])
    config = (tmp_path / "narrow" / "adapter_config.json").read_text()
    (tmp_path / "narrow" / "adapter_config.json").write_text(config.replace('"use_dora": false', '"use_dora": true'))
    with pytest.raises(ExpertError, match="DoRA"):
        add_expert(model, "narrow", narrow)
    with pytest.raises(MixerError, match="already has"):
        add_expert(model, "a", experts["b"])
    with pytest.raises(MixerError, match="no expert name"):
        add_expert(model, "x.y", experts["b"])
    with pytest.raises(MixerError, match="already has"):
        rename_expert(model, "a", "b")
    with pytest.raises(RoutingError, match="no expert 'z'; it has a, b, c"):
        remove_expert(model, "z")
    with pytest.raises(RoutingError, match="All experts"):
        mask_experts(model, "a", "b", "c")
    assert torch.equal(logits_of(model), before)


def test_new_experts_start_as_the_backbone_and_train_with_the_routers():
    targets = ["q_proj", "v_proj"]
    torch.manual_seed(0)
    config = LoraMixerConfig(
        experts={"a": None, "b": None}, r=4, lora_alpha=8, target_modules=targets, train_experts=True, top_k=1
    )
    model = get_peft_model(tiny.llama(), config)
    assert torch.equal(logits_of(model.eval()), logits_of(tiny.llama()))
    layer = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    assert layer.layouts["default"].uniform == (4, 2.0)
    ids = tiny.token_ids()
    model.train()
    model(input_ids=ids, labels=ids).loss.backward()
    trainable = {
        name.rpartition(".default")[0].rpartition("_")[2] for name, p in model.named_parameters() if p.grad is not None
    }
    assert trainable == {"B", "A", "router"}


@pytest.mark.parametrize(
    ("name", "last_names"),
    [
        ("llama", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("llama-sequence", {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}),
        ("gpt2", {"c_attn", "c_proj", "c_fc"}),
    ],
)
def test_new_experts_change_all_linear_layers_but_the_head(name, last_names):
    architecture = ARCHITECTURES[name]
    config = LoraMixerConfig(
        experts={"a": None, "b": None},
        r=2,
        target_modules="all-linear",
        train_experts=True,
        task_type=architecture.task_type,
    )
    model = get_peft_model(architecture.build(), config)
    sites = active_runtime(model).sites
    assert {site.rpartition(".")[2] for site in sites} == last_names
    inputs = batch(architecture)
    plain, mixed = architecture.build().eval(), model.eval()
    assert torch.equal(mixed(**inputs).logits, plain(**inputs).logits)


def test_new_experts_beside_given_ones_take_their_sites(experts, tmp_path):
    config = {"r": 3, "lora_alpha": 3, "train_experts": True}
    model = tiny.mixture({"b": experts["b"], "new": None}, **config)
    assert {site.rpartition(".")[2] for site in active_runtime(model).sites} == {"q_proj", "v_proj"}
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path).eval()
    assert torch.equal(logits_of(reloaded), logits_of(model))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"train_experts": False}, "train_experts=True"),
        ({"target_modules": None}, "target_modules must say"),
        ({"target_modules": ["nothing"]}, "No linear layer"),
        ({"r": 0}, "from 1 on"),
        ({"save_experts": False}, "would be lost"),
    ],
)
def test_new_experts_that_make_no_sense(fields, message):
    settings = {"r": 4, "target_modules": ["q_proj"], "train_experts": True, **fields}
    with pytest.raises((MixerError, ExpertError), match=message):
        get_peft_model(tiny.llama(), LoraMixerConfig(experts={"a": None}, **settings))
