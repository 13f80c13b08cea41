"""Several mixtures, or a mixture and a plain LoRA, on one backbone under PEFT's wrapper."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

from loramixer import LoraMixerConfig, set_gate
from loramixer.errors import MixerError
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
