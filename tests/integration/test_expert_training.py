"""Stage 1: experts one by one and jointly; in a joint run only the experts of a step's own domains move."""

from __future__ import annotations

import errno
import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model
from safetensors.torch import load_file

from loramixer import RunLog, train_experts
from loramixer.cards import _backbone_option
from loramixer.errors import DataError, ExpertError, LoraMixerError
from loramixer.training.expert_optimizer import ExpertAdamW
from loramixer.training.experts import NewLora, _check_targets, joint_config
from loramixer.training.presets import find_preset
from loramixer.training.rows import encode_rows
from loramixer.tuner import LoraMixerLayer
from tests import tiny
from tests.architectures import ARCHITECTURES

DOMAINS = ["a", "b", "c"]
LORA = NewLora(rank=3, lora_alpha=6, dropout=0.0, targets=("q_proj", "v_proj"))


def joint_mixture():
    torch.manual_seed(4)
    return get_peft_model(tiny.llama(), joint_config(DOMAINS, LORA)).train()


def weights_of(model, expert: int) -> torch.Tensor:
    parts = [
        part.flatten()
        for layer in model.modules()
        if isinstance(layer, LoraMixerLayer)
        for part in (layer.expert_weights("default", expert).A, layer.expert_weights("default", expert).B)
    ]
    return torch.cat(parts).clone()


def train_step(model, optimizer, domains: list[int], seed: int) -> None:
    ids = tiny.token_ids(len(domains), 6, seed=seed)
    model(input_ids=ids, labels=ids, expert_index=torch.tensor(domains)).loss.backward()
    optimizer.step()
    model.zero_grad()


STEPS = [[0, 1, 2], [0, 1], [-1, -1], [0], [2, -1], [1, 0]]


def moved(optimizer_of) -> list[set[int]]:
    """Which experts each of the steps moved."""
    model = joint_mixture()
    optimizer = optimizer_of(model)
    found = []
    for number, domains in enumerate(STEPS):
        before = [weights_of(model, expert) for expert in range(3)]
        train_step(model, optimizer, domains, number)
        found.append({expert for expert in range(3) if not torch.equal(before[expert], weights_of(model, expert))})
    return found


def test_only_the_experts_of_a_steps_domains_move():
    def of(model):
        return ExpertAdamW(model, lr=1e-2, weight_decay=0.1)

    assert moved(of) == [set(domains) - {-1} for domains in STEPS]

    def plain(model):
        return torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, weight_decay=0.1)

    assert moved(plain) != [set(domains) - {-1} for domains in STEPS]  # so the test can fail


def test_an_expert_goes_the_way_that_it_goes_by_itself():
    alone, together = joint_mixture(), joint_mixture()
    for model, steps in ((alone, [(5, [1, 1]), (6, [1])]), (together, [(9, [0]), (5, [1, 1]), (8, [2, 0]), (6, [1])])):
        optimizer = ExpertAdamW(model, lr=1e-2, weight_decay=0.1)
        for seed, domains in steps:
            train_step(model, optimizer, domains, seed)
    torch.testing.assert_close(weights_of(together, 1), weights_of(alone, 1), rtol=0, atol=1e-7)
    assert not torch.equal(weights_of(together, 0), weights_of(alone, 0))


def test_its_state_goes_through_a_file(tmp_path):
    model, other = joint_mixture(), joint_mixture()
    first, second = (ExpertAdamW(m, lr=1e-2, weight_decay=0.1) for m in (model, other))
    train_step(model, first, [0, 1], 1)
    torch.save(first.state_dict(), tmp_path / "optimizer.pt")
    other.load_state_dict(model.state_dict())
    second.load_state_dict(torch.load(tmp_path / "optimizer.pt", weights_only=True))
    train_step(model, first, [1, 2], 2)
    train_step(other, second, [1, 2], 2)
    for expert in range(3):
        assert torch.equal(weights_of(model, expert), weights_of(other, expert))


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("backbone")
    tiny.llama().save_pretrained(folder)
    tiny.tokenizer().save_pretrained(folder)
    return folder


def trained(backbone: Path, output: Path, **settings) -> list[Path]:
    usual = {"backbone": str(backbone), "limit": 16, "rank": 2, "dtype": torch.float32}
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAMIXER_DATA", raising=False)
        return train_experts(output, ["math", "language"], **{**usual, **settings})


@pytest.mark.parametrize("jointly", [False, True])
def test_experts_are_plain_folders_for_any_projections(backbone, tmp_path, jointly):
    folders = trained(backbone, tmp_path, jointly=jointly, targets=["q_proj", "down_proj"], lora_alpha=5, dropout=0.0)
    assert [folder.name for folder in folders] == ["math", "language"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["language", "math"]
    for folder in folders:
        config = PeftConfig.from_pretrained(folder)
        assert (config.peft_type, config.r, config.lora_alpha) == ("LORA", 2, 5)
        weights = load_file(folder / "adapter_model.safetensors")
        assert {name.split(".")[-3] for name in weights} == {"q_proj", "down_proj"}
        assert {value.dtype for value in weights.values()} == {torch.bfloat16}
        assert all(value.any() for name, value in weights.items() if "lora_B" in name)  # it was trained
        PeftModel.from_pretrained(tiny.llama(), folder)
        log = RunLog.load(folder)
        assert log.settings["preset"] == "cpu-small"
        assert log.settings["targets"] == ["q_proj", "down_proj"]
        assert list(log.settings["rows"]) == [f"generated_{folder.name}"]
        card = (folder / "README.md").read_text()
        assert "lora_alpha = 5) on q_proj, down_proj" in card
        assert ("--jointly" in card) == jointly
        assert "license:" not in card  # whoever publishes it knows which
        assert "--dropout 0" in card
        assert "--learning-rate" not in card  # the preset's


def test_a_joint_run_writes_over_nothing(backbone, tmp_path, capsys):
    trained(backbone, tmp_path, jointly=True)
    before = (tmp_path / "math/adapter_model.safetensors").read_bytes()
    trained(backbone, tmp_path, jointly=True)
    assert "delete them to train them again" in capsys.readouterr().out
    assert (tmp_path / "math/adapter_model.safetensors").read_bytes() == before
    (tmp_path / "language/adapter_model.safetensors").unlink()
    with pytest.raises(ExpertError, match="would write over it"):
        trained(backbone, tmp_path, jointly=True)


@pytest.mark.parametrize("jointly", [False, True])
def test_finished_experts_of_other_settings_are_not_taken_for_those_asked_for(backbone, tmp_path, jointly):
    trained(backbone, tmp_path, jointly=jointly)
    with pytest.raises(LoraMixerError, match="rank 2, now 3"):
        trained(backbone, tmp_path, jointly=jointly, rank=3, lora_alpha=4)
    with pytest.raises(LoraMixerError, match="limit 16, now 8"):
        trained(backbone, tmp_path, jointly=jointly, limit=8)
    with pytest.raises(LoraMixerError, match=f"jointly {jointly}, now {not jointly}"):
        trained(backbone, tmp_path, jointly=not jointly)


@pytest.mark.parametrize("jointly", [False, True])
def test_experts_whose_saving_broke_off_are_not_finished(backbone, tmp_path, capsys, jointly):
    def fill_disk(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    whole = trained(backbone, tmp_path / "whole", jointly=jointly)
    with pytest.MonkeyPatch.context() as patch:
        # One by one the card comes after the weights, jointly the weights of the second expert after all of the first.
        patch.setattr("loramixer.training.experts." + ("export_expert" if jointly else "_write_card"), fill_disk)
        with pytest.raises(LoraMixerError, match=r"is good, and the same command goes on from step \d"):
            trained(backbone, tmp_path / "cut", jointly=jointly)
    if jointly:  # all weights were there, as after a kill while checkpoints were removed
        for folder in whole:
            (tmp_path / "cut" / folder.name).mkdir(exist_ok=True)
            shutil.copy(folder / "adapter_model.safetensors", tmp_path / "cut" / folder.name)
    folders = trained(backbone, tmp_path / "cut", jointly=jointly)
    assert "finished" not in capsys.readouterr().out
    for first, second in zip(whole, folders, strict=True):
        assert (second / "README.md").is_file()
        assert sorted(path.name for path in second.iterdir()) == sorted(path.name for path in first.iterdir())
        weights = "adapter_model.safetensors"
        assert (first / weights).read_bytes() == (second / weights).read_bytes()
    assert sorted(path.name for path in (tmp_path / "cut").iterdir()) == ["language", "math"]


def test_a_joint_expert_without_any_row_that_fits_is_refused(backbone, tmp_path, monkeypatch):
    def too_long(*arguments, **more):
        found = encode_rows(*arguments, **more)
        return replace(found, examples=[row for row in found.examples if row.domain == "math"])

    monkeypatch.setattr("loramixer.training.experts.encode_rows", too_long)
    with pytest.raises(DataError, match="No row of language leaves room for an answer within 512 tokens"):
        trained(backbone, tmp_path, jointly=True)


def test_targets_and_presets_that_do_not_exist_are_refused(backbone, tmp_path):
    with pytest.raises(ExpertError, match=r"no linear layer in_proj; give targets from down_proj, .*q_proj"):
        trained(backbone, tmp_path, targets=["in_proj"])
    with pytest.raises(LoraMixerError, match="no preset 'large'; there are cpu-small, cpu-tiny, paper"):
        trained(backbone, tmp_path, preset="large")


def test_numbers_below_one_are_refused_and_zero_is_a_learning_rate(backbone, tmp_path):
    for name, value in (("rank", 0), ("rank", -1), ("limit", -5)):
        with pytest.raises(LoraMixerError, match=f"{name} is {value}; give a whole number of at least 1"):
            trained(backbone, tmp_path, **{name: value})
    with pytest.raises(LoraMixerError, match=r"learning_rate is -0\.1"):
        trained(backbone, tmp_path, learning_rate=-0.1)
    log = RunLog.load(trained(backbone, tmp_path, learning_rate=0.0)[0])
    assert log.settings["learning_rate"] == 0
    weights = load_file(tmp_path / "math" / "adapter_model.safetensors")
    assert not any(value.any() for name, value in weights.items() if "lora_B" in name)


@pytest.mark.parametrize("jointly", [False, True])
def test_epochs_of_a_preset_count(backbone, tmp_path, jointly):
    usual = find_preset("cpu-small")
    twice = replace(usual, experts=replace(usual.experts, epochs=2))
    folders = trained(backbone, tmp_path, jointly=jointly, preset=twice, limit=40)
    steps = RunLog.load(folders[0]).step_count
    once = RunLog.load(trained(backbone, tmp_path / "once", jointly=jointly, limit=40)[0]).step_count
    assert steps == 2 * once


def test_targets_may_be_any_linear_layer_that_a_mixture_takes(tmp_path):
    gpt2 = ARCHITECTURES["gpt2"].build()
    _check_targets(gpt2, ["c_attn"])
    with pytest.raises(ExpertError, match="no linear layer lm_head; give targets from c_attn, c_fc, c_proj"):
        _check_targets(gpt2, ["lm_head"])


def test_the_card_names_the_backbone_whatever_it_is():
    assert _backbone_option("HuggingFaceTB/SmolLM2-135M-Instruct") == []
    assert _backbone_option("Qwen/Qwen2.5-0.5B") == ["--backbone Qwen/Qwen2.5-0.5B"]
    assert _backbone_option("/home/me/models/llama") == ["--backbone llama"]


def test_a_domain_whose_name_leads_elsewhere_is_refused(tmp_path):
    rows = tmp_path / "rows.jsonl"
    row = {"id": "1", "task": "t", "domain": str(tmp_path / "elsewhere"), "prompt": "p", "target": "t"}
    rows.write_text(json.dumps(row))
    with pytest.raises(LoraMixerError, match="is no expert name; use a short text without dots and slashes"):
        train_experts(tmp_path / "experts", source=rows)
    assert not (tmp_path / "elsewhere").exists()
