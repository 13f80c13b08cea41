"""Experts that leave a mixture are plain LoRAs which compute the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file

from loramixer.errors import ExpertError, MixerError
from loramixer.experts import read_expert
from loramixer.training.routers import find_experts
from loramixer.tuner.export import export_expert, export_static
from tests import tiny
from tests.tiny import logits_of


@pytest.mark.parametrize("name", ["a", "b", "c"])
def test_an_exported_expert_is_bit_equal_to_the_one_that_went_in(experts, tmp_path, name):
    export_expert(tiny.mixture(experts), name, tmp_path)
    before, after = read_expert(name, experts[name]), read_expert(name, tmp_path)
    assert set(before.sites) == set(after.sites)
    for site, part in before.sites.items():
        assert torch.equal(part.A, after.sites[site].A)
        assert torch.equal(part.B, after.sites[site].B)
        assert part.scaling == pytest.approx(after.sites[site].scaling)
    reference = PeftModel.from_pretrained(tiny.llama(), experts[name]).eval()
    exported = PeftModel.from_pretrained(tiny.llama(), tmp_path).eval()
    torch.testing.assert_close(logits_of(exported), logits_of(reference), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_exported_expert_keeps_its_type(experts, tmp_path, dtype):
    folder = Path(shutil.copytree(experts["a"], tmp_path / "half"))
    tensors = {key: value.to(dtype) for key, value in load_file(folder / "adapter_model.safetensors").items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    export_expert(tiny.mixture({"half": str(folder), "b": experts["b"]}), "half", tmp_path / "exported")
    exported = load_file(tmp_path / "exported" / "adapter_model.safetensors")
    assert exported.keys() == tensors.keys()
    assert all(torch.equal(exported[key], tensors[key]) and exported[key].dtype == dtype for key in tensors)


def test_experts_that_trained_with_a_mixture_are_not_the_ones_that_it_names(experts, tmp_path):
    tiny.mixture(experts).save_pretrained(tmp_path / "frozen")
    assert find_experts(str(tmp_path / "frozen")).keys() == experts.keys()
    model = tiny.mixture({"a": experts["a"], "new": None}, train_experts=True, r=2)
    model.save_pretrained(tmp_path / "trained")
    with pytest.raises(ExpertError, match=r"experts of .*trained were trained with it.*write them with export_expert"):
        find_experts(str(tmp_path / "trained"))
    config = json.loads((tmp_path / "frozen" / "adapter_config.json").read_text())
    for gone in ("local:a", str(tmp_path / "of-another-machine")):
        config["experts"]["a"]["source"] = gone
        (tmp_path / "frozen" / "adapter_config.json").write_text(json.dumps(config))
        with pytest.raises(ExpertError, match=r"holds its expert 'a' itself, .*write the experts with export_expert"):
            find_experts(str(tmp_path / "frozen"))
    for name in ("a", "new"):
        export_expert(model, name, tmp_path / "exported" / name)
    assert find_experts(str(tmp_path / "exported")).keys() == {"a", "new"}


def test_a_static_blend_equals_fixed_gates(experts, tmp_path):
    model = tiny.mixture(experts)
    export_static(model, {"a": 0.7, "b": 0.5}, tmp_path)
    blend = PeftModel.from_pretrained(tiny.llama(), tmp_path).eval()
    fixed = torch.tensor([0.7, 0.5, 0.0])
    with tiny.gates_by(model, lambda logits: fixed.expand(logits.shape)):
        torch.testing.assert_close(logits_of(blend), logits_of(model), atol=1e-5, rtol=0)


def test_unknown_names_and_empty_blends_are_refused(experts, tmp_path):
    model = tiny.mixture(experts)
    with pytest.raises(MixerError, match="has no expert 'law'; it has a, b, c"):
        export_expert(model, "law", tmp_path)
    with pytest.raises(MixerError, match="has no expert 'law'"):
        export_static(model, {"law": 1.0}, tmp_path)
    with pytest.raises(MixerError, match="nothing to export"):
        export_static(model, {}, tmp_path)
