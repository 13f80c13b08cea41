"""Routing losses against values that were computed by hand for three tokens and two experts."""

import math

import pytest
import torch
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func as mixtral_loss
from transformers.models.switch_transformers.modeling_switch_transformers import (
    load_balancing_loss_func as switch_loss,
)

from loramixer.errors import RoutingError
from loramixer.losses import (
    ds_moe,
    expert_usage,
    load_balance,
    load_entropy,
    pool_routers,
    rsl,
    token_entropy,
)


def test_a_decided_token_has_no_entropy_in_any_type():
    for dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64):
        assert token_entropy(torch.tensor([[1.0, 0.0]], dtype=dtype)) == 0


P = torch.tensor([[0.9, 0.1], [0.6, 0.4], [0.3, 0.7]], dtype=torch.float64)
"""Mean load (0.6, 0.4); the likeliest expert is the first for two tokens of three."""


def entropy_of(*p: float) -> float:
    return -sum(value * math.log(value) for value in p)


def test_load_balance_by_hand():
    # K Σ p̄ f̄ = 2 · (0.6 · 2/3 + 0.4 · 1/3) = 16/15
    assert load_balance(P, usage="top_1").item() == pytest.approx(16 / 15)
    assert load_balance(P, usage="top_1", scale="paper").item() == pytest.approx(8 / 15)
    # soft: 2 · (0.36 + 0.16)
    assert load_balance(P, usage="soft").item() == pytest.approx(1.04)
    # with k = 2 of 2 every expert is always chosen, so f̄ is even whatever p is
    assert load_balance(P, usage="top_k", k=2).item() == pytest.approx(1.0)


def test_load_balance_equals_the_switch_loss_of_transformers():
    logits = torch.randn(1, 40, 5, generator=torch.Generator().manual_seed(1))
    p = logits.softmax(-1)
    theirs = switch_loss(p, p.argmax(-1).unsqueeze(-1))
    torch.testing.assert_close(load_balance(p[0], usage="top_1"), theirs)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("k", [1, 2, 3])
def test_load_balance_times_k_equals_the_mixtral_loss_of_transformers(k, masked):
    """They pool layers, and count assignments per token, so that their loss is k when the load is even."""
    logits = torch.randn(3, 2 * 20, 5, generator=torch.Generator().manual_seed(1))
    mask = (torch.arange(20) < torch.tensor([[20], [13]])).long() if masked else None
    theirs = mixtral_loss(tuple(logits), num_experts=5, top_k=k, attention_mask=mask)
    pooled = pool_routers(logits.softmax(-1), None if mask is None else mask.flatten().bool())
    torch.testing.assert_close(k * load_balance(*pooled, usage="top_k", k=k)[0], theirs)


def test_entropies_by_hand():
    tokens = (entropy_of(0.9, 0.1) + entropy_of(0.6, 0.4) + entropy_of(0.3, 0.7)) / 3
    assert token_entropy(P).item() == pytest.approx(tokens)
    assert load_entropy(P).item() == pytest.approx(entropy_of(0.6, 0.4))


def test_mutual_information_by_hand():
    tokens = (entropy_of(0.9, 0.1) + entropy_of(0.6, 0.4) + entropy_of(0.3, 0.7)) / 3
    assert ds_moe(P).item() == pytest.approx(tokens - entropy_of(0.6, 0.4))
    assert ds_moe(torch.eye(4)).item() == pytest.approx(-math.log(4))  # balanced specialists
    assert ds_moe(P[:1].expand(5, 2)).item() == pytest.approx(0)  # all tokens route alike


def test_rsl_by_hand_with_both_signs():
    tokens = (entropy_of(0.9, 0.1) + entropy_of(0.6, 0.4) + entropy_of(0.3, 0.7)) / 3
    weights = {"balance_weight": 0.1, "entropy_weight": 0.05, "usage": "top_1"}
    assert rsl(P, entropy="sharpen", **weights).item() == pytest.approx(0.1 * 16 / 15 + 0.05 * tokens)
    assert rsl(P, entropy="flatten", **weights).item() == pytest.approx(0.1 * 16 / 15 - 0.05 * tokens)


@pytest.mark.parametrize(("entropy", "lower"), [("sharpen", True), ("flatten", False)])
def test_the_sign_does_what_its_name_says(entropy, lower):
    logits = torch.randn(50, 4, generator=torch.Generator().manual_seed(0), requires_grad=True)
    before = token_entropy(logits.softmax(-1)).item()
    for _ in range(30):
        loss = rsl(logits.softmax(-1), balance_weight=0.0, entropy_weight=1.0, entropy=entropy)
        (gradient,) = torch.autograd.grad(loss, logits)
        logits = (logits - 5 * gradient).detach().requires_grad_()
    after = token_entropy(logits.softmax(-1)).item()
    assert (after < before) is lower


def test_even_load_is_one_whatever_the_number_of_experts():
    for experts in (2, 3, 8):
        p = torch.eye(experts)
        assert load_balance(p, usage="top_1").item() == pytest.approx(1.0)


def test_use_is_counted_without_gradient():
    logits = torch.randn(6, 4, requires_grad=True)
    assert not expert_usage(logits.softmax(-1), None, "top_k", 2).requires_grad
    assert expert_usage(logits.softmax(-1), None, "soft").requires_grad


@pytest.mark.parametrize("usage", ["top_k", "top_1", "soft"])
def test_padding_never_counts(usage):
    generator = torch.Generator().manual_seed(2)
    p = torch.rand(3, 10, 4, generator=generator, dtype=torch.float64).softmax(-1)
    mask = torch.tensor([True] * 7 + [False] * 3)
    for loss in (
        lambda p, mask: load_balance(p, mask, usage=usage, k=2),
        lambda p, mask: rsl(p, mask, balance_weight=1.0, entropy_weight=0.3, usage=usage, k=2),
        token_entropy,
        load_entropy,
    ):
        torch.testing.assert_close(loss(p, mask), loss(p[:, :7], None))


def test_gradients_are_exact():
    logits = torch.randn(2, 5, 3, dtype=torch.float64, requires_grad=True)

    def loss(logits):
        return rsl(logits.softmax(-1), balance_weight=1.0, entropy_weight=0.2, usage="soft").sum()

    assert torch.autograd.gradcheck(loss, logits)


def test_pooled_routers_cancel_and_single_ones_do_not():
    """Two layers that each collapse on another expert: balanced when pooled, collapsed one by one."""
    first = torch.tensor([[1.0, 0.0]]).expand(4, 2)
    p = torch.stack([first, first.flip(-1)])
    pooled, _ = pool_routers(p, None)
    assert load_balance(pooled, usage="top_1").item() == pytest.approx(1.0)
    assert load_balance(p, usage="top_1").mean().item() == pytest.approx(2.0)


def test_unknown_signs_and_negative_weights_are_refused():
    with pytest.raises(RoutingError, match="sharpen or flatten"):
        rsl(P, balance_weight=1, entropy_weight=1, entropy="peaked")  # type: ignore[arg-type]
    with pytest.raises(RoutingError, match="name the sign"):
        rsl(P, balance_weight=1, entropy_weight=-1)
