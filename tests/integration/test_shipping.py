"""A zoo made from a work folder loads, names its data and numbers, and holds nothing that does not belong to it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from loramixer import load_mixer
from loramixer.errors import ExpertError, MixerError
from loramixer.evaluation import shipping
from loramixer.evaluation.experiments import EXPERIMENTS, workshop
from loramixer.evaluation.experiments.plan import Options
from loramixer.evaluation.experiments.runner import perform
from loramixer.evaluation.experiments.workshop import Workshop
from loramixer.evaluation.shipping import evenly, ship, shipped_runs
from loramixer.training.experts import train_experts
from tests import tiny

OPTIONS = Options(experts=("math", "language"), seeds=(0,), examples=24)


@pytest.fixture(scope="module", autouse=True)
def generated() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("LORAMIXER_DATA", raising=False)
        yield


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> Workshop:
    """Two trained experts and the routers of the comparison of losses."""
    folder = tmp_path_factory.mktemp("shop")
    tiny.llama().save_pretrained(folder / "backbone")
    tiny.tokenizer().save_pretrained(folder / "backbone")
    backbone = str(folder / "backbone")
    paths = train_experts(
        folder / "experts", OPTIONS.experts, backbone=backbone, rank=2, limit=32, dtype=torch.float32
    )
    sources = {path.name: str(path) for path in paths}
    made = Workshop(
        folder / "work", sources, backbone=backbone, limit=2, training_dtype=torch.float32, archive=folder / "out/runs"
    )
    for name in ("losses", "expert-matrix"):
        perform(EXPERIMENTS[name], OPTIONS, made, folder / "out", say=str)
    return made


@pytest.fixture(scope="module")
def zoo(shop: Workshop, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What ships, where experts and a router of a former zoo lay before."""
    folder = tmp_path_factory.mktemp("zoo") / "backbone" / "tiny"
    for former in ("experts/law", "old", "replay/old/step-00001"):
        (folder / former).mkdir(parents=True)
    ship(shop, OPTIONS, shop.records.parent, folder, say=str)
    return folder


def test_every_loss_ships_under_its_name_and_nothing_else(zoo):
    routers = {path.name for path in zoo.iterdir()} - {"experts", "replay"}
    assert routers == set(shipped_runs(OPTIONS))
    assert {path.name for path in (zoo / "experts").iterdir()} == set(OPTIONS.experts)
    assert {path.name for path in (zoo / "replay").iterdir()} == {"rsl", "load-balance"}
    assert not list(zoo.rglob("*.lock"))


def test_what_ships_computes_what_was_trained(zoo, shop):
    for name, (run, title) in shipped_runs(OPTIONS).items():
        ours, _ = load_mixer(zoo / name, backbone=shop.backbone)
        trained, _ = load_mixer(shop.work / "routers" / run.name, backbone=shop.backbone)
        assert torch.equal(tiny.logits_of(ours), tiny.logits_of(trained))
        assert ours.peft_config["default"].title == title
        assert not Path(json.loads((zoo / name / "adapter_config.json").read_text())["experts"]["math"]["source"]
                        ).is_absolute()  # fmt: skip


def test_routers_along_the_way_ship_in_half_precision(zoo, shop):
    run, _ = shipped_runs(OPTIONS)["rsl"]
    steps = sorted((zoo / "replay/rsl").iterdir())
    assert [step.name for step in steps] == ["step-00000", "step-00001", "step-00002"]
    for step in steps:
        assert {value.dtype for value in load_file(step / "adapter_model.safetensors").values()} == {torch.float16}
        name = json.loads((step / "adapter_config.json").read_text())["base_model_name_or_path"]
        assert name == json.loads((zoo / "rsl/adapter_config.json").read_text())["base_model_name_or_path"]
        assert sorted(path.name for path in step.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
        ours, _ = load_mixer(step, backbone=shop.backbone)
        kept, _ = load_mixer(shop.work / "routers" / run.name / "routers" / step.name, backbone=shop.backbone)
        torch.testing.assert_close(tiny.logits_of(ours), tiny.logits_of(kept), atol=1e-3, rtol=1e-2)
    first, last = (load_file(step / "adapter_model.safetensors") for step in (steps[0], steps[-1]))
    assert any(not torch.equal(first[name], last[name]) for name in first)


def test_cards_hold_numbers_and_the_command(zoo):
    card = (zoo / "rsl/README.md").read_text()
    assert "--loss rsl --balance-weight 1 --entropy-weight 0.3 --entropy sharpen --examples 24 --seed 0" in card
    assert "| test loss, nats per answer token, top-2 |" in card
    assert "this router alone (seed 0), 4 test rows, 95 % intervals over rows" in card
    assert "seed 0" in card
    assert "Test loss on math, nats per answer token:" in (zoo / "experts/math/README.md").read_text()


def test_the_experiments_find_what_ships(zoo, shop, tmp_path, monkeypatch):
    run, _ = shipped_runs(OPTIONS)["none"]
    clone = replace(shop, work=tmp_path)
    monkeypatch.setattr(workshop, "ZOO", zoo.parent)
    assert clone.router_folder(run) == zoo / "none"


def test_making_it_again_changes_nothing_and_other_experts_are_refused(zoo, shop, tmp_path, monkeypatch):
    before = {path: path.read_bytes() for path in zoo.rglob("*") if path.is_file()}
    said: list[str] = []
    ship(replace(shop, sources={name: str(zoo / "experts" / name) for name in shop.sources}), OPTIONS,
         shop.records.parent, zoo, say=said.append)  # fmt: skip
    assert {path: path.read_bytes() for path in zoo.rglob("*") if path.is_file()} == before
    assert not [line for line in said if "removed" in line]
    with monkeypatch.context() as patch:  # a fresh clone has no work folder, and what ships stays
        patch.setattr(workshop, "ZOO", zoo.parent)
        ship(replace(shop, work=tmp_path / "none"), OPTIONS, shop.records.parent, zoo, say=str)
    assert {path: path.read_bytes() for path in zoo.rglob("*") if path.is_file()} == before
    swapped = dict(zip(shop.sources, reversed(list(shop.sources.values())), strict=True))
    with pytest.raises(ExpertError, match="changed"):
        ship(replace(shop, sources=swapped), OPTIONS, shop.records.parent, tmp_path / "zoo", say=str)
    monkeypatch.setattr(shipping, "LIMIT", 1000)
    with pytest.raises(MixerError, match="ship less"):
        ship(shop, OPTIONS, shop.records.parent, tmp_path / "large", say=str)


def test_what_is_not_trained_yet_is_left_out(shop, tmp_path):
    said: list[str] = []
    empty = replace(shop, work=tmp_path / "work")
    ship(empty, OPTIONS, shop.records.parent, tmp_path / "zoo", say=said.append)
    assert [path.name for path in (tmp_path / "zoo").iterdir()] == ["experts"]
    assert sum("not trained yet" in line for line in said) == len(shipped_runs(OPTIONS))


def test_steps_are_chosen_evenly():
    items = [Path(str(number)) for number in range(10)]
    assert [int(path.name) for path in evenly(items, 4)] == [0, 3, 6, 9]
    assert evenly(items[:3], 4) == items[:3]
