"""State-space mixers: their fused path takes weights instead of calling projections, and must not pass experts over.

The fused kernels need CUDA; what stands in for them here computes the same from the same weights, so that a mixture
that is passed over shows.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba
from transformers.models.mamba2 import modeling_mamba2

from loramixer.errors import MixerError
from loramixer.tuner import LoraMixerLayer, guards
from loramixer.tuner.editing import add_expert, remove_expert
from tests import architectures, tiny
from tests.architectures import ARCHITECTURES, batch, merged

FUSED = {
    "mamba": (modeling_mamba, "mamba_inner_fn"),
    "falcon-mamba": (modeling_falcon_mamba, "mamba_inner_fn"),
    "mamba2": (modeling_mamba2, "mamba2_split_conv1d_scan_combined"),
}


class Kernel:
    """Stands where the modeling file looks for its fused kernel, and counts how often it is asked."""

    def __init__(self) -> None:
        self.calls = 0


class MambaKernel(Kernel):
    """What `mamba_ssm.mamba_inner_fn` computes."""

    def __call__(
        self, xz, conv_weight, conv_bias, x_proj, dt_proj, out_proj, out_bias, A, B, C, D, delta_bias, **kwargs
    ):
        self.calls += 1
        x, z = xz.chunk(2, dim=1)
        x = modeling_mamba.causal_conv1d_fn(x, conv_weight.squeeze(1), conv_bias, activation="silu")
        rank, states = dt_proj.shape[1], A.shape[1]
        dt, B, C = F.linear(x.transpose(1, 2), x_proj).split([rank, states, states], dim=-1)
        if (epsilon := kwargs.get("b_c_dt_rms_eps")) is not None:  # Falcon's norms
            dt, B, C = (part * torch.rsqrt(part.pow(2).mean(-1, keepdim=True) + epsilon) for part in (dt, B, C))
        scanned = modeling_mamba.mamba_selective_scan(
            x,
            torch.matmul(dt_proj, dt.transpose(1, 2)),  # the function: the operator may be ours
            A,
            B.transpose(1, 2),
            C.transpose(1, 2),
            D=D,
            z=z,
            delta_bias=delta_bias,
            delta_softplus=True,
        )
        return F.linear(scanned.transpose(1, 2), out_proj, out_bias)


class AskedKernel(Kernel):
    """Counts, and leaves the computation to the path that Transformers takes without kernels."""

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self.calls += 1


@pytest.fixture(params=FUSED)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def kernel(name: str, monkeypatch: pytest.MonkeyPatch) -> Kernel:
    stand_in = AskedKernel() if name == "mamba2" else MambaKernel()
    monkeypatch.setattr(*FUSED[name], stand_in)
    return stand_in


@pytest.fixture
def experts(name: str, tmp_path) -> dict[str, str]:
    return architectures.save_experts(ARCHITECTURES[name], tmp_path)


def loss_of(model: Any, name: str) -> torch.Tensor:
    return model(**batch(ARCHITECTURES[name])).loss


def mixers(model: Any) -> Iterator[torch.nn.Module]:
    return (module for module in model.modules() if hasattr(module, "A_log"))


def test_the_kernels_stand_in_is_what_the_backbone_takes_in_training(name, kernel):
    backbone = ARCHITECTURES[name].build()
    expected = loss_of(backbone, name)
    assert kernel.calls == 0
    torch.testing.assert_close(loss_of(backbone.train(), name), expected)
    assert kernel.calls == 2


@pytest.mark.parametrize("index", range(3))
def test_no_expert_is_passed_over_in_training(name, kernel, experts, index):
    # Without the fused path only where a projection is routed whose weight it takes: not where in_proj alone is.
    architecture, folder = ARCHITECTURES[name], list(experts.values())[index]
    expected = loss_of(merged(architecture, folder), name)
    effect = (expected - loss_of(architecture.build(), name)).abs()
    model = architectures.mixture(architecture, {"only": folder}, training_gate="soft").train()
    error = (loss_of(model, name) - expected).abs()
    assert effect > 1e-6
    assert error <= effect / 100
    assert kernel.calls == (2 if architecture.projections[list(experts)[index]] == r"mixer\.in_proj$" else 0)


def test_training_reaches_every_router_with_kernels_there(name, kernel, experts):
    model = architectures.mixture(ARCHITECTURES[name], experts, routing_loss="rsl").train()
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(**batch(ARCHITECTURES[name]), use_cache=False).loss.backward()  # the recomputation must take the same path
    assert kernel.calls == 0
    assert all(mixer.training for mixer in mixers(model))
    for module in model.modules():
        if isinstance(module, LoraMixerLayer) and (~module.lora_mixer_absent["default"]).sum() > 1:
            assert module.lora_mixer_router["default"].weight.grad.abs().sum() > 0


def test_the_fused_path_stays_where_no_expert_acts(name, kernel, experts):
    model = architectures.mixture(ARCHITECTURES[name], experts).train()
    with model.disable_adapter():
        loss_of(model, name)
    assert kernel.calls == 2
    loss_of(model.unload().train(), name)
    assert kernel.calls == 4


def test_a_forward_that_fails_leaves_the_mixer_in_training_mode(name, kernel, experts, monkeypatch):
    model = architectures.mixture(ARCHITECTURES[name], experts).train()
    layer = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    monkeypatch.setattr(layer, "forward", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        loss_of(model, name)
    assert all(mixer.training for mixer in mixers(model))


def test_a_second_mixture_on_the_same_mixers_changes_nothing(name, kernel, experts, tmp_path):
    model = architectures.mixture(ARCHITECTURES[name], experts)
    model.save_pretrained(tmp_path / "saved")
    model.load_adapter(str(tmp_path / "saved"), adapter_name="second", is_trainable=True)
    first = loss_of(model.train(), name)
    model.set_adapter("second")
    torch.testing.assert_close(loss_of(model, name), first)
    assert kernel.calls == 0
    assert all(mixer.training for mixer in mixers(model))


@pytest.mark.parametrize("name", ["mamba", "falcon-mamba"], indirect=True)
def test_an_expert_that_is_added_later_is_not_passed_over_either(name, kernel, tmp_path):
    architecture = ARCHITECTURES[name]
    only_first = replace(architecture, projections=dict.fromkeys(architecture.projections, r"mixer\.in_proj$"))
    first = architectures.save_experts(only_first, tmp_path / "first")["a"]
    later = architectures.save_experts(architecture, tmp_path / "later")["a"]
    model = architectures.mixture(architecture, {"first": first}, training_gate="top_k", top_k=1)
    add_expert(model, "later", later)
    remove_expert(model, "first")
    torch.testing.assert_close(loss_of(model.train(), name), loss_of(merged(architecture, later), name))
    assert kernel.calls == 0


def test_without_the_guard_the_training_forward_says_what_was_passed_over(name, kernel, experts, monkeypatch):
    if name == "mamba2":
        monkeypatch.setattr(*FUSED[name], lambda projected, *_, **settings: projected[..., :16])
    monkeypatch.setattr(guards, "_leave_fused_path", lambda *_: None)
    model = architectures.mixture(ARCHITECTURES[name], experts).train()
    with pytest.raises(MixerError, match=r"mixer\.(x|out)_proj was passed over: \w+Mixer took its weight"):
        loss_of(model, name)


@pytest.mark.parametrize("name", ["mamba", "falcon-mamba"], indirect=True)
def test_the_weight_of_dt_proj_is_an_ordinary_tensor_to_all_else(name, experts):
    model = architectures.mixture(ARCHITECTURES[name], experts)
    layer = next(mixers(model)).dt_proj
    base = layer.base_layer.weight
    assert (layer.weight.shape, layer.weight.dtype, layer.weight.device) == (base.shape, base.dtype, base.device)
    assert type(layer.weight + 0) is torch.Tensor
    assert torch.equal(torch.matmul(layer.weight, torch.ones(6)), base @ torch.ones(6))


@pytest.mark.parametrize("name", ["falcon-mamba"], indirect=True)
def test_dt_proj_of_a_quantised_backbone_is_called_and_mixed_once(name, experts):
    architecture, folder = ARCHITECTURES[name], experts["c"]
    expected = loss_of(merged(architecture, folder), name)
    model = architectures.mixture(architecture, experts)
    model.config._is_quantized = True  # what the mixer asks before it calls dt_proj
    with tiny.only_expert(model, 2):
        torch.testing.assert_close(loss_of(model, name), expected, atol=1e-5, rtol=1e-5)
