"""GMoE, AESL, z-loss, supervised and preservation: by hand for three tokens; and what holds for every loss."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers.models.switch_transformers.modeling_switch_transformers import router_z_loss_func

from loramixer.errors import RoutingError
from loramixer.losses import (
    aesl,
    ds_moe,
    expert_output_gram,
    gmoe,
    load_balance,
    normal_balance,
    output_overlap,
    poisson_distinction,
    preservation,
    probability_variance,
    router_z,
    rsl,
    supervised,
)

P = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)

OUTPUTS = torch.tensor(
    [[[1, 0], [1, 1]], [[2, 0], [0, 3]], [[1, 2], [2, 4]]],
    dtype=torch.float64,
)
"""What two experts give for three tokens: at 45 degrees, orthogonal, and parallel."""


def gram_of(outputs: torch.Tensor) -> torch.Tensor:
    return outputs @ outputs.transpose(-1, -2)


def test_poisson_distinction_by_hand():
    # λ = 1.5: λ and λ²/2 are 1.5 and 1.125, made to sum to 1
    v = (4 / 7, 3 / 7)
    ranked = [(0.9, 0.1), (0.6, 0.4), (0.7, 0.3)]
    terms = [[v_i * math.log(v_i / p_i) for v_i, p_i in zip(v, p, strict=True)] for p in ranked]
    assert poisson_distinction(P).item() == pytest.approx(sum(map(sum, terms)) / 3)
    code = sum(abs(term) for row in terms for term in row) / 3
    assert poisson_distinction(P, form="code").item() == pytest.approx(code)
    assert poisson_distinction(torch.tensor([v[::-1]])).item() == pytest.approx(0, abs=1e-6)


def test_normal_balance_by_hand():
    # k = 1: 0.9 + 0.6 for the first expert, 0.7 for the second. μ = σ = 1.
    load, low = (1.5 / 2.2, 0.7 / 2.2), math.exp(-0.5)
    # i = 1, 2: the first expert lies on the mean
    v = (1 / (1 + low), low / (1 + low))
    terms = [v_i * math.log(v_i / load_i) for v_i, load_i in zip(v, load, strict=True)]
    assert normal_balance(P, k=1).item() == pytest.approx(sum(terms))
    assert normal_balance(P, k=1, form="code").item() == pytest.approx(sum(map(abs, terms)))
    # the paper's form knows experts by their number, the code's does not
    exchanged = [v_i * math.log(v_i / load_i) for v_i, load_i in zip(v, load[::-1], strict=True)]
    assert normal_balance(P.flip(-1), k=1).item() == pytest.approx(sum(exchanged))
    assert normal_balance(P.flip(-1), k=1, form="code").item() == pytest.approx(sum(map(abs, terms)))


def test_gmoe_is_the_weighted_sum():
    expected = 0.5 * poisson_distinction(P, form="code") + 2 * normal_balance(P, k=1, form="code")
    torch.testing.assert_close(gmoe(P, poisson_weight=0.5, normal_weight=2.0, k=1, form="code"), expected)


def test_overlap_by_hand():
    # 45 degrees: 1²/2 + 1²/1; orthogonal: 0; parallel: 10²/20 + 10²/5
    overlap = output_overlap(gram_of(OUTPUTS), P, k=2)
    assert overlap.item() == pytest.approx((1.5 + 0 + 25) / 3)
    code = output_overlap(gram_of(OUTPUTS), P, k=2, form="code")
    assert code.item() == pytest.approx((1.5 + 0 + 25) / 3 / 2, rel=1e-4)
    assert output_overlap(gram_of(OUTPUTS), P, k=1).item() == 0
    assert output_overlap(gram_of(OUTPUTS), P, k=1, form="code").item() == pytest.approx(0, abs=1e-9)


@pytest.mark.parametrize("k", [2, 3])
def test_overlap_is_of_the_chosen_experts_only_and_as_the_formulas_say(k):
    generator = torch.Generator().manual_seed(0)
    outputs = torch.randn(6, 4, 5, generator=generator, dtype=torch.float64)
    p = torch.randn(6, 4, generator=generator, dtype=torch.float64).softmax(-1)
    pairwise, onto_span = 0.0, 0.0
    for x_EF, p_E in zip(outputs, p, strict=True):
        chosen = x_EF[p_E.topk(k).indices]
        for j in range(k):
            others = torch.cat([chosen[:j], chosen[j + 1 :]])
            for x in others:
                pairwise += float((chosen[j] @ x / (x @ x) * x).square().sum()) / 6
            basis, _ = torch.linalg.qr(others.T)
            onto_span += float((basis.T @ chosen[j]).square().sum()) / 6 / k
    assert output_overlap(gram_of(outputs), p, k=k).item() == pytest.approx(pairwise, rel=1e-6)
    assert output_overlap(gram_of(outputs), p, k=k, form="code").item() == pytest.approx(onto_span, rel=1e-4)


@pytest.mark.parametrize("form", ["paper", "code"])
def test_outputs_of_zero_have_no_overlap_and_a_finite_gradient(form):
    """New experts have B = 0."""
    outputs = torch.zeros(3, 2, 4, requires_grad=True)
    overlap = output_overlap(gram_of(outputs), P.float(), k=2, form=form)
    overlap.backward()
    assert overlap.item() == pytest.approx(0, abs=1e-8)
    assert torch.isfinite(outputs.grad).all()


def test_variance_by_hand():
    # over tokens: p̄ = (0.6, 0.4), deviations ±0.3, 0, ∓0.3
    assert probability_variance(P).item() == pytest.approx((0.09 + 0 + 0.09) / 3)
    # over experts, unbiased: 2 · 0.4², 2 · 0.1², 2 · 0.2²
    assert probability_variance(P, form="code").item() == pytest.approx((0.32 + 0.02 + 0.08) / 3)
    assert probability_variance(P[:, :1], form="code").item() == 0


def test_aesl_is_the_weighted_sum_with_minus_the_variance():
    weights = {"balance_weight": 0.1, "orthogonality_weight": 0.01, "variance_weight": 2.0}
    expected = 0.1 * 16 / 15 + 0.01 * 26.5 / 3 - 2 * 0.06
    assert aesl(P, gram_of(OUTPUTS), k=2, usage="top_1", **weights).item() == pytest.approx(expected)
    expected = 0.1 * 16 / 15 + 0.01 * 26.5 / 6 - 2 * 0.14
    found = aesl(P, gram_of(OUTPUTS), k=2, usage="top_1", form="code", **weights)
    assert found.item() == pytest.approx(expected, rel=1e-5)


def test_inner_products_of_outputs_do_not_need_the_outputs():
    """Experts of rank 2, 0 (absent) and 3, on top of each other."""
    generator = torch.Generator().manual_seed(0)
    h_NR, B_RF = torch.randn(4, 5, generator=generator), torch.randn(5, 7, generator=generator)
    outputs = torch.stack([h_NR[:, :2] @ B_RF[:2], torch.zeros(4, 7), h_NR[:, 2:] @ B_RF[2:]], dim=1)
    torch.testing.assert_close(expert_output_gram(h_NR, B_RF, (2, 0, 3)), gram_of(outputs), atol=1e-5, rtol=1e-5)


def test_z_loss_by_hand_and_equal_to_the_one_of_transformers():
    logits = torch.tensor([[0, 0], [math.log(3), 0], [0, -torch.inf]])
    assert router_z(logits).item() == pytest.approx((math.log(2) ** 2 + math.log(4) ** 2 + 0) / 3)
    logits = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(router_z(logits).mean(), router_z_loss_func(logits))


def test_supervised_by_hand():
    own = torch.tensor([0, 1, -1])
    assert supervised(P, own).item() == pytest.approx(-(math.log(0.9) + math.log(0.4)) / 2)
    absent = torch.tensor([[0.9, 0.1], [1.0, 0.0], [0.3, 0.7]])
    assert supervised(absent, torch.tensor([0, 1, 1])).item() == pytest.approx(-(math.log(0.9) + math.log(0.7)) / 2)


def test_preservation_by_hand():
    pairs = [
        (torch.tensor([[1.0, 2.0]]), torch.tensor([[0.0, 2.0]])),
        (torch.tensor([3.0]), torch.tensor([1.0])),
    ]
    assert preservation(pairs).item() == 1 + 4


def test_unknown_forms_are_refused():
    calls: list[Callable[[], torch.Tensor]] = [
        lambda: gmoe(P, form="printed"),  # type: ignore[arg-type]
        lambda: probability_variance(P, form="printed"),  # type: ignore[arg-type]
        lambda: output_overlap(gram_of(OUTPUTS), P, form="printed"),  # type: ignore[arg-type]
    ]
    for call in calls:
        with pytest.raises(RoutingError, match="'printed'; it can be paper or code"):
            call()


AESL = {"balance_weight": 0.3, "orthogonality_weight": 0.5, "variance_weight": 2.0, "k": 2, "usage": "soft"}
OWN = torch.tensor([0, 2, -1, 1, 1])

LOSSES: dict[str, Callable[..., torch.Tensor]] = {
    "load_balance": lambda z, x, own, mask: load_balance(z.softmax(-1), mask, k=2),
    "rsl": lambda z, x, own, mask: rsl(z.softmax(-1), mask, balance_weight=1, entropy_weight=0.2, usage="soft"),
    "ds_moe": lambda z, x, own, mask: ds_moe(z.softmax(-1), mask),
    "gmoe": lambda z, x, own, mask: gmoe(z.softmax(-1), mask, poisson_weight=1, normal_weight=1),
    "gmoe code": lambda z, x, own, mask: gmoe(z.softmax(-1), mask, poisson_weight=1, normal_weight=1, form="code"),
    "aesl": lambda z, x, own, mask: aesl(z.softmax(-1), gram_of(x), mask, **AESL),
    "aesl code": lambda z, x, own, mask: aesl(z.softmax(-1), gram_of(x), mask, form="code", **AESL),
    "router_z": lambda z, x, own, mask: router_z(z, mask),
    "supervised": lambda z, x, own, mask: supervised(z.softmax(-1), own, mask),
}
"""Every loss of tokens as a function of logits, outputs of experts, own experts and mask."""


def case(tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits ``[2, N, 3]`` of two routers and outputs ``[2, N, 3, 4]``."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(2, tokens, 3, generator=generator, dtype=torch.float64)
    return logits, torch.randn(2, tokens, 3, 4, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_exact(name):
    logits, outputs = (tensor.requires_grad_() for tensor in case(5))
    assert torch.autograd.gradcheck(lambda z, x: LOSSES[name](z, x, OWN, None).sum(), (logits, outputs))


def test_the_gradient_of_preservation_is_exact():
    matrices = torch.randn(2, 3, 4, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda theta: preservation([(theta, matrices[1])]), matrices[0].requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_padding_never_counts_and_routers_do_not_mix(name):
    logits, outputs = case(8)
    own = torch.cat([OWN, torch.tensor([0, 1, 2])])
    mask = torch.arange(8) < 5
    found = LOSSES[name](logits, outputs, own, mask)
    assert found.shape == (2,)
    alone = [LOSSES[name](logits[site, :5], outputs[site, :5], OWN, None) for site in range(2)]
    torch.testing.assert_close(found, torch.stack(alone))
    assert not torch.isclose(found, LOSSES[name](logits, outputs, own, None)).any()
