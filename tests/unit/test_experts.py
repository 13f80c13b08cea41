"""Reading LoRA checkpoints, and refusing with one sentence what cannot be mixed."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from loramixer.errors import ExpertError
from loramixer.experts import Expert, read_expert, read_experts
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(tiny.save_expert(tmp_path / "expert", 1, **tiny.EXPERT_SHAPES["a"]))


def edit_config(folder: Path, **fields) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def test_reads_every_site_with_its_rank_and_scaling(folder):
    expert = read_expert("a", folder)
    assert len(expert.sites) == 8
    site = expert.sites["model.layers.1.self_attn.k_proj"]
    assert (site.rank, site.A.shape, site.B.shape) == (4, (4, 32), (16, 4))
    assert site.scaling == pytest.approx(9 / 4)


def test_rslora_scales_by_the_root_of_the_rank(folder):
    edit_config(folder, use_rslora=True)
    assert read_expert("a", folder).sites["model.layers.0.self_attn.q_proj"].scaling == pytest.approx(9 / 2)


def test_alpha_pattern_follows_pefts_rule(folder):
    edit_config(folder, alpha_pattern={"layers.0.self_attn.q_proj": 20})
    sites = read_expert("a", folder).sites
    assert sites["model.layers.0.self_attn.q_proj"].scaling == pytest.approx(5)
    assert sites["model.layers.1.self_attn.q_proj"].scaling == pytest.approx(9 / 4)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias='all'"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"peft_type": "IA3"}, "IA3"),
        ({"target_parameters": ["experts.gate_up_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "repeats layers"),
        ({"init_lora_weights": "pissa_niter_4"}, "pissa.*changed backbone"),
        ({"use_dora": True, "bias": "lora_only"}, "DoRA.*bias='lora_only'"),
    ],
)
def test_what_cannot_be_mixed_exactly_is_refused(folder, fields, reason):
    edit_config(folder, **fields)
    with pytest.raises(ExpertError, match=reason):
        read_expert("a", folder)


def test_all_faulty_experts_are_named_at_once(folder, tmp_path):
    edit_config(folder, use_dora=True)
    with pytest.raises(
        ExpertError, match=r"2 of 2 experts cannot be used: Expert 'a' .*DoRA.* Expert 'b': there is no"
    ):
        read_experts({"a": str(folder), "b": str(tmp_path / "nowhere")})


def test_pickled_weights_are_never_opened(folder):
    (folder / "adapter_model.safetensors").unlink()
    (folder / "adapter_model.bin").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    with pytest.raises(ExpertError, match="never opened"):
        read_expert("a", folder)


def test_damaged_weights(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ExpertError, match="damaged"):
        read_expert("a", folder)


def test_tensors_that_are_no_lora(folder):
    path = folder / "adapter_model.safetensors"
    save_file({**load_file(path), "base_model.model.lm_head.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(ExpertError, match="lm_head"):
        read_expert("a", folder)


def test_missing_folder_and_missing_files(folder, tmp_path):
    with pytest.raises(ExpertError, match="there is no folder"):
        read_expert("a", tmp_path / "nowhere")
    shutil.copytree(folder, tmp_path / "half")
    (tmp_path / "half" / "adapter_config.json").unlink()
    with pytest.raises(ExpertError, match=r"lacks adapter_config\.json"):
        read_expert("a", tmp_path / "half")


@pytest.mark.parametrize(
    ("trained_on", "here", "another"),
    [
        ("org/other", "org/this", True),
        ("org/this", "Org/This", False),
        (None, "org/this", False),
        ("a/folder/of/mine", "org/this", False),
        ("org/this", "", False),
        ("unsloth/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", False),
        ("unsloth/smollm2-135m-instruct-unsloth-bnb-4bit", "HuggingFaceTB/SmolLM2-135M-Instruct", False),
        ("HuggingFaceTB/SmolLM2-135M-Instruct", "unsloth/SmolLM2-135M-Instruct-bnb-4bit", False),
        ("unsloth/SmolLM2-360M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
        ("somebody/SmolLM2-135M-Instruct", "HuggingFaceTB/SmolLM2-135M-Instruct", True),
    ],
)
def test_names_of_backbones_are_compared_where_both_are_public(trained_on, here, another):
    assert Expert("e", None, None, trained_on, {}).is_of_another_backbone(here) is another
