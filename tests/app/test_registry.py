"""The registry of models over tiny mixtures: routers that only their owner knows."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import Any

import pytest

from explorer.registry import ModelRegistry
from explorer.settings import RunRequest
from loramixer.errors import MixerError
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
    registry._model, registry._tokenizer = model, tiny.tokenizer()
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


def test_a_removed_router_leaves_the_memory(saved: Path) -> None:
    registry, model = registry_with_model(saved)
    before = set(model.peft_config)
    name = registry.add(saved, "Mine")
    route(registry, name)
    registry.remove(name)
    assert set(model.peft_config) == before
    with pytest.raises(MixerError, match="no known router"):
        registry.find(name)
    registry.remove(name)


def test_a_folder_without_a_mixture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MixerError):
        ModelRegistry().add(tmp_path, "Mine")
