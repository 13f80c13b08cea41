"""What a mixture folder says about itself, and what is said of folders that others made or damaged."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from loramixer import RunLog, load_mixer
from loramixer.backbones import CATALOGUE
from loramixer.errors import MixerError
from loramixer.mixers import mixer_info
from tests import tiny


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A saved mixture."""
    experts = tiny.save_experts(tmp_path / "experts")
    tiny.mixture(experts, routing_loss="rsl", top_k=2, title="Three").save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def change(folder: Path, **fields: Any) -> None:
    """Set fields of the configuration; those that are None are taken out."""
    path = folder / "adapter_config.json"
    config = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({name: value for name, value in config.items() if value is not None}))


def test_a_folder_says_what_it_is_with_and_without_a_run_log(folder: Path) -> None:
    info = mixer_info(folder, "mine")
    assert (info.name, info.title, info.experts, info.top_k, info.seed) == ("mine", "Three", ("a", "b", "c"), 2, None)
    assert info.loss == "rsl"
    RunLog({"seed": 7, "loss_text": "RSL"}).save(folder)
    assert (mixer_info(folder, "mine").seed, mixer_info(folder, "mine").loss) == (7, "RSL")


@pytest.mark.parametrize(
    ("backbone", "revision", "expected"),
    [
        ("org/name", "a" * 40, "org/name@" + "a" * 40),
        ("org/name", None, "org/name"),
        (CATALOGUE["smollm2-135m"].hub_id, CATALOGUE["smollm2-135m"].revision, "smollm2-135m"),
        (CATALOGUE["smollm2-135m"].hub_id, "a" * 40, "smollm2-135m@" + "a" * 40),
        (None, "a" * 40, ""),
    ],
)
def test_the_revision_of_a_backbone_is_told(
    folder: Path, backbone: str | None, revision: str | None, expected: str
) -> None:
    change(folder, base_model_name_or_path=backbone, revision=revision)
    info = mixer_info(folder, "mine")
    assert info.backbone == expected.partition("@")[0]
    assert info.pinned_backbone == expected


@pytest.mark.parametrize(
    "log", ["not even JSON", "[1]", '{"steps": [], "summary": {}}', '{"settings": 1, "steps": [], "summary": {}}']
)
def test_a_run_log_that_is_none_is_named(folder: Path, log: str) -> None:
    (folder / "run_log.json").write_text(log)
    with pytest.raises(MixerError, match=r"mixture/run_log\.json is no run log.*; delete it"):
        mixer_info(folder, "mine")


@pytest.mark.parametrize("field", ["experts", "expert_order", "top_k"])
def test_a_configuration_that_lacks_a_field_is_named_with_it(folder: Path, field: str) -> None:
    change(folder, **{field: None})
    for read in (lambda: mixer_info(folder, "mine"), lambda: load_mixer(folder)):
        with pytest.raises(MixerError, match=rf"adapter_config\.json lacks {field}; .*save_pretrained"):
            read()


def test_a_configuration_that_is_no_dictionary_is_refused(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("[]")
    with pytest.raises(MixerError, match=r"adapter_config\.json is no configuration"):
        mixer_info(folder, "mine")


def test_a_mixture_that_names_no_backbone_is_loaded_with_one_that_is_given(folder: Path, tmp_path: Path) -> None:
    change(folder, base_model_name_or_path=None)
    assert mixer_info(folder, "mine").backbone == ""
    with pytest.raises(MixerError, match=r"names no backbone \(base_model_name_or_path.*give it with backbone="):
        load_mixer(folder)
    tiny.llama().save_pretrained(tmp_path / "backbone")
    tiny.tokenizer().save_pretrained(tmp_path / "backbone")
    model, _ = load_mixer(folder, backbone=tmp_path / "backbone")
    assert set(model.active_peft_config.experts) == {"a", "b", "c"}
