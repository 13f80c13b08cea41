"""The registry of models over tiny mixtures: routers that only their owner knows, and backbones that come and go."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from explorer.models import LoadedModels
from explorer.provenance import provenance_items
from explorer.registry import ModelRegistry
from explorer.settings import RunRequest
from loramixer.errors import MixerError
from loramixer.mixers import mixer_info
from tests import tiny


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """A saved mixture of two random experts."""
    experts = tiny.save_experts(tmp_path / "experts")
    tiny.mixture({name: experts[name] for name in ("a", "b")}).save_pretrained(tmp_path / "mixture")
    return tmp_path / "mixture"


def registry_with_model(saved: Path) -> tuple[ModelRegistry, Any]:
    """A registry that holds a tiny model already."""
    registry = ModelRegistry()
    model = tiny.mixture(tiny.save_experts(saved.parent / "others"))
    registry._models.hold(mixer_info(saved, "saved").backbone, model, tiny.tokenizer())
    return registry, model


def route(registry: ModelRegistry, name: str) -> Any:
    experts = len(registry.find(name).experts)
    return list(registry.stream(RunRequest("the dose", name, "soft", experts, 0), threading.Event()))[-1]


def test_an_added_router_runs_under_its_private_name(saved: Path) -> None:
    registry, model = registry_with_model(saved)
    before = set(model.peft_config)
    name = registry.add(saved, "Mine")
    assert registry.find(name).title == "Mine"
    assert name not in [mixer.name for mixer in registry.mixers()]
    trace = route(registry, name)
    assert trace.experts == ("a", "b")
    assert trace.provenance["mixer"] == name
    route(registry, name)
    assert len(model.peft_config) == len(before) + 1


@pytest.mark.parametrize("untrained", [True, False])
def test_a_trace_of_untrained_routers_says_that_nobody_has_trained_them(saved: Path, untrained: bool) -> None:
    config = json.loads((saved / "adapter_config.json").read_text())
    (saved / "adapter_config.json").write_text(json.dumps({**config, "untrained": untrained}))
    registry, _ = registry_with_model(saved)
    name = registry.add(saved, "Mine")
    assert registry.find(name).untrained is untrained
    (hint,) = (
        item["hint"] for item in provenance_items(route(registry, name), "finished") if item["label"] == "Router"
    )
    assert ("nobody has trained them" in hint) is untrained
    assert ("A saved, trained mixture" in hint) is not untrained


def test_a_removed_router_leaves_the_memory(saved: Path) -> None:
    registry, model = registry_with_model(saved)
    before = set(model.peft_config)
    name = registry.add(saved, "Mine")
    route(registry, name)
    registry.remove(name)
    assert set(model.peft_config) == before
    with pytest.raises(MixerError, match=r"your own is no longer in memory.*Explore with these"):
        registry.find(name)
    registry.remove(name)


def test_a_backbone_of_ones_own_takes_a_second_mixture(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Freed of its only router it takes no other one, so it goes from memory and is loaded anew."""
    registry = ModelRegistry()
    loaded: list[Any] = []

    def load(folder: Path, notify: Any) -> tuple[Any, Any]:
        model = tiny.mixture(tiny.save_experts(folder.parent / f"others-{len(loaded)}"))
        model.peft_config["default"].mixer_name = folder
        loaded.append(model)
        return model, tiny.tokenizer()

    def add(model: Any, folder: Path) -> str:
        return next(key for key, config in model.peft_config.items() if config.mixer_name in (folder, name))

    monkeypatch.setattr("loramixer.load_mixer", load)
    monkeypatch.setattr("loramixer.add_mixer", add)
    for count in (1, 2):
        name = registry.add(saved, "Mine")
        assert route(registry, name).provenance["mixer"] == name
        assert len(loaded) == count
        registry.remove(name)
        assert registry._models.names() == []


def test_a_run_that_waited_for_a_model_that_was_freed_loads_it_anew(saved: Path) -> None:
    registry, model = registry_with_model(saved)
    name = registry.add(saved, "Mine")
    backbone = registry.find(name).pinned_backbone
    others = tiny.mixture(tiny.save_experts(saved.parent / "more")), tiny.tokenizer()
    registry._models._load = lambda *_: others
    model.delete_adapter("default")
    with registry._running(backbone) as loaded:
        assert loaded.model is others[0]


def test_a_run_is_a_use(saved: Path) -> None:
    registry, _ = registry_with_model(saved)
    first, second = registry.add(saved, "Mine"), registry.add(saved, "Another")
    assert registry.last_use(first) < registry.last_use(second)
    route(registry, first)
    assert registry.last_use(first) > registry.last_use(second) > registry.last_use("own/nobody")


def test_a_router_runs_on_the_revision_of_its_backbone(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    registry = ModelRegistry()
    config = json.loads((saved / "adapter_config.json").read_text())
    asked: list[str] = []

    def load(name: Path, notify: Any) -> tuple[Any, Any]:
        asked.append(mixer_info(name, "saved").pinned_backbone)
        return tiny.mixture(tiny.save_experts(saved.parent / "others")), tiny.tokenizer()

    monkeypatch.setattr("loramixer.load_mixer", load)
    names = []
    for commit in ("a" * 40, "b" * 40):
        folder = saved.parent / commit[0]
        shutil.copytree(saved, folder)
        text = {**config, "base_model_name_or_path": "org/backbone", "revision": commit}
        (folder / "adapter_config.json").write_text(json.dumps(text))
        names.append(registry.add(folder, "Mine"))
    monkeypatch.setattr("loramixer.add_mixer", lambda model, folder: next(iter(model.peft_config)))
    for name in (*names, *names):
        route(registry, name)
    assert asked == registry._models.names() == [f"org/backbone@{'a' * 40}", f"org/backbone@{'b' * 40}"]
    assert registry.find(names[0]).backbone == "org/backbone"
    assert "org/backbone" not in registry.status().text


def test_a_folder_without_a_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixerError):
        ModelRegistry().add(tmp_path, "Mine")


def test_a_training_step_exchanges_the_routers_for_one_run_only(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zoo = saved.parent / "zoo"
    experts = tiny.save_experts(zoo / "tiny/experts")
    for place, seed in (("tiny/rsl", 1), ("tiny/replay/rsl/step-00005", 2)):
        tiny.mixture(experts, seed).save_pretrained(zoo / place)
    monkeypatch.setattr("loramixer.mixers.ZOO", zoo)
    monkeypatch.setattr("loramixer.kept_routers.ZOO", zoo)
    registry, model = registry_with_model(saved)
    assert [mixer.name for mixer in registry.mixers()] == ["tiny/rsl"]
    name = registry.steps("tiny/rsl")[5]
    assert registry.find(name).title.endswith(", step 5")
    trained = route(registry, "tiny/rsl")
    adapters, weights = set(model.peft_config), sum(weight.numel() for weight in model.parameters())

    early = route(registry, name)
    assert early.provenance["mixer"] == name
    assert early.provenance["router_sha256"] != trained.provenance["router_sha256"]
    assert not np.allclose(early.gates, trained.gates)
    again = route(registry, "tiny/rsl")
    assert again.provenance["mixer"] == "tiny/rsl"
    np.testing.assert_array_equal(again.gates, trained.gates)
    assert (set(model.peft_config), sum(weight.numel() for weight in model.parameters())) == (adapters, weights)

    # A visitor who leaves in the middle of a run ends its stream.
    leaving = registry.stream(RunRequest("the dose", name, "soft", 3, 8), threading.Event())
    next(leaving)
    leaving.close()
    np.testing.assert_array_equal(route(registry, "tiny/rsl").gates, trained.gates)
    for wrong in ("tiny/replay/rsl/step-00006", "tiny/replay/../rsl/step-00005", "tiny/replay/rsl/step-5/.."):
        with pytest.raises(MixerError, match="no known router"):
            registry.find(wrong)


def test_models_are_loaded_when_needed_and_two_stay() -> None:
    asked: list[str] = []

    def load(name: str, note: Any) -> tuple[Any, Any]:
        asked.append(name)
        return f"model of {name}", None

    models = LoadedModels(load)
    assert models.status.kind == "idle"
    assert models.get("a").model == "model of a"
    assert models.get("b").model == "model of b"
    models.get("a")
    assert asked == ["a", "b"]
    models.get("c")
    assert models.names() == ["a", "c"]
    assert models.status.kind == "ready"


def test_a_model_makes_room_only_after_its_run() -> None:
    models = LoadedModels(lambda name, note: (name, None))
    first = models.get("a")
    models.get("b")
    with first.running:
        waiting = threading.Thread(target=models.get, args=("c",))
        waiting.start()
        waiting.join(0.2)
        assert models.names() == ["a", "b"]
    waiting.join(10)
    assert models.names() == ["b", "c"]


def test_a_model_that_cannot_be_loaded_says_why_and_is_tried_again() -> None:
    faults = [MixerError("the disk is gone."), RuntimeError("inner workings")]

    def load(name: str, note: Any) -> tuple[Any, Any]:
        note("Downloading …")
        if faults:
            raise faults.pop(0)
        return name, None

    models = LoadedModels(load)
    with pytest.raises(MixerError):
        models.get("a")
    assert models.status.text == "The model a is not loaded. the disk is gone."
    with pytest.raises(RuntimeError):
        models.get("a")
    assert "inner workings" not in models.status.text
    models.get("a")
    assert models.status.kind == "ready"


def test_every_backbone_that_can_be_chosen_has_a_router() -> None:
    registry = ModelRegistry()
    mixers = registry.mixers()
    assert registry.backbones() == list(dict.fromkeys(mixer.backbone for mixer in mixers))
    assert mixers[0].name == "smollm2-135m/rsl"
    assert registry.backbones()[0] == mixers[0].backbone
