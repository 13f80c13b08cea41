"""The scan by hand is Transformers' own: same outputs, same last state, same gradients."""

from __future__ import annotations

import pytest
import torch
from transformers.models.falcon_mamba import modeling_falcon_mamba
from transformers.models.mamba import modeling_mamba

from loramixer.training.selective_scan import _Scan, scan_by_hand, selective_scan

ROWS, CHANNELS, STATES, TOKENS = 2, 5, 3, 7
NAMES = ("hidden_states", "dt", "A", "B", "C", "D", "z", "delta_bias")


def arguments(seed: int = 0) -> dict[str, torch.Tensor]:
    make = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=make)

    found = {
        "hidden_states": normal(ROWS, CHANNELS, TOKENS),
        "dt": normal(ROWS, CHANNELS, TOKENS),
        "A": -normal(CHANNELS, STATES).exp(),
        "B": normal(ROWS, STATES, TOKENS),
        "C": normal(ROWS, STATES, TOKENS),
        "D": normal(CHANNELS),
        "z": normal(ROWS, CHANNELS, TOKENS),
        "delta_bias": normal(CHANNELS),
    }
    return {name: value.requires_grad_() for name, value in found.items()}


@pytest.mark.parametrize("file", [modeling_mamba, modeling_falcon_mamba], ids=["mamba", "falcon-mamba"])
def test_outputs_last_state_and_gradients_are_those_of_transformers(file):
    results = {}
    for who, scan in (("theirs", file.mamba_selective_scan), ("ours", selective_scan)):
        given = arguments()
        y, last = scan(**given, delta_softplus=True, return_last_state=True)
        (y * torch.linspace(-1, 1, TOKENS)).sum().backward()
        results[who] = [y, last, *(given[name].grad for name in NAMES)]
    for ours, theirs in zip(results["ours"], results["theirs"], strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


def test_what_is_not_given_is_not_used():
    given = arguments()
    few = {name: given[name] for name in ("hidden_states", "dt", "A", "B", "C")}
    few["dt"] = few["dt"].detach().abs()
    torch.testing.assert_close(selective_scan(**few), modeling_mamba.mamba_selective_scan(**few), atol=1e-5, rtol=1e-4)


def test_gradients_are_those_of_differences():
    make = torch.Generator().manual_seed(1)

    def double(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=make, dtype=torch.float64).requires_grad_()

    delta, driven = double(4, 2, 3), double(4, 2, 3)
    A, B, C = double(2, 3), double(4, 2, 2), double(4, 2, 2)
    assert torch.autograd.gradcheck(lambda *given: _Scan.apply(*given)[0], (delta, driven, -A, B, C))


def test_a_model_scans_by_hand_inside_the_block_only():
    from transformers import MambaConfig, MambaForCausalLM

    model = MambaForCausalLM(MambaConfig(vocab_size=11, hidden_size=8, num_hidden_layers=1, state_size=4))
    former = modeling_mamba.mamba_selective_scan
    with scan_by_hand(model) as used:
        assert used
        assert modeling_mamba.mamba_selective_scan is selective_scan
    assert modeling_mamba.mamba_selective_scan is former
    with scan_by_hand(torch.nn.Linear(2, 2)) as used:
        assert not used
