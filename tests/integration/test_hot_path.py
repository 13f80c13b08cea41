"""The fast forms of the mixture give what the formula says, whatever the ranks, gates, types, lengths and sites."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from loramixer import set_gate
from loramixer.experts import SiteWeights
from loramixer.routing import gates
from loramixer.tuner import LoraMixerConfig, LoraMixerLayer, mixing, sharing
from loramixer.tuner.layout import SiteLayout
from loramixer.tuner.runtime import GateSettings, MixtureRuntime, RoutingCapture, capture_routing
from loramixer.tuner.sharing import InputGroup
from tests import tiny
from tests.tiny import logits_of

D, F = 12, 10


@st.composite
def mixtures(draw, uniform=False):
    """Ranks (0: absent, but one expert is present), scalings, gate settings, type and number of tokens."""
    count = draw(st.integers(1, 6))
    if uniform:
        ranks, scalings = [draw(st.integers(1, 5))] * count, [draw(st.floats(0.1, 3))] * count
    else:
        ranks = draw(st.lists(st.integers(0, 5), min_size=count, max_size=count).filter(any))
        scalings = [draw(st.floats(0.1, 3)) if rank else 0.0 for rank in ranks]
    mode = draw(st.sampled_from(["soft", "top_k", "straight_through", "uniform", "off"]))
    gate = GateSettings(mode, draw(st.integers(1, count)), draw(st.floats(0.3, 3)), draw(st.booleans()))
    return {
        "layout": SiteLayout(tuple(ranks), tuple(scalings)),
        "gate": gate,
        "base_dtype": draw(st.sampled_from([torch.float32, torch.bfloat16, torch.float64])),
        "leading": draw(st.sampled_from([(1, 1), (2, 3), (7,), (1, 2, 4)])),
        "seed": draw(st.integers(0, 1000)),
    }


def build(layout, gate, base_dtype, mixing="auto"):
    """One layer with random experts, and the experts."""
    config = LoraMixerConfig(
        experts={f"e{i}": {"sites": {}, "source": ""} for i in range(len(layout.ranks))}, mixing=mixing
    )
    runtime = MixtureRuntime(tuple(config.experts), config, gate, gate)
    layer = LoraMixerLayer(nn.Linear(D, F, dtype=base_dtype)).eval()
    parts = [
        SiteWeights(torch.randn(rank, D), torch.randn(F, rank), scaling) if rank else None
        for rank, scaling in zip(layout.ranks, layout.scalings, strict=True)
    ]
    layer.add_router("default", runtime, len(parts))
    layer.lora_mixer_router["default"].weight.data.normal_()
    layer.set_experts("default", layout, parts)
    layer.sites["default"] = 0
    runtime.sites.append("site")
    InputGroup("default", runtime, None).join(layer)
    layer.set_adapter(["default"])
    return layer, parts


def naive(layer, parts, gate, x):
    """Eq. 4 of the paper, expert by expert."""
    logits = x.float() @ layer.lora_mixer_router["default"].weight.T
    if len(parts) > 1:
        logits = logits.masked_fill(torch.tensor([part is None for part in parts]), -torch.inf)
    weights = gates(logits, gate.mode, gate.k, gate.temperature, gate.renormalize)
    y = layer.base_layer(x)
    for index, part in enumerate(parts):
        if part is not None:
            y = y + (weights[..., index : index + 1] * part.scaling * (x.float() @ part.A.T @ part.B.T)).to(y.dtype)
    return y


@settings(max_examples=120, deadline=None)
@given(mixtures())
def test_the_mixture_is_the_sum_over_experts(case):
    torch.manual_seed(case.pop("seed"))
    leading = case.pop("leading")
    layer, parts = build(**case)
    x = torch.randn(*leading, D, dtype=case["base_dtype"])
    tolerance = 0.15 if case["base_dtype"] == torch.bfloat16 else 1e-4
    for context in (torch.no_grad, torch.enable_grad, torch.inference_mode):
        with context():
            torch.testing.assert_close(layer(x), naive(layer, parts, case["gate"], x), atol=tolerance, rtol=tolerance)


@settings(max_examples=80, deadline=None)
@given(mixtures(uniform=True))
def test_the_sparse_form_equals_the_dense_form(case):
    seed, leading = case.pop("seed"), case.pop("leading")
    results = []
    for form in ("dense", "sparse"):
        torch.manual_seed(seed)
        layer, _ = build(**case, mixing=form)
        x = torch.randn(*leading, D, dtype=case["base_dtype"])
        with torch.no_grad():
            results.append(layer(x))
    tolerance = 0.15 if case["base_dtype"] == torch.bfloat16 else 1e-4
    torch.testing.assert_close(*results, atol=tolerance, rtol=tolerance)


@settings(max_examples=40, deadline=None)
@given(mixtures(), st.randoms(use_true_random=False))
def test_permuted_experts_permute_the_gates_and_nothing_else(case, random):
    torch.manual_seed(case.pop("seed"))
    leading = case.pop("leading")
    layer, parts = build(**case)
    order = list(range(len(parts)))
    random.shuffle(order)
    layout = case.pop("layout")
    permuted = SiteLayout(tuple(layout.ranks[i] for i in order), tuple(layout.scalings[i] for i in order))
    other, _ = build(permuted, **case)
    other.base_layer = layer.base_layer
    other.lora_mixer_router["default"].weight.data = layer.lora_mixer_router["default"].weight.data[order]
    other.set_experts("default", permuted, [parts[i] for i in order])
    x = torch.randn(*leading, D, dtype=case["base_dtype"])
    tolerance = 0.15 if case["base_dtype"] == torch.bfloat16 else 1e-4
    seen = []
    for each in (layer, other):
        runtime = each.runtimes["default"]
        runtime.capture = RoutingCapture(["site"], ["tokens"])
        with torch.no_grad():
            seen.append((each(x), runtime.capture._gates[0][0]))
    (y, one), (permuted_y, another) = seen
    torch.testing.assert_close(permuted_y, y, atol=tolerance, rtol=tolerance)
    torch.testing.assert_close(another, one[..., order], atol=1e-5, rtol=1e-5)


@settings(max_examples=15, deadline=None)
@given(st.integers(1, 6), st.integers(0, 5), st.sampled_from(["soft", "top_k"]))
def test_padding_changes_nothing_for_the_other_tokens(experts_folder, length, padding, gate):
    model = tiny.mixture(experts_folder, gate=gate)
    ids = tiny.token_ids(1, length)
    padded = torch.cat([torch.full((1, padding), 2), ids], dim=1)
    mask = torch.cat([torch.zeros(1, padding, dtype=torch.long), torch.ones_like(ids)], dim=1)
    positions = (mask.cumsum(-1) - 1).clamp_min(0)
    with torch.no_grad():
        expected = model(input_ids=ids).logits
        found = model(input_ids=padded, attention_mask=mask, position_ids=positions).logits[:, padding:]
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)


@pytest.fixture(scope="module")
def experts_folder(experts):
    return experts


@pytest.mark.parametrize("form", ["dense", "sparse"])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_a_whole_model_generates_the_same_in_both_forms(tmp_path_factory, form, k):
    folder = tmp_path_factory.mktemp("same")
    paths = {
        f"e{i}": tiny.save_expert(folder / str(i), i, r=3, target_modules=["q_proj", "v_proj", "o_proj"])
        for i in range(4)
    }
    ids = tiny.token_ids(2, 5)
    answer = {"max_new_tokens": 6, "do_sample": False, "attention_mask": torch.ones_like(ids)}
    expected = tiny.mixture(paths, top_k=k, mixing="dense")
    model = tiny.mixture(paths, top_k=k, mixing=form)
    torch.testing.assert_close(logits_of(model), logits_of(expected), atol=1e-5, rtol=1e-5)
    assert torch.equal(model.generate(input_ids=ids, **answer), expected.generate(input_ids=ids, **answer))
    traces = []
    for each in (model, expected):
        with capture_routing(each) as capture, torch.no_grad():
            each(input_ids=ids[:1])
        traces.append(capture.take())
    torch.testing.assert_close(torch.from_numpy(traces[0][1]), torch.from_numpy(traces[1][1]), atol=1e-5, rtol=1e-5)


def test_the_sparse_form_is_taken_when_it_is_expected_to_be_cheaper():
    one_token = [mixing.sparse_is_cheaper(1, experts * 16, 48, 1152) for experts in (3, 6, 24, 192)]
    assert one_token == [False, False, True, True]
    assert not mixing.sparse_is_cheaper(256, 6 * 16, 48, 1152)
    assert mixing.sparse_is_cheaper(64, 192 * 16, 48, 1152)
    assert not mixing.sparse_is_cheaper(64, 48, 48, 1152)


def test_q_k_and_v_share_one_router_product(experts, monkeypatch):
    model = tiny.mixture(experts)
    products = []
    former = sharing._router_product
    monkeypatch.setattr(sharing, "_router_product", lambda *args: products.append(args[1].shape[0]) or former(*args))
    logits_of(model)
    # Two layers; three experts at q, k, v together and at o.
    assert products == [9, 3, 9, 3]


def test_nothing_of_one_input_is_left_for_the_next(experts):
    """Sites called alone, in another order or with other inputs get what belongs to their own input."""
    model = tiny.mixture(experts)
    attention = model.get_base_model().model.layers[0].self_attn
    sites = [attention.q_proj, attention.k_proj, attention.v_proj]
    inputs = [torch.randn(1, 4, 32) for _ in range(3)]
    with torch.no_grad():
        alone = []
        for index in range(3):
            fresh = tiny.mixture(experts).get_base_model().model.layers[0].self_attn
            alone.append((fresh.q_proj, fresh.k_proj, fresh.v_proj)[index](inputs[index]))
        for order in ((0, 1, 2), (2, 0, 1), (1, 1, 0), (0, 2, 2)):
            for index in order:
                torch.testing.assert_close(sites[index](inputs[index]), alone[index], atol=1e-6, rtol=1e-6)
        changed = inputs[0].clone()
        sites[0](changed)
        changed.add_(1.0)
        torch.testing.assert_close(sites[1](changed), sites[1](changed.clone()), atol=1e-6, rtol=1e-6)


def test_a_hook_on_the_base_layer_sees_what_the_base_layer_gave(experts):
    """The result of a base layer is overwritten only where nobody else can hold it."""
    model = tiny.mixture(experts)
    expected = logits_of(model)
    base_layer = model.get_base_model().model.layers[0].self_attn.q_proj.base_layer
    seen = []
    base_layer.register_forward_hook(lambda module, args, output: seen.append((args[0].clone(), output)))
    torch.testing.assert_close(logits_of(model), expected, atol=1e-6, rtol=1e-6)
    x, output = seen[0]
    torch.testing.assert_close(output, nn.functional.linear(x, base_layer.weight), atol=1e-6, rtol=1e-6)


def test_inference_keeps_no_input_alive(experts):
    model = tiny.mixture(experts)
    logits_of(model)
    groups = {
        id(group): group
        for module in model.modules()
        if isinstance(module, LoraMixerLayer)
        for group, _ in module.places.values()
    }
    assert all(group._routed is None for group in groups.values())


def test_routers_are_not_rounded_by_autocast(experts):
    model = tiny.mixture(experts)
    ids = tiny.token_ids(1, 6)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16), capture_routing(model) as capture:
        model(input_ids=ids)
    logits, _ = capture.take()
    assert logits.dtype == "float32"
    rounded = torch.from_numpy(logits).bfloat16().float()
    finite = torch.isfinite(rounded)
    assert not torch.equal(rounded[finite], torch.from_numpy(logits)[finite])


def test_k_changes_at_inference_in_both_directions(experts):
    model = tiny.mixture(experts, top_k=2)
    before = logits_of(model)
    set_gate(model, k=1)
    assert not torch.allclose(logits_of(model), before)
    set_gate(model, k=2)
    assert torch.equal(logits_of(model), before)


def test_the_files_of_the_experts_are_let_go_of(experts):
    """Otherwise every expert would be in memory twice."""
    model = tiny.mixture(experts)
    assert not model.base_model._experts_to_inject
