"""The mixture as a PEFT method: equal to PEFT's own LoRA where it must be, saved, reloaded, cached, refused."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file

import loramixer
from loramixer import LoraMixerConfig, set_gate
from loramixer.backbones import BackboneFiles
from loramixer.errors import ExpertError, MixerError, RoutingError
from loramixer.tuner import LoraMixerLayer
from loramixer.tuner.runtime import active_runtime
from tests import tiny
from tests.tiny import logits_of


@pytest.mark.parametrize("index", range(3))
def test_one_hot_gates_equal_pefts_own_lora(experts, index):
    name = list(experts)[index]
    reference = PeftModel.from_pretrained(tiny.llama(), experts[name]).eval()
    model = tiny.mixture(experts)
    with tiny.only_expert(model, index):
        torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)


def test_a_single_expert_equals_pefts_own_lora(experts):
    model = tiny.mixture({"b": experts["b"]})
    reference = PeftModel.from_pretrained(tiny.llama(), experts["b"]).eval()
    torch.testing.assert_close(logits_of(model), logits_of(reference), atol=1e-5, rtol=0)


def test_mixture_is_the_gated_sum_of_the_experts(experts):
    """Against the formula of the paper, expert by expert, at one site."""
    model = tiny.mixture(experts, gate="soft")
    layer = next(m for m in model.modules() if isinstance(m, LoraMixerLayer) and m.in_features == m.out_features)
    x = torch.randn(2, 5, 32)
    gates = torch.softmax(layer.lora_mixer_router["default"](x), dim=-1)
    expected = layer.base_layer(x)
    for index, source in enumerate(experts.values()):
        site = loramixer.experts.read_expert("x", source).sites["model.layers.0.self_attn.q_proj"]
        expected = expected + gates[..., index : index + 1] * site.scaling * (x @ site.A.T @ site.B.T)
    torch.testing.assert_close(layer(x), expected, atol=1e-5, rtol=1e-5)


def test_an_expert_that_does_not_change_a_site_gets_no_weight_there(experts):
    model = tiny.mixture(experts, gate="soft")
    trace = loramixer.trace(model, tiny.tokenizer(), "the dose", chat=False)
    for site, gates in zip(trace.sites, trace.gates, strict=True):
        assert (gates[:, 2] > 0).all() == (site.projection == "q_proj")
        assert (gates[:, 1] > 0).all() == (site.projection in ("q_proj", "v_proj"))


def test_disabled_adapters_are_the_backbone(experts):
    model = tiny.mixture(experts)
    with model.disable_adapter():
        assert torch.equal(logits_of(model), logits_of(tiny.llama()))
    assert not torch.allclose(logits_of(model), logits_of(tiny.llama()))


@pytest.mark.parametrize(("gate", "k"), [("soft", None), ("top_k", 1), ("top_k", 2)])
def test_generation_with_and_without_cache_agrees(experts, gate, k):
    model = tiny.mixture(experts, gate=gate, top_k=k)
    ids = tiny.token_ids(1, 6)
    settings = {"max_new_tokens": 10, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    cached = model.generate(input_ids=ids, use_cache=True, **settings)
    assert torch.equal(cached, model.generate(input_ids=ids, use_cache=False, **settings))


def test_routers_are_trained_and_experts_frozen(experts):
    model = tiny.mixture(experts)
    trainable = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trainable) == 8
    assert all("lora_mixer_router" in name for name in trainable)
    model.base_model.disable_adapter_layers()
    model.base_model.enable_adapter_layers()
    assert {name for name, parameter in model.named_parameters() if parameter.requires_grad} == trainable


def test_experts_can_train_too(experts):
    model = tiny.mixture(experts, train_experts=True)
    assert any("lora_mixer_A" in name for name, parameter in model.named_parameters() if parameter.requires_grad)


@pytest.mark.parametrize("low_cpu_mem_usage", [False, True])
@pytest.mark.parametrize("save_experts", [True, False])
def test_saved_mixtures_reload_bit_equal(experts, tmp_path, save_experts, low_cpu_mem_usage, recwarn):
    model = tiny.mixture(experts, save_experts=save_experts)
    model.save_pretrained(tmp_path / "saved")
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved", low_cpu_mem_usage=low_cpu_mem_usage).eval()
    assert torch.equal(logits_of(model), logits_of(reloaded))
    assert not [warning for warning in recwarn if "missing" in str(warning.message).lower()]


def test_names_stay_with_their_weights_when_saved(experts, tmp_path):
    """PEFT writes configurations with sorted keys; the order of the gates must not follow."""
    backwards = {name: experts[name] for name in reversed(experts)}
    model = tiny.mixture(backwards)
    model.save_pretrained(tmp_path / "saved")
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved").eval()
    assert active_runtime(reloaded).experts == active_runtime(model).experts == ("c", "b", "a")
    assert torch.equal(logits_of(model), logits_of(reloaded))
    from loramixer.mixers import mixer_info

    model.peft_config["default"].base_model_name_or_path = "somewhere"
    model.save_pretrained(tmp_path / "again")
    assert mixer_info(tmp_path / "again", "again").experts == ("c", "b", "a")


def test_router_only_folders_hold_routers_only_and_can_move_with_their_experts(experts, tmp_path):
    shutil.copytree(Path(experts["a"]).parent, tmp_path / "one" / "experts")
    moved = {name: str(tmp_path / "one" / "experts" / name) for name in experts}
    model = tiny.mixture(moved, save_experts=False)
    model.save_pretrained(tmp_path / "one" / "mixture")
    assert all("router" in key for key in load_file(tmp_path / "one" / "mixture" / "adapter_model.safetensors"))
    shutil.move(tmp_path / "one", tmp_path / "two")
    reloaded = PeftModel.from_pretrained(tiny.llama(), tmp_path / "two" / "mixture").eval()
    assert torch.equal(logits_of(model), logits_of(reloaded))


class PlainNet(torch.nn.Module):
    """A module that is no model of Transformers, so that it has no configuration."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.second = torch.nn.Linear(8, 8), torch.nn.Linear(8, 8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.first(x).relu())


def test_a_module_without_a_configuration_takes_a_mixture(tmp_path):
    for name in "ab":
        lora = LoraConfig(r=2, target_modules=["first", "second"], init_lora_weights=False)
        get_peft_model(PlainNet(), lora).save_pretrained(tmp_path / name)
    model = get_peft_model(PlainNet(), LoraMixerConfig(experts={name: str(tmp_path / name) for name in "ab"})).eval()
    x = torch.ones(2, 3, 8)
    assert not torch.allclose(model(x), PlainNet()(x))
    model.save_pretrained(tmp_path / "saved")
    assert torch.equal(PeftModel.from_pretrained(PlainNet(), tmp_path / "saved").eval()(x), model(x))


@pytest.mark.parametrize("save_experts", [False, True])
def test_experts_that_were_given_by_relative_paths_are_found_from_any_folder(
    experts, tmp_path, monkeypatch, save_experts
):
    shutil.copytree(Path(experts["a"]).parent, tmp_path / "here" / "experts")
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    model = tiny.mixture({name: f"experts/{name}" for name in experts}, save_experts=save_experts)
    model.save_pretrained("mixture")
    loaded = PeftModel.from_pretrained(tiny.llama(), "mixture").eval()
    monkeypatch.chdir(tmp_path / "there")
    for mixed in (model, loaded):
        mixed.save_pretrained("again")
        saved = json.loads(Path("again/adapter_config.json").read_text())["experts"]
        assert {name: value["source"] for name, value in saved.items()} == {
            name: f"../../here/experts/{name}" for name in experts
        }
        assert torch.equal(logits_of(PeftModel.from_pretrained(tiny.llama(), "again").eval()), logits_of(model))
        shutil.rmtree("again")


def test_a_changed_or_missing_expert_is_an_error_not_wrong_logits(experts, tmp_path):
    shutil.copytree(Path(experts["a"]).parent, tmp_path / "experts")
    moved = {name: str(tmp_path / "experts" / name) for name in experts}
    tiny.mixture(moved, save_experts=False).save_pretrained(tmp_path / "mixture")
    weights = tmp_path / "experts" / "b" / "adapter_model.safetensors"
    tensors = load_file(weights)
    save_file({key: value * 1.01 for key, value in tensors.items()}, weights)
    with pytest.raises(ExpertError, match=r"Expert 'b' .* has changed since the routers were trained"):
        PeftModel.from_pretrained(tiny.llama(), tmp_path / "mixture")
    shutil.rmtree(tmp_path / "experts" / "b")
    with pytest.raises(ExpertError, match="Expert 'b'"):
        PeftModel.from_pretrained(tiny.llama(), tmp_path / "mixture")


def test_a_saved_mixture_that_lacks_tensors_is_an_error(experts, tmp_path):
    tiny.mixture(experts).save_pretrained(tmp_path / "saved")
    path = tmp_path / "saved" / "adapter_model.safetensors"
    tensors = load_file(path)
    tensors.pop(next(key for key in tensors if "router" in key))
    save_file(tensors, path)
    with pytest.raises(MixerError, match="lacks 1 of 24 tensors"):
        PeftModel.from_pretrained(tiny.llama(), tmp_path / "saved")


def test_a_saved_configuration_alone_never_runs(experts, tmp_path):
    tiny.mixture(experts).save_pretrained(tmp_path / "saved")
    model = get_peft_model(tiny.llama(), LoraMixerConfig.from_pretrained(str(tmp_path / "saved")))
    with pytest.raises(MixerError, match="never loaded"):
        model(tiny.token_ids())


def test_a_configuration_serves_one_model(experts):
    """A search over settings calls for a new one each time; the second model says so."""
    config = LoraMixerConfig(experts=experts)
    get_peft_model(tiny.llama(), config)
    with pytest.raises(MixerError, match=r"used for another model before.*make a new LoraMixerConfig"):
        get_peft_model(tiny.llama(), config)(tiny.token_ids())


def test_target_modules_beside_loras_are_refused_and_not_left_out(experts):
    with pytest.raises(MixerError, match=r"target_modules is \['q_proj'\], .*leave it out.*site_gates"):
        get_peft_model(tiny.llama(), LoraMixerConfig(experts=experts, target_modules=["q_proj"]))


def test_an_expert_on_the_output_embedding_is_refused(tmp_path):
    source = tiny.save_expert(tmp_path / "a", 1, r=2, target_modules=["q_proj", "lm_head"])
    path = Path(source) / "adapter_model.safetensors"
    kept = {name: value for name, value in load_file(path).items() if "base_layer" not in name}
    save_file(kept, path, metadata={"format": "pt"})
    with pytest.raises(ExpertError, match="Expert 'a' changes lm_head, the output embedding, which cannot be routed"):
        get_peft_model(tiny.llama(), LoraMixerConfig(experts={"a": source}))


def test_sites_where_the_balance_term_is_idle_are_counted(experts, tmp_path):
    further = {
        name: tiny.save_expert(tmp_path / name, seed, r=2, target_modules=["q_proj"])
        for seed, name in enumerate("de", start=7)
    }
    with pytest.warns(UserWarning, match=r"no effect at 2 of 8 sites: at most top_k=3"):  # v: a and b, in two layers
        get_peft_model(tiny.llama(), LoraMixerConfig(experts={**experts, **further}, routing_loss="rsl"))
    for quiet in ({"routing_loss": "ds_moe"}, {"routing_loss": "rsl", "usage": "top_1"}, {"inference_mode": True}):
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="The balance term")
            get_peft_model(tiny.llama(), LoraMixerConfig(experts={**experts, **further}, **quiet))


def test_pefts_own_config_loader_returns_our_class(experts, tmp_path):
    tiny.mixture(experts, top_k=2).save_pretrained(tmp_path / "saved")
    config = PeftConfig.from_pretrained(str(tmp_path / "saved"))
    assert isinstance(config, LoraMixerConfig)
    assert config.top_k == 2


def test_without_our_import_peft_says_key_error(experts, tmp_path):
    """The model card promises this message; a new PEFT may word it otherwise."""
    tiny.mixture(experts).save_pretrained(tmp_path / "saved")
    code = f"from peft import PeftConfig; PeftConfig.from_pretrained({str(tmp_path / 'saved')!r})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "KeyError: 'LORA_MIXER'" in done.stderr


def test_two_mixtures_on_one_model(experts, tmp_path):
    first, second = tiny.mixture(experts, seed=1), tiny.mixture(experts, seed=2)
    expected = [logits_of(first), logits_of(second)]
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    model = PeftModel.from_pretrained(tiny.llama(), tmp_path / "first").eval()
    model.load_adapter(str(tmp_path / "second"), adapter_name="second")
    model.eval()
    assert torch.equal(logits_of(model), expected[0])
    model.set_adapter("second")
    assert torch.equal(logits_of(model), expected[1])
    model.delete_adapter("second")
    model.set_adapter("default")
    assert torch.equal(logits_of(model), expected[0])


def test_merging_is_refused(experts):
    with pytest.raises(MixerError, match="no fixed weights to merge"):
        tiny.mixture(experts).merge_and_unload()


def test_unload_gives_the_backbone_back(experts):
    plain = tiny.mixture(experts).unload()
    assert torch.equal(logits_of(plain), logits_of(tiny.llama()))


def test_bfloat16_backbone(experts):
    model = get_peft_model(tiny.llama().to(torch.bfloat16), LoraMixerConfig(experts=dict(experts))).eval()
    assert logits_of(model).dtype == torch.bfloat16
    assert {p.dtype for n, p in model.named_parameters() if "lora_mixer" in n} == {torch.float32}


def test_experts_are_not_rounded_to_the_type_of_the_backbone(experts):
    model = get_peft_model(tiny.llama().to(torch.bfloat16), LoraMixerConfig(experts={"b": experts["b"]}))
    layer = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    site = loramixer.experts.read_expert("b", experts["b"]).sites["model.layers.0.self_attn.q_proj"]
    assert torch.equal(layer.lora_mixer_A["default"], site.A)


@pytest.mark.parametrize("k", [0, 4])
def test_an_impossible_k_is_refused_when_built_and_when_changed(experts, k):
    with pytest.raises(RoutingError, match="from 1 to 3"):
        tiny.mixture(experts, top_k=k)
    model = tiny.mixture(experts)
    before = logits_of(model)
    with pytest.raises(RoutingError, match="from 1 to 3"):
        set_gate(model, k=k)
    assert torch.equal(logits_of(model), before)


def test_k_and_mode_change_at_inference(experts):
    model = tiny.mixture(experts)
    assert active_runtime(model).inference.k == 3
    soft = logits_of(model)
    set_gate(model, "top_k", 1)
    assert not torch.allclose(logits_of(model), soft)
    set_gate(model, "soft")
    torch.testing.assert_close(logits_of(model), soft)


def test_experts_of_another_backbone_are_refused_with_what_does_not_fit(experts):
    with pytest.raises(ExpertError, match=r"do not fit this backbone: a at .*q_proj is 32→32, here 64→64.*more"):
        get_peft_model(tiny.llama(hidden_size=64), LoraMixerConfig(experts=dict(experts)))
    with pytest.raises(ExpertError, match=r"model\.layers\.1\..* which the backbone does not have"):
        get_peft_model(tiny.llama(layers=1), LoraMixerConfig(experts=dict(experts)))


def test_a_saved_mixture_names_its_backbone_as_others_know_it(experts, tmp_path):
    """And not by the folder of the cache that it was loaded from, which another machine does not have."""
    model = tiny.llama()
    model.backbone_files = BackboneFiles(tmp_path / "cache", "hub", "org/this", "0123")
    model.name_or_path = str(tmp_path / "cache")
    get_peft_model(model, LoraMixerConfig(experts=dict(experts))).save_pretrained(tmp_path / "saved")
    saved = json.loads((tmp_path / "saved" / "adapter_config.json").read_text())
    assert (saved["base_model_name_or_path"], saved["revision"]) == ("org/this", "0123")


def test_experts_that_name_another_backbone_are_refused(experts, tmp_path):
    shutil.copytree(experts["a"], tmp_path / "a")
    path = tmp_path / "a" / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "org/other"}))
    model = tiny.llama()
    model.config._name_or_path = "org/this"
    with pytest.raises(ExpertError, match="was trained on org/other; this backbone is org/this"):
        get_peft_model(model, LoraMixerConfig(experts={"a": str(tmp_path / "a")}))
    model.config._name_or_path = "Org/Other"  # what org/other is called where somebody typed it so
    get_peft_model(model, LoraMixerConfig(experts={"a": str(tmp_path / "a")}))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"gate": "hard"}, "gate mode is 'hard'"),
        ({"routing_loss": "entropy"}, "routing_loss is 'entropy'"),
        ({"experts": {}}, "needs experts"),
        ({"experts": {"a.b": "x"}}, "no expert name"),
        ({"experts": {"/elsewhere": "x"}}, "no expert name"),
        ({"temperature": 0}, "above 0"),
    ],
)
def test_configurations_that_make_no_sense(fields, message):
    with pytest.raises(loramixer.LoraMixerError, match=message):
        LoraMixerConfig(**{"experts": {"a": "x"}, **fields})
