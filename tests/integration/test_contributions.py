"""How much each expert adds, against the outputs computed one by one, wherever a projection can be."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from loramixer import RoutingTrace, mask_experts, stream_trace, trace
from loramixer.cli import app
from loramixer.experts import SiteWeights
from loramixer.metrics import gated_without_effect
from loramixer.tuner import LoraMixerConfig, LoraMixerLayer
from loramixer.tuner.layout import SiteLayout
from loramixer.tuner.mixing import block_grams, expert_norms
from loramixer.tuner.runtime import GateSettings, MixtureRuntime, RoutingCapture, active_runtime, capture_routing
from loramixer.tuner.sharing import InputGroup
from tests import architectures, tiny
from tests.architectures import ARCHITECTURES


@pytest.fixture(scope="module")
def experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return tiny.save_experts(tmp_path_factory.mktemp("experts"))


@pytest.fixture(scope="module")
def equal_experts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("equal")
    return {
        name: tiny.save_expert(folder / name, seed, r=3, target_modules=list(tiny.ALL_PROJECTIONS))
        for seed, name in enumerate("abcd")
    }


class Inputs:
    """What every routed projection read while a block ran."""

    def __init__(self, model: Any) -> None:
        self.layers = {
            name.removeprefix("base_model.model."): module
            for name, module in model.named_modules()
            if isinstance(module, LoraMixerLayer)
        }
        self.seen: dict[str, list[torch.Tensor]] = {name: [] for name in self.layers}

    def __enter__(self) -> Inputs:
        for name, layer in self.layers.items():
            layer._output_norms = self._watched(name, layer._output_norms)
        return self

    def _watched(self, name: str, former: Any) -> Any:
        def output_norms(adapter_name: str, capture: Any, x_ND: torch.Tensor, *others: Any) -> Any:
            self.seen[name].append(x_ND.detach().clone())
            return former(adapter_name, capture, x_ND, *others)

        return output_norms

    def __exit__(self, *_: Any) -> None:
        for layer in self.layers.values():
            del layer._output_norms


def expected_norms(layer: LoraMixerLayer, x_ND: torch.Tensor, gates_NE: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """Every expert's output as a whole, and the frozen projection's."""
    A_RD, B_RF = (matrix.float() for matrix in layer.matrices("default"))
    layout = layer.layouts["default"]
    outputs = []
    for index, scaling in enumerate(layout.scalings):
        rows = layout.slice_of(index)
        outputs.append(gates_NE[:, index : index + 1] * scaling * (x_ND.float() @ A_RD[rows].T @ B_RF[rows]))
    weight = layer.base_layer.weight.float()
    base = x_ND.float() @ (weight if type(layer.base_layer).__name__ == "Conv1D" else weight.T)
    return torch.stack([output.norm(dim=-1) for output in outputs], dim=-1), base.norm(dim=-1)


def check(model: Any, ids: torch.Tensor, tolerance: float = 1e-4) -> None:
    with Inputs(model) as inputs, torch.no_grad(), capture_routing(model, contributions=True) as capture:
        model(input_ids=ids, use_cache=False)
        found = capture.take_arrays()
    sites = active_runtime(model).sites
    assert found["contributions"].shape == found["gates"].shape == (len(sites), ids.shape[1], found["gates"].shape[2])
    assert (found["contributions"].dtype, found["base_norms"].dtype) == (np.float32, np.float32)
    for index, site in enumerate(sites):
        x_ND = torch.cat(inputs.seen[site])
        experts, base = expected_norms(inputs.layers[site], x_ND, torch.from_numpy(found["gates"][index]))
        scale = float(base.max())
        np.testing.assert_allclose(
            found["contributions"][index], experts, rtol=100 * tolerance, atol=tolerance * scale
        )
        np.testing.assert_allclose(found["base_norms"][index], base, rtol=100 * tolerance, atol=tolerance * scale)
    assert found["contributions"].max() > 1e-3 * found["base_norms"].max()


@pytest.mark.parametrize("gate", ["soft", "top_k"])
@pytest.mark.parametrize("masked", [(), ("a",)])
def test_norms_are_those_of_the_outputs(experts, gate, masked):
    """Ranks, scalings and sites differ; absent experts add nothing."""
    model = tiny.mixture(experts, gate=gate, top_k=2)
    mask_experts(model, *masked)
    check(model, tiny.token_ids(1, 7))
    with torch.no_grad(), capture_routing(model, contributions=True) as capture:
        model(input_ids=tiny.token_ids(1, 7))
        found = capture.take_arrays()["contributions"]
    k_proj = active_runtime(model).sites.index("model.layers.0.self_attn.k_proj")
    assert (found[k_proj, :, 1:] == 0).all()


@pytest.mark.parametrize("mixing", ["dense", "sparse"])
@pytest.mark.parametrize("length", [1, 6])
def test_norms_are_those_of_the_outputs_in_every_fast_form(equal_experts, mixing, length):
    """And a projection that is hooked takes the general way, so both ways are compared as well."""
    model = tiny.mixture(equal_experts, top_k=2, mixing=mixing)
    ids = tiny.token_ids(1, length)
    check(model, ids)
    arrays = []
    for watched in (False, True):
        if watched:  # no longer a plain product
            for module in model.modules():
                if isinstance(module, LoraMixerLayer):
                    module.base_layer.register_forward_hook(lambda *_: None)
        with torch.no_grad(), capture_routing(model, contributions=True) as capture:
            model(input_ids=ids)
            arrays.append(capture.take_arrays())
    for name in ("contributions", "base_norms"):
        np.testing.assert_allclose(arrays[0][name], arrays[1][name], rtol=1e-4, atol=1e-5)


def test_the_bias_is_no_part_of_the_base_norm(equal_experts):
    model = tiny.mixture(equal_experts)
    for module in model.modules():
        if isinstance(module, LoraMixerLayer):
            module.base_layer.bias = torch.nn.Parameter(torch.full((module.out_features,), 5.0))
    check(model, tiny.token_ids(1, 4))


def test_half_precision_is_measured_in_float32(experts):
    check(tiny.mixture(experts).to(torch.bfloat16), tiny.token_ids(1, 5), tolerance=2e-2)


@pytest.mark.parametrize("name", ["falcon-mamba", "mamba2", "gpt2", "opt"])
def test_other_projections_too(name, tmp_path):
    """Among them those that no one calls (Mamba's dt_proj), transposed weights, and inputs that are flattened."""
    architecture = ARCHITECTURES[name]
    model = architectures.mixture(architecture, architectures.save_experts(architecture, tmp_path))
    if name == "falcon-mamba":
        assert any(site.endswith("dt_proj") for site in active_runtime(model).sites)
    check(model, tiny.token_ids(1, 6))


def test_traces_hold_them_for_prompt_and_answer(experts):
    model, tokenizer = tiny.mixture(experts), tiny.tokenizer()
    whole = trace(model, tokenizer, "the dose", 4, contributions=True)
    assert whole.contributions.shape == whole.gates.shape
    assert whole.base_norms.shape == whole.gates.shape[:2]
    assert (whole.base_norms > 0).all()
    steps = list(stream_trace(model, tokenizer, "the dose", 4, contributions=True))
    np.testing.assert_array_equal(steps[-1].contributions, whole.contributions)
    with torch.no_grad(), capture_routing(model, contributions=True) as capture:
        model(input_ids=torch.tensor([whole.tokens.ids.tolist()]))
        one_pass = capture.take_arrays()
    np.testing.assert_allclose(whole.contributions, one_pass["contributions"], atol=1e-4)
    np.testing.assert_allclose(whole.base_norms, one_pass["base_norms"], rtol=1e-3)


def test_recording_them_changes_nothing(experts):
    model, tokenizer = tiny.mixture(experts), tiny.tokenizer()
    plain, measured = (
        trace(model, tokenizer, "the dose", 4),
        trace(model, tokenizer, "the dose", 4, contributions=True),
    )
    np.testing.assert_array_equal(plain.gates, measured.gates)
    assert (plain.contributions, plain.base_norms, plain.tokens.text) == (None, None, measured.tokens.text)


def test_nothing_is_computed_unless_asked_for(experts, monkeypatch):
    model = tiny.mixture(experts)
    monkeypatch.setattr(LoraMixerLayer, "_output_norms", lambda *_: pytest.fail("norms were computed"))
    trace(model, tiny.tokenizer(), "the dose", 2)
    with pytest.raises(pytest.fail.Exception):
        trace(model, tiny.tokenizer(), "the dose", contributions=True)


def test_one_side_of_an_encoder_decoder(tmp_path):
    architecture = ARCHITECTURES["t5"]
    model = architectures.mixture(architecture, architectures.save_experts(architecture, tmp_path))
    found = trace(model, tiny.tokenizer(), "the dose", 3, side="decoder", contributions=True)
    assert found.contributions.shape == found.gates.shape
    assert found.contributions.max() > 0


def test_a_gram_matrix_is_enough_when_ranks_are_uneven():
    torch.manual_seed(0)
    layout = SiteLayout((3, 0, 1), (0.5, 0.0, 2.0))
    x, A, B = torch.randn(5, 8), torch.randn(4, 8), torch.randn(4, 6)
    found = expert_norms(x, A, block_grams(B, layout), layout)
    outputs = [0.5 * x @ A[:3].T @ B[:3], torch.zeros(5, 6), 2.0 * x @ A[3:].T @ B[3:]]
    torch.testing.assert_close(found, torch.stack([part.norm(dim=-1) for part in outputs], -1), rtol=1e-5, atol=1e-5)


def test_training_mode_is_restored_after_a_failure(experts):
    model = tiny.mixture(experts).train()
    layer = next(module for module in model.modules() if isinstance(module, LoraMixerLayer))
    layer.forward = lambda *_: 1 / 0
    with pytest.raises(ZeroDivisionError):
        trace(model, tiny.tokenizer(), "the dose")
    assert model.training


def test_a_high_gate_without_effect_is_flagged():
    gates = np.array([[[0.9, 0.1], [0.5, 0.5], [0.2, 0.8], [1.0, 0.0]]])
    contributions = np.array([[[0.04, 0.96], [3.0, 3.0], [0.0, 1.0], [0.0, 0.0]]])
    expected = np.array([[[True, False], [False, False], [False, False], [True, False]]])
    np.testing.assert_array_equal(gated_without_effect(gates, contributions), expected)
    np.testing.assert_array_equal(
        gated_without_effect(gates, contributions, high_gate=0.95), expected & (gates > 0.95)
    )


def test_the_layer_alone_measures_what_it_adds():
    """Without a model: one site whose input, gates and outputs are all known."""
    torch.manual_seed(1)
    config = LoraMixerConfig(experts={"a": {"sites": {}, "source": ""}, "b": {"sites": {}, "source": ""}})
    gate = GateSettings("soft", 2)
    runtime = MixtureRuntime(("a", "b"), config, gate, gate)
    layer = LoraMixerLayer(torch.nn.Linear(8, 6)).eval()
    parts = [SiteWeights(torch.randn(2, 8), torch.randn(6, 2), scaling) for scaling in (1.0, 1.0)]
    layer.add_router("default", runtime, 2)
    layer.set_experts("default", SiteLayout((2, 2), (1.0, 1.0)), parts)
    layer.sites["default"] = 0
    runtime.sites.append("site")
    InputGroup("default", runtime, None).join(layer)
    layer.set_adapter(["default"])
    runtime.capture = RoutingCapture(["site"], ["tokens"], contributions=True)
    x = torch.randn(1, 3, 8)
    with torch.no_grad():
        added = layer(x) - layer.base_layer(x)
    found = runtime.capture.take_arrays()
    gates = torch.from_numpy(found["gates"][0])
    outputs = torch.stack([x[0] @ part.A.T @ part.B.T for part in parts], dim=1) * gates.unsqueeze(-1)
    torch.testing.assert_close(outputs.sum(dim=1), added[0], atol=1e-5, rtol=1e-4)
    np.testing.assert_allclose(found["contributions"][0], outputs.norm(dim=-1), rtol=1e-4)
    np.testing.assert_allclose(
        found["base_norms"][0], (x[0] @ layer.base_layer.weight.T).norm(dim=-1).detach(), rtol=1e-4
    )


@pytest.mark.parametrize("asked", [False, True])
def test_the_command_line_records_them_when_asked(experts, tmp_path, monkeypatch, asked):
    monkeypatch.setattr("loramixer.mixers.load_mixer", lambda *_, **__: (tiny.mixture(experts), tiny.tokenizer()))
    arguments = ["trace", "the dose", "--mixer", "tiny", "--out", str(tmp_path / "t.npz")]
    result = CliRunner().invoke(app, arguments + ["--contributions"] * asked)
    assert result.exit_code == 0, result.output
    assert (RoutingTrace.load(tmp_path / "t.npz").contributions is not None) == asked
