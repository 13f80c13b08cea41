"""Gates: what they sum to, which experts they choose, and what is refused."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from loramixer.errors import RoutingError
from loramixer.routing import gates, soft_gates, straight_through_gates, top_k_gates

LOGITS = torch.tensor([[2.0, 1.0, 0.0, -1.0], [0.0, 0.0, 3.0, -torch.inf]])


def test_soft_gates_are_the_softmax():
    expected = torch.tensor([2.0, 1.0, 0.0, -1.0]).exp()
    torch.testing.assert_close(soft_gates(LOGITS)[0], expected / expected.sum())


def test_an_absent_expert_gets_exactly_nothing():
    assert soft_gates(LOGITS)[1, 3] == 0
    assert top_k_gates(LOGITS, 4)[1, 3] == 0


def test_top_k_keeps_the_likeliest_and_sums_to_one():
    found = top_k_gates(LOGITS, 2)
    assert found[0].nonzero().flatten().tolist() == [0, 1]
    torch.testing.assert_close(found.sum(-1), torch.ones(2))


def test_top_k_without_renormalising_keeps_the_full_share():
    found = top_k_gates(LOGITS, 2, renormalize=False)
    torch.testing.assert_close(found[0, :2], soft_gates(LOGITS)[0, :2])
    assert found[0].sum() < 1


def test_top_1_is_one_hot_and_all_experts_is_soft():
    assert top_k_gates(LOGITS, 1)[0].tolist() == [1.0, 0.0, 0.0, 0.0]
    torch.testing.assert_close(top_k_gates(LOGITS, 4), soft_gates(LOGITS))


def test_straight_through_is_top_k_forward_and_soft_backward():
    logits = LOGITS[:1].clone().requires_grad_()
    weights = torch.tensor([1.0, 2.0, 3.0, 4.0])
    found = straight_through_gates(logits, 2)
    torch.testing.assert_close(found, top_k_gates(logits, 2))
    (through,) = torch.autograd.grad((found * weights).sum(), logits)
    (soft,) = torch.autograd.grad((soft_gates(logits) * weights).sum(), logits)
    torch.testing.assert_close(through, soft)
    assert (through != 0).all()


@given(st.floats(0.1, 10))
def test_temperature_never_changes_the_order(temperature: float):
    found = gates(LOGITS[:1], "soft", 1, temperature)[0]
    assert found.argsort(descending=True).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("k", [0, 5, -1, 2.0, True])
def test_an_impossible_k_is_refused_in_one_sentence(k):
    with pytest.raises(RoutingError, match="from 1 to 4"):
        top_k_gates(LOGITS, k)
