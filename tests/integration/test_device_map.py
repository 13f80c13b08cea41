"""Backbones that accelerate placed by a `device_map`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from loramixer import LoraMixerConfig
from loramixer.errors import MixerError
from tests import tiny
from tests.tiny import logits_of

ON_DISK = {
    "model.embed_tokens": "cpu",
    "model.rotary_emb": "cpu",
    "model.layers.0": "cpu",
    "model.layers.1": "disk",
    "model.norm": "cpu",
    "lm_head": "cpu",
}


@pytest.fixture(scope="module")
def saved(experts, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a backbone and a mixture."""
    folder = tmp_path_factory.mktemp("device_map")
    tiny.llama().save_pretrained(folder / "backbone")
    tiny.mixture(experts).save_pretrained(folder / "mixture")
    return folder


def placed(folder: Path, device_map: Any) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder / "backbone", device_map=device_map, offload_folder=str(folder / "offloaded"), dtype=torch.float32
    ).eval()


@pytest.mark.parametrize("device_map", ["auto", {"": "cpu"}])
@pytest.mark.parametrize("low_cpu_mem_usage", [True, False])
def test_a_placed_backbone_gives_the_same_logits(saved, experts, device_map, low_cpu_mem_usage):
    expected = logits_of(tiny.mixture(experts))
    model = PeftModel.from_pretrained(
        placed(saved, device_map), saved / "mixture", low_cpu_mem_usage=low_cpu_mem_usage
    )
    assert torch.equal(logits_of(model.eval()), expected)
    native = placed(saved, device_map)
    native.load_adapter(str(saved / "mixture"))
    assert torch.equal(logits_of(native), expected)


def test_offloaded_weights_are_refused_with_their_site(saved, experts):
    """PEFT leaves the matrices of an adapter beside them without memory, a plain LoRA's too."""
    message = r"weights at model\.layers\.1\..* are offloaded by its device_map.*load the backbone without offloading"
    with pytest.raises(MixerError, match=message):
        PeftModel.from_pretrained(placed(saved, ON_DISK), saved / "mixture")
    with pytest.raises(MixerError, match=message):
        placed(saved, ON_DISK).load_adapter(str(saved / "mixture"))
    with pytest.raises(MixerError, match=message):
        get_peft_model(placed(saved, ON_DISK), LoraMixerConfig(experts=dict(experts)))
