"""Routers that were kept along a training: exchanged in place, they route as the saved mixture does."""

from __future__ import annotations

import numpy as np
import pytest

from loramixer import add_mixer, list_mixers, trace
from loramixer.errors import MixerError
from loramixer.kept_routers import kept_at, kept_info, kept_steps, routers_at
from tests import tiny

RSL = "smollm2-135m/rsl"


@pytest.fixture
def saved(tmp_path):
    """Experts, and a saved mixture of them with its own routers."""
    experts = tiny.save_experts(tmp_path / "experts")
    tiny.mixture(experts, seed=8).save_pretrained(tmp_path / "kept")
    return experts, tmp_path / "kept"


def traced(model):
    return trace(model, tiny.tokenizer(), "the dose is ten", chat=False)


def test_exchanged_routers_are_those_of_the_folder_and_the_former_ones_return(saved):
    experts, folder = saved
    model = tiny.mixture(experts)
    before = traced(model)
    with routers_at(model, folder):
        during = traced(model)
    after = traced(model)
    add_mixer(model, folder)
    expected = traced(model)
    np.testing.assert_array_equal(during.logits, expected.logits)
    for fact in ("mixer", "router_sha256"):
        assert during.provenance[fact] == expected.provenance[fact]
        assert after.provenance[fact] == before.provenance[fact] != during.provenance[fact]
    np.testing.assert_array_equal(after.logits, before.logits)
    assert not np.allclose(during.logits, before.logits)


def test_the_former_routers_return_after_an_error(saved):
    experts, folder = saved
    model = tiny.mixture(experts)
    before = traced(model)
    with pytest.raises(ZeroDivisionError), routers_at(model, folder):
        raise ZeroDivisionError
    np.testing.assert_array_equal(traced(model).logits, before.logits)


def test_routers_over_other_experts_are_refused(saved, tmp_path):
    experts, folder = saved
    fewer = tiny.mixture({name: experts[name] for name in ("a", "b")})
    others = tiny.mixture({name: experts[other] for name, other in zip("abc", "bca", strict=True)})
    for model in (fewer, others):
        before = traced(model)
        with pytest.raises(MixerError, match="choose among a, b, c"), routers_at(model, folder):
            raise AssertionError("the block must not run")
        np.testing.assert_array_equal(traced(model).logits, before.logits)


def test_the_zoo_names_its_kept_routers_and_lists_them_with_no_others():
    steps = kept_steps(RSL)
    assert list(steps) == sorted(steps)
    assert steps[0] == "smollm2-135m/replay/rsl/step-00000"
    assert kept_at(steps[100]) == (RSL, 100)
    assert kept_at(RSL) is None
    assert not set(steps.values()) & {info.name for info in list_mixers()}
    trained = next(info for info in list_mixers() if info.name == RSL)
    assert kept_info(steps[100]).title == f"{trained.title}, step 100"
    assert kept_info(steps[100]).loss == trained.loss
    for nothing in ("smollm2-135m/nobody", "smollm2-135m", "../rsl", "own/abc", ""):
        assert kept_steps(nothing) == {}
    with pytest.raises(MixerError, match="kept along a training"):
        kept_info("smollm2-135m/replay/rsl/step-00007")


def test_the_shipped_steps_route_as_they_are_loaded(embedded_backbone):
    from loramixer import load_mixer

    model, tokenizer = load_mixer(RSL)
    prompt = "A patient weighs 62 kg."
    trained = trace(model, tokenizer, prompt)
    early = {}
    for step, name in kept_steps(RSL).items():
        with routers_at(model, name):
            early[step] = trace(model, tokenizer, prompt)
    with routers_at(model, kept_steps("smollm2-135m/load-balance")[100]):
        other = trace(model, tokenizer, prompt)
    add_mixer(model, kept_steps(RSL)[100])
    loaded = trace(model, tokenizer, prompt)
    np.testing.assert_array_equal(early[100].gates, loaded.gates)
    assert early[100].provenance["router_sha256"] == loaded.provenance["router_sha256"]
    assert not np.allclose(other.gates, early[100].gates)
    # Routers come closer to where the training ended.
    distances = [np.abs(early[step].logits - trained.logits).mean() for step in (0, 100, 200)]
    assert distances == sorted(distances, reverse=True)
