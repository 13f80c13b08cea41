"""“Python that reproduces this view”: the script runs, and draws the same numbers."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from peft import get_peft_model
from transformers import AutoModelForCausalLM

import loramixer
from loramixer import Intervention, LoraMixerConfig, viz
from loramixer.data.schema import Span
from loramixer.errors import FigureError
from loramixer.viz.recipes import prompt_of
from loramixer.whatif import what_if
from tests.routing_traces import awkward_trace
from tests.tiny import llama, save_experts, tokenizer

NASTY = "the \"dose\" of '''ten''' {x} \\n %s \"\"\" # 🦊\nis ten"


@pytest.fixture(scope="module")
def mixture(tmp_path_factory):
    """A mixture on disk whose backbone is a folder too."""
    folder = tmp_path_factory.mktemp("recipes")
    llama().save_pretrained(folder / "backbone")
    tokenizer().save_pretrained(folder / "backbone")
    config = LoraMixerConfig(experts=save_experts(folder), router_init_std=0.5, task_type="CAUSAL_LM", top_k=2)
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(folder / "backbone"), config)
    model.save_pretrained(folder / "mixture")
    return str(folder / "mixture")


def traced(mixture, k=2, **options):
    model, words = loramixer.load_mixer(mixture)
    loramixer.set_gate(model, "top_k", k=k)
    trace = loramixer.trace(model, words, NASTY, 4, chat=False, **options)
    return dataclasses.replace(trace, provenance={**trace.provenance, "mixer": mixture})


def run(script, folder, monkeypatch):
    monkeypatch.chdir(folder)
    found = {}
    exec(compile(script, "recipe.py", "exec"), found)
    return found


def test_a_script_makes_the_same_figure(mixture, tmp_path, monkeypatch):
    trace = traced(mixture, temperature=0.7, seed=3)
    arguments = {"measure": "b", "layers": (0, 1), "projection": "q_proj", "roles": "both"}
    script = viz.recipe(trace, "token_map", arguments)
    found = run(script, tmp_path, monkeypatch)
    assert found["prompt"] == prompt_of(trace) == NASTY
    np.testing.assert_array_equal(found["trace"].tokens.ids, trace.tokens.ids)
    expected = viz.token_map(trace, **arguments)
    np.testing.assert_allclose(found["figure"].data[0].z, expected.data[0].z, atol=1e-4)
    assert (tmp_path / "token_map.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (tmp_path / "token_map.html").read_text(encoding="utf-8")


def test_two_traces_and_a_what_if(mixture, tmp_path, monkeypatch):
    recorded = traced(mixture)
    other = traced(mixture, k=1)
    found = run(viz.recipe(recorded, "difference_map", {"roles": "prefill"}, other=other), tmp_path, monkeypatch)
    np.testing.assert_allclose(found["other"].gates, other.gates, atol=1e-5)

    changed = what_if(recorded, k=1, bias={"a": math.log(2)})
    found = run(viz.recipe(changed, "load_bars", recorded=recorded), tmp_path, monkeypatch)
    np.testing.assert_allclose(found["trace"].gates, changed.gates, atol=1e-5)
    with pytest.raises(FigureError, match="needs the recorded trace"):
        viz.recipe(changed, "load_bars")


def test_what_cannot_be_written_down_is_refused():
    trace = awkward_trace()
    with pytest.raises(FigureError, match="no figure of a trace"):
        viz.recipe(trace, "to_png; import os")
    with pytest.raises(FigureError, match="cannot be written into a script"):
        viz.recipe(trace, "token_map", {"measure": object()})
    with pytest.raises(FigureError, match="cannot be written into a script"):
        viz.recipe(trace, "token_map", {"x=1, y": 2})
    with pytest.raises(FigureError, match="does not say which mixture"):
        viz.recipe(dataclasses.replace(trace, provenance={}), "token_map")


def test_of_two_traces_each_is_made_under_its_own_mask():
    masked, whole = awkward_trace(masked=["math"]), awkward_trace()
    for first, second in ((masked, whole), (whole, masked)):
        script = viz.recipe(first, "difference_map", other=second, recorded=first)
        assert script.count("loramixer.mask_experts(model, 'math')") == 1


def test_spans_and_a_setting_that_is_off_are_written_down():
    trace = awkward_trace()
    spans = (Span(0, 3, "math"),)
    script = viz.recipe(trace, "difference_map", {"spans_a": spans, "spans_b": spans}, other=trace)
    compile(script, "recipe.py", "exec")
    assert "from loramixer.data.schema import Span" in script
    assert "compare(trace, other, spans_a=(Span(start=0, end=3, domain='math'),), spans_b=(Span(" in script
    changed = what_if(trace, renormalize=False)
    assert "what_if(trace, renormalize=False)" in viz.recipe(changed, "load_bars", recorded=trace)


def test_masked_experts_are_masked_in_the_script():
    assert "loramixer.mask_experts(model, 'math')" in viz.recipe(awkward_trace(masked=["math"]), "load_bars")


HARM = "seed=0)]); raise SystemExit #"


@pytest.mark.parametrize(
    "facts",
    [
        {"interventions": [{"kind": "mask", HARM: 1}]},
        {"interventions": [{"kind": "mask", "seed": math.nan}]},
        {"what_if": {"note": "x", "k": 1, "k=1)\nraise SystemExit #": 1}},
        {"temperature": math.inf},
        {"k": object(), "gate": "top_k"},
    ],
)
def test_facts_of_a_foreign_trace_do_not_become_code(facts):
    trace = awkward_trace(**facts)
    with pytest.raises(FigureError, match="cannot be written into a script"):
        viz.recipe(trace, "load_bars", recorded=awkward_trace())


def test_an_intervention_is_written_down():
    change = Intervention("mask", ("math",), tokens=(2, None))
    script = viz.recipe(awkward_trace(interventions=[change.to_dict()]), "load_bars")
    compile(script, "recipe.py", "exec")
    assert "interventions=[loramixer.Intervention(kind='mask', experts=['math'], tokens=[2, None])]," in script


def test_a_gate_is_set_or_refused():
    assert "set_gate(model, 'uniform', k=2)" in viz.recipe(awkward_trace(gate="uniform", k=2), "load_bars")
    with pytest.raises(FigureError, match=r"gated by 'domain', and a script can set .* is not recorded"):
        viz.recipe(awkward_trace(gate="domain"), "load_bars")
