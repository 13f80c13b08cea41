"""Several mixtures, or a mixture and a plain LoRA, on one backbone under PEFT's wrapper."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load, save_file

from loramixer import LoraMixerConfig, add_mixer, set_gate
from loramixer.errors import MixerError
from loramixer.tuner.export import export_expert
from loramixer.tuner.runtime import active_runtime
from tests import tiny
from tests.tiny import logits_of


def fresh(experts, **fields) -> LoraMixerConfig:
    return LoraMixerConfig(experts=dict(experts), **{"router_init_std": 0.5, "task_type": "CAUSAL_LM", **fields})


@pytest.fixture
def two(experts):
    """Two mixtures that differ in experts, sites, k and routers, and the logits of each."""
    model = tiny.mixture(experts, top_k=2)
    model.add_adapter("narrow", fresh({name: experts[name] for name in ("c", "b")}, top_k=1))
    logits = {}
    for name in ("default", "narrow"):
        model.set_adapter(name)
        logits[name] = logits_of(model.eval())
    assert not torch.allclose(logits["default"], logits["narrow"])
    return model, logits


def test_switching_is_exact_and_only_the_active_mixture_trains(two):
    model, logits = two
    for name in ("narrow", "default", "narrow"):
        model.set_adapter(name)
        assert torch.equal(logits_of(model), logits[name])
        assert active_runtime(model).config is model.peft_config[name]
        trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
        assert trainable
        assert all(f"lora_mixer_router.{name}." in key for key in trainable)


def test_a_changed_gate_stays_with_its_mixture(two):
    model, logits = two
    model.set_adapter("narrow")
    set_gate(model, "soft")
    assert not torch.allclose(logits_of(model), logits["narrow"])
    model.set_adapter("default")
    assert torch.equal(logits_of(model), logits["default"])
    with pytest.raises(ValueError, match="from 1 to 3"):
        set_gate(model, k=4)


def test_deleting_one_leaves_the_other(two):
    model, logits = two
    model.delete_adapter("narrow")
    assert torch.equal(logits_of(model), logits["default"])
    assert not [name for name, _ in model.named_parameters() if "narrow" in name]
    assert not [name for name, _ in model.named_buffers() if "narrow" in name]


def test_a_name_can_be_used_again_by_a_mixture_with_fewer_sites(two, experts, tmp_path):
    model, logits = two
    small = tiny.mixture({"c": experts["c"]})
    small.save_pretrained(tmp_path)
    model.set_adapter("narrow")
    model.delete_adapter("default")
    model.load_adapter(str(tmp_path), adapter_name="default")
    model.set_adapter("default")
    assert torch.equal(logits_of(model.eval()), logits_of(small))
    model.set_adapter("narrow")
    assert torch.equal(logits_of(model), logits["narrow"])


def test_all_are_saved_and_each_is_reloaded(two, tmp_path):
    model, logits = two
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path)
    reloaded.load_adapter(str(tmp_path / "narrow"), adapter_name="narrow")
    for name in logits:
        reloaded.set_adapter(name)
        assert torch.equal(logits_of(reloaded.eval()), logits[name])


@pytest.mark.parametrize("name", ["mixer", "router", "A", "lora_mixer_A", "weight"])
def test_adapter_names_that_are_parts_of_parameter_names(experts, tmp_path, name):
    """PEFT warns that such a name may reset weights; ours are loaded whatever it is."""
    model = get_peft_model(tiny.llama(), fresh(experts), adapter_name=name).eval()
    model.save_pretrained(tmp_path)
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / name, adapter_name=name).eval()
    assert torch.equal(logits_of(reloaded), logits_of(model))


def test_a_plain_lora_beside_a_mixture_is_refused_and_changes_nothing(experts, tmp_path):
    model = tiny.mixture(experts)
    before = logits_of(model)
    with pytest.raises(ValueError, match=r"Cannot combine adapters with different peft types\."):
        model.load_adapter(experts["a"], adapter_name="plain")
    assert torch.equal(logits_of(model), before)
    model.save_pretrained(tmp_path)
    lora = PeftModel.from_pretrained(tiny.llama(), experts["a"]).eval()
    before = logits_of(lora)
    with pytest.raises(ValueError, match=r"Cannot combine adapters with different peft types\."):
        lora.load_adapter(str(tmp_path), adapter_name="mixture")
    assert torch.equal(logits_of(lora), before)


def test_a_model_that_carries_an_adapter_is_refused_as_a_backbone(experts):
    lora = get_peft_model(tiny.llama(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(MixerError, match=r"carries a PEFT adapter already; give the backbone itself"):
        get_peft_model(lora, fresh(experts))


def test_pefts_mixed_models_are_refused(experts):
    with pytest.raises(ValueError, match="'LORA_MIXER' is not compatible with the `PeftMixedModel`"):
        get_peft_model(tiny.llama(), fresh(experts), mixed=True)


def test_an_adapter_per_row_is_refused(two):
    model, _ = two
    ids = tiny.token_ids(2, 5)
    with pytest.raises(MixerError, match="adapter_names gives every row its own adapter"):
        model(ids, adapter_names=["default", "__base__"])
    with pytest.raises(MixerError, match="use set_adapter"):
        model.generate(input_ids=ids, adapter_names=["default", "narrow"], max_new_tokens=2)


@pytest.mark.parametrize("names", [("default",), ("a/b", "a_b", "a.b")])
def test_mixtures_whose_names_make_one_adapter_name_stay_apart(experts, tmp_path, monkeypatch, names):
    """PEFT would load the second one into the adapter of the first."""
    monkeypatch.chdir(tmp_path)
    model = tiny.mixture(experts)
    expected = {"default": logits_of(model)}
    for seed, name in enumerate(names, start=11):
        saved = tiny.mixture({"c": experts["c"], "b": experts["b"]}, seed=seed)
        saved.save_pretrained(tmp_path / name)
        adapter = add_mixer(model, name)
        assert adapter not in expected
        expected[adapter] = logits_of(saved)
    for adapter, logits in expected.items():
        model.set_adapter(adapter)
        assert torch.equal(logits_of(model), logits)


@pytest.mark.parametrize("fault", ["weights", "a tensor"])
def test_a_mixture_that_cannot_be_loaded_leaves_nothing_behind(two, tmp_path, fault):
    model, logits = two
    model.set_adapter("narrow")
    model.save_pretrained(tmp_path, selected_adapters=["narrow"])
    folder = tmp_path / "narrow"
    weights = load((folder / "adapter_model.safetensors").read_bytes())
    if fault == "weights":
        (folder / "adapter_model.safetensors").write_bytes(b"damaged")
    else:
        save_file(dict(list(weights.items())[1:]), folder / "adapter_model.safetensors")
    for _ in range(2):
        with pytest.raises(MixerError, match=r"cannot be loaded|lacks 1 of"):
            add_mixer(model, folder)
        assert list(model.peft_config) == ["default", "narrow"]
        assert model.active_adapters == ["narrow"]
        assert torch.equal(logits_of(model), logits["narrow"])
    trainable = [key for key, parameter in model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all("lora_mixer_router.narrow." in key for key in trainable)
    save_file(weights, folder / "adapter_model.safetensors")
    add_mixer(model, folder)
    assert torch.equal(logits_of(model), logits["narrow"])


def test_an_exported_expert_says_what_its_own_mixture_says(two, tmp_path):
    model, _ = two
    model.peft_config["default"].task_type = None
    for name, fields in {"default": ("org/tiny", "one"), "narrow": ("org/tiny", "two")}.items():
        config = model.peft_config[name]
        config.base_model_name_or_path, config.revision = fields
    model.set_adapter("narrow")
    export_expert(model, "b", tmp_path / "b")
    written = json.loads(Path(tmp_path, "b", "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/tiny", "two")
    assert written["task_type"] == "CAUSAL_LM"
    # add_adapter of PEFT leaves out the name of the backbone, which all adapters of a model share.
    model.peft_config["narrow"].base_model_name_or_path = None
    export_expert(model, "b", tmp_path / "b")
    written = json.loads(Path(tmp_path, "b", "adapter_config.json").read_text())
    assert (written["base_model_name_or_path"], written["revision"]) == ("org/tiny", "one")


def test_copies_and_state_dicts_are_whole(two):
    model, logits = two
    copied = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    for name in logits:
        copied.set_adapter(name)
        assert torch.equal(logits_of(copied), logits[name])
    model.load_state_dict(copied.state_dict())
    assert torch.equal(logits_of(model.eval()), logits["narrow"])
