"""Counts on the meta device equal real modules, and the figures of the paper's A.4."""

from __future__ import annotations

import json

import pytest

from loramixer.accounting import count_mixlora, count_mixture, parameter_table
from loramixer.baselines.mixlora import MixLoraSettings, add_mixlora
from loramixer.errors import BackboneError
from loramixer.shapes import PRESETS, meta_model, read_config
from tests import tiny
from tests.integration.test_command_line import run_command


def test_a_counted_mixture_is_a_real_one(tmp_path):
    experts = {
        name: tiny.save_expert(tmp_path / name, seed, r=4, target_modules=["q_proj", "k_proj"])
        for seed, name in enumerate("xyz")
    }
    mixture = tiny.mixture(experts)
    sizes = {name: parameter.numel() for name, parameter in mixture.named_parameters() if "lora_mixer" in name}
    count = count_mixture(tiny.llama().config, experts=3, rank=4, targets=("q_proj", "k_proj"))
    assert count.routers == sum(size for name, size in sizes.items() if "router" in name)
    assert count.experts == sum(size for name, size in sizes.items() if "router" not in name)
    assert count.backbone == tiny.llama().num_parameters()
    assert count.experts == 3 * 2 * 4 * ((32 + 32) + (32 + 16))  # 2 layers; q is 32→32, k is 32→16


def test_a_counted_mixlora_is_a_real_one():
    model = add_mixlora(tiny.llama(), MixLoraSettings(experts=3, rank=4))
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    count = count_mixlora(tiny.llama().config, experts=3, rank=4)
    assert count is not None
    assert count.trainable == trainable
    assert count.experts == 2 * 3 * 4 * 3 * (32 + 64)
    assert count.routers == 2 * 32 * 3


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("llama3-8b", 8_030_261_248),
        ("mistral-7b", 7_241_732_096),
        ("llama2-7b", 6_738_415_616),
        ("qwen2.5-7b", 7_615_616_512),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_presets_have_the_published_sizes(name, parameters):
    assert meta_model(name).num_parameters() == parameters
    assert read_config(PRESETS[name].hub_id).hidden_size == read_config(name).hidden_size


def test_the_figures_of_the_paper():
    """Six experts of rank 64 on LLaMA3-8B: A.4 prints 3.88 %, 0.04 %, 8.08 % and 48 %."""
    found = parameter_table("llama3-8b", 6, 64)
    assert found["loramixer"]["experts"] == 6 * 64 * 32 * (8192 + 5120 + 5120 + 8192) == 327_155_712
    assert found["loramixer"]["routers"] == 6 * 32 * 4 * 4096 == 3_145_728
    assert found["mixlora"]["experts"] == 6 * 64 * 32 * 3 * (4096 + 14336)
    assert found["mixlora"]["shared"] == 64 * 32 * (8192 + 5120 + 5120 + 8192)
    counted = {row["what"]: round(100 * row["counted"], 2) for row in found["figures"]}
    assert counted == {
        "LoRA-Mixer, trainable share": 3.95,
        "LoRA-Mixer, routers alone": 0.04,
        "MixLoRA, trainable share": 8.38,
        "LoRA-Mixer / MixLoRA, trainable": 44.95,
    }
    explanations = " ".join(row["explanation"] for row in found["figures"])
    for figure in ("3.91%", "4.11%", "4.81%", "8.10%", "7.81%", "48.1%"):
        assert figure in explanations


def test_other_settings_are_not_compared_with_the_paper():
    found = parameter_table("llama3-8b", 4, 64)
    assert {row["paper"] for row in found["figures"]} == {None}


def test_a_backbone_without_such_blocks_has_no_mixlora():
    from transformers import MambaConfig

    config = MambaConfig(hidden_size=32, num_hidden_layers=2, vocab_size=50, state_size=4)
    found = parameter_table(config, 2, 4, ("in_proj",))
    assert found["mixlora"] is None
    assert found["loramixer"]["experts"] == 2 * 2 * 4 * (32 + 128)


def test_unknown_shapes_and_targets_are_refused(tmp_path):
    with pytest.raises(BackboneError, match="'llama9' is no known shape; known are llama3-8b"):
        read_config("llama9")
    with pytest.raises(BackboneError, match=r"no linear layer w1; it has .*q_proj"):
        count_mixture(tiny.llama().config, targets=("q_proj", "w1"))
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "of my own"}))
    with pytest.raises(BackboneError, match="no configuration that Transformers knows"):
        read_config(tmp_path)


def test_the_command_reads_a_local_configuration(tmp_path):
    tiny.llama().config.save_pretrained(tmp_path)
    status, out, err = run_command("count-parameters", "--backbone", tmp_path, "--rank", 4, "--experts", 3, "--json")
    assert status == 0, err
    assert json.loads(out)["loramixer"]["routers"] == 3 * 2 * 4 * 32
    status, out, _ = run_command("count-parameters")
    assert status == 0
    assert "3.88%" in out
    assert "Table 17" in out
