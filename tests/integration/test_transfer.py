"""A mixture moves to another backbone of the same shape, exactly, and to no other."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file

from loramixer import set_gate
from loramixer.errors import BackboneError, MixerError
from loramixer.mixers import load_mixer, mixer_info
from loramixer.transfer import check_transfer, save_transfer, transfer
from loramixer.tuner.runtime import active_runtime
from tests import architectures, tiny
from tests.architectures import ARCHITECTURES
from tests.integration.test_command_line import run_command
from tests.tiny import logits_of


def other_backbone(**shape: int):
    """Another random model, of the same shape by default."""
    model = tiny.llama(**shape)
    torch.manual_seed(77)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.config._name_or_path = "org/other"
    return model


@pytest.fixture(scope="module")
def saved(experts, tmp_path_factory):
    """A mixture on a saved tiny backbone, one folder with experts and one with routers only."""
    folder = tmp_path_factory.mktemp("mixtures")
    tiny.llama().save_pretrained(folder / "backbone")
    for name, save_experts in (("whole", True), ("routers", False)):
        mixture = tiny.mixture(experts, save_experts=save_experts, title="tiny")
        mixture.peft_config["default"].base_model_name_or_path = str(folder / "backbone")
        mixture.save_pretrained(folder / name)
    return folder


@pytest.mark.parametrize("index", range(3))
def test_one_hot_gates_equal_pefts_lora_on_the_other_backbone(experts, index):
    name = list(experts)[index]
    moved = transfer(tiny.mixture(experts), other_backbone())
    reference = PeftModel.from_pretrained(other_backbone(), experts[name]).eval()
    with tiny.only_expert(moved, index):
        torch.testing.assert_close(logits_of(moved), logits_of(reference), atol=1e-5, rtol=0)


@pytest.mark.parametrize("save_experts", [True, False])
def test_every_weight_and_the_gate_move_and_the_original_stays(experts, save_experts):
    mixture = tiny.mixture(experts, save_experts=save_experts)
    set_gate(mixture, "top_k", 1)
    before = logits_of(mixture)
    moved = transfer(mixture, tiny.llama())
    assert active_runtime(moved).inference == active_runtime(mixture).inference
    assert torch.equal(logits_of(moved), before)
    assert torch.equal(logits_of(mixture), before)
    assert mixture.peft_config["default"].save_experts is save_experts


def test_experts_in_memory_move_even_where_their_folders_are_gone(tmp_path):
    folders = tiny.save_experts(tmp_path / "experts")
    mixture = tiny.mixture(folders, save_experts=False)
    shutil.rmtree(tmp_path / "experts")
    assert torch.equal(logits_of(transfer(mixture, tiny.llama())), logits_of(mixture))


@pytest.mark.parametrize("name", ["whole", "routers"])
def test_folders_move_without_their_backbone(saved, experts, name):
    moved = transfer(saved / name, other_backbone())
    assert torch.equal(logits_of(moved), logits_of(transfer(tiny.mixture(experts), other_backbone())))


def test_the_active_one_of_two_mixtures_moves(experts, saved):
    model = tiny.mixture(experts, seed=9)
    model.load_adapter(str(saved / "whole"), adapter_name="second")
    model.eval()
    model.set_adapter("second")
    assert torch.equal(logits_of(transfer(model, tiny.llama())), logits_of(model))


def test_a_moved_mixture_names_both_backbones_and_reloads(experts, saved, tmp_path):
    moved = transfer(saved / "routers", other_backbone())
    save_transfer(moved, tmp_path / "moved", "tiny", "org/former", "loramixer transfer …")
    info = mixer_info(tmp_path / "moved", "moved")
    assert info.backbone == "org/other"
    assert info.title == f"tiny, moved from {saved / 'backbone'}"
    card = (tmp_path / "moved" / "README.md").read_text(encoding="utf-8")
    assert "base_model: org/other" in card
    assert "which was trained on org/former" in card
    assert "| a |" in card, "the experts' table of every mixture"
    keys = load_file(tmp_path / "moved" / "adapter_model.safetensors")
    assert any("lora_mixer_A" in key for key in keys), "the experts' own folders belong to the former backbone"
    reloaded = PeftModel.from_pretrained(other_backbone(), tmp_path / "moved").eval()
    assert torch.equal(logits_of(reloaded), logits_of(moved))


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ({"layers": 4}, r"it has 2 layers, there 4\.$"),
        ({"layers": 1}, r"it has 2 layers, there 1; there is no model\.layers\.1.*\(and 2 more\)\.$"),
        ({"hidden_size": 64}, r"layers\.0\.self_attn\.q_proj is 32→32, there 64→64.*\(and 5 more\)\.$"),
    ],
)
def test_other_shapes_are_refused_with_what_differs(experts, saved, shape, message):
    for mixture in (tiny.mixture(experts), saved / "whole"):
        with pytest.raises(MixerError, match=message):
            transfer(mixture, tiny.llama(**shape))
    with pytest.raises(MixerError, match=message):
        check_transfer(tiny.mixture(experts), tiny.llama(**shape).config)


def test_a_mixture_moves_between_backbones_of_gpt2s_layers(tmp_path):
    """Conv1D keeps its weight the other way round and has no `in_features`."""
    gpt2 = ARCHITECTURES["gpt2"]
    mixture = architectures.mixture(gpt2, architectures.save_experts(gpt2, tmp_path))
    mixture.save_pretrained(tmp_path / "saved")
    config = gpt2.build().config
    assert check_transfer(mixture, config) == len(active_runtime(mixture).sites)
    assert check_transfer(config, config, targets=("c_attn", "c_fc")) == 4
    for source in (mixture, tmp_path / "saved"):
        assert torch.equal(logits_of(transfer(source, gpt2.build())), logits_of(mixture))
    with pytest.raises(MixerError, match=r"h\.0\.attn\.c_attn is 16→48, there 32→96"):
        transfer(mixture, gpt2.build(n_embd=32))
    with pytest.raises(BackboneError, match=r"no linear layer k_proj; it has c_attn, c_fc, c_proj"):
        check_transfer(config, config)


def test_layers_are_counted_by_sites_where_the_former_backbone_has_no_name(experts, tmp_path):
    tiny.mixture(experts).save_pretrained(tmp_path / "saved")
    with pytest.raises(MixerError, match="it has 2 layers, there 4"):
        transfer(tmp_path / "saved", tiny.llama(layers=4))
    assert torch.equal(logits_of(transfer(tmp_path / "saved", tiny.llama())), logits_of(tiny.mixture(experts)))


def test_a_backbone_with_an_adapter_is_refused(experts):
    with pytest.raises(MixerError, match="holds an adapter already"):
        transfer(tiny.mixture(experts), tiny.mixture(experts))


def test_the_papers_transfer_is_possible():
    """Table 5. Table 17 prints 4096→4096 for k and v; they are 4096→1024 in both."""
    assert check_transfer("mistral-7b", "llama3-8b") == 128


@pytest.mark.parametrize(
    ("other", "message"),
    [
        ("llama2-7b", r"k_proj is 4096→1024, there 4096→4096.*\(and 61 more\)"),
        ("qwen2.5-7b", r"it has 32 layers, there 28; .*q_proj is 4096→4096, there 3584→3584.*\(and 126 more\)"),
    ],
)
def test_other_7b_models_are_refused(other, message):
    with pytest.raises(MixerError, match=message):
        check_transfer("mistral-7b", other)
    with pytest.raises(BackboneError, match="no linear layer c_attn"):
        check_transfer("mistral-7b", other, targets=("c_attn",))


def test_the_command_writes_a_mixture_that_loads(saved, tmp_path):
    other_backbone().save_pretrained(tmp_path / "other")
    tiny.tokenizer().save_pretrained(tmp_path / "other")
    status, _, err = run_command(
        "transfer", "--mixer", saved / "routers", "--backbone", tmp_path / "other", "--output", tmp_path / "moved"
    )
    assert status == 0, err
    config = json.loads((tmp_path / "moved" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(tmp_path / "other")
    model, _ = load_mixer(tmp_path / "moved")
    torch.testing.assert_close(logits_of(model), logits_of(transfer(saved / "whole", other_backbone())))
    assert "loramixer transfer --mixer" in (tmp_path / "moved" / "README.md").read_text()
