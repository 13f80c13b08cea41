"""Gates from stored logits: they are those of the routing functions, and settings that cannot be are refused."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from loramixer import routing
from loramixer.errors import RoutingError, TraceError
from loramixer.trace import RoutingTrace, Site, TraceTokens
from loramixer.whatif import NOTE, top_k_gates, what_if

EXPERTS = ("math", "medical", "code", "law")


def make_trace(gate="top_k", k=2, absent=True, seed=0, **facts) -> RoutingTrace:
    """Two sites, five tokens, four experts; ``law`` is absent from the second site."""
    logits = np.random.default_rng(seed).normal(scale=2, size=(2, 5, 4)).astype(np.float32)
    if absent:
        logits[1, :, 3] = -np.inf
    provenance = {"gate": gate, "k": k, "renormalize": True, "gate_temperature": 1.0, "masked": [], **facts}
    return RoutingTrace(
        tokens=TraceTokens(
            "a b c d e",
            np.arange(5),
            np.array([[0, 1], [1, 3], [3, 5], [5, 7], [7, 9]]),
            ("prompt",) * 5,
            np.zeros(5, dtype=bool),
        ),
        sites=(Site(0, "q_proj", "layers.0.q_proj"), Site(1, "q_proj", "layers.1.q_proj")),
        experts=EXPERTS,
        logits=logits,
        gates=routing.gates(torch.from_numpy(logits), gate, k).numpy(),
        provenance=provenance,
    )


@settings(max_examples=150, deadline=None)
@given(
    gate=st.sampled_from(["soft", "top_k", "uniform"]),
    k=st.integers(1, 4),
    temperature=st.floats(0.05, 20),
    renormalize=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_gates_are_those_of_the_routing_functions(gate, k, temperature, renormalize, seed):
    trace = make_trace(seed=seed)
    found = what_if(trace, gate=gate, k=k, temperature=temperature, renormalize=renormalize)
    expected = routing.gates(torch.from_numpy(trace.logits), gate, k, temperature, renormalize).numpy()
    np.testing.assert_allclose(found.gates, expected, atol=3e-7, rtol=3e-6)
    np.testing.assert_array_equal(found.gates > 0, expected > 0)
    assert found.gates.dtype == np.float32


def test_nothing_changed_is_what_was_recorded():
    for gate in ("top_k", "soft", "uniform", "straight_through"):
        trace = make_trace(gate)
        np.testing.assert_allclose(what_if(trace).gates, trace.gates, atol=1e-7)


def test_a_bias_of_ln_2_doubles_the_odds():
    trace = make_trace("soft", absent=False)
    found = what_if(trace, bias={"code": float(np.log(2))})
    before, after = trace.gates[..., 2] / trace.gates[..., 0], found.gates[..., 2] / found.gates[..., 0]
    np.testing.assert_allclose(after, 2 * before, rtol=1e-5)
    np.testing.assert_array_equal(found.gates.argmax(-1), (trace.logits + np.array([0, 0, np.log(2), 0])).argmax(-1))
    assert found.logits[0, 0, 2] == pytest.approx(trace.logits[0, 0, 2] + np.log(2), abs=1e-6)


def test_the_weight_of_masked_experts_goes_to_the_others():
    trace = make_trace("soft")
    found = what_if(trace, mask=["math"])
    assert (found.gates[..., 0] == 0).all()
    assert np.isneginf(found.logits[..., 0]).all()
    kept = trace.gates[..., 1:]
    np.testing.assert_allclose(found.gates[..., 1:], kept / kept.sum(-1, keepdims=True), rtol=1e-5)
    assert found.provenance["masked"] == ["math"]
    assert not np.isneginf(trace.logits[0]).any()


def test_a_site_without_any_expert_left_has_no_gates():
    found = what_if(make_trace(), mask=("math", "medical", "code"))
    np.testing.assert_array_equal(found.gates[1], 0)
    np.testing.assert_array_equal(found.gates[0], [[0, 0, 0, 1]] * 5)


def test_of_equal_logits_the_first_counts():
    np.testing.assert_array_equal(top_k_gates(np.zeros((1, 3), np.float32), 1), [[1, 0, 0]])


@pytest.mark.parametrize("temperature", [1e-300, 1e-5, 1e30])
def test_extreme_temperatures_stay_finite(temperature):
    found = what_if(make_trace("soft", absent=False), temperature=temperature).gates
    np.testing.assert_allclose(found.sum(-1), 1, atol=1e-6)


def test_provenance_says_what_this_is():
    found = what_if(make_trace(), temperature=0.5, k=1, bias={"law": -1.0}, mask=["math"])
    assert found.provenance["what_if"] == {
        "note": NOTE,
        "k": 1,
        "temperature": 0.5,
        "bias": {"law": -1.0},
        "mask": ["math"],
    }
    assert (found.provenance["k"], found.provenance["gate_temperature"]) == (1, 0.5)
    assert NOTE == "routing only, text not regenerated"


def test_sites_with_a_rule_keep_what_it_fixes():
    rules = [{"sites": r".*1\.q_proj", "gate": "soft"}]
    trace = make_trace("soft", site_gates=rules, site_rules=[None, 0])
    found = what_if(trace, gate="top_k", k=1)
    assert set(found.gates[0].sum(-1).tolist()) == {1.0}
    assert (found.gates[0].max(-1) == 1).all()
    np.testing.assert_allclose(found.gates[1], trace.gates[1], atol=1e-7)


def test_rules_without_their_sites_are_refused():
    trace = make_trace(site_gates=[{"sites": ".*", "gate": "soft"}])
    with pytest.raises(TraceError, match="does not say which sites follow them"):
        what_if(trace)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"mask": EXPERTS}, "All experts .* would be masked; leave at least one"),
        ({"k": 0}, "k is 0; with 4 experts a whole number from 1 to 4 is needed"),
        ({"k": 5}, "k is 5; with 4 experts"),
        ({"k": True}, "k is True"),
        ({"temperature": 0}, "The gate temperature is 0; a number above 0 is needed"),
        ({"temperature": -1.0}, "The gate temperature is -1.0"),
        ({"temperature": float("nan")}, "The gate temperature is nan"),
        ({"bias": {"math": float("inf")}}, "The bias of 'math' is inf"),
        ({"bias": {"physics": 1.0}}, "no expert 'physics'; it has math, medical, code, law"),
        ({"mask": "physics"}, "no expert 'physics'"),
        ({"gate": "domain"}, "The gate is 'domain'; from logits alone it can be soft, top_k, uniform"),
    ],
)
def test_impossible_settings_are_one_sentence(changes, sentence):
    with pytest.raises(RoutingError, match=sentence):
        what_if(make_trace(), **changes)


def test_masks_add_up_over_steps():
    once = what_if(make_trace(), mask=["math", "medical"])
    with pytest.raises(RoutingError, match="All experts"):
        what_if(once, mask=["code", "law"])
    assert what_if(once, mask=["code"]).provenance["masked"] == ["math", "medical", "code"]


def test_gates_that_do_not_follow_from_logits_are_refused():
    domain = replace(make_trace(), provenance={"gate": "domain", "k": 2})
    with pytest.raises(TraceError, match="gated by 'domain', which does not follow from logits; give a gate"):
        what_if(domain)
    assert what_if(domain, gate="soft").gates.shape == (2, 5, 4)
    with pytest.raises(TraceError, match="recorded under an intervention"):
        what_if(replace(make_trace(), provenance={"interventions": [{}]}))
