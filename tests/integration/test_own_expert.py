"""`expert_index` of a training batch: one expert of the mixture, or none, for every row."""

from __future__ import annotations

import pytest
import torch

from loramixer.errors import MixerError, RoutingError
from loramixer.tuner.runtime import set_gate
from tests import tiny

IDS = tiny.token_ids(2, 7)


@pytest.fixture
def model(experts):
    return tiny.mixture(experts, routing_loss="supervised", training_gate="domain").train()


@pytest.mark.parametrize("index", [[0, 3], [-2, 0], [0, 99]])
def test_an_expert_that_there_is_not_is_refused(model, index):
    odd = next(value for value in index if value)
    with pytest.raises(MixerError, match=f"expert_index holds {odd}, but this mixture has 3 experts; .*0 to 2"):
        model(input_ids=IDS, labels=IDS, expert_index=torch.tensor(index))


@pytest.mark.parametrize("count", [1, 3, 4, 14])
def test_another_number_than_that_of_the_rows_is_refused(model, count):
    with pytest.raises(MixerError, match=f"expert_index has {count} entries, but this batch has 2 rows"):
        model(input_ids=IDS, labels=IDS, expert_index=torch.zeros(count, dtype=torch.int64))


def logits(model, *index: int, **more) -> torch.Tensor:
    given = {"expert_index": torch.tensor(index)} if index else {}
    with torch.no_grad():
        return model(input_ids=IDS, **given, **more).logits


def test_domains_of_a_batch_need_no_labels_and_never_outlive_it(model):
    """Losses of one's own, label smoothing: then the model sees no labels."""
    with torch.no_grad():
        model(input_ids=IDS, labels=IDS, expert_index=torch.tensor([0, 1]))
    first, second = logits(model, 0, 0), logits(model, 2, 2)
    assert not torch.equal(first, second)
    assert torch.equal(logits(model, 0, 0), first)
    with pytest.raises(RoutingError, match="needs the domain of each row"):
        logits(model)
    with pytest.raises(MixerError, match="expert_index holds 3"):
        logits(model, 0, 3)


def test_in_evaluation_the_rows_domain_goes_before_that_of_the_gate(experts):
    model = tiny.mixture(experts, gate="domain").eval()
    with pytest.raises(RoutingError, match="needs the domain of each row"):
        logits(model)
    by_row = logits(model, 0, 2)
    set_gate(model, domain="b")
    assert torch.equal(logits(model, 0, 2), by_row)
    of_b = logits(model)
    assert not torch.equal(of_b, by_row)
    set_gate(model, domain=["a", "c"])
    assert torch.equal(logits(model), by_row)


def test_rows_without_an_own_expert_are_allowed(experts):
    model = tiny.mixture(experts, routing_loss="supervised").train()
    for index in ([-1, 2], [-1, -1]):
        assert model(input_ids=IDS, labels=IDS, expert_index=torch.tensor(index)).loss.isfinite()


def test_rows_that_lie_in_one_line_have_an_expert_for_every_token(experts):
    model = tiny.mixture(experts, routing_loss="supervised").train()
    line, index = IDS.view(1, -1), torch.tensor([0, 1])
    assert model(input_ids=line, labels=line, expert_index=index.repeat_interleave(7)).loss.isfinite()
    beginning = torch.tensor([0, 1, *range(2, 14), 0, 1])  # of a row that shares two tokens with the first one
    assert model(
        input_ids=line, labels=line, expert_index=torch.zeros(16, dtype=torch.int64), row_tokens=beginning
    ).loss.isfinite()
    with pytest.raises(MixerError, match="has 15 entries, but this batch is one row of 16 tokens"):
        model(input_ids=line, labels=line, expert_index=torch.zeros(15, dtype=torch.int64), row_tokens=beginning)
