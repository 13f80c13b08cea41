"""Transformers' own adapter methods (`model.load_adapter` and its companions) on a backbone without PEFT's wrapper."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, LoraConfig, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from loramixer import LoraMixerConfig
from loramixer.errors import ExpertError, MixerError
from loramixer.tuner import LoraMixerLayer
from tests import tiny
from tests.tiny import logits_of


@pytest.fixture(scope="module")
def saved(experts, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two saved mixtures that differ in experts, sites, k and routers."""
    folder = tmp_path_factory.mktemp("mixtures")
    tiny.mixture(experts).save_pretrained(folder / "first")
    tiny.mixture({name: experts[name] for name in ("c", "b")}, seed=9, top_k=1).save_pretrained(folder / "second")
    return {name: folder / name for name in ("first", "second")}


def expected(folder: Path) -> torch.Tensor:
    return logits_of(PeftModel.from_pretrained(tiny.llama(), folder).eval())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_load_adapter_gives_the_logits_of_peft(saved, dtype):
    reference = PeftModel.from_pretrained(tiny.llama().to(dtype), saved["first"]).eval()
    model = tiny.llama().to(dtype)
    model.load_adapter(str(saved["first"]))
    assert torch.equal(logits_of(model), logits_of(reference))
    assert {p.dtype for name, p in model.named_parameters() if "lora_mixer" in name} == {torch.float32}


def test_set_disable_enable_and_delete(saved):
    plain, first, second = logits_of(tiny.llama()), expected(saved["first"]), expected(saved["second"])
    model = tiny.llama()
    model.load_adapter(str(saved["first"]))
    model.load_adapter(str(saved["second"]), adapter_name="second")
    for _ in range(2):
        model.set_adapter("second")
        assert torch.equal(logits_of(model), second)
        model.set_adapter("default")
        assert torch.equal(logits_of(model), first)
    model.disable_adapters()
    assert torch.equal(logits_of(model), plain)
    model.enable_adapters()
    assert torch.equal(logits_of(model), first)
    model.delete_adapter("second")
    assert torch.equal(logits_of(model), first)
    model.delete_adapter("default")
    assert torch.equal(logits_of(model), plain)


def test_a_native_save_is_a_mixture_again(saved, tmp_path):
    model = tiny.llama()
    model.load_adapter(str(saved["first"]))
    model.save_pretrained(tmp_path)
    assert torch.equal(expected(tmp_path), expected(saved["first"]))


@pytest.mark.parametrize("mixture_first", [True, False])
def test_a_plain_lora_beside_a_mixture_is_switched_exactly(saved, experts, mixture_first):
    lora = logits_of(PeftModel.from_pretrained(tiny.llama(), experts["b"]).eval())
    model = tiny.llama()
    adapters = {"mixture": str(saved["first"]), "plain": experts["b"]}
    for name in sorted(adapters, reverse=not mixture_first):
        model.load_adapter(adapters[name], adapter_name=name)
    for _ in range(2):
        model.set_adapter("plain")
        torch.testing.assert_close(logits_of(model), lora, atol=1e-6, rtol=0)
        model.set_adapter("mixture")
        torch.testing.assert_close(logits_of(model), expected(saved["first"]), atol=1e-6, rtol=0)


def test_a_fresh_mixture_is_added_and_trains_its_routers_only(experts):
    model = tiny.llama()
    model.add_adapter(LoraMixerConfig(experts=dict(experts)))
    model.train()(input_ids=tiny.token_ids(), labels=tiny.token_ids()).loss.backward()
    with_gradient = {name for name, parameter in model.named_parameters() if parameter.grad is not None}
    assert len(with_gradient) == 8
    assert all("lora_mixer_router" in name for name in with_gradient)


def test_loading_for_training_keeps_the_experts_frozen(saved):
    model = tiny.llama()
    model.load_adapter(str(saved["first"]), is_trainable=True)
    model.train()(input_ids=tiny.token_ids(), labels=tiny.token_ids()).loss.backward()
    mixture = {name: parameter for name, parameter in model.named_parameters() if "lora_mixer" in name}
    assert {name for name, p in mixture.items() if p.grad is not None} == {
        name for name in mixture if "router" in name
    }
    assert {name for name, p in mixture.items() if p.requires_grad} == {name for name in mixture if "router" in name}


def test_router_only_folders_load_with_their_own_configuration(experts, tmp_path):
    model = tiny.mixture(experts, save_experts=False)
    model.save_pretrained(tmp_path)
    native = tiny.llama()
    native.load_adapter(str(tmp_path), peft_config=LoraMixerConfig.from_pretrained(str(tmp_path)))
    assert torch.equal(logits_of(native), logits_of(model))
    with pytest.raises(MixerError, match=r"relative to its own folder.*pass peft_config"):
        tiny.llama().load_adapter(str(tmp_path))


@pytest.mark.parametrize("part", ["lora_mixer_A", "lora_mixer_B", "lora_mixer_router"])
def test_a_missing_tensor_is_an_error_and_never_random_weights(saved, tmp_path, part):
    tensors = load_file(saved["first"] / "adapter_model.safetensors")
    tensors.pop(next(key for key in tensors if part in key))
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    (tmp_path / "adapter_config.json").write_bytes((saved["first"] / "adapter_config.json").read_bytes())
    model = tiny.llama()
    model.load_adapter(str(tmp_path))
    with pytest.raises(MixerError, match="never loaded"):
        logits_of(model)


def test_a_backbone_that_does_not_fit_is_refused(saved):
    with pytest.raises(ExpertError, match="do not fit this backbone"):
        tiny.llama(hidden_size=64).load_adapter(str(saved["first"]))


@pytest.mark.parametrize("auto_class", [AutoPeftModelForCausalLM, AutoModelForCausalLM])
def test_auto_classes_read_a_mixture_folder(experts, tmp_path, auto_class):
    """Both take the backbone from the name in the mixture's configuration."""
    tiny.llama().save_pretrained(tmp_path / "backbone")
    model = tiny.mixture(experts)
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "backbone")
    model.save_pretrained(tmp_path / "mixture")
    loaded = auto_class.from_pretrained(tmp_path / "mixture").eval()
    assert torch.equal(logits_of(loaded), logits_of(model))


def test_native_training_has_the_routing_loss(experts, tmp_path):
    tiny.mixture(experts, routing_loss="load_balance", balance_weight=5.0).save_pretrained(tmp_path)
    backbone = tiny.llama()
    backbone.load_adapter(str(tmp_path), is_trainable=True)
    ids = tiny.token_ids()
    plain = backbone.eval()(input_ids=ids, labels=ids).loss
    trained = backbone.train()(input_ids=ids, labels=ids).loss
    # Five times a balance of at least 1.
    assert trained > plain + 4.9


def labelled(**inputs) -> dict[str, torch.Tensor]:
    ids = tiny.token_ids()
    return {"input_ids": ids, "labels": ids, "num_items_in_batch": torch.tensor(24), **inputs}


@pytest.mark.parametrize("active", ["default", "second"])
def test_the_active_one_of_two_trains_as_it_does_alone(experts, tmp_path, active):
    """Each of them has a tuner of its own, whose hooks stay on the backbone."""
    tiny.mixture(experts, routing_loss="supervised").save_pretrained(tmp_path / "default")
    two = {name: experts[name] for name in ("c", "b")}
    tiny.mixture(two, seed=9, routing_loss="supervised").save_pretrained(tmp_path / "second")
    alone = tiny.llama()
    alone.load_adapter(str(tmp_path / active), is_trainable=True)
    both = tiny.llama()
    for name in ("default", "second"):
        both.load_adapter(str(tmp_path / name), adapter_name=name, is_trainable=True)
    both.set_adapter(active)
    batch = labelled(expert_index=torch.tensor([0, 1]))
    expected, found = (model.train()(**batch).loss for model in (alone, both))
    assert torch.equal(found, expected)
    found.backward()
    trained = {name for name, parameter in both.named_parameters() if parameter.grad is not None}
    assert trained
    assert all(f"lora_mixer_router.{active}." in name for name in trained)


def test_a_plain_lora_beside_a_mixture_trains_as_it_does_alone(saved):
    config = LoraConfig(target_modules=["down_proj"], init_lora_weights=False)
    losses = []
    for folders in ([], [saved["first"]]):
        model = tiny.llama()
        for folder in folders:
            model.load_adapter(str(folder))
        torch.manual_seed(1)
        model.add_adapter(config, adapter_name="plain")
        model.set_adapter("plain")
        losses.append(model.train()(**labelled(**({"expert_index": torch.tensor([0, 1])} if folders else {}))).loss)
        losses[-1].backward()
    assert torch.equal(*losses)


def test_a_backbone_whose_mixture_was_deleted_trains_as_it_did_before(saved):
    backbone = tiny.llama().train()
    expected = backbone(**labelled()).loss
    backbone.load_adapter(str(saved["first"]))
    backbone.delete_adapter("default")
    assert torch.equal(backbone.train()(**labelled(expert_index=torch.tensor([0, 1]))).loss, expected)


def test_native_loading_does_not_cost_the_lean_way(tmp_path):
    """Its weights are looked at in the first forward pass, and that must not be asked for ever after."""
    paths = {f"e{i}": tiny.save_expert(tmp_path / str(i), i, r=3, target_modules=["q_proj", "v_proj"]) for i in (1, 2)}
    tiny.mixture(paths).save_pretrained(tmp_path / "mixture")
    native = tiny.llama()
    native.load_adapter(str(tmp_path / "mixture"))
    layers = [module for module in native.modules() if isinstance(module, LoraMixerLayer)]
    with torch.no_grad():
        first, second = (native(input_ids=tiny.token_ids()).logits for _ in range(2))
    assert all(place[0]._is_lean for layer in layers for place in layer.places.values())
    torch.testing.assert_close(first, second, atol=1e-6, rtol=0)
