"""The routing loss over groups of routers that saw different tokens, against the sums written out."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from loramixer import LoraMixerConfig
from loramixer.errors import MixerError
from loramixer.losses import Form, load_balance, preservation
from loramixer.tuner.config import RoutingLoss
from loramixer.tuner.routing_loss import TokenGroup, group_by_tokens, routing_loss, routing_statistics
from loramixer.tuner.runtime import OutputNorms, RoutingCapture, SiteCall
from loramixer.tuner.sites import TokenStream

MASK = torch.tensor([True, True, False, True])


def groups() -> list[TokenGroup]:
    generator = torch.Generator().manual_seed(0)
    return [
        TokenGroup(torch.rand(2, 4, 3, generator=generator).softmax(-1), MASK),
        TokenGroup(torch.rand(1, 6, 3, generator=generator).softmax(-1), None),
    ]


def config(**fields) -> LoraMixerConfig:
    return LoraMixerConfig(experts={"a": "x"}, **{"routing_loss": "load_balance", "top_k": 1, **fields})


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
    (group,) = group_by_tokens(["a"], ["tokens"], [SiteCall(0, p), SiteCall(0, p)], {})
    assert group.p.shape == (2, 6, 4)


def test_sites_on_several_devices_meet_on_that_of_the_first():
    """As a `device_map` over several GPUs leaves them; the device without memory stands for the first one."""
    p, gram = torch.rand(2, 3, 4).softmax(-1), torch.rand(6, 4, 4)
    calls = [
        SiteCall(site, p.to(device), p.flatten(0, -2).to(device), gram.to(device))
        for site, device in enumerate(["meta", "cpu", "cpu"])
    ]
    streams: list[TokenStream] = ["encoder", "encoder", "decoder"]
    inputs = {"attention_mask": torch.ones(2, 3), "decoder_attention_mask": torch.ones(2, 3)}
    found = group_by_tokens(["a", "b", "c"], streams, calls, inputs)
    assert [len(group.p) for group in found] == [2, 1]
    for group in found:
        assert {part.device.type for part in (group.p, group.mask, group.logits, group.output_gram)} == {"meta"}
    index = torch.tensor([0, 3])
    for reduction in ("per_site", "pooled"):
        assert routing_loss(config(reduction=reduction, z_weight=0.1), found, index).is_meta
    assert routing_statistics(config(), found, index)["own_share"].is_meta


def test_a_capture_gathers_sites_of_several_devices():
    capture = RoutingCapture(["a", "b"], ["tokens", "tokens"], contributions=True)
    for site, device in enumerate(["meta", "cpu"]):
        p, norms = torch.rand(1, 3, 4, device=device), OutputNorms(torch.rand(3, 4, device=device), torch.rand(3))
        capture.add(site, p, p, OutputNorms(norms.experts, norms.base.to(device)))
    (found,) = capture.take_streams().values()
    assert all(part.is_meta and len(part) == 2 for part in (found.logits, found.gates, found.contributions))


def test_preserved_experts_may_lie_on_several_devices():
    pairs = [(torch.ones(2, device=device), torch.zeros(2, device=device)) for device in ("meta", "cpu")]
    assert preservation(pairs).is_meta


def test_keys_that_could_belong_to_either_text_are_refused():
    with pytest.raises(MixerError, match=r"decoder\.x\.k_proj is a key or value .*leave it out of the experts"):
        group_by_tokens(
            ["decoder.x.k_proj"], ["unknown"], [SiteCall(0, torch.rand(1, 2, 3))], {"labels": torch.ones(1, 2)}
        )


def filled_groups() -> list[TokenGroup]:
    """The groups with everything that any loss may need."""
    generator = torch.Generator().manual_seed(1)
    found = []
    for group in groups():
        logits = torch.randn(group.p.shape, generator=generator)
        outputs = torch.randn(*group.p.shape, 4, generator=generator)
        found.append(TokenGroup(logits.softmax(-1), group.mask, logits, outputs @ outputs.transpose(-1, -2)))
    return found


@pytest.mark.parametrize("form", get_args(Form))
@pytest.mark.parametrize("name", get_args(RoutingLoss))
def test_every_loss_can_be_pooled(name, form):
    """Against one router that sees the tokens of all of them."""
    settings = config(routing_loss=name, loss_form=form, z_weight=0.1)
    pooled = config(routing_loss=name, loss_form=form, z_weight=0.1, reduction="pooled")
    first, second = filled_groups()
    parts = [
        torch.cat([first_part[0][MASK], first_part[1][MASK], second_part[0]]).unsqueeze(0)
        for first_part, second_part in (
            (first.p, second.p),
            (first.logits, second.logits),
            (first.output_gram, second.output_gram),
        )
    ]
    p, logits, output_gram = parts
    # Rows 1 and 0: tokens of the first group are two per row, those of the second are three.
    own = torch.tensor([1, 1, 0, 1, 1, 0, 1, 1, 1, 0, 0, 0])
    expected = routing_loss(settings, [TokenGroup(p, None, logits, output_gram)], own)
    torch.testing.assert_close(routing_loss(pooled, filled_groups(), torch.tensor([1, 0])), expected)


def test_the_supervised_loss_is_of_each_rows_own_expert():
    first, second = groups()
    terms = [[router[MASK][:2, 1].log(), router[3:, 0].log()] for router in first.p]
    terms.append([second.p[0][:3, 1].log(), second.p[0][3:, 0].log()])
    expected = torch.stack([-torch.cat(site).mean() for site in terms]).mean()
    found = routing_loss(config(routing_loss="supervised"), groups(), torch.tensor([1, 0]))
    torch.testing.assert_close(found, expected)
    with pytest.raises(MixerError, match="needs the own expert of each row"):
        routing_loss(config(routing_loss="supervised"), groups())
