"""The routing loss over groups of routers that saw different tokens, against the sums written out."""

from __future__ import annotations

import pytest
import torch

from loramixer import LoraMixerConfig
from loramixer.errors import MixerError
from loramixer.losses import load_balance
from loramixer.tuner.routing_loss import TokenGroup, group_by_tokens, routing_loss, routing_statistics

MASK = torch.tensor([True, True, False, True])


def groups() -> list[TokenGroup]:
    generator = torch.Generator().manual_seed(0)
    return [
        TokenGroup(torch.rand(2, 4, 3, generator=generator).softmax(-1), MASK),
        TokenGroup(torch.rand(1, 6, 3, generator=generator).softmax(-1), None),
    ]


def config(**fields) -> LoraMixerConfig:
    return LoraMixerConfig(experts={"a": "x"}, routing_loss="load_balance", top_k=1, **fields)


def test_per_site_is_the_mean_over_all_routers():
    first, second = groups()
    values = [load_balance(router[MASK], k=1) for router in first.p] + [load_balance(second.p[0], k=1)]
    torch.testing.assert_close(routing_loss(config(), groups()), torch.stack(values).mean())


def test_pooled_is_one_router_over_all_tokens_that_count():
    first, second = groups()
    tokens = torch.cat([first.p[0][MASK], first.p[1][MASK], second.p[0]])
    torch.testing.assert_close(routing_loss(config(reduction="pooled"), groups()), load_balance(tokens, k=1))


def test_own_share_is_per_row_over_its_own_tokens():
    first, second = groups()
    rows = [
        torch.stack([first.p[0, :2].mean(0), first.p[1, :2].mean(0), second.p[0, :3].mean(0)]).mean(0),
        torch.stack([first.p[0, 3], first.p[1, 3], second.p[0, 3:].mean(0)]).mean(0),
    ]
    shares = routing_statistics(config(), groups(), torch.tensor([2, 0]))["own_share"]
    torch.testing.assert_close(shares, torch.stack([rows[1][0], torch.tensor(torch.nan), rows[0][2]]), equal_nan=True)


def test_a_site_that_is_called_twice_counts_twice():
    p = torch.rand(2, 3, 4).softmax(-1)
    (group,) = group_by_tokens(["a"], ["tokens"], [(0, p), (0, p)], {})
    assert group.p.shape == (2, 6, 4)


def test_keys_that_could_belong_to_either_text_are_refused():
    with pytest.raises(MixerError, match=r"decoder\.x\.k_proj is a key or value .*leave it out of the experts"):
        group_by_tokens(["decoder.x.k_proj"], ["unknown"], [(0, torch.rand(1, 2, 3))], {"labels": torch.ones(1, 2)})
