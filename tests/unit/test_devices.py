"""Which device a command measures on, chosen without a GPU."""

from __future__ import annotations

import pytest
import torch

from loramixer.devices import choose_device
from loramixer.errors import LoraMixerError
from loramixer.training.loop import fast_training_dtype


@pytest.mark.parametrize(("has_gpu", "chosen"), [(True, "cuda"), (False, "cpu")])
def test_auto_is_the_gpu_where_torch_sees_one(monkeypatch, has_gpu, chosen):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    assert choose_device() == choose_device("auto") == torch.device(chosen)
    assert choose_device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("name", ["graphics", "", "cpu:x", "meta", "cuda:999", "hpu", "fpga"])
def test_a_device_that_is_not_here_or_holds_no_numbers_is_one_sentence(name):
    with pytest.raises(
        LoraMixerError, match=f"^The device '{name}' cannot be used on this machine; give auto, cpu, or"
    ):
        choose_device(name)


@pytest.mark.parametrize(("emulated", "native", "dtype"), [(True, True, "bfloat16"), (True, False, "float32")])
def test_a_gpu_trains_in_bfloat16_only_where_it_has_it(monkeypatch, emulated, native, dtype):
    """Torch emulates it on older ones, such as a T4, where float32 is faster."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: emulated if including_emulation else native
    )
    assert fast_training_dtype() == getattr(torch, dtype)
