"""Which experts fit, from shapes alone; and that what is assembled loads as the mixture that it describes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model

from loramixer import LoraMixerConfig
from loramixer.errors import BackboneError, MixerError
from loramixer.fitting import BackboneOutline, assemble, check_fit, mixture_bytes, outline_backbone, routers_fit
from loramixer.mixers import ZOO, list_mixers
from loramixer.tuner.editing import remove_expert
from tests import architectures, tiny
from tests.architectures import ARCHITECTURES


@pytest.fixture
def backbone(tmp_path: Path) -> BackboneOutline:
    tiny.llama().save_pretrained(tmp_path / "backbone")
    return outline_backbone(str(tmp_path / "backbone"))


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    return tiny.save_experts(tmp_path / "experts")


def usable(folders: dict[str, str], backbone: BackboneOutline) -> dict[str, Any]:
    fits = {name: check_fit(name, folder, backbone) for name, folder in folders.items()}
    assert all(fit.usable for fit in fits.values())
    return {name: fit.expert for name, fit in fits.items()}


def test_a_backbone_is_known_by_its_shapes(backbone: BackboneOutline) -> None:
    model = tiny.llama()
    assert backbone.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert backbone.shapes["model.layers.1.self_attn.k_proj"] == (32, 16)


def test_every_catalogued_backbone_has_shapes() -> None:
    for mixer in list_mixers():
        outline = outline_backbone(mixer.backbone)
        experts = LoraMixerConfig.from_pretrained(str(ZOO / mixer.name)).experts
        assert {site for value in experts.values() for site in value["sites"]} <= set(outline.shapes)


def test_a_backbone_that_is_too_large_is_refused(backbone: BackboneOutline) -> None:
    with pytest.raises(BackboneError, match=r"at most 0 million"):
        outline_backbone(backbone.name, max_parameters=1000)


def test_a_backbone_that_needs_remote_code_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "nobody", "auto_map": {"AutoModel": "modeling_x.Model"}}')
    with pytest.raises(BackboneError, match="code from elsewhere is never run"):
        outline_backbone(str(tmp_path))


def test_different_ranks_and_targets_fit(backbone: BackboneOutline, folders: dict[str, str]) -> None:
    fits = {name: check_fit(name, folder, backbone) for name, folder in folders.items()}
    assert {name: fit.ranks for name, fit in fits.items()} == {"a": (4,), "b": (8,), "c": (2,)}
    assert fits["b"].targets == ("q_proj", "v_proj")
    assert [fit.matching for fit in fits.values()] == [8, 4, 2]
    assert all(weights.A.is_meta for fit in fits.values() for weights in fit.expert.sites.values())


def test_experts_of_gpt2_fit_its_layers_that_are_no_nn_linear(tmp_path: Path) -> None:
    architecture = ARCHITECTURES["gpt2"]
    architecture.build().save_pretrained(tmp_path / "gpt2")
    backbone = outline_backbone(str(tmp_path / "gpt2"))
    assert backbone.shapes["transformer.h.0.attn.c_attn"] == (16, 48)
    experts = usable(architectures.save_experts(architecture, tmp_path / "experts"), backbone)
    folder = assemble(tmp_path / "mixture", experts, backbone, "Mine")
    model = PeftModel.from_pretrained(architecture.build(), str(folder))
    assert set(model.active_peft_config.experts) == {"a", "b", "c"}


def test_what_does_not_fit_says_why(backbone: BackboneOutline, tmp_path: Path) -> None:
    wide = check_fit("wide", tiny.save_expert(tmp_path / "wide", 1, 64, r=2, target_modules=["q_proj"]), backbone)
    assert not wide.usable
    assert "2 of its 2 sites have another shape" in wide.reasons[0]
    assert "64→64 in the expert and 32→32 in the backbone" in wide.reasons[0]
    other = json.loads((tmp_path / "wide/adapter_config.json").read_text())
    (tmp_path / "wide/adapter_config.json").write_text(json.dumps({**other, "use_dora": True}))
    assert "DoRA" in check_fit("wide", str(tmp_path / "wide"), backbone).reasons[0]
    assert "at most 0.0 MB" in check_fit("wide", str(tmp_path / "wide"), backbone, max_bytes=10).reasons[0]
    (tmp_path / "pickled").mkdir()
    (tmp_path / "pickled/adapter_model.bin").write_bytes(b"never opened")
    assert "pickled weights" in check_fit("pickled", str(tmp_path / "pickled"), backbone).reasons[0]


def test_memory_counts_weights(backbone: BackboneOutline, folders: dict[str, str]) -> None:
    experts = usable(folders, backbone)
    model = get_peft_model(tiny.llama(), LoraMixerConfig(experts=folders))
    size = {part: 0 for part in ("lora_mixer_A", "lora_mixer_B", "lora_mixer_router")}
    for name, parameter in model.named_parameters():
        for part in size:
            size[part] += 4 * parameter.numel() * (f".{part}." in name)
    _, matrices, routers = mixture_bytes(backbone, experts)
    assert matrices == size["lora_mixer_A"] + size["lora_mixer_B"]
    assert routers == size["lora_mixer_router"]


def test_untrained_routers_weigh_all_experts_nearly_alike(
    backbone: BackboneOutline, folders: dict[str, str], tmp_path: Path
) -> None:
    folder = assemble(tmp_path / "mixture", usable(folders, backbone), backbone, "Mine")
    model = PeftModel.from_pretrained(tiny.llama(), str(folder)).eval()
    assert model.active_peft_config.experts.keys() == {"a", "b", "c"}
    assert model.active_peft_config.gate == "soft"
    loaded = tiny.logits_of(model)
    uniform = get_peft_model(tiny.llama(), LoraMixerConfig(experts=folders, gate="uniform")).eval()
    built = tiny.logits_of(uniform)
    plain = tiny.logits_of(tiny.llama())
    assert (loaded - built).abs().max() < 0.05 * (built - plain).abs().max()


def test_trained_routers_serve_a_part_of_their_experts(
    backbone: BackboneOutline, folders: dict[str, str], tmp_path: Path
) -> None:
    trained = tiny.mixture(folders, save_experts=False)
    trained.save_pretrained(tmp_path / "trained")
    experts = usable({"second": folders["b"], "first": folders["a"]}, backbone)
    assert routers_fit(tmp_path / "trained", experts)
    folder = assemble(tmp_path / "part", experts, backbone, "Part", routers=tmp_path / "trained")
    model = PeftModel.from_pretrained(tiny.llama(), str(folder))
    site = "model.layers.0.self_attn.q_proj"
    former = trained.base_model.model.get_submodule(site).lora_mixer_router["default"].weight
    rows = model.base_model.model.get_submodule(site).lora_mixer_router["default"].weight
    assert torch.equal(rows, former[[1, 0]])


def test_routers_bring_along_how_they_gate_and_were_trained(
    backbone: BackboneOutline, folders: dict[str, str], tmp_path: Path
) -> None:
    rule = {"sites": ".*q_proj", "top_k": 3, "temperature": 0.5}
    trained = tiny.mixture(
        folders,
        routing_loss="rsl",
        balance_weight=0.9,
        entropy_weight=0.2,
        entropy="flatten",
        usage="soft",
        scale="paper",
        z_weight=0.001,
        gate="top_k",
        top_k=3,
        temperature=0.7,
        renormalize=False,
        site_gates=[rule, {"sites": ".*k_proj", "gate": "soft"}],
        tasks={"a": ["gsm8k"], "b": ["mbpp"], "c": ["medmcqa"]},
        save_experts=False,
    )
    trained.save_pretrained(tmp_path / "trained")
    experts = usable({"second": folders["b"], "first": folders["a"]}, backbone)
    folder = assemble(tmp_path / "part", experts, backbone, "Part", routers=tmp_path / "trained")
    model = PeftModel.from_pretrained(tiny.llama(), str(folder)).eval()
    config, former = model.peft_config["default"], trained.peft_config["default"]
    same = ("routing_loss", "temperature", "renormalize", "gate", "balance_weight", "entropy", "usage", "scale")
    assert {name: getattr(config, name) for name in same} == {name: getattr(former, name) for name in same}
    assert config.loss_text == former.loss_text
    assert config.site_gates == [{**rule, "top_k": 2}, {"sites": ".*k_proj", "gate": "soft"}]
    assert (config.top_k, config.title, config.untrained) == (2, "Part", False)
    assert config.tasks == {"second": ["mbpp"], "first": ["gsm8k"]}
    assert (config.inference_mode, config.save_experts, config.task_type) == (True, False, "CAUSAL_LM")
    # What the assembled mixture computes is what remove_expert leaves of the trained one.
    remove_expert(trained, "c")
    torch.testing.assert_close(tiny.logits_of(model), tiny.logits_of(trained), atol=1e-5, rtol=0)


def test_routers_whose_experts_trained_along_fit_no_others(
    backbone: BackboneOutline, folders: dict[str, str], tmp_path: Path
) -> None:
    """The hashes that such a mixture names are those of the experts before they trained."""
    tiny.mixture(folders, train_experts=True).save_pretrained(tmp_path / "trained")
    assert not routers_fit(tmp_path / "trained", usable(folders, backbone))


def test_routers_of_other_experts_are_refused(
    backbone: BackboneOutline, folders: dict[str, str], tmp_path: Path
) -> None:
    tiny.mixture({"a": folders["a"]}, save_experts=False).save_pretrained(tmp_path / "trained")
    experts = usable(folders, backbone)
    assert not routers_fit(tmp_path / "trained", experts)
    with pytest.raises(MixerError, match="other experts"):
        assemble(tmp_path / "part", experts, backbone, "Part", routers=tmp_path / "trained")
